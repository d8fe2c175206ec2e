//! Products of an f32 vector and a bf16 one, widened in registers, for x86. The compiler makes poor code of the plain loop: it splits the
//! lanes into registers of several widths.
//!
//! Each lane adds the same numbers in the same order as in [`cpu::sum2`], so every instruction set gives the same bits.

use super::Element;
use crate::ops::cpu::{self, LANES};
use crate::ops::simd::SimdLevel;
use half::bf16;
use std::arch::x86_64::*;

/// `Σ aᵢ bᵢ`; none without AVX2.
#[inline]
pub(super) fn dot(a: &[f32], b: &[bf16]) -> Option<f32> {
    let chunks = a.len().min(b.len()) / LANES;
    let a_chunks = &a[..chunks * LANES];
    let b_chunks = &b[..chunks * LANES];
    let lanes = match SimdLevel::in_use() {
        SimdLevel::Baseline => return None,
        // SAFETY: this level has the feature.
        SimdLevel::Avx2 => unsafe { avx2(a_chunks, b_chunks) },
        // SAFETY: the levels above that have the feature.
        _ => unsafe { avx512(a_chunks, b_chunks) },
    };
    Some(cpu::add_rest(lanes, &a[chunks * LANES..], &b[chunks * LANES..], product))
}

fn product(a: f32, b: bf16) -> f32 {
    a * Element::to_f32(b)
}

/// The sums of all lanes of whole chunks.
#[target_feature(enable = "avx512f")]
fn avx512(a: &[f32], b: &[bf16]) -> [f32; LANES] {
    let mut sums = _mm512_setzero_ps();
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        // SAFETY: both loads are of LANES elements.
        let (a, b) = unsafe { (_mm512_loadu_ps(a.as_ptr()), _mm256_loadu_si256(b.as_ptr().cast())) };
        let b = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(b)));
        sums = _mm512_add_ps(sums, _mm512_mul_ps(a, b));
    }
    let mut lanes = [0f32; LANES];
    // SAFETY: one register of LANES elements.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
    lanes
}

/// The same in two registers.
#[target_feature(enable = "avx2")]
fn avx2(a: &[f32], b: &[bf16]) -> [f32; LANES] {
    let mut sums = [_mm256_setzero_ps(); 2];
    for (a, b) in a.as_chunks::<8>().0.chunks_exact(2).zip(b.as_chunks::<8>().0.chunks_exact(2)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            // SAFETY: both loads are of 8 elements.
            let (a, b) = unsafe { (_mm256_loadu_ps(a.as_ptr()), _mm_loadu_si128(b.as_ptr().cast())) };
            let b = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(b)));
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(a, b));
        }
    }
    let mut lanes = [0f32; LANES];
    for (lanes, sum) in lanes.chunks_exact_mut(8).zip(sums) {
        // SAFETY: one register of 8 elements.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_the_bits_of_the_widened_product() {
        for n in [0, 1, 15, 16, 17, 48, 768, 1003] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<bf16> = (0..n).map(|i| bf16::from_f32((i as f32 * 0.71).cos() * 0.1)).collect();
            let wide: Vec<f32> = b.iter().map(|b| b.to_f32()).collect();
            let want = cpu::simd!(cpu::dot(&a, &wide)).to_bits();
            let whole = n / LANES * LANES;
            let rest = |lanes| cpu::add_rest(lanes, &a[whole..], &b[whole..], product).to_bits();
            assert_eq!(cpu::sum2(&a, &b, |a, b| a * b.to_f32()).to_bits(), want, "{n}: plain");
            if SimdLevel::in_use() >= SimdLevel::Avx2 {
                // SAFETY: the feature is here.
                assert_eq!(rest(unsafe { avx2(&a[..whole], &b[..whole]) }), want, "{n}: AVX2");
            }
            if SimdLevel::in_use() >= SimdLevel::Avx512 {
                // SAFETY: the feature is here.
                assert_eq!(rest(unsafe { avx512(&a[..whole], &b[..whole]) }), want, "{n}: AVX-512");
            }
        }
    }
}
