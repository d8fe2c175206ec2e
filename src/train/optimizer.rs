//! The optimizer's state and rules: two moments per parameter, the number of applied updates, decay and clipping.

use crate::config::{MomentsDtype, OptimizerConfig};
use crate::model::params::Layout;
use crate::ops::adamw::{Flat, Hyper, Range, adamw};
use crate::ops::is_on_gpu;
use crate::ops::noise::draw;
use candle_core::{DType, Result, Tensor};

/// AdamW over a model's flat buffers.
#[derive(Debug)]
pub struct Optimizer {
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
        let dtype = if config.moments == MomentsDtype::Bf16 && is_on_gpu(params) { DType::BF16 } else { DType::F32 };
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
            rounding: (self.config.moments == MomentsDtype::Bf16)
                .then(|| draw(draw(0x6d6f_6d65, self.seed), self.updates)),
        };
        let flat = Flat { param: params, grad, exp_avg: &self.exp_avg, exp_avg_sq: &self.exp_avg_sq, copy };
        adamw(&flat, &self.ranges, &hyper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Choice as _, Config};
    use candle_core::Device;

    const N: usize = 4096;

    fn optimizer(moments: MomentsDtype, seed: u64) -> Optimizer {
        let text = "[model]\nhidden_size = 16\nintermediate_size = 16\nnum_hidden_layers = 1\nnum_attention_heads = 2\nvocab_size = 320\n\
                    [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 16\nmicro_batch_size = 1\nsteps = 9\n\
                    [optimizer]\ngrad_clip = 0\n";
        let config = Config::from_toml_str(&format!("{text}moments = {:?}\n", moments.name()), "a.toml").unwrap();
        let layout = Layout::from_shapes(vec![("w".into(), vec![N])]);
        Optimizer::new(&config.optimizer, &layout, &layout.zeros(&Device::Cpu).unwrap(), seed).unwrap()
    }

    /// First moments after each of `n` updates with a gradient that is `g` everywhere.
    fn first_moments(optimizer: &mut Optimizer, n: usize, g: f32) -> Vec<Vec<f32>> {
        let (weights, grad) =
            (Tensor::zeros(N, DType::F32, &Device::Cpu).unwrap(), Tensor::full(g, N, &Device::Cpu).unwrap());
        let update = |_| {
            optimizer.update(&weights, None, &grad, 1.0, 1e-3).unwrap();
            optimizer.exp_avg.to_vec1().unwrap()
        };
        (0..n).map(update).collect()
    }

    /// Rounding by chance is right on average over the STEPS of each place: a place that always drew the same would be pushed one way
    /// for the whole run, by up to 1 / (1 - beta1) units of rounding.
    #[test]
    fn rounding_draws_anew_at_every_step() {
        let g = 1.003_f32;
        // The first hundred steps approach the gradient.
        let moments = first_moments(&mut optimizer(MomentsDtype::Bf16, 7), 500, g).split_off(100);
        let unit = 1.0 / 128.0;
        let worst = (0..N).map(|i| {
            let mean = moments.iter().map(|moments| f64::from(moments[i])).sum::<f64>() / moments.len() as f64;
            (mean - f64::from(g)).abs() / unit
        });
        // One draw moves the mean by half a unit at most, and 1 / (1 - beta1) = 10 steps remember it: 10 / 2 / sqrt(400) = 0.25 at one
        // standard deviation, and the largest of 4,096 is some four of these.
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 1.5, "{worst} units of rounding");
        assert!(worst > 0.01, "nothing is rounded");
    }

    /// AdamW itself does not show it: a factor on all gradients leaves its updates as they are.
    #[test]
    fn a_gradient_is_scaled_to_the_limit_and_never_up() {
        let moment = |norm: f64| {
            let mut optimizer = optimizer(MomentsDtype::F32, 1);
            optimizer.config.grad_clip = 0.5;
            let (weights, grad) =
                (Tensor::zeros(N, DType::F32, &Device::Cpu).unwrap(), Tensor::full(1f32, N, &Device::Cpu).unwrap());
            optimizer.update(&weights, None, &grad, norm, 1e-3).unwrap();
            f64::from(optimizer.exp_avg.to_vec1::<f32>().unwrap()[0]) / (1.0 - optimizer.config.betas[0])
        };
        for (norm, factor) in [(2.0, 0.25), (0.5, 1.0), (0.1, 1.0), (50.0, 0.01)] {
            assert!((moment(norm) / factor - 1.0).abs() < 1e-5, "{norm}: {}", moment(norm));
        }
    }

    #[test]
    fn rounding_depends_on_the_seed_and_on_the_update_alone() {
        let one = first_moments(&mut optimizer(MomentsDtype::Bf16, 7), 3, 1.003);
        assert_eq!(one, first_moments(&mut optimizer(MomentsDtype::Bf16, 7), 3, 1.003));
        assert_ne!(one[2], first_moments(&mut optimizer(MomentsDtype::Bf16, 8), 3, 1.003)[2]);
        // As after a resume: the moments and the number of updates are all that is restored.
        let mut resumed = optimizer(MomentsDtype::Bf16, 7);
        resumed.exp_avg.slice_set(&Tensor::from_slice(&one[1], N, &Device::Cpu).unwrap(), 0, 0).unwrap();
        resumed.updates = 2;
        assert_eq!(first_moments(&mut resumed, 1, 1.003)[0], one[2]);
        let exact = first_moments(&mut optimizer(MomentsDtype::F32, 7), 3, 1.003);
        assert!(exact[2].iter().all(|&m| m == exact[2][0]), "nothing is drawn where nothing is rounded");
    }
}
