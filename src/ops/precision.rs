//! The type to which the operands of matrix products are rounded.

/// The type of a product's operands in the multiplication; sums are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Operands are rounded to bf16 (to nearest even) while they are packed. How they are then multiplied depends on the processor:
    /// [`SimdLevel::bf16_products`](super::simd::SimdLevel::bf16_products).
    Bf16,
}
