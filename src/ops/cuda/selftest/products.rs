//! Linear layers: by cuBLAS's own choice of algorithms, and by those that are the fastest here.

use super::{Bench, wide};
use crate::ops::cuda::{linear, linear_backward_input, linear_backward_weight};
use crate::ops::linear as cpu_linear;
use crate::ops::precision::Precision;
use candle_core::Result;

pub(super) fn default_products(bench: &mut Bench) -> Result<()> {
    linear_layers(bench, "linear")
}

/// What a run computes by: several algorithms are measured, and the one that is taken computes what is compared.
pub(super) fn chosen_products(bench: &mut Bench) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = bench.device {
        use crate::ops::cuda::gpu::products::{choose_algorithms, forget_algorithms};
        let (compared, _) = choose_algorithms(device, "self-test", || linear_layers(bench, "linear (chosen)"));
        forget_algorithms();
        return compared;
    }
    linear_layers(bench, "linear (chosen)")
}

fn linear_layers(bench: &mut Bench, name: &str) -> Result<()> {
    for (rows, o, i) in bench.shapes([(5, 9, 17), (64, 136, 72), (2048, 3072, 2048)]) {
        let x = bench.tensor(&[rows, i])?;
        let w = bench.tensor(&[o, i])?;
        let dy = bench.tensor(&[rows, o])?;
        let y = linear(&x, &w, &[rows, o])?;
        bench.near(&format!("{name} y"), &y, &cpu_linear::linear(&wide(&x)?, &wide(&w)?, Precision::F32)?)?;
        let dx = linear_backward_input(&dy, &w, &[rows, i])?;
        let want = cpu_linear::linear_backward_input(&wide(&dy)?, &wide(&w)?, Precision::F32)?;
        bench.near(&format!("{name} dx"), &dx, &want)?;
        let dw = bench.exact(&[o, i])?;
        let want = wide(&dw)?.copy()?;
        linear_backward_weight(&dy, &x, &dw)?;
        cpu_linear::linear_backward_weight(&wide(&dy)?, &wide(&x)?, &want, Precision::F32)?;
        bench.within(bench.f32(), &format!("{name} dw"), &dw, &want)?;
    }
    Ok(())
}
