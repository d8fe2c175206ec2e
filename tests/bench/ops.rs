//! Each op's share of a training step on the CPU, beside the least time that the machine could take for it.
//!
//! `cargo bench --bench ops -- [SHAPE] [SEQUENCE] [f32|bf16] [THREADS]`, for example `-- 10m 256 f32 1`. Shapes are those of `scripts/bench.py cpu`;
//! a step is 1024 tokens. Every op runs alone on tensors of the step's shapes (so its operands are warmer than in a step), the median
//! of some repetitions counts, times the calls of a step. The floor of an op of products is its FLOPs at the best rate of our own square
//! product, causal attention counted by half; that of the others the bytes they must move at the speed of a large copy. An op whose
//! tensors fit into the caches can be faster than its floor.

#![allow(clippy::print_stdout)]

mod shapes;

use candle_core::{Device, Result, Tensor};
use llama_lite::config::ModelConfig;
use llama_lite::model::params::Layout;
use llama_lite::model::{Llama, TrainInput, init};
use llama_lite::ops::adamw::{Flat, Hyper, adamw, global_norm, zero};
use llama_lite::ops::attention::{Heads, Mask, attention, attention_backward};
use llama_lite::ops::cross_entropy::cross_entropy_and_backward;
use llama_lite::ops::embedding::{embedding, embedding_backward};
use llama_lite::ops::linear::{linear, linear_backward_input, linear_backward_weight};
use llama_lite::ops::positions::Positions;
use llama_lite::ops::precision::Precision;
use llama_lite::ops::rms_norm::{add_rms_norm, rms_norm_backward, rms_norm_recompute};
use llama_lite::ops::rope::{Rope, rope, rope_backward};
use llama_lite::ops::swiglu::{swiglu, swiglu_backward};
use shapes::shape;
use std::time::Instant;

// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS: usize = 1024;

fn median(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let (begun, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < 5 || (begun.elapsed().as_secs_f64() < 0.5 && seconds.len() < 200) {
        let at = Instant::now();
        f()?;
        seconds.push(at.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

struct Row {
    op: &'static str,
    calls: usize,
    seconds: f64,
    gflop: f64,
    mbytes: f64,
}

struct Bench {
    config: ModelConfig,
    sequence: usize,
    precision: Precision,
    rows: Vec<Row>,
}

impl Bench {
    fn time(
        &mut self,
        op: &'static str,
        calls: usize,
        gflop: f64,
        floats: usize,
        f: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let seconds = median(f)?;
        self.rows.push(Row { op, calls, seconds, gflop, mbytes: floats as f64 * 4e-6 });
        Ok(())
    }

    fn random(&self, dims: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 0.5, dims, &Device::Cpu)
    }

    /// Forward, gradient of the input and of the weight of one kind of linear layer.
    fn linears(&mut self, names: [&'static str; 3], out: usize, inner: usize) -> Result<()> {
        let (x, w, dy) = (self.random(&[TOKENS, inner])?, self.random(&[out, inner])?, self.random(&[TOKENS, out])?);
        let dw = self.random(&[out, inner])?;
        let (gflop, layers, p) = (2e-9 * (TOKENS * out * inner) as f64, self.config.num_hidden_layers, self.precision);
        let floats = TOKENS * (out + inner) + out * inner;
        self.time(names[0], layers, gflop, floats, || linear(&x, &w, p).map(drop))?;
        self.time(names[1], layers, gflop, floats, || linear_backward_input(&dy, &w, p).map(drop))?;
        self.time(names[2], layers, gflop, floats + out * inner, || linear_backward_weight(&dy, &x, &dw, p))
    }

    fn blocks(&mut self) -> Result<()> {
        let ModelConfig { hidden_size: c, intermediate_size: f, num_hidden_layers: layers, .. } = self.config;
        let heads = Heads { q: self.config.num_attention_heads, kv: self.config.num_key_value_heads, dim: 64 };
        self.linears(["qkv forward", "qkv dx", "qkv dW"], heads.packed(), c)?;
        self.linears(["o forward", "o dx", "o dW"], c, heads.out())?;
        self.linears(["gate-up forward", "gate-up dx", "gate-up dW"], 2 * f, c)?;
        self.linears(["down forward", "down dx", "down dW"], c, f)?;
        let (b, t, p) = (TOKENS / self.sequence, self.sequence, self.precision);
        let qkv = self.random(&[b, t, heads.packed()])?;
        let (out, lse) = attention(&qkv, heads, Mask::default(), p)?;
        let gflop = 2e-9 * (TOKENS * t * heads.out()) as f64; // both products, keys counted by half
        let (n, width) = (TOKENS, heads.packed());
        self.time("attention forward", layers, gflop, n * (width + heads.out()), || {
            attention(&qkv, heads, Mask::default(), p).map(drop)
        })?;
        self.time("attention backward", layers, 2.5 * gflop, n * 2 * (width + heads.out()), || {
            attention_backward(&qkv, &out, &lse, &out, heads, Mask::default(), p).map(drop)
        })?;
        let tables = Rope::new(64, 500_000.0, t);
        let turned = heads.q + heads.kv;
        self.time("rope", layers, 0.0, 2 * n * turned * 64, || rope(&qkv, &tables, turned, Positions::From(0)))?;
        self.time("rope backward", layers, 0.0, 2 * n * turned * 64, || {
            rope_backward(&qkv, &tables, turned, Positions::From(0))
        })?;
        let (gate_up, act) = (self.random(&[n, 2 * f])?, self.random(&[n, f])?);
        self.time("swiglu, recompute", 2 * layers, 0.0, 3 * n * f, || swiglu(&gate_up, p).map(drop))?;
        self.time("swiglu backward", layers, 0.0, 5 * n * f, || swiglu_backward(&gate_up, &act, p).map(drop))?;
        let (x, d, w, dw) = (self.random(&[n, c])?, self.random(&[n, c])?, self.random(&[c])?, self.random(&[c])?);
        let rstd = add_rms_norm(&x, Some(&d), &w, 1e-5, p)?.rstd;
        self.time("add + rms_norm", 2 * layers + 1, 0.0, 4 * n * c, || {
            add_rms_norm(&x, Some(&d), &w, 1e-5, p).map(drop)
        })?;
        self.time("rms_norm recompute", 2 * layers, 0.0, 2 * n * c, || rms_norm_recompute(&x, &rstd, &w, p).map(drop))?;
        self.time("rms_norm backward", 2 * layers + 1, 0.0, 4 * n * c, || {
            rms_norm_backward(&d, &x, &rstd, &w, Some(&d), Some(&dw)).map(drop)
        })
    }

    fn ends(&mut self) -> Result<()> {
        let (c, v) = (self.config.hidden_size, self.config.vocab_size);
        let (x, w, dw) = (self.random(&[TOKENS, c])?, self.random(&[v, c])?, self.random(&[v, c])?);
        let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % v as u32).collect();
        let (ids, p) = (Tensor::from_vec(ids, TOKENS, &Device::Cpu)?, self.precision);
        self.time("head + loss", 1, 6e-9 * (TOKENS * c * v) as f64, 3 * v * c, || {
            cross_entropy_and_backward(&x, &w, &ids, 1e-3, Some(&dw), p).map(drop)
        })?;
        self.time("embedding", 1, 0.0, 2 * TOKENS * c, || embedding(&ids, &w).map(drop))?;
        self.time("embedding backward", 1, 0.0, 3 * TOKENS * c, || embedding_backward(&ids, &x, &dw))?;
        let layout = Layout::new(&self.config);
        let [param, grad, exp_avg, exp_avg_sq] = [0, 1, 2, 3].map(|_| layout.zeros(&Device::Cpu));
        let (param, grad, exp_avg, exp_avg_sq) = (param?, grad?, exp_avg?, exp_avg_sq?);
        let hyper =
            Hyper { lr: 1e-3, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, t: 5, clip: 0.5, rounding: None };
        let ranges = layout.decay_ranges();
        self.time("zero gradients", 1, 0.0, layout.total, || zero(&grad))?;
        self.time("gradient norm", 1, 0.0, layout.total, || global_norm(&grad).map(drop))?;
        let flat =
            Flat { param: &param, grad: &grad, exp_avg: &exp_avg, exp_avg_sq: &exp_avg_sq, copy: None, first: 0 };
        self.time("AdamW", 1, 0.0, 7 * layout.total, || adamw(&flat, &ranges, &hyper))
    }

    /// The whole step.
    fn step(&self) -> Result<f64> {
        let layout = Layout::new(&self.config);
        let (b, t, v) = (TOKENS / self.sequence, self.sequence, self.config.vocab_size as u32);
        let model = Llama::new(&self.config, init::init(&self.config, &layout, 1)?)?.with_precision(self.precision)?;
        let [grad, exp_avg, exp_avg_sq] = [0, 1, 2].map(|_| layout.zeros(&Device::Cpu));
        let (grad, exp_avg, exp_avg_sq) = (grad?, exp_avg?, exp_avg_sq?);
        let grads = model.grads(&grad)?;
        let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % v).collect();
        let (x, y) =
            (Tensor::from_vec(ids.clone(), (b, t), &Device::Cpu)?, Tensor::from_vec(ids, TOKENS, &Device::Cpu)?);
        let hyper =
            Hyper { lr: 1e-5, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, t: 5, clip: 0.5, rounding: None };
        median(|| {
            zero(&grad)?;
            model.loss_and_backward(&x, &y, TrainInput::default(), 1e-3, &grads)?;
            global_norm(&grad)?;
            let flat = Flat {
                param: &model.flat,
                grad: &grad,
                exp_avg: &exp_avg,
                exp_avg_sq: &exp_avg_sq,
                copy: None,
                first: 0,
            };
            adamw(&flat, &layout.decay_ranges(), &hyper)
        })
    }
}

/// GFLOP/s of the best square product, and MB/s (read and written) of a large copy.
fn ceilings(precision: Precision) -> Result<(f64, f64)> {
    let mut rate = 0f64;
    for n in [1024usize, 1536] {
        let x = Tensor::randn(0f32, 1.0, (n, n), &Device::Cpu)?;
        for _ in 0..6 {
            let at = Instant::now();
            linear(&x, &x, precision)?;
            rate = rate.max(2e-9 * (n * n * n) as f64 / at.elapsed().as_secs_f64());
        }
    }
    let (from, mut to) = (vec![1f32; 32 << 20], vec![0f32; 32 << 20]);
    let threads = rayon::current_num_threads();
    let mut best = f64::MAX;
    for _ in 0..5 {
        let at = Instant::now();
        let part = from.len() / threads;
        rayon::scope(|s| {
            for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
                s.spawn(move |_| to.copy_from_slice(from));
            }
        });
        best = best.min(at.elapsed().as_secs_f64());
    }
    Ok((rate, 8e-6 * from.len() as f64 / best))
}

fn main() -> Result<()> {
    // As the program: freed memory stays (`keep_freed_pages` of main.rs).
    // SAFETY: sets an option of the allocator before any other thread exists.
    unsafe { libmimalloc_sys::mi_option_set(15, -1) };
    let given: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arg = |i: usize, default: &str| given.get(i).cloned().unwrap_or_else(|| default.into());
    let (name, sequence) = (arg(0, "10m"), arg(1, "256").parse().expect("SEQUENCE is a number"));
    let precision = if arg(2, "f32") == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let threads = arg(3, "1").parse().expect("THREADS is a number");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    let (rate, copy) = ceilings(precision)?;
    let mut bench = Bench { config: shape(&name, sequence), sequence, precision, rows: Vec::new() };
    bench.blocks()?;
    bench.ends()?;
    let step = bench.step()?;
    println!(
        "{name}, sequence {sequence}, {precision:?}, {threads} threads: step {step:.4} s; {rate:.0} GFLOP/s, copy {copy:.0} MB/s\n"
    );
    println!("| op | calls | ms in a step | share | floor ms | floor / time |\n|---|---|---|---|---|---|");
    let (mut sum, mut floors) = (0.0, 0.0);
    for Row { op, calls, seconds, gflop, mbytes } in &bench.rows {
        let (all, floor) = (*calls as f64 * seconds, *calls as f64 * (gflop / rate).max(mbytes / copy));
        (sum, floors) = (sum + all, floors + floor);
        println!(
            "| {op} | {calls} | {:.2} | {:.1} % | {:.2} | {:.0} % |",
            1e3 * all,
            100.0 * all / step,
            1e3 * floor,
            100.0 * floor / all
        );
    }
    println!(
        "| **all** | | {:.1} | {:.0} % | {:.1} | {:.0} % |",
        1e3 * sum,
        100.0 * sum / step,
        1e3 * floors,
        100.0 * floors / sum
    );
    Ok(())
}
