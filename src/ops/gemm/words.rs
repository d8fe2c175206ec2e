//! How vectors of elements become packed words of two bf16, the first of a pair in the low half.

#[cfg(target_arch = "x86_64")]
use super::kernel::lane_mask;
use crate::ops::elements::Element;
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// An element that can be packed.
pub(crate) trait Pack: Element {
    /// 16 words of neighbours: `(from[0], from[1])`, `(from[2], from[3])`, …; elements from number `n` on count as 0.
    ///
    /// # Safety
    /// `n` elements at `from` can be read; the processor has AVX512_BF16.
    #[cfg(target_arch = "x86_64")]
    unsafe fn neighbours(from: *const Self, n: usize) -> __m512i;

    /// 16 words across two runs: `(first[0], second[0])`, `(first[1], second[1])`, …; elements from number `n` (`m`) on count as 0.
    ///
    /// # Safety
    /// `n` elements at `first` and `m` at `second` can be read; the processor has AVX512_BF16.
    #[cfg(target_arch = "x86_64")]
    unsafe fn across(first: *const Self, n: usize, second: *const Self, m: usize) -> __m512i;
}

/// For 32 elements of 16 bits, the first 16 of one run and then 16 of another: takes one of each in turn.
#[cfg(target_arch = "x86_64")]
const IN_TURNS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn in_turns(both: __m512i) -> __m512i {
    // SAFETY: the array has the size of the register.
    _mm512_permutexvar_epi16(unsafe { _mm512_loadu_si512(IN_TURNS.as_ptr().cast()) }, both)
}

impl Pack for f32 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
    unsafe fn neighbours(from: *const Self, n: usize) -> __m512i {
        // SAFETY: the masks keep to the n elements; registers of the same size.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lane_mask(n), from);
            let high = _mm512_maskz_loadu_ps(lane_mask(n.saturating_sub(16)), from.wrapping_add(16));
            // The instruction's second operand becomes the lower half of the register, so elements keep their order.
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
    unsafe fn across(first: *const Self, n: usize, second: *const Self, m: usize) -> __m512i {
        // SAFETY: the masks keep to the n and m elements; registers of the same size.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lane_mask(n), first);
            let high = _mm512_maskz_loadu_ps(lane_mask(m), second);
            in_turns(std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)))
        }
    }
}

impl Pack for bf16 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
    unsafe fn neighbours(from: *const Self, n: usize) -> __m512i {
        let mask = if n >= 32 { !0 } else { (1u32 << n) - 1 };
        // SAFETY: the mask keeps to the n elements.
        unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
    unsafe fn across(first: *const Self, n: usize, second: *const Self, m: usize) -> __m512i {
        // SAFETY: the masks keep to the n and m elements, of which there are at most 16.
        unsafe {
            let low = _mm512_maskz_loadu_epi16(u32::from(lane_mask(n)), first.cast());
            let high = _mm512_maskz_loadu_epi16(u32::from(lane_mask(m)), second.cast());
            in_turns(_mm512_inserti64x4::<1>(low, _mm512_castsi512_si256(high)))
        }
    }
}
