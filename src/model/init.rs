//! Every initialisation rule: N(0, initializer_range) for linear and embedding weights, 1 for norms, optionally GPT-2's smaller
//! residual projections.
//!
//! Each tensor draws from its own ChaCha8 stream, keyed by seed and NAME: adding a layer or changing the order of initialisation
//! changes no other tensor.

use super::params::{Layout, ParamSpec};
use crate::config::{Init, ModelConfig};
use candle_core::{Device, Result, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// A flat buffer of fresh weights.
pub fn init(config: &ModelConfig, layout: &Layout, seed: u64) -> Result<Tensor> {
    let mut flat = vec![0f32; layout.total];
    let mut rest = flat.as_mut_slice();
    let mut parts = Vec::with_capacity(layout.specs.len());
    for spec in &layout.specs {
        let (part, tail) = rest.split_at_mut(spec.len);
        parts.push((spec, part));
        rest = tail;
    }
    let rules = config.parameters().into_par_iter().map(|(_, parameter)| parameter.init());
    parts.into_par_iter().zip(rules).for_each(|((spec, part), rule)| fill(config, spec, rule, part, seed));
    Tensor::from_vec(flat, layout.total, &Device::Cpu)
}

/// Fills `part`, the elements of `spec`, by `rule`.
fn fill(config: &ModelConfig, spec: &ParamSpec, rule: Init, part: &mut [f32], seed: u64) {
    let std = match rule {
        Init::Constant(value) => return part.fill(value),
        // Each layer adds two of these to the residual stream.
        Init::ResidualNormal if config.residual_scaling => {
            config.initializer_range / (2.0 * config.num_hidden_layers as f64).sqrt()
        }
        Init::Normal | Init::ResidualNormal => config.initializer_range,
    };
    // A stream for each tensor, keyed by its name: they can be filled in any order, and a new one changes no other.
    let key = blake3::Hasher::new()
        .update(b"llama-lite init")
        .update(&seed.to_le_bytes())
        .update(spec.name.as_bytes())
        .finalize();
    let mut rng = ChaCha8Rng::from_seed(*key.as_bytes());
    for x in part {
        let z: f64 = StandardNormal.sample(&mut rng);
        // In f64 and rounded once.
        *x = (z * std) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny;

    fn deviation(flat: &[f32], spec: &ParamSpec) -> f64 {
        let part = &flat[spec.start..spec.start + spec.len];
        (part.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / part.len() as f64).sqrt()
    }

    #[test]
    fn each_rule_holds_and_the_seed_decides() {
        let mut config = tiny(false);
        config.residual_scaling = true;
        let layout = Layout::new(&config);
        let flat = init(&config, &layout, 1).unwrap().to_vec1::<f32>().unwrap();
        for spec in &layout.specs {
            let part = &flat[spec.start..spec.start + spec.len];
            if spec.name.contains("norm") {
                assert!(part.iter().all(|&x| x == 1.0));
                continue;
            }
            let residual = spec.name.contains("o_proj") || spec.name.contains("down_proj");
            let want = if residual { 0.02 / (2.0 * config.num_hidden_layers as f64).sqrt() } else { 0.02 };
            let found = deviation(&flat, spec);
            assert!((found / want - 1.0).abs() < 5.0 / (spec.len as f64).sqrt(), "{}: {found} {want}", spec.name);
        }
        assert_eq!(flat, init(&config, &layout, 1).unwrap().to_vec1::<f32>().unwrap());
        assert_ne!(flat, init(&config, &layout, 2).unwrap().to_vec1::<f32>().unwrap());
    }
}
