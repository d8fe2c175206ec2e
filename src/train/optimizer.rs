//! The optimizer: an update rule over flat buffers, its named state tensors, and the number of applied updates.
//!
//! A rule keeps state tensors for every parameter, such as AdamW's `exp_avg` and `exp_avg_sq`. All that saves, restores, resets, copies
//! or counts them goes over [`Optimizer::state`] and knows no rule. A new rule is an op, a variant of [`OptimizerKind`], the names of
//! its state in [`state_names`], and an arm in [`Optimizer::update`] and in [`Optimizer::sums_of_squares`].
//!
//! With several ranks each keeps the state of its shard of the parameters alone, and updates that shard.

use crate::config::{MomentsDtype, OptimizerConfig, OptimizerKind};
use crate::distributed::sharding::Sharding;
use crate::model::params::{Layout, ParamSpec};
use crate::ops::adamw::{Flat, Hyper, Range, adamw, zero};
use crate::ops::is_on_gpu;
use crate::ops::noise::draw;
use crate::ops::squares::{LastUpdate, Squares, squares};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ops::Range as Span;

/// Name and shape of a parameter.
pub type ParameterShape = (String, Vec<usize>);

/// The names of the state tensors that the update rule `kind` keeps for a parameter, in the order of the file. A rule that treats some
/// parameters differently, as Muon does with matrices, decides by name and shape.
fn state_names(kind: OptimizerKind, _parameter: &ParameterShape) -> &'static [&'static str] {
    match kind {
        OptimizerKind::AdamW => &["exp_avg", "exp_avg_sq"],
    }
}

/// Elements of all state tensors of `parameters`.
pub fn state_elements(kind: OptimizerKind, parameters: &[ParameterShape]) -> u64 {
    let elements = parameters.iter().map(|parameter| {
        let elements = parameter.1.iter().fold(1_u64, |product, &n| product.saturating_mul(n as u64));
        elements.saturating_mul(state_names(kind, parameter).len() as u64)
    });
    elements.fold(0, u64::saturating_add)
}

/// Bytes of one element of a state tensor in memory. On the CPU rounded numbers are kept as f32, which its ops take.
pub fn state_element_size(config: &OptimizerConfig, on_gpu: bool) -> u64 {
    state_dtype(config, on_gpu).size_in_bytes() as u64
}

fn state_dtype(config: &OptimizerConfig, on_gpu: bool) -> DType {
    if config.moments == MomentsDtype::Bf16 && on_gpu { DType::BF16 } else { DType::F32 }
}

/// The state tensors of one name, of all parameters that have one, in a flat buffer.
#[derive(Debug)]
pub struct OptimizerState {
    /// `optimizer.safetensors` calls them `<parameter>.<name>`.
    pub name: &'static str,
    /// Where the state of each parameter lies in the whole buffer, under the parameter's name and shape.
    pub layout: Layout,
    /// The elements of the whole buffer that `flat` holds: those of this rank's shard.
    pub shard: Span<usize>,
    /// (shard.len()), f32, or bf16 on a GPU.
    pub flat: Tensor,
}

#[derive(Debug)]
pub struct Optimizer {
    /// In the order of `optimizer.safetensors`.
    pub state: Vec<OptimizerState>,
    /// Updates applied so far: a refused one does not count.
    pub updates: u64,
    /// Key of the draws that round the moments.
    seed: u64,
    /// The elements of the flat buffers that this rank updates.
    shard: Span<usize>,
    /// Those of its ranges that have elements in the shard, counted from its start.
    ranges: Vec<Range>,
    config: OptimizerConfig,
}

impl Optimizer {
    /// With zeros as its state, for the elements `shard` of parameters of this `layout`, on the device of `params`.
    pub fn new(
        config: &OptimizerConfig,
        layout: &Layout,
        params: &Tensor,
        seed: u64,
        shard: Span<usize>,
    ) -> Result<Self> {
        let dtype = state_dtype(config, is_on_gpu(params));
        let mut state = Vec::new();
        for (name, parameters) in group_by_state_name(config.kind, &layout.specs) {
            // A layout for each name, because a rule may keep a state tensor for some parameters only.
            let layout = Layout::from_shapes(parameters);
            // A rank of small models may own nothing, and no GPU gives memory for nothing.
            let device = if shard.is_empty() { &Device::Cpu } else { params.device() };
            let flat = Tensor::zeros(shard.len(), dtype, device)?;
            state.push(OptimizerState { name, layout, shard: shard.clone(), flat });
        }
        let ranges = layout.decay_ranges().iter().filter_map(|range| range.within(&shard)).collect();
        Ok(Self { state, updates: 0, seed, shard, ranges, config: config.clone() })
    }

    /// Makes every state tensor zero.
    pub fn zero_state(&self) -> Result<()> {
        self.state.iter().filter(|state| !state.shard.is_empty()).try_for_each(|state| zero(&state.flat))
    }

    /// Applies one update of `params` (and of `copy`, their rounding, if there is one) with learning rate `lr`; `norm` is the gradient's
    /// global norm before clipping. The guard decides whether this is called at all: a refused update is one that is not computed,
    /// because 0 times NaN is NaN.
    pub fn update(&mut self, params: &Tensor, copy: Option<&Tensor>, grad: &Tensor, norm: f64, lr: f64) -> Result<()> {
        // Before the update: Adam's bias correction counts from 1.
        self.updates += 1;
        if self.shard.is_empty() {
            return Ok(());
        }
        let param = self.own_part(params)?;
        let grad = self.own_part(grad)?;
        let copy = copy.map(|copy| self.own_part(copy)).transpose()?;
        match self.config.kind {
            OptimizerKind::AdamW => {
                let [exp_avg, exp_avg_sq] = self.adamw_state()?;
                let first = self.shard.start;
                let flat = Flat { param: &param, grad: &grad, exp_avg, exp_avg_sq, copy: copy.as_ref(), first };
                adamw(&flat, &self.ranges, &self.adamw_hyper(self.clip_factor(norm), lr))
            }
        }
    }

    /// The elements of a flat buffer that this rank updates.
    fn own_part(&self, flat: &Tensor) -> Result<Tensor> {
        flat.narrow(0, self.shard.start, self.shard.len())
    }

    /// The sums of squares of every parameter of `layout`: of the weights in `params`, of their gradients in `grad`, and of the last
    /// update, which had the learning rate `lr`. Every rank gets all of them.
    pub fn sums_of_squares(
        &self,
        sharding: &Sharding,
        layout: &Layout,
        params: &Tensor,
        grad: &Tensor,
        lr: f64,
    ) -> anyhow::Result<Vec<Squares>> {
        let ranges = layout.decay_ranges();
        match self.config.kind {
            OptimizerKind::AdamW => {
                let [exp_avg, exp_avg_sq] = self.adamw_state()?;
                let rule = self.last_adamw_update(lr);
                if sharding.group.ranks() == 1 {
                    return Ok(squares([params, grad, exp_avg, exp_avg_sq], &ranges, &rule)?);
                }
                let params = sharding.own_part(params)?;
                let grad = sharding.own_part(grad)?;
                sharding.squares([&params, &grad, exp_avg, exp_avg_sq], &ranges, &rule)
            }
        }
    }

    fn adamw_state(&self) -> Result<[&Tensor; 2]> {
        match self.state.as_slice() {
            [exp_avg, exp_avg_sq] => Ok([&exp_avg.flat, &exp_avg_sq.flat]),
            other => bail!("AdamW has {} state tensors instead of 2", other.len()),
        }
    }

    /// What a gradient of global norm `norm` is multiplied by, as in torch.nn.utils.clip_grad_norm_.
    fn clip_factor(&self, norm: f64) -> f64 {
        let limit = self.config.grad_clip;
        if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    fn adamw_hyper(&self, clip: f64, lr: f64) -> Hyper {
        Hyper {
            lr,
            betas: (self.config.betas[0], self.config.betas[1]),
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            t: self.updates,
            clip,
            rounding: (self.config.moments == MomentsDtype::Bf16)
                // "mome": apart from other draws of the seed; and other draws at every update.
                .then(|| draw(draw(0x6d6f_6d65, self.seed), self.updates)),
        }
    }

    fn last_adamw_update(&self, lr: f64) -> LastUpdate {
        let [beta1, beta2] = self.config.betas;
        let t = self.updates.min(i32::MAX as u64) as i32;
        LastUpdate {
            keep: 1.0 - lr * self.config.weight_decay,
            lr,
            inverse_correction1: 1.0 / (1.0 - beta1.powi(t)),
            inverse_sqrt_correction2: 1.0 / (1.0 - beta2.powi(t)).sqrt(),
            eps: self.config.eps,
        }
    }
}

/// The names of the state of `parameters`, in the order of their first use, each with the parameters that have it.
fn group_by_state_name(kind: OptimizerKind, parameters: &[ParamSpec]) -> Vec<(&'static str, Vec<ParameterShape>)> {
    let mut groups: Vec<(&'static str, Vec<ParameterShape>)> = Vec::new();
    for spec in parameters {
        let parameter = (spec.name.clone(), spec.shape.clone());
        for &name in state_names(kind, &parameter) {
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, members)) => members.push(parameter.clone()),
                None => groups.push((name, vec![parameter.clone()])),
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Choice as _, Config};

    const N: usize = 4096;

    fn optimizer(moments: MomentsDtype, seed: u64) -> Optimizer {
        let text = "[model]\nhidden_size = 16\nintermediate_size = 16\nnum_hidden_layers = 1\nnum_attention_heads = 2\nvocab_size = 320\n\
                    [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 16\nmicro_batch_size = 1\nsteps = 9\n\
                    [optimizer]\ngrad_clip = 0\n";
        let config = Config::from_toml_str(&format!("{text}moments = {:?}\n", moments.name()), "a.toml").unwrap();
        let layout = Layout::from_shapes(vec![("w".into(), vec![N])]);
        Optimizer::new(&config.optimizer, &layout, &layout.zeros(&Device::Cpu).unwrap(), seed, 0..N).unwrap()
    }

    /// First moments after each of `n` updates with a gradient that is `g` everywhere.
    fn first_moments(optimizer: &mut Optimizer, n: usize, g: f32) -> Vec<Vec<f32>> {
        let weights = Tensor::zeros(N, DType::F32, &Device::Cpu).unwrap();
        let grad = Tensor::full(g, N, &Device::Cpu).unwrap();
        let mut moments = Vec::new();
        for _ in 0..n {
            optimizer.update(&weights, None, &grad, 1.0, 1e-3).unwrap();
            moments.push(optimizer.state[0].flat.to_vec1().unwrap());
        }
        moments
    }

    #[test]
    fn every_parameter_has_its_named_state() {
        let optimizer = optimizer(MomentsDtype::F32, 1);
        let names: Vec<_> = optimizer.state.iter().map(|state| state.name).collect();
        assert_eq!(names, ["exp_avg", "exp_avg_sq"]);
        for state in &optimizer.state {
            assert_eq!((state.layout.specs[0].name.as_str(), state.flat.dims()), ("w", &[N][..]));
        }
        let shapes = [("a".to_owned(), vec![3, 5]), ("b".to_owned(), vec![7])];
        assert_eq!(state_elements(OptimizerKind::AdamW, &shapes), 2 * (15 + 7));
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
            let weights = Tensor::zeros(N, DType::F32, &Device::Cpu).unwrap();
            let grad = Tensor::full(1f32, N, &Device::Cpu).unwrap();
            optimizer.update(&weights, None, &grad, norm, 1e-3).unwrap();
            f64::from(optimizer.state[0].flat.to_vec1::<f32>().unwrap()[0]) / (1.0 - optimizer.config.betas[0])
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
        resumed.state[0].flat.slice_set(&Tensor::from_slice(&one[1], N, &Device::Cpu).unwrap(), 0, 0).unwrap();
        resumed.updates = 2;
        assert_eq!(first_moments(&mut resumed, 1, 1.003)[0], one[2]);
        let exact = first_moments(&mut optimizer(MomentsDtype::F32, 7), 3, 1.003);
        assert!(exact[2].iter().all(|&m| m == exact[2][0]), "nothing is drawn where nothing is rounded");
    }
}
