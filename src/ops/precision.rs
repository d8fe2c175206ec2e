//! The type to which the operands of matrix products are rounded.

/// The type of a product's operands in the multiplication. In memory all is f32, and sums are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Operands are rounded to bf16 (to nearest even) while they are packed, and multiplied in pairs by `vdpbf16ps`.
    Bf16,
}

impl Precision {
    /// 32-bit words of a packed operand for `terms` of its inner dimension.
    pub(crate) fn words(self, terms: usize) -> usize {
        match self {
            Self::F32 => terms,
            Self::Bf16 => terms.div_ceil(2),
        }
    }

    /// Whether a word begins at term `at`.
    pub(crate) fn terms_fit(self, at: usize) -> bool {
        self == Self::F32 || at.is_multiple_of(2)
    }

    pub fn supported(self) -> bool {
        match self {
            Self::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }
}
