//! The forward pass of evaluation beside that of training on the CPU, in tokens per second.
//!
//! `cargo bench --bench evaluation -- [SHAPE] [SEQUENCE] [f32|bf16] [THREADS]`, for example `-- 10m 256 f32 1`. Shapes are those of
//! `scripts/bench.py cpu`. For each number of tokens a pass: training's forward pass alone (its blocks, without the head, whose forward and
//! backward are one), evaluation's pass without the head, the head of evaluation, and evaluation as a whole. Medians; training and
//! evaluation take turns.

#![allow(clippy::print_stdout)]

mod shapes;

use candle_core::{Device, Result, Tensor};
use llama_lite::model::params::Layout;
use llama_lite::model::{Llama, TrainInput, init};
use llama_lite::ops::cross_entropy::cross_entropy;
use llama_lite::ops::precision::Precision;
use shapes::shape;
use std::time::Instant;

// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn compare(model: &Llama, head: &Tensor, sequence: usize, tokens: usize, precision: Precision) -> Result<()> {
    let device = Device::Cpu;
    let ids =
        |add: usize| -> Vec<u32> { (0..tokens).map(|i| ((i * 7919 + add) % model.config.vocab_size) as u32).collect() };
    let inputs = Tensor::from_vec(ids(0), (tokens / sequence, sequence), &device)?;
    let targets = Tensor::from_vec(ids(7919), tokens, &device)?;
    let hidden = Tensor::randn(0f32, 1f32, (tokens, model.config.hidden_size), &device)?;
    let flat = model.layout.zeros(&device)?;
    let grads = model.grads(&flat)?;
    let (mut training, mut evaluation, mut heads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..(7 * 8192 / tokens).clamp(7, 25) {
        let times = model.loss_and_backward(&inputs, &targets, TrainInput::default(), 1e-3, &grads)?.times;
        training.push(times.forward.as_secs_f64());
        evaluation.push(timed(|| model.losses(&inputs, &targets, None).map(|_| ()))?);
        heads.push(timed(|| cross_entropy(&hidden, head, &targets, precision).map(|_| ()))?);
    }
    let (training, evaluation, heads) = (median(training), median(evaluation), median(heads));
    let rate = |seconds: f64| tokens as f64 / seconds;
    let blocks = evaluation - heads;
    println!(
        "| {tokens} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} |",
        rate(training),
        rate(blocks),
        training / blocks,
        rate(heads),
        rate(evaluation),
    );
    Ok(())
}

fn main() -> Result<()> {
    // As the program: freed memory stays (`keep_freed_pages` of main.rs).
    // SAFETY: sets an option of the allocator before any other thread exists.
    unsafe { libmimalloc_sys::mi_option_set(15, -1) };
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let (name, sequence) = (arg(0, "10m"), arg(1, "256").parse().unwrap_or(256));
    let precision = if arg(2, "f32") == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let threads = arg(3, "2").parse().unwrap_or(2);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(candle_core::Error::wrap)?;
    let config = shape(&name, sequence);
    let flat = init::init(&config, &Layout::new(&config), 1).map_err(candle_core::Error::wrap)?;
    let model = Llama::new(&config, flat)?.with_precision(precision)?;
    let head = Tensor::randn(0f32, 0.02f32, (config.vocab_size, config.hidden_size), &Device::Cpu)?;
    println!("{name}, sequence {sequence}, {}, {threads} threads: tokens/s", arg(2, "f32"));
    println!("| tokens a pass | training, forward | evaluation without head | ratio | its head | evaluation |");
    println!("|---|---|---|---|---|---|");
    for tokens in [1024, 2048, 4096, 8192] {
        compare(&model, &head, sequence, tokens.max(sequence), precision)?;
    }
    Ok(())
}
