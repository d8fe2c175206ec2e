//! The optimizer: updates, moments in bf16, norms and sums of squares.

use super::{BF16, Bench, wide};
use crate::ops::adamw as cpu_adamw;
use crate::ops::cuda::{global_norm, round_to_bf16, squares};
use crate::ops::squares::{self as cpu_squares, LastUpdate, Squares};
use candle_core::{DType, Device, Result, Tensor, bail};

/// The update is the CPU's but for the order in which a compiler adds and multiplies; the copy is its rounding.
pub(super) fn updates(bench: &mut Bench) -> Result<()> {
    let n = 3001;
    let [p, g, m, v] = [bench.exact(&[n])?, bench.exact(&[n])?, bench.exact(&[n])?, bench.exact(&[n])?.sqr()?];
    let ranges = [(0, 1000, true), (1000, 1, false), (1001, 2000, true)].map(|(start, len, decay)| cpu_adamw::Range {
        start,
        len,
        decay,
    });
    let hyper = cpu_adamw::Hyper {
        lr: 1e-2,
        betas: (0.9, 0.95),
        eps: 1e-8,
        weight_decay: 0.1,
        t: 7,
        clip: 0.3,
        rounding: None,
    };
    let host = [wide(&p)?.copy()?, wide(&m)?.copy()?, wide(&v)?.copy()?];
    let rounded = Tensor::zeros(n, DType::BF16, bench.device)?;
    let flat = cpu_adamw::Flat { param: &p, grad: &g, exp_avg: &m, exp_avg_sq: &v, copy: Some(&rounded), first: 0 };
    cpu_adamw::adamw_on_gpu(&flat, &ranges, &hyper)?;
    let host_g = wide(&g)?;
    update_on_host(&host, &host_g, &ranges, &hyper)?;
    for (what, got, want) in [("adamw p", &p, &host[0]), ("adamw m", &m, &host[1]), ("adamw v", &v, &host[2])] {
        bench.within(bench.f32(), what, got, want)?;
    }
    round_moments(bench, &hyper, &ranges)?;
    let again = wide(&wide(&p)?.to_dtype(DType::BF16)?)?;
    bench.within(0.0, "adamw copy", &rounded, &again)?;
    let other = Tensor::zeros(n, DType::BF16, bench.device)?;
    round_to_bf16(&p, &other)?;
    bench.within(0.0, "round_to_bf16", &other, &again)?;
    let rule = LastUpdate { keep: 0.99, lr: 1e-2, inverse_correction1: 1.9, inverse_sqrt_correction2: 1.7, eps: 1e-8 };
    let got = squares([&p, &g, &m, &v], &ranges, &rule)?;
    let want = cpu_squares::squares([&host[0], &host_g, &host[1], &host[2]], &ranges, &rule)?;
    for (got, want) in got.iter().zip(&want) {
        bench.within(1e-5, "squares", &sums(got)?, &sums(want)?)?;
    }
    bench.numbers(5e-7, "global_norm", [global_norm(&g)?, cpu_adamw::global_norm(&host_g)?])
}

fn sums(squares: &Squares) -> Result<Tensor> {
    let sums = [squares.grad, squares.weight, squares.update, squares.adam];
    Tensor::new(&sums, &Device::Cpu)?.to_dtype(DType::F32)
}

/// Moments in bf16: the same draws as on the CPU, so that most come out the same, and none farther than a step of bf16.
fn round_moments(bench: &mut Bench, hyper: &cpu_adamw::Hyper, ranges: &[cpu_adamw::Range]) -> Result<()> {
    let n = 3001;
    let hyper = cpu_adamw::Hyper { rounding: Some(77), ..*hyper };
    let [p, g] = [bench.exact(&[n])?, bench.exact(&[n])?];
    let [m, v] = [bench.exact(&[n])?, bench.exact(&[n])?.sqr()?].map(|t| t.to_dtype(DType::BF16));
    let m = m?;
    let v = v?;
    let host = [wide(&p)?.copy()?, wide(&m)?.copy()?, wide(&v)?.copy()?];
    let flat = cpu_adamw::Flat { param: &p, grad: &g, exp_avg: &m, exp_avg_sq: &v, copy: None, first: 0 };
    cpu_adamw::adamw_on_gpu(&flat, ranges, &hyper)?;
    update_on_host(&host, &wide(&g)?, ranges, &hyper)?;
    bench.within(bench.f32(), "adamw p, rounded moments", &p, &host[0])?;
    for (what, got, want) in [("adamw m in bf16", &m, &host[1]), ("adamw v in bf16", &v, &host[2])] {
        bench.within(2.0 * BF16, what, got, want)?;
        let others = wide(got)?.ne(want)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        if others > n as f32 / 100.0 {
            bail!("{what}: {others} of {n} are rounded otherwise than on the CPU");
        }
    }
    Ok(())
}

/// The update of the CPU on `host`, which holds weights and both moments.
fn update_on_host(
    host: &[Tensor; 3],
    grad: &Tensor,
    ranges: &[cpu_adamw::Range],
    hyper: &cpu_adamw::Hyper,
) -> Result<()> {
    let [param, exp_avg, exp_avg_sq] = host.each_ref();
    cpu_adamw::adamw(&cpu_adamw::Flat { param, grad, exp_avg, exp_avg_sq, copy: None, first: 0 }, ranges, hyper)
}
