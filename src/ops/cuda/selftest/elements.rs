//! RoPE and SwiGLU.

use super::{Bench, wide};
use crate::ops::cuda::elementwise::{RopeKernel, rope_by};
use crate::ops::cuda::{rope, swiglu, swiglu_backward};
use crate::ops::positions::{DocumentStarts, Positions};
use crate::ops::precision::Precision;
use crate::ops::{rope as cpu_rope, swiglu as cpu_swiglu};
use candle_core::Result;

pub(super) fn rope_and_swiglu(bench: &mut Bench) -> Result<()> {
    for shape in bench.shapes([(2, 7, 3, 8), (2, 7, 40, 64), (3, 4, 5, 128), (4, 512, 40, 64)]) {
        ropes(bench, shape)?;
    }
    for (rows, f) in bench.shapes([(1, 8), (3, 2056), (5, 24), (1500, 5120)]) {
        let gate_up = bench.tensor(&[rows, 2 * f])?;
        let dact = bench.tensor(&[rows, f])?;
        bench.near("swiglu", &swiglu(&gate_up)?, &cpu_swiglu::swiglu(&wide(&gate_up)?, Precision::F32)?)?;
        let want = cpu_swiglu::swiglu_backward(&wide(&gate_up)?, &wide(&dact)?, Precision::F32)?;
        bench.near("swiglu dgate_up", &swiglu_backward(&gate_up, &dact)?, &want)?;
    }
    Ok(())
}

fn ropes(bench: &mut Bench, (b, t, heads, dim): (usize, usize, usize, usize)) -> Result<()> {
    let tables = cpu_rope::Rope::new(dim, 100.0, t + 33);
    let (cos, sin) = tables.tensors()?;
    let cos = cos.to_device(bench.device)?;
    let sin = sin.to_device(bench.device)?;
    // Documents of two tokens in the first row, of three in the second, and so on.
    let starts = (0..b * t).map(|i| (i % t / (2 + i / t) * (2 + i / t)) as u32).collect();
    let documents = DocumentStarts::new(starts, t)?;
    for within in [false, true] {
        let qkv = bench.tensor(&[b, t, (heads + 2) * dim])?;
        let general = qkv.copy()?;
        let want = wide(&qkv)?.copy()?;
        let positions = if within { Positions::Documents(&documents) } else { Positions::From(5) };
        rope(&qkv, (&cos, &sin), positions, heads, 1.0)?;
        cpu_rope::rope(&want, &tables, heads, positions)?;
        bench.near("rope", &qkv, &want)?;
        rope_by(RopeKernel::General, &general, (&cos, &sin), positions, heads, 1.0)?;
        bench.within(0.0, "rope by either kernel", &qkv, &wide(&general)?)?;
        rope(&qkv, (&cos, &sin), positions, heads, -1.0)?;
        cpu_rope::rope_backward(&want, &tables, heads, positions)?;
        bench.within(bench.twice(), "rope back", &qkv, &want)?;
    }
    Ok(())
}
