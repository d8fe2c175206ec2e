//! All parameters in one flat f32 buffer, seen under Hugging Face's names and as the packed matrices of the forward pass.
//!
//! One buffer each for weights, gradients and the two moments makes the optimizer one pass, the global norm one reduction and a
//! checkpoint a walk over slices. [`Weights`] are views into such a buffer: the same struct names a model's weights and its
//! gradients, so `block.backward(.., &grads.blocks[i])` cannot mix them up in shape.

use super::names::tensor_specs;
use crate::config::ModelConfig;
use crate::ops::adamw::Range;
use crate::ops::cpu;
use candle_core::{DType, Device, Result, Tensor, bail};

/// One named tensor inside the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    /// Its shape; linear weights are (out, in).
    pub shape: Vec<usize>,
    /// Where it begins in the flat buffer, in elements.
    pub start: usize,
    pub len: usize,
}

/// Where every tensor of a model lies in a flat buffer.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The tensors, in order and without gaps.
    pub specs: Vec<Spec>,
    /// Elements of the buffer: the number of parameters.
    pub total: usize,
}

impl Layout {
    /// The layout of a model of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self::of(tensor_specs(config))
    }

    /// The tensors of these names and shapes, one after the other.
    pub fn of(tensors: Vec<(String, Vec<usize>)>) -> Self {
        let mut total = 0;
        let specs = tensors
            .into_iter()
            .map(|(name, shape)| {
                let (start, len) = (total, shape.iter().product());
                total += len;
                Spec { name, shape, start, len }
            })
            .collect();
        Self { specs, total }
    }

    pub fn zeros(&self, device: &Device) -> Result<Tensor> {
        Tensor::zeros(self.total, DType::F32, device)
    }

    /// Gives `f` the elements of flat buffers of this layout, without a copy where they are f32 on the CPU.
    pub fn with_slices<const N: usize, R>(
        &self,
        flats: [&Tensor; N],
        f: impl FnOnce(&Self, [&[f32]; N]) -> R,
    ) -> Result<R> {
        let host =
            flats.iter().map(|flat| flat.to_device(&Device::Cpu)?.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
        cpu::read("with_slices", std::array::from_fn(|i| &host[i]), |slices| Ok(f(self, slices)))
    }

    /// The ranges of the optimizer: weight decay on tensors with two dimensions, none on norms.
    pub fn decay_ranges(&self) -> Vec<Range> {
        self.specs.iter().map(|s| Range { start: s.start, len: s.len, decay: s.shape.len() >= 2 }).collect()
    }
}

/// Views of one transformer block's weights (or gradients), packed where one GEMM serves several projections.
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// (c)
    pub input_layernorm: Tensor,
    /// q ‖ k ‖ v, ((h + 2k)·d, c)
    pub qkv_proj: Tensor,
    /// (c, h·d)
    pub o_proj: Tensor,
    /// (c)
    pub post_attention_layernorm: Tensor,
    /// gate ‖ up, (2f, c)
    pub gate_up_proj: Tensor,
    /// (c, f)
    pub down_proj: Tensor,
}

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
        let (c, kv) = (config.hidden_size, config.num_key_value_heads);
        let embed_tokens = cursor.take(1)?;
        let blocks = (0..config.num_hidden_layers)
            .map(|_| {
                Ok(BlockWeights {
                    input_layernorm: cursor.take(1)?.reshape(c)?,
                    qkv_proj: cursor.take(3)?.reshape(((config.num_attention_heads + 2 * kv) * config.head_dim, c))?,
                    o_proj: cursor.take(1)?,
                    post_attention_layernorm: cursor.take(1)?.reshape(c)?,
                    gate_up_proj: cursor.take(2)?,
                    down_proj: cursor.take(1)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let norm = cursor.take(1)?.reshape(c)?;
        let lm_head = if config.tie_word_embeddings { embed_tokens.clone() } else { cursor.take(1)? };
        Ok(Self { embed_tokens, blocks, norm, lm_head })
    }
}

impl Weights {
    /// The same with the weights of the norms as `exact` has them.
    pub fn with_norms_of(mut self, exact: &Self) -> Self {
        self.norm = exact.norm.clone();
        for (block, exact) in self.blocks.iter_mut().zip(&exact.blocks) {
            block.input_layernorm = exact.input_layernorm.clone();
            block.post_attention_layernorm = exact.post_attention_layernorm.clone();
        }
        self
    }
}

/// Takes views of a flat buffer in the order of its layout.
pub(super) struct Cursor<'a> {
    flat: &'a Tensor,
    specs: std::slice::Iter<'a, Spec>,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `flat`, which must have `layout.total` elements.
    pub(super) fn new(flat: &'a Tensor, layout: &'a Layout) -> Result<Self> {
        if flat.dims() != [layout.total] {
            bail!("a flat buffer of {} elements is wanted, not {:?}", layout.total, flat.shape());
        }
        Ok(Self { flat, specs: layout.specs.iter() })
    }

    /// The next `n` adjacent tensors as one view of as many rows as they have together.
    pub(super) fn take(&mut self, n: usize) -> Result<Tensor> {
        let group: Vec<&Spec> = self.specs.by_ref().take(n).collect();
        let (Some(first), len) = (group.first(), group.iter().map(|s| s.len).sum::<usize>()) else {
            bail!("the layout has too few tensors")
        };
        let columns = first.shape.last().copied().unwrap_or(1);
        self.flat.narrow(0, first.start, len)?.reshape((len / columns, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny;

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

    #[test]
    fn norms_are_not_decayed() {
        let layout = Layout::new(&tiny(false));
        for (range, spec) in layout.decay_ranges().iter().zip(&layout.specs) {
            assert_eq!(range.decay, !spec.name.contains("norm"), "{}", spec.name);
        }
    }
}
