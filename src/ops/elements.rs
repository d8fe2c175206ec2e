//! What tensors on the CPU consist of: f32, or bf16 where products round their operands anyway, or where a model is only read.
//!
//! Every bf16 is an f32 whose lower half is 0, so widening is exact. What a product in bf16 computes from elements that were rounded when
//! they were stored has the bits of elements rounded when they are packed.

#[cfg(target_arch = "x86_64")]
mod dot;

use super::cpu;
use candle_core::{CpuStorage, Result, Storage, Tensor, WithDType, bail};
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;

/// An element of a tensor.
pub(crate) trait Element: WithDType {
    fn to_f32(self) -> f32;

    /// Rounds to the nearest, to even between two. As bf16, denormal numbers become 0, as in the processors' conversion.
    fn from_f32(x: f32) -> Self;

    /// The values themselves, where they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;

    /// `Σ aᵢ bᵢ`, with the bits of [`cpu::dot`] of the exact values; call inside [`cpu::simd!`].
    fn dot(a: &[f32], b: &[Self]) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    #[inline(always)]
    fn dot(a: &[f32], b: &[Self]) -> f32 {
        cpu::dot(a, b)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // The library's conversion also makes every NaN a quiet one, which costs a compare for each element.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let exponent = bits & 0x7f80_0000;
        // A NaN is not rounded, which could carry it to infinity; one bit keeps it a NaN without its low half.
        let kept = if exponent == 0x7f80_0000 { bits | u32::from(x.is_nan()) << 22 } else { rounded };
        let kept = if exponent == 0 { bits & 0x8000_0000 } else { kept };
        Self::from_bits((kept >> 16) as u16)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    fn dot(a: &[f32], b: &[Self]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if let Some(sum) = dot::dot(a, b) {
            return sum;
        }
        cpu::sum2(a, b, |x, y| x * y.to_f32())
    }
}

/// The elements of a tensor in row-major order.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    pub(crate) fn widened(self) -> Cow<'a, [f32]> {
        match self {
            Self::F32(x) => Cow::Borrowed(x),
            Self::Bf16(x) => Cow::Owned(widen(x)),
        }
    }

    /// Appends the exact values of the elements `start..start + len` to `out`.
    pub(crate) fn extend_into(self, out: &mut Vec<f32>, start: usize, len: usize) {
        match self {
            Self::F32(x) => out.extend_from_slice(&x[start..start + len]),
            Self::Bf16(x) => out.extend(x[start..start + len].iter().map(|x| Element::to_f32(*x))),
        }
    }

    /// All but the first `n`.
    pub(crate) fn after(self, n: usize) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[n..]),
            Self::Bf16(x) => Self::Bf16(&x[n..]),
        }
    }
}

/// Runs `$body` with `$x`, the slice of an [`Elements`].
macro_rules! for_elements {
    ($elements:expr, |$x:ident| $body:expr) => {
        match $elements {
            $crate::ops::elements::Elements::F32($x) => $body,
            $crate::ops::elements::Elements::Bf16($x) => $body,
        }
    };
}
pub(crate) use for_elements;

/// Gives `f` the elements of `tensors`; a strided tensor is copied once, a contiguous one is borrowed.
pub(crate) fn read<const N: usize, R>(
    op: &str,
    tensors: [&Tensor; N],
    f: impl FnOnce([Elements; N]) -> Result<R>,
) -> Result<R> {
    let owned = tensors.map(|t| t.contiguous());
    let mut guards = Vec::with_capacity(N);
    for t in &owned {
        guards
            .push(t.as_ref().map_err(|error| candle_core::Error::Msg(format!("{op}: {error}")))?.storage_and_layout());
    }
    let mut elements = [Elements::F32(&[]); N];
    for (to, (storage, layout)) in elements.iter_mut().zip(&guards) {
        *to = match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(x)), Some((start, end))) => Elements::F32(&x[start..end]),
            (Storage::Cpu(CpuStorage::BF16(x)), Some((start, end))) => Elements::Bf16(&x[start..end]),
            (other, _) => bail!("{op}: expected f32 or bf16 on the CPU, got {:?}", other.dtype()),
        };
    }
    f(elements)
}

fn widen(x: &[bf16]) -> Vec<f32> {
    let mut wide = cpu::output::<f32>(x.len());
    wide.par_chunks_mut(cpu::PIECE).zip(x.par_chunks(cpu::PIECE)).for_each(|(wide, x)| {
        cpu::simd!(wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.to_f32()));
    });
    wide
}
