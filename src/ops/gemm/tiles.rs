//! Products of bf16 by AMX: the processor multiplies tiles of 16 rows by 32 terms with tiles of 32 terms by 16 columns.
//!
//! A right operand has the panels of the other kernels, 32 columns of 16 words each step. A left operand is packed into blocks of 32
//! rows: for each step of 32 terms two tiles of 16 x 32 bf16, each of 1 KiB without gaps. A kernel keeps 32 x 32 sums in four tile
//! registers. **Every element is, per [`CHAIN`] terms, one sum over steps of 32 terms in their order; chains are added in memory in their order.**
//! Within a step the processor adds the first terms of the pairs in one chain, the second ones in another, and both chains to the sum. It
//! takes denormal numbers as 0.

use super::arithmetic::{TILE_CHAIN as CHAIN, TILE_ROWS as ROWS, TILE_TERMS as STEP};
use super::kernel::{NR, lane_mask};
use super::packed::{Buffer, Panels};
use super::pairs::pairs_across;
use super::transpose::transpose_16;
use super::words::Pack;
use super::{Into, Mat, Target, with_scratch};
use std::arch::asm;
use std::arch::x86_64::*;

/// Words of a tile of 16 rows by 16 words.
const TILE: usize = 256;

/// One block of the destination: rows `first..first + rows`, the columns of `rhs` from `col` on; terms from `from` on of `lhs`.
///
/// # Safety
/// The block lies inside the destination, and nothing else reads or writes it meanwhile. This process may use AMX's tiles.
pub(super) unsafe fn block<T: Pack>(
    target: Target,
    lhs: Mat<T>,
    (first, rows): (usize, usize),
    from: usize,
    dst: *mut f32,
    rhs: Panels,
) {
    let mut packed = with_scratch(|s| std::mem::take(&mut s.lhs));
    // SAFETY: the caller's promise.
    let tiles = unsafe { TilesInUse::new() };
    for term in (0..rhs.terms.1).step_by(CHAIN) {
        let terms = CHAIN.min(rhs.terms.1 - term);
        let steps = terms.div_ceil(STEP);
        // SAFETY: a processor with AMX has AVX512_BF16.
        unsafe { pack_lhs(&mut packed, &lhs, (first, rows), (from + term, terms)) };
        let accumulate = term > 0 || target.into == Into::Accumulate;
        // All rows of the block meet a panel while it is in the first cache.
        for (panel, at) in (0..rhs.cols).step_by(NR).enumerate() {
            let b = panel * rhs.len * NR + (rhs.terms.0 + term) / 2 * NR;
            let b = &rhs.data[b..][..steps * STEP / 2 * NR];
            for (i, row) in (0..rows).step_by(ROWS).enumerate() {
                let a = &packed.words()[i * steps * 2 * TILE..][..steps * 2 * TILE];
                let part = Part { rows: ROWS.min(rows - row), cols: NR.min(rhs.cols - at) };
                // SAFETY: the part lies inside the block.
                unsafe { part.compute(&tiles, a, b, dst.add(row * target.stride + at), target, accumulate) };
            }
        }
    }
    drop(tiles);
    with_scratch(|s| s.lhs = packed);
}

/// The shapes of the tile registers, set for this thread until dropped: elsewhere a thread should not have 8 KiB more of state.
struct TilesInUse;

/// LDTILECFG's operand: all eight tiles have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: TileShapes = TileShapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl TilesInUse {
    /// # Safety
    /// This process may use AMX's tiles.
    unsafe fn new() -> Self {
        // SAFETY: reads the 64 bytes of the shapes; nothing else in this program keeps values in tiles.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags));
        }
        Self
    }
}

impl Drop for TilesInUse {
    fn drop(&mut self) {
        // SAFETY: the tiles were configured by `new`; no value in them is needed.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// How much of 32 rows x 32 columns of the destination exists.
#[derive(Clone, Copy)]
struct Part {
    rows: usize,
    cols: usize,
}

impl Part {
    /// `c = [c +] alpha · a · b` with packed operands of as many steps.
    ///
    /// # Safety
    /// `c` has the part's rows and columns, `target.stride` apart, which nothing else uses.
    unsafe fn compute(self, _: &TilesInUse, a: &[f32], b: &[f32], c: *mut f32, target: Target, accumulate: bool) {
        let steps = a.len() / (2 * TILE);
        assert!(steps > 0 && a.len() == steps * 2 * TILE && b.len() == steps * STEP / 2 * NR);
        // SAFETY: the operands have so many steps; `c` by the caller's promise, `sums` has 32 x 32 elements.
        unsafe {
            if self.rows == ROWS && self.cols == NR && !accumulate && target.alpha == 1.0 {
                return multiply_32x32(a.as_ptr(), b.as_ptr(), steps, c, target.stride);
            }
            let mut sums = Sums([0.0; ROWS * NR]);
            let to = sums.0.as_mut_ptr();
            if self.rows > 16 {
                multiply_32x32(a.as_ptr(), b.as_ptr(), steps, to, NR);
            } else {
                multiply_16x32(a.as_ptr(), b.as_ptr(), steps, to);
            }
            self.write(&sums, c, target, accumulate);
        }
    }

    /// Writes the sums of a chain, or adds them to the destination.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(self, sums: &Sums, c: *mut f32, target: Target, accumulate: bool) {
        let alpha = _mm512_set1_ps(target.alpha);
        for (i, sums) in sums.0.chunks_exact(NR).take(self.rows).enumerate() {
            for half in [0, 16] {
                let mask = lane_mask(self.cols.saturating_sub(half));
                // SAFETY: the mask keeps to the columns that the row has.
                unsafe {
                    let c = c.add(i * target.stride).wrapping_add(half);
                    // alpha scales the finished chain, as in the other kernels.
                    let mut sum = _mm512_mul_ps(_mm512_loadu_ps(sums[half..].as_ptr()), alpha);
                    if accumulate {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum);
                    }
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }
}

#[repr(align(64))]
struct Sums([f32; ROWS * NR]);

/// The chain of 32 rows x 32 columns, to `c` (rows `stride` elements apart).
///
/// # Safety
/// `a` and `b` hold `steps` steps (at least one), `c` 32 rows of 32 elements; this thread's tiles are configured.
unsafe fn multiply_32x32(a: *const f32, b: *const f32, steps: usize, c: *mut f32, stride: usize) {
    // Four sums are as many independent chains as hide the latency of the multiplication.
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {a_row}]",
            "tileloadd tmm6, [{b} + {b_row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {b_row} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {a_row} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "sub {steps}, 1",
            "jnz 2b",
            "tilestored [{c} + {c_row}], tmm0",
            "tilestored [{c} + {c_row} + 64], tmm1",
            "tilestored [{lower} + {c_row}], tmm2",
            "tilestored [{lower} + {c_row} + 64], tmm3",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            a_row = in(reg) 64usize,
            b_row = in(reg) 128usize,
            c = in(reg) c,
            lower = in(reg) c.add(16 * stride),
            c_row = in(reg) 4 * stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The chain of 16 rows x 32 columns, to rows of [`NR`] elements.
///
/// # Safety
/// As of [`multiply_32x32`].
unsafe fn multiply_16x32(a: *const f32, b: *const f32, steps: usize, c: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {a_row}]",
            "tileloadd tmm6, [{b} + {b_row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {b_row} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "sub {steps}, 1",
            "jnz 2b",
            "tilestored [{c} + {b_row}], tmm0",
            "tilestored [{c} + {b_row} + 64], tmm1",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            a_row = in(reg) 64usize,
            b_row = in(reg) 128usize,
            c = in(reg) c,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Packs rows `first..first + rows` of `lhs`, terms `from..from + terms`. Rows that a tile lacks keep what was there: their sums are not
/// written anywhere.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
unsafe fn pack_lhs<T: Pack>(
    packed: &mut Buffer,
    lhs: &Mat<T>,
    (first, rows): (usize, usize),
    (from, terms): (usize, usize),
) {
    let steps = terms.div_ceil(STEP);
    packed.grow(rows.div_ceil(ROWS) * steps * 2 * TILE);
    for (i, block) in packed.words_mut().chunks_exact_mut(steps * 2 * TILE).take(rows.div_ceil(ROWS)).enumerate() {
        let row = first + i * ROWS;
        let part = lhs.part(row, ROWS.min(first + rows - row), from, terms);
        if lhs.row_stride == 1 && lhs.col_stride != 1 {
            pack_columns(block, &part);
        } else {
            pack_rows(block, &part);
        }
    }
}

/// A block of rows whose terms lie side by side.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
fn pack_rows<T: Pack>(block: &mut [f32], lhs: &Mat<T>) {
    for i in 0..lhs.rows {
        lhs.with_row(i, |row| {
            for (step, at) in (0..row.len()).step_by(STEP).enumerate() {
                let words = &mut block[step * 2 * TILE + i / 16 * TILE + i % 16 * 16..][..16];
                // SAFETY: so many elements are left of the row; the words are 16.
                unsafe {
                    let pairs = T::neighbours(row.as_ptr().add(at), row.len() - at);
                    _mm512_storeu_ps(words.as_mut_ptr(), _mm512_castsi512_ps(pairs));
                }
            }
        });
    }
}

/// A block of rows of a transposed matrix, each term of which lies side by side: 16 pairs of terms at a time, transposed.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
fn pack_columns<T: Pack>(block: &mut [f32], lhs: &Mat<T>) {
    for (i, tile) in block.chunks_exact_mut(TILE).enumerate() {
        let row = i % 2 * 16;
        if row >= lhs.rows {
            continue;
        }
        let mut words = [0f32; TILE];
        for (pair, words) in words.chunks_exact_mut(16).enumerate() {
            let term = i / 2 * STEP + 2 * pair;
            let [first, second] = [term, term + 1].map(|term| lhs.column(term).get(row..).unwrap_or_default());
            pairs_across(words, first, second);
        }
        // SAFETY: both are 16 x 16.
        unsafe { transpose_16(words.as_ptr(), 16, tile.as_mut_ptr(), 16) };
    }
}
