//! Keys and values of the positions seen so far, allocated once and NOT expanded to the query heads.

use crate::config::ModelConfig;
use candle_core::{DType, Device, Result, Tensor, bail};

/// One layer's cache: keys (rotated) and values, (b, capacity, k·d) each, of which the first `len` rows are filled.
pub struct LayerCache {
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl LayerCache {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// (b, capacity, k·d)
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// (b, capacity, k·d)
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Counts `n` positions that somebody else has filled.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Takes in keys and values (b, t, k·d) of the next t positions.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let t = keys.dim(1)?;
        if self.len + t > self.keys.dim(1)? {
            bail!("the KV cache holds {} positions; {} are wanted", self.keys.dim(1)?, self.len + t);
        }
        self.keys.slice_set(&keys.contiguous()?, 1, self.len)?;
        self.values.slice_set(&values.contiguous()?, 1, self.len)?;
        self.len += t;
        Ok(())
    }
}

/// The caches of all layers.
pub struct KvCache {
    /// One per block, from the bottom up.
    pub layers: Vec<LayerCache>,
    capacity: usize,
    /// What a GPU adds single tokens with.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) decoder: Option<super::decode::Decoder>,
}

impl KvCache {
    /// Room for `capacity` positions of `batch` sequences.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (batch, capacity, config.num_key_value_heads * config.head_dim);
        let layer = || -> Result<LayerCache> {
            Ok(LayerCache {
                keys: Tensor::zeros(shape, dtype, device)?,
                values: Tensor::zeros(shape, dtype, device)?,
                len: 0,
            })
        };
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Self::of(layers, capacity))
    }

    fn of(layers: Vec<LayerCache>, capacity: usize) -> Self {
        Self {
            layers,
            capacity,
            #[cfg(any(test, feature = "cuda"))]
            decoder: None,
        }
    }

    /// The same for `n` sequences that have begun alike: this cache holds one.
    pub fn repeated(&self, n: usize) -> Result<Self> {
        let layer = |layer: &LayerCache| -> Result<LayerCache> {
            let repeat = |x: &Tensor| x.repeat((n, 1, 1))?.contiguous();
            Ok(LayerCache { keys: repeat(&layer.keys)?, values: repeat(&layer.values)?, len: layer.len })
        };
        Ok(Self::of(self.layers.iter().map(layer).collect::<Result<_>>()?, self.capacity))
    }

    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
