//! Every parameter of a Llama: Hugging Face's name, shape and role, in the one order of flat buffers and files.
//!
//! Sizes, plans, initialisation, adapters, files and the views of a flat buffer are computed from this table, so a new parameter is one
//! new row. The projections of one [`Product`] stand side by side, so that each product is also ONE matrix of a flat buffer: the packed
//! projections of `model/block.rs` are views, not copies.

use super::schema::ModelConfig;

/// The matrix products of a layer, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// q ‖ k ‖ v
    Qkv,
    O,
    /// gate ‖ up
    GateUp,
    Down,
}

impl Product {
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];
}

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Looked up by token; multiplied with only if the head is tied to it.
    Embedding,
    /// The scale of an RMSNorm.
    Norm,
    /// A linear weight of a layer, (out, in): part of this product.
    Projection(Product),
    Head,
}

/// A parameter of a model, or of each of its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Hugging Face's name without `.weight`; of a layer's parameter what follows `model.layers.N.`.
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub role: Role,
}

impl Parameter {
    fn new<const N: usize>(name: &'static str, shape: [usize; N], role: Role) -> Self {
        Self { name, shape: shape.to_vec(), role }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

impl ModelConfig {
    /// The parameters of each layer.
    pub fn layer_parameters(&self) -> Vec<Parameter> {
        use Product::{Down, GateUp, O, Qkv};
        use Role::{Norm, Projection};
        let hidden = self.hidden_size;
        let ffn = self.intermediate_size;
        let query_width = self.num_attention_heads * self.head_dim;
        let key_width = self.num_key_value_heads * self.head_dim;
        vec![
            Parameter::new("input_layernorm", [hidden], Norm),
            Parameter::new("self_attn.q_proj", [query_width, hidden], Projection(Qkv)),
            Parameter::new("self_attn.k_proj", [key_width, hidden], Projection(Qkv)),
            Parameter::new("self_attn.v_proj", [key_width, hidden], Projection(Qkv)),
            Parameter::new("self_attn.o_proj", [hidden, query_width], Projection(O)),
            Parameter::new("post_attention_layernorm", [hidden], Norm),
            Parameter::new("mlp.gate_proj", [ffn, hidden], Projection(GateUp)),
            Parameter::new("mlp.up_proj", [ffn, hidden], Projection(GateUp)),
            Parameter::new("mlp.down_proj", [hidden, ffn], Projection(Down)),
        ]
    }

    fn embedding_parameter(&self) -> Parameter {
        Parameter::new("model.embed_tokens", [self.vocab_size, self.hidden_size], Role::Embedding)
    }

    /// The parameters above the layers: the final norm, and the head if it is not tied to the embedding.
    fn output_parameters(&self) -> Vec<Parameter> {
        let mut parameters = vec![Parameter::new("model.norm", [self.hidden_size], Role::Norm)];
        if !self.tie_word_embeddings {
            parameters.push(Parameter::new("lm_head", [self.vocab_size, self.hidden_size], Role::Head));
        }
        parameters
    }

    /// Every parameter with its full name, in the order of flat buffers and files.
    pub fn parameters(&self) -> Vec<(String, Parameter)> {
        let embedding = self.embedding_parameter();
        let mut all = vec![(format!("{}.weight", embedding.name), embedding)];
        let layer = self.layer_parameters();
        for i in 0..self.num_hidden_layers {
            all.extend(layer.iter().map(|p| (format!("model.layers.{i}.{}.weight", p.name), p.clone())));
        }
        all.extend(self.output_parameters().into_iter().map(|p| (format!("{}.weight", p.name), p)));
        all
    }

    /// Name and shape of every parameter.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.parameters().into_iter().map(|(name, parameter)| (name, parameter.shape)).collect()
    }

    /// Number of elements of the parameters that `counts` chooses, without a list of all layers.
    pub fn count_elements(&self, counts: impl Fn(&Parameter) -> bool) -> u64 {
        let layer: u64 = self.layer_parameters().iter().filter(|p| counts(p)).map(Parameter::elements).sum();
        let outer = std::iter::once(self.embedding_parameter()).chain(self.output_parameters());
        self.num_hidden_layers as u64 * layer + outer.filter(|p| counts(p)).map(|p| p.elements()).sum::<u64>()
    }
}
