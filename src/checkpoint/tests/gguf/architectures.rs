//! Architectures in GGUF files: names, order of rows, RoPE's scaling, and what is refused by name.

use serde_json::json;

use super::{Example, Read, model, trained_tokenizer};
use crate::checkpoint::ExportDtype;
use crate::config::{Architecture, Llama3Scaling, ModelConfig, RopeScaling, YarnScaling};

fn example(model: ModelConfig) -> Example {
    Example::new(model, &trained_tokenizer(), &json!({}))
}

fn export(model: ModelConfig) -> (Example, Read) {
    let example = example(model);
    let read = example.export(ExportDtype::F32, false).unwrap();
    (example, read)
}

fn of(architecture: Architecture) -> ModelConfig {
    ModelConfig { architecture, ..model() }
}

#[test]
fn biases_of_queries_and_keys_are_in_the_order_of_their_rows() {
    let (example, mut read) = export(ModelConfig { attention_bias: true, mlp_bias: true, ..model() });
    let bias = example.weight("model.layers.1.self_attn.k_proj.bias");
    let written = read.values("blk.1.attn_k.bias");
    assert_eq!(written.len(), 32);
    // Heads are 16 wide: rows 0 and 8 are rotated together, then 1 and 9; the second head begins at 16.
    for (at, from) in [(0, 0), (1, 8), (2, 1), (3, 9), (15, 15), (16, 16), (17, 24)] {
        assert_eq!(written[at], bias[from], "{at}");
    }
    for (name, source) in [
        ("blk.0.attn_v.bias", "model.layers.0.self_attn.v_proj.bias"),
        ("blk.0.attn_output.bias", "model.layers.0.self_attn.o_proj.bias"),
        ("blk.0.ffn_down.bias", "model.layers.0.mlp.down_proj.bias"),
    ] {
        assert_eq!(read.values(name), example.weight(source), "{name}");
    }
}

#[test]
fn qwens_rows_stay_as_they_are() {
    let (example, mut read) = export(of(Architecture::Qwen2));
    assert_eq!((read.text("general.architecture"), read.number("qwen2.block_count")), ("qwen2", 2));
    for kind in ["weight", "bias"] {
        let source = example.weight(&format!("model.layers.0.self_attn.q_proj.{kind}"));
        assert_eq!(read.values(&format!("blk.0.attn_q.{kind}")), source, "{kind}");
    }
    let (example, mut read) = export(of(Architecture::Qwen3));
    assert_eq!(read.text("general.architecture"), "qwen3");
    let norm = example.weight("model.layers.0.self_attn.k_norm.weight");
    assert_eq!(read.values("blk.0.attn_k_norm.weight"), norm);
    let biased = ModelConfig { attention_bias: true, ..of(Architecture::Qwen3) };
    assert!(example_refusal(biased).contains("self_attn.q_proj.bias"));
}

fn example_refusal(model: ModelConfig) -> String {
    example(model).refusal()
}

#[test]
fn mistral_is_a_llama_without_a_window() {
    let (_, read) = export(ModelConfig { sliding_window: Some(32), ..of(Architecture::Mistral) });
    assert_eq!(read.text("general.architecture"), "llama");
    let windowed = ModelConfig { sliding_window: Some(31), ..of(Architecture::Mistral) };
    assert!(example_refusal(windowed).contains("sliding_window of 31"));
}

#[test]
fn every_fourth_layer_of_smollm3_does_not_rotate() {
    let layers = |no_rope_layers: &[usize]| ModelConfig {
        num_hidden_layers: no_rope_layers.len(),
        no_rope_layers: Some(no_rope_layers.to_vec()),
        ..of(Architecture::SmolLm3)
    };
    let (_, read) = export(layers(&[1, 1, 1, 0]));
    assert_eq!(read.text("general.architecture"), "smollm3");
    assert!(example_refusal(layers(&[1, 0, 1, 0])).contains("layer 1"));
    assert!(example_refusal(layers(&[1, 1, 1, 1])).contains("layer 3"));
}

fn scaled(rope_scaling: RopeScaling) -> ModelConfig {
    ModelConfig { rope_scaling: Some(rope_scaling), ..model() }
}

#[test]
fn scaled_frequencies_are_written_as_keys_or_as_a_tensor() {
    let (_, read) = export(scaled(RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(read.text("llama.rope.scaling.type"), "linear");
    assert_eq!(read.entry("llama.rope.scaling.factor").to_f32().unwrap(), 2.0);

    let yarn = YarnScaling {
        factor: 4.0,
        original_max_position_embeddings: 16,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    let (_, read) = export(scaled(RopeScaling::Yarn(yarn)));
    assert_eq!(read.text("llama.rope.scaling.type"), "yarn");
    assert_eq!(read.number("llama.rope.scaling.original_context_length"), 16);
    assert_eq!(read.number("llama.context_length"), 64);
    let other = YarnScaling { beta_fast: 16.0, ..yarn };
    assert!(example_refusal(scaled(RopeScaling::Yarn(other))).contains("yarn"));
    assert!(example_refusal(scaled(RopeScaling::Dynamic { factor: 2.0 })).contains("dynamic"));

    let llama3 = RopeScaling::Llama3(Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    });
    let (_, mut read) = export(scaled(llama3));
    assert!(!read.content.metadata.contains_key("llama.rope.scaling.type"));
    let factors = read.values("rope_freqs.weight");
    // Waves have lengths of 6.3, 32, … positions: the first is below 64 / 4, those from the third on are above 64 / 1.
    assert_eq!((factors.len(), factors[0]), (8, 1.0));
    assert!(factors[1] > 1.0 && factors[1] < 8.0, "{factors:?}");
    assert!(factors[2..].iter().all(|factor| (factor - 8.0).abs() < 1e-5), "{factors:?}");
    let qwen = ModelConfig { architecture: Architecture::Qwen3, ..scaled(llama3) };
    assert!(example_refusal(qwen).contains("llama3"));
}
