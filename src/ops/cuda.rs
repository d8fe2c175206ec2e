//! The ops on a GPU: what `ops/*.rs` do on the CPU, with the kernels of the `.cu` files beside this one.
//!
//! | file | holds |
//! |---|---|
//! | `gpu.rs` | addresses of tensors, launches, matrix products: only this file and `gpu/` call the driver |
//! | `gpu/products.rs`, `gpu/cublaslt.rs` | which algorithm computes a product; cuBLASLt |
//! | `gpu/cudnn.rs`, `cudnn.cpp` | attention by cuDNN, if built with the feature `cudnn` |
//! | `gpu/stream.rs` | the stream, for libraries that queue work on it by themselves |
//! | `gpu/emulated.rs`, `emulated.h` | the same kernels compiled for the CPU, for tests without a GPU |
//! | `common.cuh` | what kernels share |
//! | `NAME.rs`, `NAME.cu` | an op: its launches, its kernels |
//! | `selftest.rs` | every op against the CPU |
//! | `test_tensors.rs` | what the tests of this folder fill tensors with |
//!
//! Activations are f32 or bf16; statistics, weights of norms, gradients of weights and moments are f32. The functions take the same
//! tensors as the CPU versions. Token ids and targets are on the CPU, where batches are made, and are copied to the GPU with each call.

mod adamw;
mod attention;
mod bias;
mod cross_entropy;
pub(crate) mod decode;
mod elementwise;
mod embedding;
mod gpu;
mod linear;
mod lora;
mod noise;
mod qk_norm;
mod rms_norm;
pub(crate) mod selftest;
#[cfg(test)]
mod test_tensors;

#[cfg(test)]
pub(crate) use gpu::emulated::{emulated, is_emulated};

#[cfg(feature = "cudnn")]
pub(super) use gpu::cudnn::version as cudnn_version;
#[cfg(feature = "cuda")]
pub(super) use gpu::device::{blas_version, count, describe, free_memory, open, unique_name};
#[cfg(feature = "cuda")]
pub(super) use gpu::products::{algorithms_in_use, choose_algorithms, forget_algorithms, use_algorithms};
#[cfg(feature = "cuda")]
pub use gpu::stream::{Mark, Stream};
pub(super) use gpu::times::report as op_times;
pub(super) use gpu::zero;

pub(super) use adamw::{adamw, global_norm, norm_of_pieces, squares, squares_of_pieces};
pub(super) use attention::{attention, attention_backward, attention_cached, attention_prefix_tree, max_logit};
pub(super) use bias::{add_bias, bias_backward};
pub(super) use cross_entropy::{cross_entropy, cross_entropy_and_backward, logit_squares, score};
pub(crate) use elementwise::round_to_bf16;
pub(super) use elementwise::{add_assign, rope, swiglu, swiglu_backward};
pub(super) use embedding::{embedding, embedding_backward};
pub(super) use linear::{linear, linear_backward_input, linear_backward_weight};
pub(super) use lora::{lora, lora_backward};
pub(super) use noise::add_noise;
pub(super) use qk_norm::{qk_norm, qk_norm_backward};
pub(super) use rms_norm::{add_rms_norm, rms_norm_backward, rms_norm_recompute};
