//! By which algorithms this process computes the matrix products of a GPU: by those that cuBLAS chooses, or by those that were chosen for a run
//! by their times. On a CPU there is nothing to choose.

use super::product_algorithms::{ProductAlgorithms, ProductTiming};
use candle_core::Device;
use std::path::PathBuf;

/// How products that cuBLAS chooses the algorithms of are described.
pub const DEFAULT_PRODUCTS: &str = "default";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProductSetting {
    /// The variable is not set: a run measures several algorithms before its first step.
    Choose,
    Default,
    /// The algorithms of another run, whose `products.json` this is.
    File(PathBuf),
}

pub fn product_setting() -> ProductSetting {
    match std::env::var_os("LLAMA_LITE_PRODUCTS").filter(|value| !value.is_empty()) {
        None => ProductSetting::Choose,
        Some(value) if value == DEFAULT_PRODUCTS => ProductSetting::Default,
        Some(value) => ProductSetting::File(value.into()),
    }
}

/// What the products of this process are computed by, in words that differ if bits may; none on a CPU.
pub fn describe_products(device: &Device) -> Option<String> {
    if device.is_cpu() {
        return None;
    }
    Some(match (algorithms_in_use(device), product_setting()) {
        (Some(table), _) => format!("chosen {}", table.digest()),
        (None, ProductSetting::Default) => DEFAULT_PRODUCTS.to_owned(),
        (None, _) => "chosen before the first step".to_owned(),
    })
}

/// The algorithms that were chosen; none if cuBLAS chooses.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn algorithms_in_use(device: &Device) -> Option<ProductAlgorithms> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::algorithms_in_use(device),
        _ => None,
    }
}

pub fn forget_algorithms() {
    #[cfg(feature = "cuda")]
    super::cuda::forget_algorithms();
}

/// Computes products by `table` from now on; returns a line for each algorithm of it that cannot be used here.
///
/// # Errors
/// Why none of them can be, in words.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn use_algorithms(device: &Device, table: &ProductAlgorithms) -> Result<Vec<String>, String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::use_algorithms(device, table),
        _ => Err("a CPU has no algorithms to choose from".to_owned()),
    }
}

/// Does `work`, which is called `pass`, and chooses an algorithm for each of its products that has none yet. From then on they are computed by
/// these. What was tried is returned whatever becomes of `work`.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn choose_algorithms<T>(device: &Device, pass: &str, work: impl FnOnce() -> T) -> (T, Vec<ProductTiming>) {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::choose_algorithms(device, pass, work),
        _ => (work(), Vec::new()),
    }
}
