//! The device that this process computes on: the CPU or one GPU, chosen once at its start.

use crate::runtime::error::{Exit, Failure, fail};
#[cfg(any(test, feature = "cuda"))]
use crate::runtime::files::write_atomic;
use candle_core::{Device, DeviceLocation};
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

/// What is known of a GPU without having one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuModel {
    /// Its name on a command line.
    pub key: &'static str,
    pub name: &'static str,
    /// Bytes of memory, as its driver counts them.
    pub memory: u64,
    /// Peak of dense bf16 matrix products by the maker's sheet, in FLOP/s.
    pub peak_flops: f64,
    /// Bytes a second that memory delivers by the maker's sheet.
    pub bandwidth: f64,
}

const fn gpu_model(key: &'static str, name: &'static str, mebibytes: u64, teraflops: f64, gigabytes: f64) -> GpuModel {
    GpuModel { key, name, memory: mebibytes << 20, peak_flops: teraflops * 1e12, bandwidth: gigabytes * 1e9 }
}

pub const GPUS: [GpuModel; 6] = [
    gpu_model("a100-40", "A100 40 GB", 40_960, 312.0, 1555.0),
    gpu_model("a100-80", "A100 80 GB", 81_920, 312.0, 2039.0),
    gpu_model("h100", "H100", 81_559, 989.5, 3350.0),
    gpu_model("h200", "H200", 143_771, 989.5, 4800.0),
    gpu_model("a6000", "RTX A6000", 49_140, 154.8, 768.0),
    gpu_model("4090", "RTX 4090", 24_564, 165.2, 1008.0),
];

static USED: OnceLock<Device> = OnceLock::new();

/// Free bytes of the GPU's memory before anything was allocated there.
static FREE: OnceLock<u64> = OnceLock::new();

/// Why the CPU computes although a GPU would have been taken.
static FALLBACK: OnceLock<String> = OnceLock::new();

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if this build can use one and there is one, else the CPU.
    Auto,
    Cpu,
    /// A GPU: of several processes on a machine, each takes one of its own as long as there are enough.
    Cuda,
    /// The GPU of this number.
    Gpu(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
        match (text, number.map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda),
            (_, Some(Ok(number))) => Ok(Self::Gpu(number)),
            _ => Err("expected auto, cpu, cuda or cuda:N, such as cuda:0".to_owned()),
        }
    }
}

impl DeviceChoice {
    /// Whether it means a GPU on this machine, whether or not that can be used.
    pub fn means_gpu(self) -> bool {
        match self {
            Self::Auto => count_gpus() > 0,
            Self::Cpu => false,
            Self::Cuda | Self::Gpu(_) => true,
        }
    }
}

/// How many GPUs this process can see; 0 if it can use none.
pub fn count_gpus() -> usize {
    #[cfg(feature = "cuda")]
    return super::cuda::count().unwrap_or(0);
    #[cfg(not(feature = "cuda"))]
    0
}

/// Chooses the device for the rest of the process, which is number `local_rank` of those on this machine that choose alike.
///
/// # Errors
/// [`Exit::Config`] if a GPU was asked for that is not there or that this build cannot use.
pub fn choose(choice: DeviceChoice, local_rank: usize) -> Result<(), Failure> {
    let device = match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto => gpu(own_gpu(local_rank)).unwrap_or_else(|why| {
            let _ = FALLBACK.set(why);
            Device::Cpu
        }),
        DeviceChoice::Cuda => required_gpu(own_gpu(local_rank))?,
        DeviceChoice::Gpu(number) => required_gpu(number)?,
    };
    #[cfg(feature = "cuda")]
    if let Some(free) = super::cuda::free_memory(&device) {
        let _ = FREE.set(free);
    }
    let _ = USED.set(device);
    Ok(())
}

/// Why `--device auto` has taken the CPU on a machine that seems to have a GPU; none if that is as it should be.
pub fn fallback() -> Option<String> {
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|list| list.is_empty() || list.starts_with("-1"));
    FALLBACK.get().filter(|_| !hidden).and_then(|why| fallback_in(Path::new("/dev"), why))
}

/// `devices` is the folder of device files.
fn fallback_in(devices: &Path, why: &str) -> Option<String> {
    // The driver's, and Windows's for Linux guests.
    let has_gpu = ["nvidiactl", "nvidia0", "dxg"].iter().any(|name| devices.join(name).exists());
    has_gpu.then(|| format!("this machine seems to have a GPU, but the CPU computes: {why}"))
}

/// The GPU of a process; more processes than GPUs share them.
fn own_gpu(local_rank: usize) -> usize {
    local_rank % count_gpus().max(1)
}

fn required_gpu(number: usize) -> Result<Device, Failure> {
    gpu(number).map_err(|why| {
        fail(Exit::Config, format!("--device cuda:{number}: {why}")).hint("use --device cpu, or see llama-lite doctor")
    })
}

/// Bytes of the GPU's memory that were free when it was chosen; none on the CPU.
pub fn memory() -> Option<u64> {
    FREE.get().copied()
}

/// The device of this process.
pub fn used() -> &'static Device {
    USED.get_or_init(|| Device::Cpu)
}

/// The GPU's name and the driver's version, as (name, driver); none on the CPU.
pub fn describe(device: &Device) -> Option<(String, String)> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Some(super::cuda::describe(device)),
        _ => None,
    }
}

/// `cpu`, or `cuda:` and the number of the GPU.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        _ => "cpu".into(),
    }
}

/// What tells a GPU from all others, on any host; empty on the CPU and where the driver does not say.
pub fn unique_name(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::unique_name(device),
        _ => String::new(),
    }
}

/// Peak of dense bf16 matrix products in FLOP/s; none on the CPU and for a GPU that is not in [`GPUS`].
pub fn peak_flops(device: &Device) -> Option<f64> {
    describe(device).and_then(|(name, _)| peak_flops_by_name(&name))
}

fn peak_flops_by_name(name: &str) -> Option<f64> {
    let is_named = |gpu: &&GpuModel| gpu.name.split(' ').all(|word| name.contains(word) || word == "GB");
    GPUS.iter().find(is_named).map(|gpu| gpu.peak_flops)
}

/// Writes the times of a GPU's launches until now, if LLAMA_LITE_OP_TIMES names a file for them.
///
/// # Errors
/// Those of writing the file.
pub fn write_op_times() -> anyhow::Result<()> {
    #[cfg(any(test, feature = "cuda"))]
    if let Some((path, times)) = super::cuda::op_times() {
        return write_atomic(&path, format!("{times:#}\n").as_bytes());
    }
    Ok(())
}

/// cuBLAS's version; empty on the CPU.
pub fn blas_version(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::blas_version(device),
        _ => String::new(),
    }
}

/// Which attention a GPU uses: that of cuDNN and its version, or why it uses our own.
pub fn attention_library(device: &Device) -> Result<String, String> {
    match device {
        #[cfg(feature = "cudnn")]
        Device::Cuda(device) => return super::cuda::cudnn_version(device).map(|version| format!("cuDNN {version}")),
        _ => {}
    }
    Err(if cfg!(feature = "cudnn") { "there is no GPU" } else { "this build has no cuDNN support" }.into())
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, String> {
    Err("this build has no CUDA support".into())
}

#[cfg(feature = "cuda")]
use super::cuda::open as gpu;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_is_told_where_there_seems_to_be_a_gpu() {
        let devices = tempfile::tempdir().unwrap();
        assert_eq!(fallback_in(devices.path(), "libcublas.so.13 is missing"), None);
        std::fs::write(devices.path().join("nvidiactl"), "").unwrap();
        let why = fallback_in(devices.path(), "libcublas.so.13 is missing").unwrap();
        assert_eq!(why, "this machine seems to have a GPU, but the CPU computes: libcublas.so.13 is missing");
    }

    #[test]
    fn gpus_are_known_by_their_names() {
        assert_eq!(peak_flops_by_name("NVIDIA H200"), Some(989.5e12));
        assert_eq!(peak_flops_by_name("NVIDIA H100 80GB HBM3"), Some(989.5e12));
        assert_eq!(peak_flops_by_name("NVIDIA A100-SXM4-80GB"), Some(312e12));
        assert_eq!(peak_flops_by_name("NVIDIA GeForce RTX 4090"), Some(165.2e12));
        assert_eq!(peak_flops_by_name("NVIDIA T4"), None);
    }
}
