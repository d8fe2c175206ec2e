//! Keys and values that one layer has computed so far, allocated once and NOT expanded to the query heads.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Keys (rotated) and values, (b, capacity, k·d) each, of which the first `len` rows are filled.
pub struct LayerCache {
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl LayerCache {
    /// An empty cache of `shape` (b, capacity, k·d).
    pub(super) fn new(shape: (usize, usize, usize), dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self { keys: Tensor::zeros(shape, dtype, device)?, values: Tensor::zeros(shape, dtype, device)?, len: 0 })
    }

    /// `n` copies, one after the other in the batch: this cache has one sequence.
    pub(super) fn repeated(&self, n: usize) -> Result<Self> {
        let keys = self.keys.repeat((n, 1, 1))?.contiguous()?;
        let values = self.values.repeat((n, 1, 1))?.contiguous()?;
        Ok(Self { keys, values, len: self.len })
    }

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

    /// Counts `n` more positions, whose keys and values a kernel has written into the cache itself.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Appends keys and values (b, t, k·d) of the next t positions.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let t = keys.dim(1)?;
        if self.len + t > self.keys.dim(1)? {
            bail!("the KV cache holds {} positions; {} are wanted", self.keys.dim(1)?, self.len + t);
        }
        // They are columns of packed qkv, and `slice_set` takes contiguous tensors only.
        self.keys.slice_set(&keys.contiguous()?, 1, self.len)?;
        self.values.slice_set(&values.contiguous()?, 1, self.len)?;
        self.len += t;
        Ok(())
    }
}
