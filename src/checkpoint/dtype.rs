//! Element types of weight files.
//!
//! Narrowing rounds to nearest, ties to even, as PyTorch and the hardware do; widening is exact.

use clap::ValueEnum;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};

/// Element type of a weight file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits: the weights as trained.
    F32,
    /// 16 bits with f32's range.
    Bf16,
    /// 16 bits with more precision and less range, IEEE half.
    F16,
}

/// Values that [`Dtype::round`] converts at a time.
const ROUNDED_AT_ONCE: usize = 1 << 16;
/// Element type of an exported model: one of [`Dtype`], or blocks of integers, which GGUF files can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportDtype {
    /// 32 bits: the weights as trained.
    F32,
    /// 16 bits with f32's range.
    Bf16,
    /// 16 bits with more precision and less range, IEEE half.
    F16,
    /// 8.5 bits: 32 integers of 8 bits share a scale; of GGUF files alone.
    #[value(name = "q8_0")]
    Q8_0,
}

impl ExportDtype {
    /// The element type of weight files, if it is one.
    pub fn of_weight_files(self) -> Option<Dtype> {
        match self {
            ExportDtype::F32 => Some(Dtype::F32),
            ExportDtype::Bf16 => Some(Dtype::Bf16),
            ExportDtype::F16 => Some(Dtype::F16),
            ExportDtype::Q8_0 => None,
        }
    }
}

impl Dtype {
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    /// The name PyTorch gives it, which is the one in `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
            Dtype::F16 => "float16",
        }
    }

    /// Makes `values` what a file of this type gives back of them.
    pub fn round(self, values: &mut [f32]) {
        if self == Dtype::F32 {
            return;
        }
        let mut bytes = Vec::new();
        let mut stored = Vec::new();
        // A piece at a time: the values may be most of a model.
        for piece in values.chunks_mut(ROUNDED_AT_ONCE) {
            bytes.clear();
            stored.clear();
            self.encode(piece, &mut bytes);
            self.decode(&bytes, &mut stored);
            piece.copy_from_slice(&stored);
        }
    }

    /// Appends `values` in little-endian order to `out`.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Dtype::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Dtype::Bf16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
            // As a slice, because one instruction then converts eight values.
            Dtype::F16 => out.extend(Vec::<f16>::from_f32_slice(values).iter().flat_map(|v| v.to_le_bytes())),
        }
    }

    /// Appends the elements in `bytes` (a whole number of them) to `out`.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Dtype::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F16 => {
                let halves: Vec<f16> = bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect();
                out.extend(halves.to_f32_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widen(dtype: Dtype, bits: u16) -> f32 {
        let mut values = Vec::new();
        dtype.decode(&bits.to_le_bytes(), &mut values);
        values[0]
    }

    fn narrow(dtype: Dtype, value: f32) -> u16 {
        let mut bytes = Vec::new();
        dtype.encode(&[value], &mut bytes);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    fn bf16_to_f32(bits: u16) -> f32 {
        widen(Dtype::Bf16, bits)
    }

    fn f32_to_bf16(value: f32) -> u16 {
        narrow(Dtype::Bf16, value)
    }

    fn f16_to_f32(bits: u16) -> f32 {
        widen(Dtype::F16, bits)
    }

    fn f32_to_f16(value: f32) -> u16 {
        narrow(Dtype::F16, value)
    }

    /// Widening all 65,536 patterns and narrowing again is the identity, and the value between two neighbours goes to
    /// the even one, a hair to either side of it to the nearer: together these fix the rounding everywhere.
    fn exhaustive(widen: fn(u16) -> f32, narrow: fn(f32) -> u16, infinity: u16) {
        for bits in 0..=u16::MAX {
            let value = widen(bits);
            if bits & 0x7fff > infinity {
                assert!(value.is_nan() && widen(narrow(value)).is_nan(), "{bits:#x}");
                assert_eq!(narrow(value) & 0x8000, bits & 0x8000);
                continue;
            }
            assert_eq!(narrow(value), bits, "{bits:#x} = {value:e}");
        }
        for bits in 0..infinity - 1 {
            let middle = f32::midpoint(widen(bits), widen(bits + 1));
            assert!(middle > widen(bits) && middle < widen(bits + 1));
            let even = bits + (bits & 1);
            assert_eq!(narrow(middle), even, "between {bits:#x} and the next");
            assert_eq!(narrow(-middle), even | 0x8000);
            assert_eq!(narrow(middle.next_down()), bits);
            assert_eq!(narrow(middle.next_up()), bits + 1);
        }
    }

    #[test]
    fn bf16_is_exact_and_rounds_to_nearest_even() {
        exhaustive(bf16_to_f32, f32_to_bf16, 0x7f80);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80, "overflow");
        assert_eq!(f32_to_bf16(1.0), 0x3f80);
        assert!(
            bf16_to_f32(f32_to_bf16(f32::from_bits(0x7f80_0001))).is_nan(),
            "a NaN in the low bits must not become inf"
        );
    }

    #[test]
    fn f16_is_exact_and_rounds_to_nearest_even() {
        exhaustive(f16_to_f32, f32_to_f16, 0x7c00);
        assert_eq!(f16_to_f32(0x0001), 2.0_f32.powi(-24));
        assert_eq!(f16_to_f32(0x7bff), 65504.0);
        assert_eq!((f32_to_f16(65519.996), f32_to_f16(65520.0), f32_to_f16(-1e30)), (0x7bff, 0x7c00, 0xfc00));
        assert_eq!((f32_to_f16(2.0_f32.powi(-25)), f32_to_f16(2.0_f32.powi(-25).next_up())), (0, 1));
        assert_eq!((f32_to_f16(1e-45), f32_to_f16(-0.0)), (0, 0x8000));
        assert!(f16_to_f32(f32_to_f16(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn encode_and_decode_are_inverse() {
        let values = [0.0, -0.0, 1.5, -2.0, f32::INFINITY, 6.103_515_6e-5];
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let mut bytes = Vec::new();
            let mut back = Vec::new();
            dtype.encode(&values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            dtype.decode(&bytes, &mut back);
            assert_eq!(back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), values.map(f32::to_bits), "{dtype:?}");
        }
    }
}
