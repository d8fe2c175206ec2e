//! Transposition in registers.

use std::arch::x86_64::*;

/// Writes the transpose of a 16 x 16 block: 16 runs of 16 floats, `stride` apart, to 16 runs `to_stride` apart.
///
/// # Safety
/// Both blocks are valid for reading and writing; the processor has AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_16(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_ps(from.add(i * stride));
        }
        // Pairs of rows, then fours, then eights, then all: after each stage a register holds as many rows' parts.
        let mut pairs = [_mm512_setzero_ps(); 16];
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = [_mm512_setzero_ps(); 16];
        for i in 0..4 {
            for h in 0..2 {
                let x = _mm512_castps_pd(pairs[4 * i + h]);
                let y = _mm512_castps_pd(pairs[4 * i + 2 + h]);
                fours[4 * i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
                fours[4 * i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
            }
        }
        // fours[4 i + c] holds, in its 128-bit lane l, rows 4 i .. 4 i + 4 of column 4 l + c.
        for c in 0..4 {
            // A column's four quarters lie in four registers; two rounds of shuffles bring them together.
            let x0 = fours[c];
            let x1 = fours[4 + c];
            let x2 = fours[8 + c];
            let x3 = fours[12 + c];
            let a = _mm512_shuffle_f32x4::<0x88>(x0, x1);
            let b = _mm512_shuffle_f32x4::<0x88>(x2, x3);
            let d = _mm512_shuffle_f32x4::<0xdd>(x0, x1);
            let e = _mm512_shuffle_f32x4::<0xdd>(x2, x3);
            _mm512_storeu_ps(to.add(c * to_stride), _mm512_shuffle_f32x4::<0x88>(a, b));
            _mm512_storeu_ps(to.add((8 + c) * to_stride), _mm512_shuffle_f32x4::<0xdd>(a, b));
            _mm512_storeu_ps(to.add((4 + c) * to_stride), _mm512_shuffle_f32x4::<0x88>(d, e));
            _mm512_storeu_ps(to.add((12 + c) * to_stride), _mm512_shuffle_f32x4::<0xdd>(d, e));
        }
    }
}
