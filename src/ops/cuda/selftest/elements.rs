//! RoPE, SwiGLU, norms of heads and biases.

use super::{Bench, wide};
use crate::ops::cuda::elementwise::{RopeKernel, rope_by};
use crate::ops::cuda::{add_bias, bias_backward, qk_norm, qk_norm_backward, rope, swiglu, swiglu_backward};
use crate::ops::heads::Heads;
use crate::ops::positions::{DocumentStarts, Positions};
use crate::ops::precision::Precision;
use crate::ops::qk_norm::QkNorm;
use crate::ops::{bias as cpu_bias, qk_norm as cpu_qk_norm, rope as cpu_rope, swiglu as cpu_swiglu};
use candle_core::Result;

pub(super) fn rope_swiglu_and_bias(bench: &mut Bench) -> Result<()> {
    for shape in bench.shapes([(2, 7, 3, 8), (2, 7, 40, 64), (3, 4, 5, 128), (4, 512, 40, 64)]) {
        ropes(bench, shape)?;
    }
    for (rows, f) in bench.shapes([(1, 8), (3, 2056), (5, 24), (1500, 5120)]) {
        let gate_up = bench.tensor(&[rows, 2 * f])?;
        let dact = bench.tensor(&[rows, f])?;
        bench.near("swiglu", &swiglu(&gate_up)?, &cpu_swiglu::swiglu(&wide(&gate_up)?, Precision::F32)?)?;
        let want = cpu_swiglu::swiglu_backward(&wide(&gate_up)?, &wide(&dact)?, Precision::F32)?;
        bench.near("swiglu dgate_up", &swiglu_backward(&gate_up, &dact)?, &want)?;
        biases(bench, rows, f)?;
    }
    for (b, t, q, kv, dim) in bench.shapes([(1, 1, 1, 1, 2), (2, 7, 3, 1, 40), (3, 300, 4, 2, 64), (4, 512, 8, 4, 128)])
    {
        qk_norms(bench, (b, t), Heads { q, kv, dim })?;
    }
    Ok(())
}

fn biases(bench: &mut Bench, rows: usize, c: usize) -> Result<()> {
    let y = bench.tensor(&[rows, c])?;
    let bias = bench.exact(&[c])?;
    let want = wide(&y)?.copy()?;
    cpu_bias::add_bias(&want, &wide(&bias)?)?;
    add_bias(&y, &bias)?;
    bench.near("bias", &y, &want)?;
    let dbias = bench.exact(&[c])?;
    let want = wide(&dbias)?.copy()?;
    bias_backward(&y, &dbias)?;
    cpu_bias::bias_backward(&wide(&y)?, &want)?;
    bench.within(bench.f32(), "bias dbias", &dbias, &want)
}

fn qk_norms(bench: &mut Bench, (b, t): (usize, usize), heads: Heads) -> Result<()> {
    let eps = 1e-5;
    let qkv = bench.tensor(&[b, t, heads.packed()])?;
    let dqkv = bench.tensor(&[b, t, heads.packed()])?;
    let [q_norm, k_norm, dq_norm, dk_norm] = [(); 4].map(|()| bench.exact(&[heads.dim]));
    let (q_norm, k_norm, dq_norm, dk_norm) = (q_norm?, k_norm?, dq_norm?, dk_norm?);
    let weights = QkNorm { q_norm: &q_norm, k_norm: &k_norm };
    let grads = QkNorm { q_norm: &dq_norm, k_norm: &dk_norm };
    let [want, want_dqkv] = [wide(&qkv)?.copy()?, wide(&dqkv)?.copy()?];
    let [wide_q, wide_k] = [wide(&q_norm)?, wide(&k_norm)?];
    let [want_dq, want_dk] = [wide(&dq_norm)?.copy()?, wide(&dk_norm)?.copy()?];
    let wide_weights = QkNorm { q_norm: &wide_q, k_norm: &wide_k };
    let wide_grads = QkNorm { q_norm: &want_dq, k_norm: &want_dk };
    let want_before = cpu_qk_norm::qk_norm(&want, wide_weights, heads, eps)?;
    let before = qk_norm(&qkv, weights, heads, eps)?;
    bench.near("qk_norm", &qkv, &want)?;
    bench.within(0.0, "qk_norm before", &before, &want_before)?;
    qk_norm_backward(&dqkv, &before, weights, heads, eps, Some(grads))?;
    cpu_qk_norm::qk_norm_backward(&want_dqkv, &want_before, wide_weights, heads, eps, Some(wide_grads))?;
    bench.near("qk_norm dqkv", &dqkv, &want_dqkv)?;
    bench.within(bench.f32(), "qk_norm dq_norm", &dq_norm, &want_dq)?;
    bench.within(bench.f32(), "qk_norm dk_norm", &dk_norm, &want_dk)
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
