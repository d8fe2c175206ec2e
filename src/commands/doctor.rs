//! `doctor`: what this machine and build offer, and whether every op computes what it should here.

use super::print;
use crate::ops::product_rate::{ProductRates, ProductShape};
use crate::ops::simd::SimdLevel;
use crate::ops::{device, selftest};
use crate::runtime::error::{Exit, fail};
use crate::train::footprint::bytes;
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    let products = products();
    // Line by line as it is known: what takes long or ends the process must not take along what was found before.
    print(&format!(
        "llama-lite {}\nplatform   {} {}\ncpu        {} threads, {}\nproducts   {}\ngpu        {}\n{}\nself-test  (largest relative difference \
         from candle's autograd, at most {:.0e})\n",
        crate::VERSION,
        std::env::consts::OS,
        std::env::consts::ARCH,
        rayon::current_num_threads(),
        SimdLevel::in_use(),
        products.as_ref().map_or_else(|error| format!("FAILED: {error:#}"), String::clone),
        gpu(),
        attention(),
        selftest::TOLERANCE,
    ))?;
    let mut failed: Vec<String> = products.err().map(|_| "products".to_owned()).into_iter().collect();
    for outcome in selftest::run() {
        print(&outcome.to_string())?;
        if !outcome.passed() {
            failed.push(outcome.op.to_owned());
        }
    }
    failed.extend(on_gpu()?);
    if failed.is_empty() {
        return print("\nall operations compute what they should");
    }
    Err(fail(Exit::Internal, format!("self-test failed: {}", failed.join(", ")))
        .hint("do not trust training on this machine; please report this output")
        .into())
}

/// The precisions of the CPU's products, with their rates where no GPU computes them.
fn products() -> Result<String> {
    let bf16 = SimdLevel::in_use().bf16_products();
    if !device::used().is_cpu() {
        return Ok(format!("f32, bf16 ({bf16})"));
    }
    let rates = ProductRates::measure(ProductShape::LARGE)?;
    let threads = rayon::current_num_threads();
    let plural = if threads == 1 { "" } else { "s" };
    Ok(format!("{rates}, {threads} thread{plural}; bf16: {bf16}"))
}

fn gpu() -> String {
    match device::describe(device::used()) {
        Some((name, driver)) => {
            let free = device::memory().map_or_else(String::new, |free| format!(", {} free", bytes(free)));
            format!("{name}{free}, driver for {driver}, cuBLAS {}", device::blas_version(device::used()))
        }
        None => match device::fallback() {
            Some(why) => format!("none: {why}"),
            None if cfg!(feature = "cuda") => "none: no GPU or no driver was found, or --device cpu was given".into(),
            None => "not in this build".into(),
        },
    }
}

/// Which attention a GPU uses: a line, or none without one.
fn attention() -> String {
    if device::used().is_cpu() {
        return String::new();
    }
    let library = device::attention_library(device::used()).unwrap_or_else(|why| format!("our own kernels ({why})"));
    format!("attention  {library}\n")
}

/// Compares the GPU's kernels with the CPU, if there is one; returns what failed.
#[cfg(feature = "cuda")]
fn on_gpu() -> Result<Vec<String>> {
    if device::used().is_cpu() {
        return Ok(Vec::new());
    }
    print("\nkernels    (largest relative difference from the CPU's results, and the limit)\n")?;
    let mut failed = Vec::new();
    crate::ops::gpu_selftest(device::used(), |found| {
        if !found.passed() {
            failed.push(found.what.clone());
        }
        print(&found.to_string())
    })?;
    Ok(failed)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu() -> Result<Vec<String>> {
    Ok(Vec::new())
}
