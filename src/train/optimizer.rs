//! The optimizer's state and rules: two moments per parameter, the number of applied updates, decay and clipping.

use crate::config::OptimizerConfig;
use crate::model::params::Layout;
use crate::ops::adamw::{Flat, Hyper, Range, adamw};
use crate::ops::is_on_gpu;
use crate::ops::noise::draw;
use candle_core::{DType, Result, Tensor};

/// AdamW over a model's flat buffers.
#[derive(Debug)]
pub struct Optimizer {
    /// First moments.
    pub exp_avg: Tensor,
    /// Second moments.
    pub exp_avg_sq: Tensor,
    /// Updates applied so far: a refused one does not count.
    pub updates: u64,
    /// Of the rounding of moments.
    seed: u64,
    ranges: Vec<Range>,
    config: OptimizerConfig,
}

impl Optimizer {
    /// With zero moments, for weights where `params` is.
    pub fn new(config: &OptimizerConfig, layout: &Layout, params: &Tensor, seed: u64) -> Result<Self> {
        // On the CPU rounded numbers are kept as f32, which its ops take.
        let dtype = if config.moments == "bf16" && is_on_gpu(params) { DType::BF16 } else { DType::F32 };
        let zeros = || Tensor::zeros(layout.total, dtype, params.device());
        Ok(Self {
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            updates: 0,
            seed,
            ranges: layout.decay_ranges(),
            config: config.clone(),
        })
    }

    /// Applies one update of `params` (and of `copy`, their rounding, if there is one) with rate `lr`; `norm` is the gradient's before clipping. Whether to call this at all is the
    /// guard's decision: a refused update is one that is not computed, because 0 times NaN is NaN.
    pub fn update(&mut self, params: &Tensor, copy: Option<&Tensor>, grad: &Tensor, norm: f64, lr: f64) -> Result<()> {
        self.updates += 1;
        let limit = self.config.grad_clip;
        let hyper = Hyper {
            lr,
            betas: (self.config.betas[0], self.config.betas[1]),
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            t: self.updates,
            // As torch.nn.utils.clip_grad_norm_.
            clip: if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 },
            rounding: (self.config.moments == "bf16").then(|| draw(draw(0x6d6f_6d65, self.seed), self.updates)),
        };
        let flat = Flat { param: params, grad, exp_avg: &self.exp_avg, exp_avg_sq: &self.exp_avg_sq, copy };
        adamw(&flat, &self.ranges, &hyper)
    }
}
