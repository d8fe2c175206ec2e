//! The forward pass for generation: new tokens in, logits of the last position out; older positions are in a cache.

use super::Llama;
use super::block::{Attend, Context, Residual};
#[cfg(any(test, feature = "cuda"))]
use super::decode::Decoder;
use super::kv_cache::{KvCache, LayerCache};
use crate::ops::cpu::on_pool_thread;
use crate::ops::is_on_gpu;
use crate::ops::linear::linear;
use candle_core::{DType, Result, Tensor, bail};

impl Llama {
    /// An empty cache for `batch` sequences of up to `capacity` positions.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        // The type of the activations, which attention compares with the cache's.
        let dtype = self.copy.as_ref().map_or(DType::F32, Tensor::dtype);
        KvCache::new(&self.config, batch, capacity, dtype, self.flat.device())
    }

    /// Feeds `inputs` (b, t) after what the cache holds; f32 logits (b, v) of the last position.
    pub fn next_logits(&self, inputs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        if inputs.dim(1)? == 0 {
            bail!("nothing to feed");
        }
        #[cfg(any(test, feature = "cuda"))]
        if is_on_gpu(&self.flat)
            && let Some(logits) = self.decode(inputs, cache)?
        {
            return Ok(logits);
        }
        let layers = &mut cache.layers;
        if inputs.dim(1)? > 1 || is_on_gpu(&self.flat) {
            return self.on_computing_thread(|| self.over(inputs, layers));
        }
        // A single token allocates little, and does not wait until a certain thread is free.
        on_pool_thread(|| self.over(inputs, layers))
    }

    /// [`next_logits`](Self::next_logits), op by op.
    fn over(&self, inputs: &Tensor, layers: &mut [LayerCache]) -> Result<Tensor> {
        let t = inputs.dim(1)?;
        let cx = Context { rope: &self.rope, documents: None, noise: None };
        let mut residual = self.embed(inputs)?;
        for (block, layer) in self.blocks.iter().zip(layers) {
            residual = block.forward(residual, cx, Attend::Cache(layer))?.0;
        }
        // Only the last position goes through the head.
        let h = residual.h.narrow(1, t - 1, 1)?.contiguous()?;
        let pending = residual.pending.as_ref().map(|x| x.narrow(1, t - 1, 1)?.contiguous()).transpose()?;
        let y = self.final_norm(&Residual { h, pending })?.y;
        linear(&y, &self.weights.lm_head, self.precision)?.squeeze(1)?.to_dtype(DType::F32)
    }

    /// [`next_logits`](Self::next_logits) for one token of each sequence; none where there are no kernels for it.
    #[cfg(any(test, feature = "cuda"))]
    fn decode(&self, inputs: &Tensor, cache: &mut KvCache) -> Result<Option<Tensor>> {
        let (rows, t) = inputs.dims2()?;
        let position = cache.len();
        let room = position < cache.capacity() && position < self.rope.positions();
        if t != 1 || !room || !Decoder::supports(self, rows) {
            return Ok(None);
        }
        let ids = inputs.flatten_all()?.to_vec1::<u32>()?;
        if ids.iter().any(|&id| id as usize >= self.config.vocab_size) {
            // The usual way says what is wrong with it.
            return Ok(None);
        }
        // Taken out, so that after an error no half-done recording is used again.
        let recorded = cache.decoder.take().filter(|decoder| decoder.fits(self, rows));
        let mut decoder = recorded.map_or_else(|| Decoder::new(self, rows, cache.capacity()), Ok)?;
        let logits = decoder.step(self, &mut cache.layers, position, &ids)?;
        cache.decoder = Some(decoder);
        Ok(Some(logits))
    }
}
