//! What a rank does with its shard: sums of gradients, their norm, and the weights that all ranks need again.

use super::exact::Exact;
use super::group::ProcessGroup;
use super::message::garbled;
use super::shards::Shards;
use super::tree;
use crate::ops::adamw::{global_norm, norm_of_pieces, norm_piece, squares_of_pieces};
use crate::ops::flat::Range;
use crate::ops::squares::{LastUpdate, Squares, piece_squares, pieces, sums_of_ranges};
use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// The flat buffers of a run, cut into the shards of its ranks.
#[derive(Clone, Debug)]
pub struct Sharding {
    pub group: ProcessGroup,
    shards: Shards,
}

impl Sharding {
    /// Of buffers like `grad`.
    pub fn new(group: &ProcessGroup, grad: &Tensor) -> Self {
        let shards = Shards::new(grad.elem_count(), norm_piece(grad), group.ranks());
        Self { group: group.clone(), shards }
    }

    /// The elements that this rank owns.
    pub fn own(&self) -> std::ops::Range<usize> {
        self.shards.of_rank(self.group.rank())
    }

    /// The elements of `flat` that this rank owns.
    ///
    /// # Errors
    /// Those of the device.
    pub fn own_part(&self, flat: &Tensor) -> candle_core::Result<Tensor> {
        let own = self.own();
        if own.is_empty() { tree::nothing(flat.dtype()) } else { flat.narrow(0, own.start, own.len()) }
    }

    /// Adds up the gradients of all ranks: each has the sums of its shard afterwards, and nothing of use elsewhere.
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn sum_gradients(&self, grad: &Tensor) -> Result<()> {
        tree::reduce_scatter(&self.group, grad, &self.shards)
    }

    /// Gives every rank the shards of `flat` that the others own.
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn gather(&self, flat: &Tensor) -> Result<()> {
        tree::all_gather(&self.group, flat, &self.shards)
    }

    /// On rank 0 the whole of a buffer of which every rank has its shard in `own`, in `whole`, which is of its length; other ranks give no
    /// `whole`.
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn gather_on_first(&self, own: &Tensor, whole: Option<&mut [f32]>) -> Result<()> {
        tree::gather_on_first(&self.group, own, whole, &self.shards)
    }

    /// The global norm of the summed gradients, the same bits for any number of ranks.
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn global_norm(&self, grad: &Tensor) -> Result<f64> {
        if self.group.ranks() == 1 {
            return Ok(global_norm(grad)?);
        }
        let own = if self.own().is_empty() { Vec::new() } else { squares_of_pieces(&self.own_part(grad)?)? };
        let own: Vec<Exact> = own.into_iter().map(Exact).collect();
        let all = self.group.gather("the norm of the gradient", &own)?;
        let in_order: Vec<f64> = self.shards.owners().flat_map(|rank| &all[rank]).map(|sum| sum.0).collect();
        Ok(norm_of_pieces(&in_order, grad)?)
    }

    /// The sums of squares of `ranges` of the whole buffers, of which `own` are this rank's shards (weights, gradients and both
    /// moments); every rank gets all of them.
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn squares(&self, own: [&Tensor; 4], ranges: &[Range], rule: &LastUpdate) -> Result<Vec<Squares>> {
        let pieces: Vec<Range> = ranges.iter().flat_map(pieces).collect();
        let owners: Vec<Vec<usize>> = pieces.iter().map(|piece| self.owners_of_parts(piece)).collect();
        let inner = pieces.iter().zip(&owners).filter(|(_, owners)| **owners == [self.group.rank()]);
        let inner: Vec<Range> = inner.filter_map(|(piece, _)| piece.within(&self.own())).collect();
        let inner = if inner.is_empty() { Vec::new() } else { piece_squares(own, &inner, rule)? };
        let mut cut = Vec::new();
        for (piece, owners) in pieces.iter().zip(&owners).filter(|(_, owners)| owners.len() > 1) {
            cut.extend(self.cut_piece(own, piece, owners, rule)?);
        }
        let own_sums = [inner, cut].map(|sums| sums.iter().map(ExactSquares::from).collect::<Vec<_>>());
        let all = self.group.gather("the norms of layers", &own_sums)?;
        let mut all: Vec<_> = all.into_iter().map(|sums| sums.map(Vec::into_iter)).collect();
        let sums = owners.iter().map(|owners| {
            let is_cut = owners.len() > 1;
            all[*owners.first()?][usize::from(is_cut)].next().map(Squares::from)
        });
        let sums: Vec<Squares> = sums.collect::<Option<_>>().ok_or_else(garbled)?;
        Ok(sums_of_ranges(ranges, &sums))
    }

    /// The sums of a piece that lies in the shards of several `owners`, on the first of them alone. That one gets the elements of the
    /// others, because sums of parts would be other bits: a GPU adds the elements of a piece in an order of its own.
    fn cut_piece(
        &self,
        own: [&Tensor; 4],
        piece: &Range,
        owners: &[usize],
        rule: &LastUpdate,
    ) -> Result<Option<Squares>> {
        let [weight, grad, exp_avg, exp_avg_sq] = own.map(|flat| self.whole_piece(flat, piece, owners));
        let [Some(weight), Some(grad), Some(exp_avg), Some(exp_avg_sq)] = [weight?, grad?, exp_avg?, exp_avg_sq?]
        else {
            return Ok(None);
        };
        let all = Range { start: 0, ..*piece };
        Ok(piece_squares([&weight, &grad, &exp_avg, &exp_avg_sq], &[all], rule)?.into_iter().next())
    }

    /// The ranks that own elements of `piece`, in the order of the elements.
    fn owners_of_parts(&self, piece: &Range) -> Vec<usize> {
        self.shards.owners().filter(|&rank| piece.within(&self.shards.of_rank(rank)).is_some()).collect()
    }

    /// Takes the elements of `piece` to the first of `owners`, which alone returns them. `own` is this rank's shard.
    fn whole_piece(&self, own: &Tensor, piece: &Range, owners: &[usize]) -> Result<Option<Tensor>> {
        let Some((part, (first, others))) = piece.within(&self.own()).zip(owners.split_first()) else {
            return Ok(None);
        };
        let mut whole = Vec::with_capacity(piece.len);
        tree::with_floats(own, &(part.start..part.start + part.len), |floats| {
            whole.extend_from_slice(floats);
            Ok(())
        })?;
        if *first != self.group.rank() {
            self.group.exchange_floats(*first, &whole, &mut [])?;
            return Ok(None);
        }
        for &other in others {
            let length = piece.within(&self.shards.of_rank(other)).map_or(0, |part| part.len);
            let mut theirs = vec![0f32; length];
            self.group.exchange_floats(other, &[], &mut theirs)?;
            whole.extend(theirs);
        }
        // A float that was a bf16 is one again.
        let whole = Tensor::from_vec(whole, piece.len, &Device::Cpu)?.to_dtype(own.dtype())?;
        Ok(Some(whole.to_device(own.device())?))
    }
}

/// [`Squares`] as they travel.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct ExactSquares([Exact; 5]);

impl From<&Squares> for ExactSquares {
    fn from(sums: &Squares) -> Self {
        Self([sums.grad, sums.weight, sums.update, sums.adam, sums.n].map(Exact))
    }
}

impl From<ExactSquares> for Squares {
    fn from(ExactSquares([grad, weight, update, adam, n]): ExactSquares) -> Self {
        Self { grad: grad.0, weight: weight.0, update: update.0, adam: adam.0, n: n.0 }
    }
}

#[cfg(test)]
mod tests;
