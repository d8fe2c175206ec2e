//! What produced a run's numbers: the precision it computes in, the build and the machine.

use super::arithmetic_fingerprint::fingerprint;
use crate::config::{PrecisionSetting, TrainConfig};
use crate::distributed::group::ProcessGroup;
use crate::ops::device;
use crate::ops::precision::Precision;
use crate::ops::products::{DEFAULT_PRODUCTS, algorithms_in_use, describe_products};
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
    let mut build = serde_json::json!({
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
    });
    note_products(&mut build, device);
    build
}

/// Writes into the identity `build` what products are computed by at present. It is part of the arithmetic: the fixed forward and backward of the
/// fingerprint has other products than the run, so it does not show which algorithms those have.
pub fn note_products(build: &mut Value, device: &Device) {
    let products = describe_products(device);
    let mark = match (algorithms_in_use(device), products.as_deref()) {
        (Some(table), _) => format!("+{}", table.digest()),
        (None, None | Some(DEFAULT_PRODUCTS)) => String::new(),
        // Not yet known, and in any case not those of another run.
        (None, Some(_)) => "+new".to_owned(),
    };
    let numerics = build["numerics"].as_str().unwrap_or_default();
    let fingerprint = numerics.split('+').next().unwrap_or_default();
    build["numerics"] = format!("{fingerprint}{mark}").into();
    build["products"] = products.into();
}

/// The vector instructions of the operations on the CPU, and how they multiply bf16 where a run does.
fn simd(precision: Precision, device: &Device) -> String {
    let level = SimdLevel::in_use();
    match precision {
        Precision::Bf16 if device.is_cpu() => format!("{level}, bf16 products: {}", level.bf16_products()),
        _ => level.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_cpu_no_algorithm_is_part_of_the_arithmetic() {
        let mut build = serde_json::json!({"numerics": "12ab+new", "products": "chosen 34"});
        note_products(&mut build, &Device::Cpu);
        assert_eq!(build, serde_json::json!({"numerics": "12ab", "products": null}));
    }
}
