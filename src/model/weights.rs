//! The packed matrices of the forward pass as views of a flat buffer.
//!
//! The same struct names a model's weights and its gradients, so `block.backward(.., &grads.blocks[i])` cannot mix them up in shape.

use super::block::BlockWeights;
use super::params::{Cursor, Layout};
use crate::config::ModelConfig;
use candle_core::{Result, Tensor, bail};

/// Views of all weights (or gradients) of a model in a flat buffer.
#[derive(Clone, Debug)]
pub struct Weights {
    /// (v, c)
    pub embed_tokens: Tensor,
    /// The blocks from the bottom up.
    pub blocks: Vec<BlockWeights>,
    /// (c)
    pub norm: Tensor,
    /// (v, c); the same view as `embed_tokens` when tied.
    pub lm_head: Tensor,
}

impl Weights {
    /// Views into `flat`, which must have `layout.total` elements.
    pub fn views(flat: &Tensor, config: &ModelConfig, layout: &Layout) -> Result<Self> {
        let mut cursor = Cursor::new(flat, layout)?;
        let embed_tokens = cursor.take(1)?;
        let blocks =
            (0..config.num_hidden_layers).map(|_| BlockWeights::views(&mut cursor, config)).collect::<Result<_>>()?;
        let norm = cursor.take_vector()?;
        // One view twice, so that head and embedding add to the same gradient.
        let lm_head = if config.tie_word_embeddings { embed_tokens.clone() } else { cursor.take(1)? };
        Ok(Self { embed_tokens, blocks, norm, lm_head })
    }

    /// Norms and biases: what ops take in f32 whatever the type of the matrices. In the order of the flat buffer.
    pub fn vectors(&self) -> Vec<Tensor> {
        let mut copy = self.clone();
        copy.vectors_mut().into_iter().map(|vector| vector.clone()).collect()
    }

    fn vectors_mut(&mut self) -> Vec<&mut Tensor> {
        self.blocks.iter_mut().flat_map(BlockWeights::vectors_mut).chain([&mut self.norm]).collect()
    }

    /// The same with these [`vectors`](Self::vectors), each whole or in consecutive parts: a packed bias is one of several named ones.
    pub fn with_vectors(mut self, vectors: Vec<Tensor>) -> Result<Self> {
        let mut vectors = vectors.into_iter();
        for place in self.vectors_mut() {
            let mut parts: Vec<Tensor> = Vec::new();
            let mut len = 0;
            while len < place.elem_count() {
                let Some(part) = vectors.next() else { bail!("too few vectors for this model") };
                len += part.dims1()?;
                parts.push(part);
            }
            // A single one stays a view of the buffer that it belongs to: updates of that reach it.
            let vector = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? };
            if vector.dims() != place.dims() {
                bail!("vectors of {:?} where {:?} belong", vector.shape(), place.shape());
            }
            *place = vector;
        }
        if vectors.next().is_some() {
            bail!("too many vectors for this model");
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny;
    use candle_core::{DType, Device};

    #[test]
    fn packed_views_are_the_named_tensors_side_by_side() {
        let config = tiny(true);
        let layout = Layout::new(&config);
        let flat = Tensor::arange(0u32, layout.total as u32, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let w = Weights::views(&flat, &config, &layout).unwrap();
        let start = |name: &str| layout.specs.iter().find(|s| s.name == name).unwrap().start as f32;
        let first_of_row = |t: &Tensor, row: usize| t.get(row).unwrap().to_vec1::<f32>().unwrap()[0];
        let qkv = &w.blocks[1].qkv_proj;
        let (q_rows, kv_rows) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        assert_eq!(first_of_row(qkv, 0), start("model.layers.1.self_attn.q_proj.weight"));
        assert_eq!(first_of_row(qkv, q_rows), start("model.layers.1.self_attn.k_proj.weight"));
        assert_eq!(first_of_row(qkv, q_rows + kv_rows), start("model.layers.1.self_attn.v_proj.weight"));
        let up = start("model.layers.0.mlp.up_proj.weight");
        assert_eq!(first_of_row(&w.blocks[0].gate_up_proj, config.intermediate_size), up);
        assert_eq!(first_of_row(&w.lm_head, 0), 0.0);
    }
}
