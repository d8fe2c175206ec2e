//! Products of strided matrices, `dst = [dst +] alpha · lhs · rhs`, from first principles: pack, then multiply tile by tile. Elements are f32
//! or bf16, sums are f32.
//!
//! The scheme is that of Goto & van de Geijn (2008): the right operand is packed into panels of 32 columns, the left one into panels of 12
//! rows x 256 terms that stay in the first cache, and a kernel keeps a 12 x 32 tile in registers. It is not taken from a library because
//! half of a training step on a CPU is spent in it: packed operands can be used several times, and the bits are ours to define.
//! **In f32 every element is, per 256 terms of the inner dimension, one chain of fused multiply-adds in their order, and the sum of these
//! chains in their order**: neither the number of threads, nor the sizes of blocks, nor the width of the processor's registers changes a
//! bit (a processor without fused multiply-add rounds differently). `pairs` and `tiles` state the order of their sums in bf16.
//!
//! rayon distributes blocks of the destination to threads by work stealing; idle threads sleep, and there are no spin barriers.

mod arithmetic;
mod kernel;
mod mat;
mod pack;
mod packed;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod rounded;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod transpose;
mod words;

use super::cpu::SharedMut;
use super::elements::Element;
use super::precision::Precision;
use arithmetic::Arithmetic;
use half::bf16;
use kernel::{KC, Kernels, MR, NR, Tile};
pub(crate) use mat::{Mat, Operand};
use mat::{for_operands, span};
use packed::Buffer;
pub(crate) use packed::{PANEL, Packed, Panels};
use rayon::prelude::*;
pub(crate) use rounded::matmul_rounded;
use std::cell::RefCell;
use std::sync::OnceLock;
use words::Pack;

/// Whether the product replaces the destination's values or is added to them.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Into {
    Overwrite,
    Accumulate,
}

/// Buffers that a thread keeps for its next product.
#[derive(Default)]
struct Scratch {
    lhs: Buffer,
    rhs: Packed,
    sums: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Calls `f` with this thread's buffers. They are taken out for the time of the call: while `f` waits, this thread may steal another task,
/// which must not find them.
fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SCRATCH.take();
    let result = f(&mut scratch);
    SCRATCH.replace(scratch);
    result
}

fn kernels() -> &'static Kernels {
    static KERNELS: OnceLock<Kernels> = OnceLock::new();
    KERNELS.get_or_init(Kernels::new)
}

/// The destination of a product, and how it is written.
#[derive(Clone, Copy)]
struct Target {
    dst: SharedMut,
    stride: usize,
    into: Into,
    alpha: f32,
}

/// Below this many multiply-adds a product runs on the calling thread.
const PARALLEL_FROM: usize = 1 << 18;

/// The number of threads that a product of these sizes is spread over.
fn threads_for(m: usize, n: usize, k: usize) -> usize {
    if m * n * k >= PARALLEL_FROM { rayon::current_num_threads() } else { 1 }
}

/// Floats of the right operand that are packed at once: 4 MiB, a part of the last cache.
const STRIPE: usize = 1 << 20;

/// `dst (rows of dst_stride) = [dst +] alpha · lhs · rhs`, spread over the threads when it pays.
pub(crate) fn matmul<'a>(
    dst: &mut [f32],
    dst_stride: usize,
    into: Into,
    alpha: f32,
    lhs: impl std::convert::Into<Operand<'a>>,
    rhs: impl std::convert::Into<Operand<'a>>,
    precision: Precision,
) {
    let arithmetic = Arithmetic::new(precision);
    let (lhs, rhs) = (lhs.into(), rhs.into());
    for_operands!(|lhs, rhs| matmul_as(dst, dst_stride, into, alpha, lhs, rhs, arithmetic))
}

fn matmul_as<L: Pack, R: Pack>(
    dst: &mut [f32],
    dst_stride: usize,
    into: Into,
    alpha: f32,
    lhs: Mat<L>,
    rhs: Mat<R>,
    arithmetic: Arithmetic,
) {
    assert_eq!(lhs.cols, rhs.rows, "inner dimensions differ");
    assert!(span(lhs.rows, rhs.cols, dst_stride, 1) <= dst.len(), "product does not fit its buffer");
    let m = lhs.rows;
    let n = rhs.cols;
    let k = lhs.cols;
    // An empty sum is 0, and the loops below would write nothing.
    if k == 0 && into == Into::Overwrite {
        (0..m).for_each(|i| dst[i * dst_stride..][..n].fill(0.0));
    }
    let target = Target { dst: SharedMut::new(dst), stride: dst_stride, into, alpha };
    let threads = threads_for(m, n, k);
    // As many terms as leave room for a stripe of all columns, but not so few of either that packing outweighs the product.
    let chain = arithmetic.chain();
    let terms = (STRIPE / n.next_multiple_of(NR).max(1) / chain * chain).max(4 * KC).min(k.max(1));
    // Whole chains and panels: where a stripe is cut does not change which terms form one chain.
    let columns = (STRIPE / terms / NR * NR).max(NR);
    // Taken out of the scratch: while this thread waits for the others it may steal a task that multiplies as well.
    let mut packed = with_scratch(|s| std::mem::take(&mut s.rhs));
    packed.arithmetic = arithmetic;
    for from in (0..k).step_by(terms) {
        let depth = terms.min(k - from);
        for col in (0..n).step_by(columns) {
            let width = columns.min(n - col);
            pack_stripe(&mut packed, &rhs, (from, depth), (col, width), threads);
            // Later terms add to what the first ones wrote, always in the order of the terms.
            let into = if from == 0 { into } else { Into::Accumulate };
            stripe(Target { into, ..target }, lhs, from, col, packed.panels(), threads);
        }
    }
    with_scratch(|s| s.rhs = packed);
}

/// Packs terms `from..from + depth` and columns `col..col + width` of `rhs`.
fn pack_stripe<T: Pack>(
    packed: &mut Packed,
    rhs: &Mat<T>,
    (from, depth): (usize, usize),
    (col, width): (usize, usize),
    threads: usize,
) {
    (packed.rows, packed.cols) = (depth, width);
    let arithmetic = packed.arithmetic;
    let panels = width.div_ceil(NR);
    let panel = arithmetic.words(depth) * NR;
    packed.data.grow(panels * panel);
    let data = &mut packed.data.words_mut()[..panels * panel];
    let rhs = Mat { cols: col + width, ..*rhs };
    if threads == 1 {
        return pack::rhs(data, &rhs, col / NR, (from, depth), arithmetic);
    }
    // Two groups for each thread, so that a slow thread leaves one for another to take.
    let group = panels.div_ceil(2 * threads);
    data.par_chunks_mut(group * panel)
        .enumerate()
        .for_each(|(i, data)| pack::rhs(data, &rhs, col / NR + i * group, (from, depth), arithmetic));
}

/// Multiplies terms `from..` of `lhs` by a packed stripe of columns that begins at column `col` of the destination.
fn stripe<T: Pack>(target: Target, lhs: Mat<T>, from: usize, col: usize, rhs: Panels, threads: usize) {
    let rows = lhs.rows;
    let panels = rhs.cols.div_ceil(NR);
    if threads == 1 {
        for first in (0..rows).step_by(MOST_ROWS) {
            block(target, lhs, (first, MOST_ROWS.min(rows - first)), from, col, rhs);
        }
        return;
    }
    // Rows are divided before columns: a block's left operand is packed for it alone.
    let wanted = BLOCKS_PER_THREAD * threads;
    let height = height_of_blocks(rows, threads, rhs.arithmetic);
    // About eight panels repay the packing of a block's rows; few rows are packed so quickly that one panel does.
    let few_rows = rows <= 2 * rhs.arithmetic.tile_rows();
    let groups = wanted.div_ceil(rows.div_ceil(height)).min(panels.div_ceil(if few_rows { 1 } else { 8 }));
    let group = panels.div_ceil(groups) * NR;
    let row_blocks = rows.div_ceil(height);
    (0..row_blocks * groups).into_par_iter().for_each(|task| {
        // Tasks that follow each other share their columns, whose panels are then still in the cache.
        let first = task % row_blocks * height;
        let at = task / row_blocks * group;
        // Rounding groups up to whole panels may leave the last ones without a column.
        if at < rhs.cols {
            let part = rhs.columns(at..rhs.cols.min(at + group));
            block(target, lhs, (first, height.min(rows - first)), from, col + at, part);
        }
    });
}

/// Rows of the blocks of `rows` that `threads` share evenly: whole tiles, but not so few rows that packing outweighs the product.
fn height_of_blocks(rows: usize, threads: usize, arithmetic: Arithmetic) -> usize {
    let tile = arithmetic.tile_rows();
    rows.div_ceil(BLOCKS_PER_THREAD * threads).next_multiple_of(tile).clamp((4 * MR).next_multiple_of(tile), MOST_ROWS)
}

/// Enough blocks for the threads to share evenly.
const BLOCKS_PER_THREAD: usize = 4;

/// Rows of the largest block: 192 KiB of left operand per 256 terms, a part of the second cache.
const MOST_ROWS: usize = 16 * MR;

/// Rounds each value to bf16.
fn round_to_bf16(values: &mut [f32]) {
    super::cpu::simd!(values.iter_mut().for_each(|x| *x = Element::to_f32(<bf16 as Element>::from_f32(*x))))
}

/// One block of the destination on this thread: rows `first..first + rows`, the columns of `rhs` from `col` on.
fn block<T: Pack>(target: Target, lhs: Mat<T>, (first, rows): (usize, usize), from: usize, col: usize, rhs: Panels) {
    if rows == 0 || rhs.cols == 0 || rhs.terms.1 == 0 {
        return;
    }
    let dst = target.dst.address(first * target.stride + col, span(rows, rhs.cols, target.stride, 1));
    let arithmetic = rhs.arithmetic;
    #[cfg(target_arch = "x86_64")]
    if arithmetic == Arithmetic::Tiles {
        // SAFETY: the block lies inside the destination and is this task's alone; this arithmetic is chosen only where tiles may be used.
        return unsafe { tiles::block(target, lhs, (first, rows), from, dst, rhs) };
    }
    // A left operand is copied if it must be rounded or widened, or if it is transposed and several panels use it. Copying contiguous rows
    // never pays (measured).
    let transposed = lhs.col_stride != 1;
    let as_it_is = arithmetic == Arithmetic::F32 && T::as_f32(lhs.data).is_some();
    let pack = !as_it_is || (transposed && (lhs.row_stride != 1 || rhs.cols > 3 * NR));
    let order = pack::order(&lhs);
    let kernels = kernels();
    let mut packed = with_scratch(|s| std::mem::take(&mut s.lhs));
    if pack {
        packed.grow(pack::lhs_len(rows));
    }
    for term in (0..rhs.terms.1).step_by(KC) {
        let kc = KC.min(rhs.terms.1 - term);
        if pack {
            pack::lhs(packed.words_mut(), &lhs, (first, rows), (from + term, kc), arithmetic);
        }
        let words = arithmetic.words(kc);
        // KC terms are one chain in registers. Chains are added up in memory, in their order: this fixes the bits.
        let accumulate = term > 0 || target.into == Into::Accumulate;
        // All tiles of the block meet a panel while it is in a near cache.
        for (panel, at) in (0..rhs.cols).step_by(NR).enumerate() {
            let b = panel * rhs.len * NR + arithmetic.words(rhs.terms.0 + term) * NR;
            let b = &rhs.data[b..][..words * NR];
            for (tile, (row, height)) in pack::heights(rows).enumerate() {
                let (a, a_stride) = match pack {
                    true => pack::tile(packed.words(), tile, order),
                    false => lhs.tile(first + row, height, from + term, kc, order),
                };
                let tile = Tile {
                    words,
                    a: a.as_ptr(),
                    a_stride,
                    b: b.as_ptr(),
                    // SAFETY: the row lies inside the block.
                    c: unsafe { dst.add(row * target.stride + at) },
                    c_stride: target.stride,
                    cols: NR.min(rhs.cols - at),
                    alpha: target.alpha,
                    accumulate,
                };
                // SAFETY: both operands hold kc terms, the tile lies inside the block, which is this task's alone; the kernel is for
                // this processor.
                unsafe { kernels.get(height, order, arithmetic == Arithmetic::Pairs)(&tile) };
            }
        }
    }
    with_scratch(|s| s.lhs = packed);
}

/// `dst = [dst +] alpha · lhs · rhs` on the calling thread, to the address `dst`, with a right operand that is already packed.
///
/// # Safety
/// `dst` points to `lhs.rows` rows of `rhs.cols` elements, `stride` apart, which nothing else reads or writes meanwhile.
pub(crate) unsafe fn matmul_packed<T: Pack>(
    dst: *mut f32,
    stride: usize,
    into: Into,
    alpha: f32,
    lhs: Mat<T>,
    rhs: Panels,
) {
    assert_eq!(lhs.cols, rhs.terms.1, "inner dimensions differ");
    // SAFETY: the caller's promise.
    let dst = unsafe { SharedMut::from_raw(dst, span(lhs.rows, rhs.cols, stride, 1)) };
    // One thread: callers run one such product in each of their own parallel tasks.
    stripe(Target { dst, stride, into, alpha }, lhs, 0, 0, rhs, 1);
}
