//! f32 to and from the 16-bit formats of weight files.
//!
//! bf16 is the upper half of an f32. f16 has 5 exponent bits (bias 15) and 10 of mantissa. Both ways round to nearest,
//! ties to even, as PyTorch and the hardware do; widening is exact.

use anyhow::Result;

use crate::runtime::error::{Exit, fail};

/// Element type of a weight file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// From the name used on the command line: `f32`, `bf16` or `f16`.
    pub fn parse(name: &str) -> Result<Dtype> {
        match name {
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            "f16" => Ok(Dtype::F16),
            _ => Err(fail(Exit::Config, format!("unknown dtype {name:?}")).hint("use f32, bf16 or f16").into()),
        }
    }

    /// Bytes per element.
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

    /// Appends `values` in little-endian order to `out`.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Dtype::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Dtype::Bf16 => out.extend(values.iter().flat_map(|&v| f32_to_bf16(v).to_le_bytes())),
            Dtype::F16 => out.extend(values.iter().flat_map(|&v| f32_to_f16(v).to_le_bytes())),
        }
    }

    /// Appends the elements in `bytes` (a whole number of them) to `out`.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Dtype::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|&b| bf16_to_f32(u16::from_le_bytes(b)))),
            Dtype::F16 => out.extend(bytes.as_chunks().0.iter().map(|&b| f16_to_f32(u16::from_le_bytes(b)))),
        }
    }
}

/// bf16 bits to f32, exact.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to bf16 bits, nearest even; NaN stays NaN (quiet), overflow becomes infinity.
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    // Half of the last place kept, less one when that place is even: carries exactly when rounding up is due.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// f16 bits to f32, exact.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(bits >> 10 & 0x1f), u32::from(bits & 0x3ff));
    match exponent {
        // Zero and subnormals: multiples of 2^-24, all exact in f32.
        0 => f32::from_bits((mantissa as f32 * f32::from_bits(103 << 23)).to_bits() | sign),
        31 => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

/// f32 to f16 bits, nearest even; NaN stays NaN (quiet), 65,520 and above become infinity.
pub fn f32_to_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let bits = value.to_bits() & 0x7fff_ffff;
    let magnitude = match bits {
        0x7f80_0001.. => 0x7e00 | (bits >> 13 & 0x3ff) as u16,
        // 65,520 is half-way between the largest f16 and what would follow.
        0x477f_f000.. => 0x7c00,
        // 2^-14 and above: normal. Rebias the exponent, then round as for bf16.
        0x3880_0000.. => ((bits - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13) as u16,
        // Adding 0.5 leaves multiples of 2^-24 in the mantissa: the addition itself rounds to nearest even.
        _ => ((f32::from_bits(bits) + 0.5).to_bits() - 0.5_f32.to_bits()) as u16,
    };
    sign | magnitude
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            dtype.encode(&values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            dtype.decode(&bytes, &mut back);
            assert_eq!(back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), values.map(f32::to_bits), "{dtype:?}");
        }
        assert_eq!(Dtype::parse("bf16").unwrap(), Dtype::Bf16);
        assert!(Dtype::parse("int8").unwrap_err().to_string().contains("int8"));
    }
}
