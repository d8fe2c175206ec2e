//! The innermost loops: a tile of up to [`MR`] x [`NR`] of a product, over packed operands, for the instruction sets we know.
//!
//! Every element of a tile is one chain of fused multiply-adds over `k` in order, whatever the width of the registers: AVX-512, AVX2 +
//! FMA and NEON give the same bits. (Processors without a fused multiply-add round twice per term.)

use crate::ops::simd::SimdLevel;

/// Rows of a tile: 12 x 32 accumulators are 24 of AVX-512's 32 registers.
pub(super) const MR: usize = 12;
/// Columns of a tile and of a packed panel: two AVX-512 registers.
pub(super) const NR: usize = 32;
/// Inner dimension of one pass; part of the definition of a product's bits.
pub(super) const KC: usize = 256;

/// In which direction a left operand is contiguous: along its rows or, if it is transposed, along its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Rows,
    Columns,
}

/// One tile: `c = [c +] alpha · a · b`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Words of the inner dimension.
    pub(super) words: usize,
    /// The first of up to [`MR`] rows, contiguous in the kernel's [`Order`].
    pub(super) a: *const f32,
    /// Distance of its rows, or of its columns.
    pub(super) a_stride: usize,
    /// `[words][NR]`
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    /// Distance of the destination's rows.
    pub(super) c_stride: usize,
    /// Columns that exist, at most [`NR`].
    pub(super) cols: usize,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
}

/// Computes a tile of the product and writes it to `c`, or adds it.
///
/// # Safety
/// The operands hold `words` words for the kernel's rows, and `c` has those rows of `cols` elements, which no other thread uses meanwhile;
/// the processor has the instructions that the kernel was compiled for.
pub(super) type Kernel = unsafe fn(&Tile);

/// The kernels of this processor for 1 to [`MR`] rows.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    by_rows: [Kernel; MR],
    by_columns: [Kernel; MR],
    /// The same for pairs of bf16, where the processor multiplies them.
    bf16: Option<([Kernel; MR], [Kernel; MR])>,
}

macro_rules! table {
    ($kernel:ident, $rows:literal) => {
        [
            $kernel::<1, $rows>,
            $kernel::<2, $rows>,
            $kernel::<3, $rows>,
            $kernel::<4, $rows>,
            $kernel::<5, $rows>,
            $kernel::<6, $rows>,
            $kernel::<7, $rows>,
            $kernel::<8, $rows>,
            $kernel::<9, $rows>,
            $kernel::<10, $rows>,
            $kernel::<11, $rows>,
            $kernel::<12, $rows>,
        ]
    };
}

impl Kernels {
    pub(super) fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        match SimdLevel::in_use() {
            SimdLevel::Baseline => {}
            SimdLevel::Avx2 => {
                return Self { by_rows: table!(avx2, true), by_columns: table!(avx2, false), bf16: None };
            }
            level => {
                let bf16 = (table!(avx512_bf16, true), table!(avx512_bf16, false));
                return Self {
                    by_rows: table!(avx512, true),
                    by_columns: table!(avx512, false),
                    bf16: level.multiplies_bf16().then_some(bf16),
                };
            }
        }
        Self { by_rows: table!(portable, true), by_columns: table!(portable, false), bf16: None }
    }

    /// Kernels for registers half as wide as this processor's widest: tests compare the bits of both.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn narrower() -> Option<Self> {
        let both = SimdLevel::in_use() >= SimdLevel::Avx512;
        both.then_some(Self { by_rows: table!(avx2, true), by_columns: table!(avx2, false), bf16: None })
    }

    /// The kernel for `rows` rows, 1 to [`MR`], whose words are f32 or, with `pairs`, pairs of bf16.
    ///
    /// # Panics
    /// For pairs, if this processor does not multiply them.
    pub(super) fn get(&self, rows: usize, order: Order, pairs: bool) -> Kernel {
        let (by_rows, by_columns) = match pairs {
            false => (&self.by_rows, &self.by_columns),
            true => self.bf16.as_ref().map(|(r, c)| (r, c)).expect("a processor with AVX512_BF16"),
        };
        match order {
            Order::Rows => by_rows[rows - 1],
            Order::Columns => by_columns[rows - 1],
        }
    }
}

/// The first `n` of 16 lanes, or all of them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn lane_mask(n: usize) -> u16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// The kernel for AVX-512: a macro, because a function has one set of features, and multiplying bf16 is one of its own.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel_avx512 {
    ($name:ident, $features:literal, $fma:path) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const M: usize, const ROWS: bool>(t: &Tile) {
            use std::arch::x86_64::*;
            let (row, term) = if ROWS { (t.a_stride, 1) } else { (1, t.a_stride) };
            let mut left = [_mm512_setzero_ps(); M];
            let mut right = [_mm512_setzero_ps(); M];
            // One pointer for three rows: x86 addressing adds one or two times a register for free.
            let mut a: [*const f32; 4] = std::array::from_fn(|i| t.a.wrapping_add(3 * i * row));
            let mut b = t.b;
            // SAFETY: the operands hold so many words, c its rows (the caller's promise); masked lanes are not touched.
            unsafe {
                for _ in 0..t.words {
                    let b_left = _mm512_loadu_ps(b);
                    let b_right = _mm512_loadu_ps(b.add(16));
                    // Two short loops: the compiler unrolls these, but not one loop of twelve rounds.
                    for (group, a) in a.iter().enumerate() {
                        for i in 3 * group..M.min(3 * group + 3) {
                            let x = _mm512_set1_ps(*a.add(i % 3 * row));
                            left[i] = $fma(x, b_left, left[i]);
                            right[i] = $fma(x, b_right, right[i]);
                        }
                    }
                    // Wrapping: pointers to rows that a lower tile lacks lie outside the operand. They are never read.
                    a.iter_mut().for_each(|a| *a = a.wrapping_add(term));
                    b = b.add(NR);
                }
                // A packed panel is padded up to NR columns; the destination is not, and others write what follows.
                let mask_left = lane_mask(t.cols);
                let mask_right = lane_mask(t.cols.saturating_sub(16));
                let alpha = _mm512_set1_ps(t.alpha);
                for i in 0..M {
                    let c = t.c.add(i * t.c_stride);
                    // alpha scales the finished chain, not an operand: rounding is then the same in every kernel.
                    let mut l = _mm512_mul_ps(left[i], alpha);
                    let mut r = _mm512_mul_ps(right[i], alpha);
                    if t.accumulate {
                        l = _mm512_add_ps(_mm512_maskz_loadu_ps(mask_left, c), l);
                        r = _mm512_add_ps(_mm512_maskz_loadu_ps(mask_right, c.wrapping_add(16)), r);
                    }
                    _mm512_mask_storeu_ps(c, mask_left, l);
                    _mm512_mask_storeu_ps(c.wrapping_add(16), mask_right, r);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel_avx512!(avx512, "avx512f", _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
kernel_avx512!(avx512_bf16, "avx512f,avx512bf16", multiply_pairs);

/// Adds to each f32 of `sum` the products of a pair of bf16 in the word of `x` and in that of `y`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_pairs(
    x: std::arch::x86_64::__m512,
    y: std::arch::x86_64::__m512,
    sum: std::arch::x86_64::__m512,
) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
    // SAFETY: registers of the same size, in which every pattern of bits is a value.
    let [x, y] = [x, y].map(|x| unsafe { std::mem::transmute::<__m512, __m512bh>(x) });
    _mm512_dpbf16_ps(sum, x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const M: usize, const ROWS: bool>(t: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { by_quarters::<M, ROWS, true>(t) }
}

/// For the vector instructions that the compilation target has by itself: NEON with its fused multiply-add, or the x86-64 baseline
/// without.
unsafe fn portable<const M: usize, const ROWS: bool>(t: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { by_quarters::<M, ROWS, { cfg!(target_arch = "aarch64") }>(t) }
}

/// A tile in parts of 6 x 16, whose accumulators fit into 16 registers of AVX2 or 32 of NEON.
#[inline(always)]
unsafe fn by_quarters<const M: usize, const ROWS: bool, const FUSED: bool>(t: &Tile) {
    // SAFETY: the caller's promise; each part lies inside the tile.
    unsafe {
        for col in [0, 16] {
            if M >= 6 {
                part::<6, ROWS, FUSED>(t, 0, col);
            }
            // M is known to the compiler, which keeps one arm.
            match M - M / 6 * 6 {
                0 if M == 12 => part::<6, ROWS, FUSED>(t, 6, col),
                1 => part::<1, ROWS, FUSED>(t, M / 6 * 6, col),
                2 => part::<2, ROWS, FUSED>(t, M / 6 * 6, col),
                3 => part::<3, ROWS, FUSED>(t, M / 6 * 6, col),
                4 => part::<4, ROWS, FUSED>(t, M / 6 * 6, col),
                5 => part::<5, ROWS, FUSED>(t, M / 6 * 6, col),
                _ => {}
            }
        }
    }
}

#[inline(always)]
unsafe fn part<const M: usize, const ROWS: bool, const FUSED: bool>(t: &Tile, first: usize, col: usize) {
    const WIDTH: usize = 16;
    let (row, term) = if ROWS { (t.a_stride, 1) } else { (1, t.a_stride) };
    // The right half of a panel may be padding alone.
    let cols = t.cols.saturating_sub(col).min(WIDTH);
    if cols == 0 {
        return;
    }
    let mut sums = [[0f32; WIDTH]; M];
    // SAFETY: the operands hold so many words, c its rows (the caller's promise); `cols` bounds what is read and written of a row.
    unsafe {
        let a = t.a.add(first * row);
        for k in 0..t.words {
            // An array, because the compiler keeps the sums in registers only if it knows the width.
            let b = &*t.b.add(k * NR + col).cast::<[f32; WIDTH]>();
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = *a.add(i * row + k * term);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = if FUSED { x.mul_add(*b, *sum) } else { *sum + x * b };
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let c = std::slice::from_raw_parts_mut(t.c.add((first + i) * t.c_stride + col), cols);
            for (c, sum) in c.iter_mut().zip(sums) {
                // Two roundings and no fused multiply-add, as the AVX-512 kernel has it: the bits must agree.
                *c = if t.accumulate { *c + sum * t.alpha } else { sum * t.alpha };
            }
        }
    }
}
