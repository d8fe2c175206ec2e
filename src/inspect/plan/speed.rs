//! What training will take on a GPU that need not be here, predicted from the model's shape and the maker's figures for the GPU.
//!
//! The time of a micro-batch is that of its matrix products, of attention, of the bytes that all else moves, and of the gradient's sum; that of
//! a step adds the bytes of the update. A small micro-batch takes as long as its kernels take to be launched. How much of a GPU's peaks they reach is an estimate: nothing of it was measured with this program.

use crate::config::{Config, MomentsDtype};
use crate::model::Recompute;
use crate::ops::device::GpuModel;
use crate::train::footprint::{Fit, trained_params};

/// Shares of a GPU's peaks: large products of cuBLAS on an H200, attention with a fixed order of sums, and kernels that move bytes.
const PRODUCTS: f64 = 0.69;
const ATTENTION: f64 = 0.25;
const BANDWIDTH: f64 = 0.8;

/// Kernels and products of a layer, forward and backward, and what the program takes to queue one of them.
const LAUNCHES: f64 = 32.0;
const SECONDS_PER_LAUNCH: f64 = 8e-6;

/// One way to train on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pub fit: Fit,
    pub tokens_per_second: f64,
    /// Model FLOPs utilisation, of the peak of bf16 products.
    pub mfu: f64,
}

impl Speed {
    /// Training in bf16 as `fit` says, on as many of `gpu` as there are `ranks`; what they send each other is left out.
    pub fn predict(config: &Config, fit: Fit, gpu: &GpuModel, ranks: u64) -> Self {
        let train = &config.train;
        let tokens = train.tokens_per_step as f64;
        let passes = train.passes_per_step(fit.micro_batch_size) as f64;
        let computing = seconds_per_token(config, fit.recompute, gpu) * tokens / passes;
        let launching = config.model.num_hidden_layers as f64 * LAUNCHES * SECONDS_PER_LAUNCH;
        let seconds_of_pass = computing.max(launching) + accumulation_seconds(config, gpu);
        let seconds_of_one = seconds_of_pass * passes + update_seconds(config, gpu);
        let tokens_per_second = ranks as f64 * tokens / seconds_of_one;
        let flops = config.model.flops_per_token(train.sequence_length) as f64;
        let mfu = flops * tokens / seconds_of_one / gpu.peak_flops;
        Self { fit, tokens_per_second, mfu }
    }
}

/// Seconds of a token's forward and backward pass.
fn seconds_per_token(config: &Config, recompute: Recompute, gpu: &GpuModel) -> f64 {
    let m = &config.model;
    let layers = m.num_hidden_layers as f64;
    let hidden = m.hidden_size as f64;
    let intermediate = m.intermediate_size as f64;
    let queries = (m.num_attention_heads * m.head_dim) as f64;
    let keys = (m.num_key_value_heads * m.head_dim) as f64;
    let vocabulary = m.vocab_size as f64;
    let is_full = recompute == Recompute::Full;
    let in_products = m.n_matmul_params() as f64;
    // Frozen weights have no gradient. Whole blocks are computed forward twice.
    let rounds = if config.lora.is_absent() { 6.0 } else { 4.0 };
    let again = if is_full { 2.0 * (in_products - vocabulary * hidden) } else { 0.0 };
    let products = rounds * in_products + again;
    // Causal: half of all pairs. Backward has five products, forward two.
    let per_pair = if is_full { 9.0 } else { 7.0 };
    let attention = per_pair * config.train.sequence_length as f64 * queries * layers;
    // Reads and writes of bf16 by norms, RoPE, SwiGLU and attention, forward and backward.
    let selective = 40.0 * hidden + 22.0 * intermediate + 8.0 * (queries + keys);
    let in_block = match recompute {
        Recompute::None => selective - 8.0 * hidden - 6.0 * intermediate,
        Recompute::Selective => selective,
        Recompute::Full => selective * 4.0 / 3.0,
    };
    let moved = layers * in_block + 8.0 * vocabulary;
    products / (PRODUCTS * gpu.peak_flops)
        + attention / (ATTENTION * gpu.peak_flops)
        + moved / (BANDWIDTH * gpu.bandwidth)
}

/// Seconds that a micro-batch takes to add to the gradient what it has computed of it.
fn accumulation_seconds(config: &Config, gpu: &GpuModel) -> f64 {
    trained_params(config) as f64 * 8.0 / (BANDWIDTH * gpu.bandwidth)
}

/// Seconds of the gradient's norm, of its clearing, and of AdamW.
fn update_seconds(config: &Config, gpu: &GpuModel) -> f64 {
    let moments = if config.optimizer.moments == MomentsDtype::Bf16 { 8.0 } else { 16.0 };
    // Gradient: written, and read twice; master weight: read and written; the bf16 copy: written.
    let per_parameter = 4.0 + 8.0 + 8.0 + 2.0 + moments;
    trained_params(config) as f64 * per_parameter / (BANDWIDTH * gpu.bandwidth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::device::GPUS;
    use crate::train::footprint::{Hardware, RanksHere, micro_batches};

    fn paper(more: &str) -> Config {
        let text = format!(
            "[model]\npreset = \"1.7b\"\n[data]\nsource = \"stories\"\n[train]\nsequence_length = 1024\nmicro_batch_size = 16\n\
             tokens_per_step = 524288\nsteps = 9\n{more}"
        );
        Config::from_toml_str(&text, "a.toml").unwrap()
    }

    /// The parts that were added up by hand for the paper's model on an H200: 158.6 TFLOP of products and 127 GB for 16 sequences, which
    /// take 226 to 240, 26 to 38 and 30 to 35 ms, and 15 to 16 ms for a step.
    #[test]
    fn the_1_7b_model_takes_what_its_parts_take() {
        let h200 = GPUS.iter().find(|gpu| gpu.key == "h200").unwrap();
        let config = paper("");
        let selective = seconds_per_token(&config, Recompute::Selective, h200) * 16384.0;
        assert!((0.282..0.313).contains(&selective), "{selective}");
        let spared = selective - seconds_per_token(&config, Recompute::None, h200) * 16384.0;
        assert!((0.006..0.008).contains(&spared), "{spared}");
        let update = update_seconds(&config, h200);
        assert!((0.014..0.018).contains(&update), "{update}");
        let hardware = Hardware::of_gpu(h200, RanksHere::ONE);
        let speeds = micro_batches(&config, &hardware).map(|fit| Speed::predict(&config, fit, h200, 1));
        let best = speeds.max_by(|a, b| a.mfu.total_cmp(&b.mfu)).unwrap();
        assert!(best.fit.recompute == Recompute::None && (0.5..0.62).contains(&best.mfu), "{best:?}");
        // A larger micro-batch adds to the gradient less often.
        assert_eq!(best.fit.micro_batch_size, 32);
    }

    #[test]
    fn more_work_takes_longer() {
        let gpu = &GPUS[0];
        let [none, selective, full] = [Recompute::None, Recompute::Selective, Recompute::Full]
            .map(|level| seconds_per_token(&paper(""), level, gpu));
        assert!(none < selective && selective < full && full < 1.5 * none);
        let small = paper("[optimizer]\nmoments = \"bf16\"\n");
        assert!(update_seconds(&small, gpu) < update_seconds(&paper(""), gpu));
    }
}
