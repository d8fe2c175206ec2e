//! The keys and values of all layers, and the recorded work of a GPU that adds single tokens to them.

pub use super::layer_cache::LayerCache;
use crate::config::ModelConfig;
use candle_core::{DType, Device, Result};

/// The caches of all layers.
pub struct KvCache {
    /// One per block, from the bottom up.
    pub layers: Vec<LayerCache>,
    capacity: usize,
    /// How a GPU adds single tokens; none before the first.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) decoder: Option<super::decode::Decoder>,
}

impl KvCache {
    /// Room for `capacity` positions of `batch` sequences.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (batch, capacity, config.num_key_value_heads * config.head_dim);
        let layers =
            (0..config.num_hidden_layers).map(|_| LayerCache::new(shape, dtype, device)).collect::<Result<_>>()?;
        Ok(Self::with_layers(layers, capacity))
    }

    fn with_layers(layers: Vec<LayerCache>, capacity: usize) -> Self {
        Self {
            layers,
            capacity,
            #[cfg(any(test, feature = "cuda"))]
            decoder: None,
        }
    }

    /// A cache for `n` sequences that all begin with what this cache holds for its one sequence.
    pub fn repeated(&self, n: usize) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| layer.repeated(n)).collect::<Result<_>>()?;
        Ok(Self::with_layers(layers, self.capacity))
    }

    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of positions for which there is room.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
