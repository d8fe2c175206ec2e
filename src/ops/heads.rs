//! Head counts and width of attention, and where the heads lie in packed rows.

use candle_core::{Result, Tensor, bail};

/// Widths of heads that a GPU has bf16 kernels for.
pub const GPU_BF16_DIMS: [usize; 2] = [64, 128];

/// Head counts and width of packed rows (h query heads ‖ k key heads ‖ k value heads), each d wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads h; a multiple of k.
    pub q: usize,
    pub kv: usize,
    /// Width d of one head.
    pub dim: usize,
}

impl Heads {
    /// Width of a packed QKV row.
    pub fn packed(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    /// Width of an output row.
    pub fn out(&self) -> usize {
        self.q * self.dim
    }

    /// Width of the query and key heads of a packed row: those that are rotated, or normed.
    pub fn normed(&self) -> usize {
        (self.q + self.kv) * self.dim
    }

    /// Query heads that share one key and value head.
    pub(super) fn group(&self) -> usize {
        self.q / self.kv
    }

    /// Factor on the products of queries and keys, 1 / √d.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// (b, t) of packed `qkv` (b, t, (h + 2k)·d).
    ///
    /// # Errors
    /// If its rows do not have these heads; `op` is named in the message.
    pub(super) fn check(&self, op: &str, qkv: &Tensor) -> Result<(usize, usize)> {
        let (b, t, width) = qkv.dims3()?;
        if self.kv == 0 || !self.q.is_multiple_of(self.kv) || width != self.packed() {
            bail!("{op}: rows of {width} do not hold {self:?}");
        }
        Ok((b, t))
    }
}

/// The weights of the norms of query and of key heads, or their gradients, (d) each.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a> {
    pub q_norm: &'a Tensor,
    pub k_norm: &'a Tensor,
}
