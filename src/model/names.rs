//! Hugging Face's names and shapes of a Llama's tensors, in the one order used for flat buffers and files.
//!
//! q, k, v and gate, up stand side by side, so that each group is also ONE matrix of a flat buffer: the packed projections of
//! `params.rs` are views, not copies.

use crate::config::ModelConfig;

/// Name and shape of every trainable tensor; linear weights are (out, in). Without `lm_head.weight` if the head is tied.
pub fn tensor_specs(c: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (q_dim, kv_dim) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let mut specs = vec![("model.embed_tokens.weight".to_string(), vec![c.vocab_size, c.hidden_size])];
    for i in 0..c.num_hidden_layers {
        let mut add =
            |name: &str, shape: &[usize]| specs.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec()));
        add("input_layernorm", &[c.hidden_size]);
        add("self_attn.q_proj", &[q_dim, c.hidden_size]);
        add("self_attn.k_proj", &[kv_dim, c.hidden_size]);
        add("self_attn.v_proj", &[kv_dim, c.hidden_size]);
        add("self_attn.o_proj", &[c.hidden_size, q_dim]);
        add("post_attention_layernorm", &[c.hidden_size]);
        add("mlp.gate_proj", &[c.intermediate_size, c.hidden_size]);
        add("mlp.up_proj", &[c.intermediate_size, c.hidden_size]);
        add("mlp.down_proj", &[c.hidden_size, c.intermediate_size]);
    }
    specs.push(("model.norm.weight".into(), vec![c.hidden_size]));
    if !c.tie_word_embeddings {
        specs.push(("lm_head.weight".into(), vec![c.vocab_size, c.hidden_size]));
    }
    specs
}
