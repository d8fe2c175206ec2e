//! Forward for generation on a GPU, a token at a time: what `next_logits` does, in few launches that are recorded once and replayed.

use super::Llama;
use super::kv_cache::KvCache;
use crate::ops::cuda::decode::{Input, Kind, Recorder, attend, buffer, can_decode, embed, product};
use crate::ops::rope::Tables;
use candle_core::{DType, Result, Tensor, TensorId};
use std::sync::Arc;

/// A model's next tokens, for some sequences at once.
pub(super) struct Decoder {
    recorder: Recorder,
    buffers: Buffers,
    /// Of all positions there is room for: what is recorded reads these, also when the model has longer ones by then.
    tables: Arc<Tables>,
    /// Of the model whose launches are recorded.
    weights: TensorId,
}

/// A token on its way.
struct Buffers {
    /// The residual stream, now and next.
    streams: [Tensor; 2],
    qkv: Tensor,
    attn: Tensor,
    o: Tensor,
    act: Tensor,
    down: Tensor,
    logits: Tensor,
}

impl Decoder {
    fn new(model: &Llama, rows: usize, capacity: usize) -> Result<Self> {
        let recorder = Recorder::new(rows, model.flat.device())?;
        let tables = model.rope.tables(capacity.min(model.rope.positions()))?;
        Ok(Self { recorder, buffers: Buffers::new(model, rows)?, tables, weights: model.flat.id() })
    }

    fn fits(&self, model: &Llama, rows: usize) -> bool {
        self.weights == model.flat.id() && self.buffers.logits.dims()[0] == rows
    }
}

impl Buffers {
    fn new(model: &Llama, rows: usize) -> Result<Self> {
        let (m, weights) = (&model.config, &model.weights);
        let (dtype, device) = (weights.embed_tokens.dtype(), model.flat.device());
        let wide = |width: usize| buffer(&[rows, width], dtype, device);
        let (heads, kv) = (m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim);
        Ok(Self {
            streams: [wide(m.hidden_size)?, wide(m.hidden_size)?],
            qkv: wide(heads + 2 * kv)?,
            attn: wide(heads)?,
            o: wide(m.hidden_size)?,
            act: wide(m.intermediate_size)?,
            down: wide(m.hidden_size)?,
            logits: buffer(&[rows, m.vocab_size], DType::F32, device)?,
        })
    }

    /// Queues the work for the token of each sequence.
    fn queue(&self, model: &Llama, cache: &KvCache, tables: &Tables, feed: &Tensor) -> Result<()> {
        let [mut x, mut next] = self.streams.each_ref();
        embed(feed, &model.weights.embed_tokens, x)?;
        let mut branch = None;
        for (block, cache) in model.blocks.iter().zip(&cache.layers) {
            let (w, eps) = (&block.weights, block.eps);
            let sum = branch.is_some().then_some(next);
            let input = Input::Normed { x, branch, sum, weight: &w.input_layernorm, eps };
            product(&input, &w.qkv_proj, &self.qkv, Kind::Product)?;
            if sum.is_some() {
                (x, next) = (next, x);
            }
            attend(&self.qkv, (cache.keys(), cache.values()), tables.on_gpu()?, feed, block.heads, &self.attn)?;
            product(&Input::Plain(&self.attn), &w.o_proj, &self.o, Kind::Product)?;
            let weight = &w.post_attention_layernorm;
            let input = Input::Normed { x, branch: Some(&self.o), sum: Some(next), weight, eps };
            product(&input, &w.gate_up_proj, &self.act, Kind::Gated)?;
            (x, next) = (next, x);
            product(&Input::Plain(&self.act), &w.down_proj, &self.down, Kind::Product)?;
            branch = Some(&self.down);
        }
        let weight = &model.weights.norm;
        let input = Input::Normed { x, branch, sum: None, weight, eps: model.config.rms_norm_eps };
        product(&input, &model.weights.lm_head, &self.logits, Kind::Logits)
    }
}

impl Llama {
    /// [`next_logits`](Self::next_logits) for one token of each sequence; none where there are no kernels for it.
    pub(super) fn decode(&self, inputs: &Tensor, cache: &mut KvCache) -> Result<Option<Tensor>> {
        let ((rows, t), m) = (inputs.dims2()?, &self.config);
        let heads = m.num_attention_heads * m.head_dim;
        let dtype = self.weights.embed_tokens.dtype();
        let able = can_decode(rows, [m.hidden_size, heads, m.intermediate_size], m.head_dim, dtype);
        let room = cache.len() < cache.capacity() && cache.len() < self.rope.positions();
        if t != 1 || self.adapters.is_some() || !able || !room || m.num_hidden_layers == 0 {
            return Ok(None);
        }
        let ids = inputs.flatten_all()?.to_vec1::<u32>()?;
        if ids.iter().any(|&id| id as usize >= m.vocab_size) {
            return Ok(None);
        }
        let known = cache.decoder.take().filter(|decoder| decoder.fits(self, rows));
        let mut decoder = known.map_or_else(|| Decoder::new(self, rows, cache.capacity()), Ok)?;
        let Decoder { recorder, buffers, tables, .. } = &mut decoder;
        recorder.run(cache.len(), &ids, |feed| buffers.queue(self, cache, tables, feed))?;
        cache.layers.iter_mut().for_each(|layer| layer.advance(1));
        // The buffer is the next token's.
        let logits = decoder.buffers.logits.copy()?;
        cache.decoder = Some(decoder);
        Ok(Some(logits))
    }
}
