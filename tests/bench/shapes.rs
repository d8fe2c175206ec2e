//! The shapes of `scripts/bench.py cpu`.

use llama_lite::config::ModelConfig;

pub(crate) fn shape(name: &str, sequence: usize) -> ModelConfig {
    let (c, f, layers, q, kv, vocab) = match name {
        "10m" => (256, 704, 11, 4, 2, 4096),
        "30m" => (512, 1408, 9, 8, 4, 4096),
        "34m" => (256, 704, 11, 4, 2, 50304),
        "124m" => (768, 3072, 12, 12, 12, 50304),
        other => panic!("no shape {other}: 10m, 30m, 34m or 124m"),
    };
    ModelConfig {
        hidden_size: c,
        intermediate_size: f,
        num_hidden_layers: layers,
        num_attention_heads: q,
        num_key_value_heads: kv,
        head_dim: 64,
        vocab_size: vocab,
        max_position_embeddings: sequence,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        ..ModelConfig::MINIMAL
    }
}
