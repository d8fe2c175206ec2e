//! The operations of the training path: each is a forward and a backward function, side by side, over candle tensors.
//!
//! | op | forward | backward |
//! |---|---|---|
//! | [`embedding`] | gather rows | scatter-add, by columns so that the order of additions is fixed |
//! | [`linear`] | `y = x Wᵀ` | `dx = dy W`, `dW += dyᵀ x` |
//! | [`lora`] | `y += s (x Aᵀ) Bᵀ` beside a frozen layer | `dA`, `dB`, and its share of `dx` |
//! | [`rms_norm`] | residual add + RMSNorm in one pass | input gradient joins the residual's; weight gradient in two stages |
//! | [`rope`] | rotation in place on packed QKV | the inverse rotation |
//! | [`swiglu`] | `silu(gate) · up` on packed gate-up | both halves in one pass |
//! | [`attention`] | causal, block by block, keeps only log-sum-exp | scores recomputed block by block |
//! | [`cross_entropy`] | fused with the head, in row chunks: the logits never exist whole | in the same pass |
//! | [`adamw`] | clip factor and update in one pass over flat buffers | - |
//!
//! Shape legend (lower-case suffixes on names): b batch, t time, c channels (hidden), h query heads, k key/value heads, d head
//! dimension, v vocabulary, f feed-forward, n = b·t rows.
//!
//! Invariants: an op knows shapes, never a Llama. Gradients of weights are ACCUMULATED into the tensor given for them.
//! Every reduction runs in an order fixed by the shapes alone, matrix products included ([`gemm`]), so the bits do not depend on the
//! number of threads. candle's autograd appears only in [`selftest`], as the oracle.

pub mod adamw;
pub mod attention;
pub(crate) mod cpu;
pub mod cross_entropy;
pub mod embedding;
pub mod forest;
pub(crate) mod gemm;
pub mod linear;
pub mod lora;
pub mod precision;
pub mod rms_norm;
pub mod rope;
pub mod segments;
pub mod selftest;
pub mod swiglu;

/// The instruction set that the CPU ops run with here.
pub fn simd_level() -> String {
    let text = format!("{:?}", pulp::Arch::new());
    match text.split('(').next().unwrap_or_default() {
        "V4" => "AVX-512".into(),
        "V3" => "AVX2 and FMA".into(),
        "Scalar" => "baseline".into(),
        other => other.to_string(),
    }
}
