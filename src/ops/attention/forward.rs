//! One head forward, block by block.

use super::span::{BLOCK, Rows, Span, clear_unseen};
use crate::ops::cpu::{self, SharedMut};
use crate::ops::gemm::{Into, Mat, Packed, matmul_packed};
use crate::ops::precision::Precision;

/// A key/value head's keys (transposed) and values, packed as right operands.
pub(super) struct KeysAndValues {
    keys_t: Packed,
    values: Packed,
}

impl KeysAndValues {
    /// Packs the first `n` rows.
    pub(super) fn pack(keys: Rows, values: Rows, n: usize, precision: Precision) -> Self {
        Self { keys_t: Packed::new(keys.mat(0, n).t(), precision), values: Packed::new(values.mat(0, n), precision) }
    }
}

/// Fills `p` (rows x keys) with the unnormalised probabilities of a span's queries; gives each row's maximum and sum to `row_done`.
/// What a query does not see becomes 0.
fn block_softmax(
    p: &mut [f32],
    q: Rows,
    keys_t: &Packed,
    scale: f32,
    span: Span,
    mut row_done: impl FnMut(usize, f32, f32),
) {
    let keys = keys_t.panels().columns(span.lo..span.lo + span.keys);
    // SAFETY: `p` is exclusively borrowed and holds rows x keys.
    unsafe { matmul_packed(p.as_mut_ptr(), span.keys, Into::Overwrite, scale, q.mat(span.first, span.rows), keys) };
    cpu::simd!({
        for (i, row) in p.chunks_exact_mut(span.keys).enumerate() {
            let seen = span.seen(i);
            // Exponentials of differences to the largest score cannot overflow.
            let top = cpu::max(&row[seen.clone()]);
            let sum = cpu::exp_and_sum(&mut row[seen.clone()], top);
            // The product with V takes whole rows; a weight of 0 hides what a query must not see.
            clear_unseen(row, &seen);
            row_done(i, top, sum);
        }
    });
}

/// One head of one sequence: writes its output columns and the log-sum-exp of its rows.
pub(super) fn forward_head(
    q: Rows,
    kv: &KeysAndValues,
    (queries, offset, scale, starts): (usize, usize, f32, Option<&[u32]>),
    out: SharedMut,
    (out_from, out_stride): (usize, usize),
    lse: &mut [f32],
) {
    let d = q.dim;
    // For the last block, which sees the most keys; the others use the front of it.
    let mut p = cpu::output(BLOCK.min(queries) * (offset + queries));
    let mut inverse = [0f32; BLOCK];
    for first in (0..queries).step_by(BLOCK) {
        let span = Span::new(first, queries, offset, starts);
        let Span { rows, keys, lo, .. } = span;
        let p = &mut p[..rows * keys];
        block_softmax(p, q, &kv.keys_t, scale, span, |i, top, sum| {
            // Rows are divided after the product with V: d numbers each instead of one for every key.
            inverse[i] = 1.0 / sum;
            lse[first + i] = top + sum.ln();
        });
        let place = out_from + first * out_stride;
        let extent = (rows - 1) * out_stride + d;
        let p = Mat::new(p, rows, keys, keys);
        let values = kv.values.panels().terms(lo..lo + keys);
        // SAFETY: this task alone writes these columns of the output.
        unsafe {
            matmul_packed(out.address(place, extent), out_stride, Into::Overwrite, 1.0, p, values);
            for (i, inverse) in inverse[..rows].iter().enumerate() {
                out.range(place + i * out_stride, d).iter_mut().for_each(|x| *x *= inverse);
            }
        }
    }
}

/// The largest logit that any query of a head has with a key it sees.
pub(super) fn head_max_logit(q: Rows, keys: Rows, queries: usize, scale: f32, starts: Option<&[u32]>) -> f32 {
    let keys_t = Packed::new(keys.mat(0, queries).t(), Precision::F32);
    let mut logits = cpu::output(BLOCK.min(queries) * queries);
    let mut most = f32::NEG_INFINITY;
    for first in (0..queries).step_by(BLOCK) {
        let span = Span::new(first, queries, 0, starts);
        let logits = &mut logits[..span.rows * span.keys];
        let keys = keys_t.panels().columns(span.lo..span.lo + span.keys);
        // SAFETY: `logits` is exclusively borrowed and holds rows x keys.
        unsafe { matmul_packed(logits.as_mut_ptr(), span.keys, Into::Overwrite, scale, q.mat(first, span.rows), keys) };
        cpu::simd!({
            for (i, row) in logits.chunks_exact(span.keys).enumerate() {
                most = most.max(cpu::max(&row[span.seen(i)]));
            }
        });
    }
    most
}

/// For fewer queries than this, packing keys and values costs more than it saves.
pub(super) const FEW: usize = 8;

/// [`forward_head`] without packed operands and without a log-sum-exp: each query reads keys and values where they lie.
pub(super) fn few_queries(
    q: Rows,
    keys: Rows,
    values: Rows,
    (queries, offset, scale, starts): (usize, usize, f32, Option<&[u32]>),
    out: SharedMut,
    (out_from, out_stride): (usize, usize),
) {
    let mut p = cpu::output(offset + queries);
    for i in 0..queries {
        let first = starts.map_or(0, |starts| starts[i] as usize);
        let p = &mut p[..offset + i + 1 - first];
        // SAFETY: this task alone writes these columns of the output.
        let out = unsafe { out.range(out_from + i * out_stride, q.dim) };
        cpu::simd!({
            for (j, p) in p.iter_mut().enumerate() {
                *p = cpu::dot(q.row(i), keys.row(first + j)) * scale;
            }
            let top = cpu::max(p);
            let inverse = 1.0 / cpu::exp_and_sum(p, top);
            out.fill(0.0);
            for (j, p) in p.iter().enumerate() {
                let weight = p * inverse;
                out.iter_mut().zip(values.row(first + j)).for_each(|(out, v)| *out += weight * v);
            }
        });
    }
}
