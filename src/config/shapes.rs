//! Every parameter of a model: Hugging Face's name, shape and role, in the one order of flat buffers and files.
//!
//! Sizes, plans, initialisation, adapters and files are computed from this table. The views of `model/block.rs` take its rows in order,
//! so a new row needs its view there, too. The projections of one [`Product`] stand side by side, so that each product is also ONE matrix of a flat buffer: the packed
//! projections of `model/block.rs` are views, not copies.

use super::choices::Architecture;
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

/// The parts of a model, as plans list them.
pub const CLASSES: [&str; 5] = ["embedding", "attention", "feed-forward", "norms", "head"];

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterRole {
    /// Looked up by token; multiplied with only if the head is tied to it.
    Embedding,
    /// The scale of an RMSNorm.
    Norm,
    /// A linear weight of a layer, (out, in): part of this product.
    Projection(Product),
    /// What is added to the results of a projection of this product, (out).
    Bias(Product),
    Head,
}

/// How a parameter is initialised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Constant(f32),
    /// N(0, initializer_range).
    Normal,
    /// The same for projections that add to the residual stream, which `residual_scaling` makes smaller.
    ResidualNormal,
}

/// A parameter of a model, or of each of its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Hugging Face's name; of a layer's parameter, what follows `model.layers.N.`.
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub role: ParameterRole,
}

impl Parameter {
    fn new<const N: usize>(name: &'static str, shape: [usize; N], role: ParameterRole) -> Self {
        Self { name, shape: shape.to_vec(), role }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// The module that it is the weight or bias of, such as `self_attn.q_proj`.
    pub fn module(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(module, _)| module)
    }

    pub fn init(&self) -> Init {
        match self.role {
            ParameterRole::Norm => Init::Constant(1.0),
            ParameterRole::Bias(_) => Init::Constant(0.0),
            ParameterRole::Projection(Product::O | Product::Down) => Init::ResidualNormal,
            ParameterRole::Projection(Product::Qkv | Product::GateUp)
            | ParameterRole::Embedding
            | ParameterRole::Head => Init::Normal,
        }
    }

    /// The part of a model that it belongs to, one of [`CLASSES`].
    pub fn class(&self) -> &'static str {
        match self.role {
            ParameterRole::Embedding => "embedding",
            ParameterRole::Projection(product) | ParameterRole::Bias(product) => match product {
                Product::Qkv | Product::O => "attention",
                Product::GateUp | Product::Down => "feed-forward",
            },
            ParameterRole::Norm => "norms",
            ParameterRole::Head => "head",
        }
    }
}

impl ModelConfig {
    /// The smallest model, with every option off: what a fixed shape in the code does not name.
    pub const MINIMAL: Self = Self {
        architecture: Architecture::Llama,
        hidden_size: 2,
        intermediate_size: 1,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 2,
        vocab_size: 2,
        max_position_embeddings: 1,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        no_rope_layers: None,
        sliding_window: None,
        max_window_layers: 0,
        attention_bias: false,
        mlp_bias: false,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        residual_scaling: false,
    };

    /// The parameters of each layer. Weights of a product stand side by side, and so do its biases.
    pub fn layer_parameters(&self) -> Vec<Parameter> {
        use ParameterRole::{Bias, Norm, Projection};
        use Product::{Down, GateUp, O, Qkv};
        let hidden = self.hidden_size;
        let ffn = self.intermediate_size;
        let query_width = self.num_attention_heads * self.head_dim;
        let key_width = self.num_key_value_heads * self.head_dim;
        let mut layer = vec![
            Parameter::new("input_layernorm.weight", [hidden], Norm),
            Parameter::new("self_attn.q_proj.weight", [query_width, hidden], Projection(Qkv)),
            Parameter::new("self_attn.k_proj.weight", [key_width, hidden], Projection(Qkv)),
            Parameter::new("self_attn.v_proj.weight", [key_width, hidden], Projection(Qkv)),
        ];
        if self.has_qkv_bias() {
            layer.push(Parameter::new("self_attn.q_proj.bias", [query_width], Bias(Qkv)));
            layer.push(Parameter::new("self_attn.k_proj.bias", [key_width], Bias(Qkv)));
            layer.push(Parameter::new("self_attn.v_proj.bias", [key_width], Bias(Qkv)));
        }
        if self.has_qk_norm() {
            layer.push(Parameter::new("self_attn.q_norm.weight", [self.head_dim], Norm));
            layer.push(Parameter::new("self_attn.k_norm.weight", [self.head_dim], Norm));
        }
        layer.push(Parameter::new("self_attn.o_proj.weight", [hidden, query_width], Projection(O)));
        if self.attention_bias {
            layer.push(Parameter::new("self_attn.o_proj.bias", [hidden], Bias(O)));
        }
        layer.push(Parameter::new("post_attention_layernorm.weight", [hidden], Norm));
        layer.push(Parameter::new("mlp.gate_proj.weight", [ffn, hidden], Projection(GateUp)));
        layer.push(Parameter::new("mlp.up_proj.weight", [ffn, hidden], Projection(GateUp)));
        if self.mlp_bias {
            layer.push(Parameter::new("mlp.gate_proj.bias", [ffn], Bias(GateUp)));
            layer.push(Parameter::new("mlp.up_proj.bias", [ffn], Bias(GateUp)));
        }
        layer.push(Parameter::new("mlp.down_proj.weight", [hidden, ffn], Projection(Down)));
        if self.mlp_bias {
            layer.push(Parameter::new("mlp.down_proj.bias", [hidden], Bias(Down)));
        }
        layer
    }

    fn embedding_parameter(&self) -> Parameter {
        Parameter::new("model.embed_tokens.weight", [self.vocab_size, self.hidden_size], ParameterRole::Embedding)
    }

    /// The parameters above the layers: the final norm, and the head if it is not tied to the embedding.
    fn output_parameters(&self) -> Vec<Parameter> {
        let mut parameters = vec![Parameter::new("model.norm.weight", [self.hidden_size], ParameterRole::Norm)];
        if !self.tie_word_embeddings {
            parameters.push(Parameter::new("lm_head.weight", [self.vocab_size, self.hidden_size], ParameterRole::Head));
        }
        parameters
    }

    /// Every parameter with its full name, in the order of flat buffers and files.
    pub fn parameters(&self) -> Vec<(String, Parameter)> {
        let embedding = self.embedding_parameter();
        let mut all = vec![(embedding.name.to_owned(), embedding)];
        let layer = self.layer_parameters();
        for i in 0..self.num_hidden_layers {
            all.extend(layer.iter().map(|p| (format!("model.layers.{i}.{}", p.name), p.clone())));
        }
        all.extend(self.output_parameters().into_iter().map(|p| (p.name.to_owned(), p)));
        all
    }

    /// Name and shape of every parameter.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.parameters().into_iter().map(|(name, parameter)| (name, parameter.shape)).collect()
    }

    /// Whether every token is multiplied with this parameter. A tied embedding is also the head.
    pub(super) fn is_matmul(&self, parameter: &Parameter) -> bool {
        match parameter.role {
            ParameterRole::Projection(_) | ParameterRole::Head => true,
            ParameterRole::Embedding => self.tie_word_embeddings,
            ParameterRole::Norm | ParameterRole::Bias(_) => false,
        }
    }

    /// Number of elements of the parameters that `counts` chooses, without a list of all layers.
    pub fn count_elements(&self, counts: impl Fn(&Parameter) -> bool) -> u64 {
        let layer: u64 = self.layer_parameters().iter().filter(|p| counts(p)).map(Parameter::elements).sum();
        let outer = std::iter::once(self.embedding_parameter()).chain(self.output_parameters());
        self.num_hidden_layers as u64 * layer + outer.filter(|p| counts(p)).map(|p| p.elements()).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Choice as _, Config, LoraTarget};

    fn preset() -> ModelConfig {
        let text = "[model]\npreset = \"124m\"\n[data]\nsource = \"stories\"\n\
                    [train]\nsequence_length = 1024\nmicro_batch_size = 1\nsteps = 1\n";
        Config::from_toml_str(text, "test").unwrap().model
    }

    #[test]
    fn every_projection_can_have_an_adapter() {
        let layer = preset().layer_parameters();
        let projections = layer.iter().filter(|p| matches!(p.role, ParameterRole::Projection(_)));
        let mut names: Vec<&str> = projections.filter_map(|p| p.module().rsplit('.').next()).collect();
        let mut targets = LoraTarget::ALL.map(LoraTarget::name).to_vec();
        names.sort_unstable();
        targets.sort_unstable();
        assert_eq!(names, targets);
    }

    #[test]
    fn counts_are_those_of_the_whole_list() {
        for tie_word_embeddings in [false, true] {
            let model = ModelConfig { tie_word_embeddings, ..preset() };
            let listed: u64 = model.parameters().iter().map(|(_, parameter)| parameter.elements()).sum();
            assert_eq!(model.n_params(), listed);
            let by_class: u64 = CLASSES.iter().map(|class| model.count_elements(|p| p.class() == *class)).sum();
            assert_eq!(by_class, listed);
        }
    }
}
