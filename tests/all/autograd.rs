//! The whole model against the same model in candle's differentiable primitives, and against candle-transformers.

use candle_core::{DType, Device, Result, Tensor, Var};
use llama_lite::config::ModelConfig;
use llama_lite::model::params::Layout;
use llama_lite::model::{Llama, TrainInput, init::init};
use llama_lite::ops::attention::{self, Heads, Mask};
use llama_lite::ops::positions::Positions;
use llama_lite::ops::rope::{self, Rope};
use llama_lite::ops::selftest::difference;
use llama_lite::ops::{cross_entropy, embedding, linear, rms_norm, swiglu};
use std::collections::BTreeMap;

fn shape(heads: usize, kv: usize, head_dim: usize, hidden: usize, tied: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: hidden,
        intermediate_size: 52,
        num_hidden_layers: 3,
        num_attention_heads: heads,
        num_key_value_heads: kv,
        head_dim,
        vocab_size: 101,
        max_position_embeddings: 80,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: tied,
        // Large, so that attention is far from uniform and every gradient matters.
        initializer_range: 0.2,
        ..ModelConfig::MINIMAL
    }
}

fn batch(b: usize, t: usize, vocab: u32) -> (Tensor, Tensor) {
    let ids = |shift: u32| {
        (0..(b * t) as u32).map(|i| ((i + shift) * 31 + (i + shift).pow(2) * 7) % vocab).collect::<Vec<_>>()
    };
    let inputs = Tensor::from_vec(ids(0), (b, t), &Device::Cpu).unwrap();
    (inputs, Tensor::from_vec(ids(1), b * t, &Device::Cpu).unwrap())
}

/// Norm weights other than 1, so that their place in the formula shows.
fn weights(config: &ModelConfig) -> Tensor {
    let layout = Layout::new(config);
    let mut flat = init(config, &layout, 11).unwrap().to_vec1::<f32>().unwrap();
    for spec in layout.specs.iter().filter(|s| s.shape.len() == 1) {
        for (i, w) in flat[spec.start..spec.start + spec.len].iter_mut().enumerate() {
            *w = 0.5 + (i % 7) as f32 * 0.2;
        }
    }
    Tensor::from_vec(flat, layout.total, &Device::Cpu).unwrap()
}

type Named = BTreeMap<String, Var>;

/// The textbook model: one op after the other, one projection at a time.
fn reference_losses(p: &Named, c: &ModelConfig, inputs: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (b, t) = inputs.dims2()?;
    let heads = Heads { q: c.num_attention_heads, kv: c.num_key_value_heads, dim: c.head_dim };
    let tables = Rope::new(c.head_dim, c.rope_theta, c.max_position_embeddings);
    let mut x = embedding::reference(inputs, &p["model.embed_tokens.weight"])?.reshape((b, t, c.hidden_size))?;
    for i in 0..c.num_hidden_layers {
        let w = |name: &str| p[&format!("model.layers.{i}.{name}.weight")].as_tensor();
        let n = rms_norm::reference(&x, w("input_layernorm"), c.rms_norm_eps)?;
        let project = |name: &str| linear::reference(&n, w(&format!("self_attn.{name}_proj")));
        let qkv = Tensor::cat(&[project("q")?, project("k")?, project("v")?], 2)?;
        let a = attention::reference(
            &rope::reference(&qkv, &tables, heads.q + heads.kv, Positions::From(0))?,
            heads,
            Mask::default(),
        )?;
        x = (x + linear::reference(&a, w("self_attn.o_proj"))?)?;
        let n = rms_norm::reference(&x, w("post_attention_layernorm"), c.rms_norm_eps)?;
        let gate_up =
            Tensor::cat(&[linear::reference(&n, w("mlp.gate_proj"))?, linear::reference(&n, w("mlp.up_proj"))?], 2)?;
        x = (x + linear::reference(&swiglu::reference(&gate_up)?, w("mlp.down_proj"))?)?;
    }
    let x = rms_norm::reference(&x, &p["model.norm.weight"], c.rms_norm_eps)?.reshape((b * t, c.hidden_size))?;
    let head = p.get("lm_head.weight").unwrap_or(&p["model.embed_tokens.weight"]);
    cross_entropy::reference(&x, head, targets)
}

fn named(flat: &Tensor, layout: &Layout) -> Named {
    let var = |s: &llama_lite::model::params::ParamSpec| {
        let view = flat.narrow(0, s.start, s.len).unwrap().reshape(s.shape.as_slice()).unwrap();
        (s.name.clone(), Var::from_tensor(&view.copy().unwrap()).unwrap())
    };
    layout.specs.iter().map(var).collect()
}

#[test]
fn loss_and_every_gradient_agree_with_autograd() {
    let shapes = [shape(4, 2, 8, 32, false), shape(4, 4, 6, 20, true), shape(6, 1, 10, 44, false)];
    for config in shapes {
        let (layout, flat) = (Layout::new(&config), weights(&config));
        let model = Llama::new(&config, flat.clone()).unwrap();
        for (b, t) in [(1, 1), (3, 70)] {
            let (inputs, targets) = batch(b, t, 101);
            let vars = named(&flat, &layout);
            let want = reference_losses(&vars, &config, &inputs, &targets).unwrap();
            let expected = want.mean_all().unwrap().backward().unwrap();
            let flat_grads = layout.zeros(&Device::Cpu).unwrap();
            let grads = model.grads(&flat_grads).unwrap();
            let losses = model
                .loss_and_backward(&inputs, &targets, TrainInput::default(), 1.0 / (b * t) as f32, &grads)
                .unwrap()
                .losses;
            assert!(difference(&losses, &want).unwrap() < 1e-5);
            assert!(difference(&model.losses(&inputs, &targets, None).unwrap(), &want).unwrap() < 1e-5);
            for spec in &layout.specs {
                let got = flat_grads.narrow(0, spec.start, spec.len).unwrap().reshape(spec.shape.as_slice()).unwrap();
                if t == 1 && (spec.name.contains("q_proj") || spec.name.contains("k_proj")) {
                    // One key has probability 1 whatever its score: the gradient is 0 but for rounding.
                    let largest = got.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(largest < 1e-6, "gradient of {} is {largest:.1e}, not 0", spec.name);
                    continue;
                }
                let d = difference(&got, expected.get(&vars[&spec.name]).unwrap()).unwrap();
                assert!(d < 1e-4, "gradient of {} (b {b}, t {t}) differs by {d:.1e}", spec.name);
            }
        }
    }
}

#[test]
fn forward_equals_candle_transformers() {
    use candle_transformers::models::llama as other;
    for (kv, tied) in [(2, false), (4, true)] {
        let config = shape(4, kv, 8, 32, tied);
        let (layout, flat) = (Layout::new(&config), weights(&config));
        let vars = named(&flat, &layout).into_iter().map(|(name, v)| (name, v.as_tensor().clone())).collect();
        let vb = candle_nn::VarBuilder::from_tensors(vars, DType::F32, &Device::Cpu);
        let other_config = other::Config {
            hidden_size: 32,
            intermediate_size: 52,
            vocab_size: 101,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: kv,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 80,
            tie_word_embeddings: tied,
        };
        let theirs = other::Llama::load(vb, &other_config).unwrap();
        let ours = Llama::new(&config, flat).unwrap();
        let (inputs, _) = batch(2, 70, 101);
        for t in [1, 2, 33, 70] {
            let x = inputs.narrow(1, 0, t).unwrap().contiguous().unwrap();
            let mut cache = other::Cache::new(false, DType::F32, &other_config, &Device::Cpu).unwrap();
            let want = theirs.forward(&x, 0, &mut cache).unwrap();
            let got = ours.logits(&x).unwrap().narrow(1, t - 1, 1).unwrap().squeeze(1).unwrap();
            assert!(difference(&got, &want).unwrap() < 2e-5, "kv {kv}, t {t}");
        }
    }
}
