//! The weights of one block as views of a flat buffer, in the order of `ModelConfig::layer_parameters`.

use super::params::Cursor;
use crate::config::{ModelConfig, Product};
use crate::ops::qk_norm::QkNorm;
use candle_core::{Result, Tensor};

/// Views of one block's weights (or gradients), packed where one product serves several projections.
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// (c)
    pub input_layernorm: Tensor,
    /// q ‖ k ‖ v, ((H + 2K)·d, c)
    pub qkv_proj: Tensor,
    /// Norms of each query and of each key head, (d) each.
    pub qk_norm: Option<[Tensor; 2]>,
    /// (c, H·d)
    pub o_proj: Tensor,
    /// (c)
    pub post_attention_layernorm: Tensor,
    /// gate ‖ up, (2f, c)
    pub gate_up_proj: Tensor,
    /// (c, f)
    pub down_proj: Tensor,
    /// Those of the products, each as long as its weight has rows.
    pub biases: [Option<Tensor>; 4],
}

impl BlockWeights {
    /// The next block's views of a flat buffer, in the order of `ModelConfig::layer_parameters`.
    pub(super) fn views(cursor: &mut Cursor, config: &ModelConfig) -> Result<Self> {
        let qkv_width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
        let input_layernorm = cursor.take_vector()?;
        let qkv_proj = cursor.take(3)?.reshape((qkv_width, config.hidden_size))?;
        let qkv_bias = config.has_qkv_bias().then(|| cursor.take_vectors(3)).transpose()?;
        let has_qk_norm = config.has_qk_norm();
        let qk_norm = if has_qk_norm { Some([cursor.take_vector()?, cursor.take_vector()?]) } else { None };
        let o_proj = cursor.take(1)?;
        let o_bias = config.attention_bias.then(|| cursor.take_vector()).transpose()?;
        let post_attention_layernorm = cursor.take_vector()?;
        let gate_up_proj = cursor.take(2)?;
        let gate_up_bias = config.mlp_bias.then(|| cursor.take_vectors(2)).transpose()?;
        let down_proj = cursor.take(1)?;
        let down_bias = config.mlp_bias.then(|| cursor.take_vector()).transpose()?;
        Ok(Self {
            input_layernorm,
            qkv_proj,
            qk_norm,
            o_proj,
            post_attention_layernorm,
            gate_up_proj,
            down_proj,
            biases: [qkv_bias, o_bias, gate_up_bias, down_bias],
        })
    }

    /// The places of norms and biases: what ops take in f32 whatever the type of the matrices.
    pub(super) fn vectors_mut(&mut self) -> Vec<&mut Tensor> {
        let Self { input_layernorm, qk_norm, post_attention_layernorm, biases, .. } = self;
        let [qkv, o, gate_up, down] = biases;
        let mut vectors = vec![input_layernorm];
        vectors.extend(qkv);
        vectors.extend(qk_norm.iter_mut().flatten());
        vectors.extend(o);
        vectors.push(post_attention_layernorm);
        vectors.extend(gate_up);
        vectors.extend(down);
        vectors
    }

    /// The weights of the norms of heads.
    pub(super) fn qk_norm(&self) -> Option<QkNorm<'_>> {
        self.qk_norm.as_ref().map(|[q_norm, k_norm]| QkNorm { q_norm, k_norm })
    }

    pub(super) fn bias(&self, product: Product) -> Option<&Tensor> {
        self.biases[product as usize].as_ref()
    }

    /// The weight of a product, or the gradient of it.
    pub(super) fn product(&self, product: Product) -> &Tensor {
        match product {
            Product::Qkv => &self.qkv_proj,
            Product::O => &self.o_proj,
            Product::GateUp => &self.gate_up_proj,
            Product::Down => &self.down_proj,
        }
    }
}
