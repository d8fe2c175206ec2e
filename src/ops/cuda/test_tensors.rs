//! Tensors for the tests of this folder, in memory that the emulated kernels read.

use candle_core::{DType, Device, Shape, Tensor};

/// Numbers from -1 to 1, which `key` determines.
pub(super) fn numbers(shape: impl Into<Shape>, key: u64, dtype: DType) -> Tensor {
    let shape = shape.into();
    let number = |i: u64| (crate::ops::noise::draw(key, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..shape.elem_count() as u64).map(number).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The elements as f32, which is exact.
pub(super) fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(super) fn bits(t: &Tensor) -> Vec<u32> {
    values(t).into_iter().map(f32::to_bits).collect()
}
