//! The operations of the training path: each is a forward and a backward function, side by side, over candle tensors.
//!
//! | op | forward | backward |
//! |---|---|---|
//! | [`embedding`] | gather rows | scatter-add, by columns so that the order of additions is fixed |
//! | [`linear`] | `y = x Wᵀ` | `dx = dy W`, `dW += dyᵀ x` |
//! | [`bias`] | `y += b` in place | `db += Σ dy` |
//! | [`lora`] | `y += s (x Aᵀ) Bᵀ` beside a frozen layer | `dA`, `dB`, and its share of `dx` |
//! | [`noise`] | LoRA's dropout, NEFTune's noise: drawn by position | the same draws |
//! | [`rms_norm`] | residual add + RMSNorm in one pass | input gradient joins the residual's; weight gradient in two stages |
//! | [`qk_norm`] | RMSNorm of each query and key head, in place on packed QKV | statistics computed again |
//! | [`rope`] | rotation in place on packed QKV | the inverse rotation |
//! | [`swiglu`] | `silu(gate) · up` on packed gate-up | both halves in one pass |
//! | [`attention`] | causal, block by block, keeps only log-sum-exp | scores recomputed block by block |
//! | [`cross_entropy`] | fused with the head, in row chunks: the logits never exist whole | in the same pass |
//! | [`adamw`] | clip factor and update in one pass over flat buffers | - |
//! | [`squares`] | sums of squares of gradients, weights and updates | - |
//!
//! Shape legend (lower-case suffixes on names): b batch, t time, c channels (hidden), h query heads, k key/value heads, d head
//! dimension, v vocabulary, f feed-forward, n = b·t rows.
//!
//! Invariants: an op knows shapes, never a Llama. Gradients of weights are ACCUMULATED into the tensor given for them.
//! Every reduction runs in an order fixed by the shapes alone, matrix products included ([`gemm`]), so the bits do not depend on the
//! number of threads. The code for a GPU is in `cuda/`: each op calls its CUDA twin first where its
//! tensors are on a GPU. Most of what both need is in files that import neither
//! (`heads`, `mask`, `flat`, `adapter`, `targets`, `positions`, `prefix_tree`, `product_algorithms`). candle's
//! autograd appears only in [`selftest`], as the reference.

use candle_core::Tensor;

pub mod adamw;
pub(crate) mod adapter;
pub mod attention;
pub mod bias;
pub(crate) mod cpu;
pub mod cross_entropy;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
pub mod device;
pub(crate) mod elements;
pub mod embedding;
pub(crate) mod flat;
pub(crate) mod gemm;
pub(crate) mod heads;
pub(crate) mod large_pages;
pub mod linear;
pub mod lora;
pub mod mask;
pub mod noise;
pub mod positions;
pub mod precision;
pub mod prefix_tree;
pub mod product_algorithms;
pub mod product_rate;
pub mod products;
pub mod qk_norm;
pub mod rms_norm;
pub mod rope;
pub mod selftest;
pub mod simd;
pub mod squares;
pub mod stream;
pub mod swiglu;
pub(crate) mod targets;
pub mod transfer;

/// Whether the kernels of a GPU, real or emulated, compute with `t`.
pub fn is_on_gpu(t: &Tensor) -> bool {
    #[cfg(test)]
    if cuda::is_emulated() {
        return true;
    }
    t.device().is_cuda()
}

/// Returns the result of `$work`, the CUDA twin of an op, if `$tensor` is on a GPU.
macro_rules! on_gpu {
    ($tensor:expr, $work:expr) => {
        #[cfg(any(test, feature = "cuda"))]
        if $crate::ops::is_on_gpu($tensor) {
            return $work;
        }
    };
}
use on_gpu;

#[cfg(feature = "cuda")]
pub(crate) use cuda::selftest::run as gpu_selftest;
