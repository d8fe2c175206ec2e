//! Products of strided f32 matrices, `dst = [dst +] alpha · lhs · rhs`, from first principles: pack, then multiply tile by tile.
//!
//! The scheme is that of Goto & van de Geijn (2008): the right operand is packed into panels of 32 columns, the left one into panels of 12
//! rows x 256 terms that stay in the first cache, and a kernel keeps a 12 x 32 tile in registers. It is not taken from a library because half of a
//! training step on a CPU is spent in it: packed operands can be used several times, and the bits are ours to define. **Every element is, per 256 terms of the inner dimension, one chain of fused multiply-adds in their order, and the
//! sum of these chains in their order**: neither the number of threads, nor the sizes of blocks, nor the width of the
//! processor's registers changes a bit (a processor without fused multiply-add rounds differently).
//!
//! rayon distributes blocks of the destination to threads by work stealing; idle threads sleep, and there are no spin barriers.

mod bf16;
mod kernel;
mod pack;
#[cfg(test)]
mod tests;

use super::cpu::SharedMut;
use super::precision::Precision;
use kernel::{KC, Kernels, MR, NR, Order, Tile};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

/// A matrix inside a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Index one past the last element of a strided matrix; 0 if it is empty.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<'a> Mat<'a> {
    /// Row-major `rows x cols` whose rows are `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(span(rows, cols, row_stride, 1) <= data.len(), "matrix {rows}x{cols} does not fit its buffer");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// A tile of it where it lies in memory, and the distance of its rows or columns.
    fn tile(&self, row: usize, rows: usize, term: usize, terms: usize, order: Order) -> (&'a [f32], usize) {
        let data = &self.data[row * self.row_stride + term * self.col_stride..];
        assert!(span(rows, terms, self.row_stride, self.col_stride) <= data.len());
        (data, if order == Order::Rows { self.row_stride } else { self.col_stride })
    }
}

/// Whether the product replaces the destination's values or is added to them.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Into {
    Overwrite,
    Accumulate,
}

/// A right operand in packed form, or a part of one. Packed operands consist of 32-bit words: an f32, or two bf16 of successive terms.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    precision: Precision,
    /// Words of a panel's column.
    len: usize,
    /// The terms of the inner dimension that are used.
    terms: (usize, usize),
    cols: usize,
}

impl<'a> Panels<'a> {
    /// The terms `range` of the inner dimension only.
    pub(crate) fn terms(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.terms.1 && self.precision.terms_fit(range.start));
        Self { terms: (self.terms.0 + range.start, range.len()), ..self }
    }

    /// The columns `range` only, which begins with a panel.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(NR) && range.end <= self.cols);
        Self { data: &self.data[range.start * self.len..], cols: range.len(), ..self }
    }
}

/// The columns of a packed panel: where [`Panels::columns`] may begin.
pub(crate) const PANEL: usize = NR;

/// A right operand, packed once to be used several times.
#[derive(Default)]
pub(crate) struct Packed {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    precision: Precision,
}

impl Packed {
    /// Packs `rhs` into memory of its own.
    pub(crate) fn new(rhs: Mat, precision: Precision) -> Self {
        let mut packed = Self::default();
        packed.pack(rhs, precision);
        packed
    }

    /// Packs `rhs`, reusing the memory of what was packed here before.
    pub(crate) fn pack(&mut self, rhs: Mat, precision: Precision) {
        (self.rows, self.cols, self.precision) = (rhs.rows, rhs.cols, precision);
        let len = rhs.cols.div_ceil(NR) * NR * precision.words(rhs.rows);
        grow(&mut self.data, len);
        if len > 0 {
            pack::rhs(&mut self.data[..len], &rhs, 0, (0, rhs.rows), precision);
        }
    }

    /// The type that it was rounded to.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels {
            data: &self.data,
            precision: self.precision,
            len: self.precision.words(self.rows),
            terms: (0, self.rows),
            cols: self.cols,
        }
    }
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    // Never shrinks: the next product is most likely as large. What an earlier one left is overwritten or not read.
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// Buffers that a thread keeps for its next product.
#[derive(Default)]
struct Scratch {
    lhs: Vec<f32>,
    rhs: Packed,
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

/// Floats of the right operand that are packed at once: 4 MiB, a part of the last cache.
const STRIPE: usize = 1 << 20;

/// `dst (rows of dst_stride) = [dst +] alpha · lhs · rhs`, spread over the threads when it pays.
pub(crate) fn matmul(
    dst: &mut [f32],
    dst_stride: usize,
    into: Into,
    alpha: f32,
    lhs: Mat,
    rhs: Mat,
    precision: Precision,
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
    let threads = if m * n * k >= PARALLEL_FROM { rayon::current_num_threads() } else { 1 };
    // As many terms as leave room for a stripe of all columns, but not so few of either that packing outweighs the product.
    let terms = (STRIPE / n.next_multiple_of(NR).max(1) / KC * KC).max(4 * KC).min(k.max(1));
    // Whole multiples of KC and of panels: where a stripe is cut does not change which terms form one chain.
    let columns = (STRIPE / terms / NR * NR).max(NR);
    // Taken out of the scratch: while this thread waits for the others it may steal a task that multiplies as well.
    let mut packed = with_scratch(|s| std::mem::take(&mut s.rhs));
    packed.precision = precision;
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
fn pack_stripe(
    packed: &mut Packed,
    rhs: &Mat,
    (from, depth): (usize, usize),
    (col, width): (usize, usize),
    threads: usize,
) {
    (packed.rows, packed.cols) = (depth, width);
    let precision = packed.precision;
    let panels = width.div_ceil(NR);
    let panel = precision.words(depth) * NR;
    grow(&mut packed.data, panels * panel);
    let data = &mut packed.data[..panels * panel];
    let rhs = Mat { cols: col + width, ..*rhs };
    if threads == 1 {
        return pack::rhs(data, &rhs, col / NR, (from, depth), precision);
    }
    // Two groups for each thread, so that a slow thread leaves one for another to take.
    let group = panels.div_ceil(2 * threads);
    data.par_chunks_mut(group * panel)
        .enumerate()
        .for_each(|(i, data)| pack::rhs(data, &rhs, col / NR + i * group, (from, depth), precision));
}

/// Multiplies terms `from..` of `lhs` by a packed stripe of columns that begins at column `col` of the destination.
fn stripe(target: Target, lhs: Mat, from: usize, col: usize, rhs: Panels, threads: usize) {
    let rows = lhs.rows;
    let panels = rhs.cols.div_ceil(NR);
    if threads == 1 {
        for first in (0..rows).step_by(MOST_ROWS) {
            block(target, lhs, (first, MOST_ROWS.min(rows - first)), from, col, rhs);
        }
        return;
    }
    // Enough blocks for the threads to share evenly. Rows are divided before columns: a block's left operand is packed for it alone.
    let wanted = 4 * threads;
    let height = rows.div_ceil(wanted).next_multiple_of(MR).clamp(4 * MR, MOST_ROWS);
    // About eight panels repay the packing of a block's rows; few rows are packed so quickly that one panel does.
    let groups = wanted.div_ceil(rows.div_ceil(height)).min(panels.div_ceil(if rows > 2 * MR { 8 } else { 1 }));
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

/// Rows of the largest block: 192 KiB of left operand per 256 terms, a part of the second cache.
const MOST_ROWS: usize = 16 * MR;

/// One block of the destination on this thread: rows `first..first + rows`, the columns of `rhs` from `col` on.
fn block(target: Target, lhs: Mat, (first, rows): (usize, usize), from: usize, col: usize, rhs: Panels) {
    if rows == 0 || rhs.cols == 0 || rhs.terms.1 == 0 {
        return;
    }
    let dst = target.dst.address(first * target.stride + col, span(rows, rhs.cols, target.stride, 1));
    // A left operand is copied if it must be rounded, or if it is transposed and several panels use it. Copying contiguous rows never
    // pays (measured).
    let precision = rhs.precision;
    let transposed = lhs.col_stride != 1;
    let pack = precision == Precision::Bf16 || (transposed && (lhs.row_stride != 1 || rhs.cols > 3 * NR));
    let order = pack::order(&lhs);
    let kernels = kernels();
    let mut packed = with_scratch(|s| std::mem::take(&mut s.lhs));
    if pack {
        grow(&mut packed, pack::lhs_len(rows));
    }
    for term in (0..rhs.terms.1).step_by(KC) {
        let kc = KC.min(rhs.terms.1 - term);
        if pack {
            pack::lhs(&mut packed, &lhs, (first, rows), (from + term, kc), precision);
        }
        let words = precision.words(kc);
        // KC terms are one chain in registers. Chains are added up in memory, in their order: this fixes the bits.
        let accumulate = term > 0 || target.into == Into::Accumulate;
        // All tiles of the block meet a panel while it is in a near cache.
        for (panel, at) in (0..rhs.cols).step_by(NR).enumerate() {
            let b = panel * rhs.len * NR + precision.words(rhs.terms.0 + term) * NR;
            let b = &rhs.data[b..][..words * NR];
            for (tile, (row, height)) in pack::heights(rows).enumerate() {
                let (a, a_stride) = match pack {
                    true => pack::tile(&packed, tile, order),
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
                unsafe { kernels.get(height, order, precision)(&tile) };
            }
        }
    }
    with_scratch(|s| s.lhs = packed);
}

/// `dst = [dst +] alpha · lhs · rhs` on the calling thread, to the address `dst`, with a right operand that is already packed.
///
/// # Safety
/// `dst` points to `lhs.rows` rows of `rhs.cols` elements, `stride` apart, which nothing else reads or writes meanwhile.
pub(crate) unsafe fn matmul_packed(dst: *mut f32, stride: usize, into: Into, alpha: f32, lhs: Mat, rhs: Panels) {
    assert_eq!(lhs.cols, rhs.terms.1, "inner dimensions differ");
    // SAFETY: the caller's promise.
    let dst = unsafe { SharedMut::from_raw(dst, span(lhs.rows, rhs.cols, stride, 1)) };
    // One thread: callers run one such product in each of their own parallel tasks.
    stripe(Target { dst, stride, into, alpha }, lhs, 0, 0, rhs, 1);
}
