//! Sums over ranks in a fixed binary tree, and the gathering of what each rank has updated.
//!
//! The step's lanes are joined pairwise: (0+1), (2+3), then those two, and so on. A rank holds consecutive lanes, which it has joined
//! by itself ([`Lanes`](super::lanes::Lanes)); the upper levels of the tree are recursive halving over ranks, nearest neighbour first. An addition
//! of two floats has one result, on whichever rank it is made, so every element has the same sum for any number of ranks.

use super::group::ProcessGroup;
use super::shards::Shards;
use crate::ops::adamw::{add_assign, add_floats};
use crate::ops::transfer::to_host;
use crate::ops::{cpu, is_on_gpu};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

/// Elements exchanged at a time: 64 MB, so that what is received needs no second gradient buffer.
pub const CHUNK: usize = 1 << 24;

/// Adds up `flat` over all ranks. Afterwards the shard of this rank holds the sum; the rest of `flat` is of no use.
///
/// # Errors
/// Those of the exchange and of the device.
pub fn reduce_scatter(group: &ProcessGroup, flat: &Tensor, shards: &Shards) -> Result<()> {
    for round in shards.rounds(group.rank()) {
        let longest = round.kept.len().max(round.given.len());
        for from in (0..longest).step_by(CHUNK) {
            let kept = chunk(&round.kept, from);
            let given = chunk(&round.given, from);
            exchange_and_add(group, round.peer, flat, given, kept)?;
        }
    }
    Ok(())
}

/// Gives every rank the shards of all others.
///
/// # Errors
/// Those of the exchange and of the device.
pub fn all_gather(group: &ProcessGroup, flat: &Tensor, shards: &Shards) -> Result<()> {
    for round in shards.rounds(group.rank()).into_iter().rev() {
        let longest = round.kept.len().max(round.given.len());
        for from in (0..longest).step_by(CHUNK) {
            exchange_parts(group, round.peer, flat, chunk(&round.kept, from), chunk(&round.given, from))?;
        }
    }
    Ok(())
}

/// Puts the shards that all ranks hold, each in `own`, together in `whole` on rank 0; the others have no `whole`.
///
/// # Errors
/// Those of the exchange and of the device.
pub fn gather_on_first(
    group: &ProcessGroup,
    own: &Tensor,
    mut whole: Option<&mut [f32]>,
    shards: &Shards,
) -> Result<()> {
    for owner in shards.owners() {
        let span = shards.of_rank(owner);
        for from in (0..span.len()).step_by(CHUNK) {
            let part = chunk(&span, from);
            let place = part.start - span.start..part.end - span.start;
            match &mut whole {
                Some(whole) if owner == 0 => with_floats(own, &place, |own| {
                    whole[part].copy_from_slice(own);
                    Ok(())
                })?,
                Some(whole) => group.exchange_floats(owner, &[], &mut whole[part])?,
                None if owner == group.rank() => {
                    with_floats(own, &place, |own| group.exchange_floats(0, own, &mut []))?;
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// Gives `f` the elements `range` of `flat` in f32 in the memory of the machine.
pub(super) fn with_floats(flat: &Tensor, range: &Range<usize>, f: impl FnOnce(&[f32]) -> Result<()>) -> Result<()> {
    if flat.device().is_cpu() && flat.dtype() == DType::F32 {
        // Without a copy, which would add a shard to the most memory that a rank takes.
        return cpu::read("exchange", [flat], |[flat]| Ok(f(&flat[range.clone()])))?;
    }
    f(&to_host(&copy_of(flat, range)?)?.to_dtype(DType::F32)?.to_vec1::<f32>()?)
}

/// The elements of `range` from its element `from` on, at most a chunk of them.
fn chunk(range: &Range<usize>, from: usize) -> Range<usize> {
    let start = (range.start + from).min(range.end);
    start..(start + CHUNK).min(range.end)
}

/// Sends the elements `given` of `flat` to `peer`, and adds what it sends to the elements `kept`.
fn exchange_and_add(
    group: &ProcessGroup,
    peer: usize,
    flat: &Tensor,
    given: Range<usize>,
    kept: Range<usize>,
) -> Result<()> {
    if is_on_gpu(flat) {
        let received = room_for(kept.len(), flat)?;
        group.exchange_tensors(peer, &copy_of(flat, &given)?, &received)?;
        if !kept.is_empty() {
            add_assign(&flat.narrow(0, kept.start, kept.len())?, &received)?;
        }
        return Ok(());
    }
    with_slice(flat, |flat| {
        let mut received = cpu::output(kept.len());
        group.exchange_floats(peer, &flat[given], &mut received)?;
        add_floats(&mut flat[kept], &received);
        Ok(())
    })
}

/// Sends the elements `given` of `flat` to `peer` and receives its elements `wanted`.
fn exchange_parts(
    group: &ProcessGroup,
    peer: usize,
    flat: &Tensor,
    given: Range<usize>,
    wanted: Range<usize>,
) -> Result<()> {
    if is_on_gpu(flat) {
        let received = room_for(wanted.len(), flat)?;
        group.exchange_tensors(peer, &copy_of(flat, &given)?, &received)?;
        if !wanted.is_empty() {
            flat.slice_set(&received, 0, wanted.start)?;
        }
        return Ok(());
    }
    with_slice(flat, |flat| {
        let (send, receive) = disjoint(flat, given, wanted);
        group.exchange_floats(peer, send, receive)
    })
}

/// Two ranges of `flat` that have no element in common.
fn disjoint(flat: &mut [f32], read: Range<usize>, write: Range<usize>) -> (&[f32], &mut [f32]) {
    if read.end <= write.start {
        let (left, right) = flat.split_at_mut(write.start);
        (&left[read], &mut right[..write.len()])
    } else {
        let (left, right) = flat.split_at_mut(read.start);
        (&right[..read.len()], &mut left[write])
    }
}

/// A tensor of its own with the elements `range` of `flat`.
fn copy_of(flat: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    if range.is_empty() {
        return Ok(nothing(flat.dtype())?);
    }
    Ok(flat.narrow(0, range.start, range.len())?.force_contiguous()?)
}

/// A tensor without elements. It is in the memory of the machine, because no GPU gives memory for nothing.
pub(super) fn nothing(dtype: DType) -> candle_core::Result<Tensor> {
    Tensor::zeros(0, dtype, &Device::Cpu)
}

/// A tensor for `n` elements like those of `flat`.
fn room_for(n: usize, flat: &Tensor) -> Result<Tensor> {
    Ok(if n == 0 { nothing(flat.dtype())? } else { Tensor::zeros(n, flat.dtype(), flat.device())? })
}

/// Gives `f` the elements of a flat f32 buffer on the CPU.
fn with_slice(flat: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let mut f = Some(f);
    let mut result = Ok(());
    cpu::update("exchange", flat, |slice| {
        if let Some(f) = f.take() {
            result = f(slice);
        }
        Ok(())
    })?;
    result
}
