//! The forward pass of one token per sequence on a GPU: what `Block::forward` computes over a cache, in few launches on buffers that
//! stay, so that the launches can be recorded once and replayed for every token.
//!
//! The norms are parts of the products here, and rotation and caching are parts of attention. So this is the one forward pass that is
//! not `Block::forward`; [`Decoder::supports`] names the models that it computes, and every other takes the usual way.

use super::Llama;
use super::block::Block;
use super::layer_cache::LayerCache;
use crate::ops::cuda::decode::{ProductInput, ProductKind, Recorder, attend, buffer, can_decode, embed, product};
use crate::ops::rope::Tables;
use candle_core::{DType, Result, Tensor, TensorId};
use std::sync::Arc;

/// A model's next tokens, for some sequences at once.
pub(super) struct Decoder {
    recorder: Recorder,
    buffers: Buffers,
    /// RoPE tables of all positions there is room for: what is recorded reads these, also when the model has longer ones by then.
    tables: Arc<Tables>,
    /// Identifies the weights of the model whose launches are recorded.
    weights: TensorId,
}

/// The values of one token on its way through the model, (rows, width) each.
struct Buffers {
    /// The residual stream: the value of this layer and that of the next.
    streams: [Tensor; 2],
    qkv: Tensor,
    attn: Tensor,
    o: Tensor,
    act: Tensor,
    down: Tensor,
    logits: Tensor,
}

impl Decoder {
    pub(super) fn new(model: &Llama, rows: usize, capacity: usize) -> Result<Self> {
        let recorder = Recorder::new(rows, model.flat.device())?;
        let tables = model.rope.tables(capacity.min(model.rope.positions()))?;
        Ok(Self { recorder, buffers: Buffers::new(model, rows)?, tables, weights: model.flat.id() })
    }

    /// Whether there are kernels for a token of each of `rows` sequences of `model`.
    pub(super) fn supports(model: &Llama, rows: usize) -> bool {
        let m = &model.config;
        let widths = [m.hidden_size, m.num_attention_heads * m.head_dim, m.intermediate_size];
        !model.blocks.is_empty()
            && model.blocks.iter().all(Block::has_fused_decode)
            // What is recorded reads one table for all tokens.
            && model.rope.is_fixed()
            && can_decode(rows, widths, m.head_dim, model.weights.embed_tokens.dtype())
    }

    /// Whether this decoder was made for `rows` sequences of `model`.
    pub(super) fn fits(&self, model: &Llama, rows: usize) -> bool {
        // A recording holds addresses: other weights or another number of rows need one of their own.
        self.weights == model.flat.id() && self.buffers.logits.dims()[0] == rows
    }

    /// Logits (rows, v) after one more token `ids` of each sequence, whose keys and values go into `layers` at `position`.
    pub(super) fn step(
        &mut self,
        model: &Llama,
        layers: &mut [LayerCache],
        position: usize,
        ids: &[u32],
    ) -> Result<Tensor> {
        let Self { recorder, buffers, tables, .. } = self;
        recorder.run(position, ids, |feed| buffers.queue(model, layers, tables, feed))?;
        layers.iter_mut().for_each(|layer| layer.advance(1));
        // The next token overwrites the buffer.
        self.buffers.logits.copy()
    }
}

impl Buffers {
    fn new(model: &Llama, rows: usize) -> Result<Self> {
        let m = &model.config;
        let dtype = model.weights.embed_tokens.dtype();
        let device = model.flat.device();
        let query_width = m.num_attention_heads * m.head_dim;
        let key_width = m.num_key_value_heads * m.head_dim;
        Ok(Self {
            streams: [buffer(&[rows, m.hidden_size], dtype, device)?, buffer(&[rows, m.hidden_size], dtype, device)?],
            qkv: buffer(&[rows, query_width + 2 * key_width], dtype, device)?,
            attn: buffer(&[rows, query_width], dtype, device)?,
            o: buffer(&[rows, m.hidden_size], dtype, device)?,
            act: buffer(&[rows, m.intermediate_size], dtype, device)?,
            down: buffer(&[rows, m.hidden_size], dtype, device)?,
            logits: buffer(&[rows, m.vocab_size], DType::F32, device)?,
        })
    }

    /// Queues the work for the token of each sequence.
    fn queue(&self, model: &Llama, layers: &[LayerCache], tables: &Tables, feed: &Tensor) -> Result<()> {
        let [mut x, mut next] = self.streams.each_ref();
        embed(feed, &model.weights.embed_tokens, x)?;
        // The last feed-forward's output, which the next norm adds to the stream; none before the first layer.
        let mut pending = None;
        for (block, cache) in model.blocks.iter().zip(layers) {
            let w = &block.weights;
            let eps = block.eps;
            // A sum goes to the other buffer: all blocks of the product still read the old stream.
            let sum = pending.is_some().then_some(next);
            let input = ProductInput::Normed { x, pending, sum, weight: &w.input_layernorm, eps };
            product(&input, &w.qkv_proj, &self.qkv, ProductKind::Plain)?;
            if sum.is_some() {
                (x, next) = (next, x);
            }
            attend(&self.qkv, (cache.keys(), cache.values()), tables.on_gpu()?, feed, block.heads, &self.attn)?;
            product(&ProductInput::Plain(&self.attn), &w.o_proj, &self.o, ProductKind::Plain)?;
            let weight = &w.post_attention_layernorm;
            let input = ProductInput::Normed { x, pending: Some(&self.o), sum: Some(next), weight, eps };
            product(&input, &w.gate_up_proj, &self.act, ProductKind::Gated)?;
            (x, next) = (next, x);
            product(&ProductInput::Plain(&self.act), &w.down_proj, &self.down, ProductKind::Plain)?;
            pending = Some(&self.down);
        }
        let weight = &model.weights.norm;
        let input = ProductInput::Normed { x, pending, sum: None, weight, eps: model.config.rms_norm_eps };
        product(&input, &model.weights.lm_head, &self.logits, ProductKind::Logits)
    }
}
