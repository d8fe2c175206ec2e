//! What produced a run's numbers: the precision it computes in, the build and the machine.

use super::arithmetic_fingerprint::fingerprint;
use crate::config::{PrecisionSetting, TrainConfig};
use crate::distributed::group::ProcessGroup;
use crate::ops::device;
use crate::ops::precision::Precision;
use crate::ops::simd::SimdLevel;
use crate::runtime::machine;
use candle_core::Device;
use serde_json::Value;

/// `train.precision` on `device`.
pub fn precision(config: &TrainConfig, device: &Device) -> Precision {
    precision_on(config, !device.is_cpu())
}

/// `train.precision`, where "auto" is f32 on a CPU and bf16 on a GPU.
pub fn precision_on(config: &TrainConfig, is_gpu: bool) -> Precision {
    match config.precision {
        PrecisionSetting::Auto if !is_gpu => Precision::F32,
        PrecisionSetting::F32 => Precision::F32,
        PrecisionSetting::Auto | PrecisionSetting::Bf16 => Precision::Bf16,
    }
}

/// Build and machine, from an allow-list (never the environment): what a later attempt compares itself with.
pub fn identity(config: &TrainConfig, device: &Device, group: &ProcessGroup) -> Value {
    let (gpu, driver) = device::describe(device).unzip();
    serde_json::json!({
        "version": crate::VERSION,
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "kernel": machine::kernel(),
        "host": machine::host(),
        "cpu": machine::cpu(),
        "simd": simd(precision(config, device), device),
        "threads": rayon::current_num_threads(),
        "ranks": group.ranks(),
        "device": if device.is_cpu() { "cpu" } else { "cuda" },
        "gpu": gpu,
        "driver": driver,
        "attention": (!device.is_cpu()).then(|| device::attention_library(device).unwrap_or_else(|_| "own".into())),
        "dtype": match precision(config, device) {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        },
        "numerics": fingerprint(precision(config, device), device),
    })
}

/// The vector instructions of the operations on the CPU, and how they multiply bf16 where a run does.
fn simd(precision: Precision, device: &Device) -> String {
    let level = SimdLevel::in_use();
    match precision {
        Precision::Bf16 if device.is_cpu() => format!("{level}, bf16 products: {}", level.bf16_products()),
        _ => level.to_string(),
    }
}
