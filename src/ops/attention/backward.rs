//! One key/value head backward: all query heads of its group, block by block, against parts of the keys that fit the second-level cache.
//!
//! The task owns the gradients of its key/value head, so `dK` and `dV` gather their sums in the order of heads, blocks and parts.

use super::Heads;
use super::span::{BLOCK, Rows, Span, clear_unseen};
use crate::ops::cpu::{self, SharedMut};
use crate::ops::gemm::{Into, Mat, Packed, matmul_packed};
use crate::ops::precision::Precision;

/// Keys per part: with 64 queries, 64 KiB each for `P` and `dS`.
const PART: usize = 256;

/// Buffers and packed operands of one task.
struct Work {
    precision: Precision,
    p: Vec<f32>,
    ds: Vec<f32>,
    /// `rowsum(dO · O)` of the block's queries.
    delta: [f32; BLOCK],
    /// The block's queries and output gradients, as right operands of `dK` and `dV`.
    q: Packed,
    d_o: Packed,
    keys: Packed,
    keys_t: Packed,
    values_t: Packed,
}

/// The gradient's buffer, and where the columns of this key/value head start in it.
struct Gradient {
    dqkv: SharedMut,
    stride: usize,
    dim: usize,
    dk: usize,
    dv: usize,
}

impl Gradient {
    /// The address of rows `first..first + rows` of the columns that start at element `from`.
    fn address(&self, from: usize, first: usize, rows: usize) -> *mut f32 {
        self.dqkv.address(from + first * self.stride, (rows - 1) * self.stride + self.dim)
    }
}

/// All query heads of one key/value head of one sequence.
pub(super) fn backward_kv_head(
    [qkv, out, lse, dout]: [&[f32]; 4],
    dqkv: SharedMut,
    heads: Heads,
    t: usize,
    (sequence, kv): (usize, usize),
    starts: Option<&[u32]>,
    precision: Precision,
) {
    let k_rows = Rows::packed(qkv, heads, t, sequence, heads.q + kv);
    let v_rows = Rows::packed(qkv, heads, t, sequence, heads.q + heads.kv + kv);
    let k = k_rows.mat(0, t);
    let v = v_rows.mat(0, t);
    let size = BLOCK.min(t) * PART.min(t);
    let mut work = Work {
        precision,
        p: cpu::output(size),
        ds: cpu::output(size),
        delta: [0.0; BLOCK],
        q: Packed::default(),
        d_o: Packed::default(),
        // Keys are needed both ways: transposed for the scores, as they are for dQ.
        keys: Packed::new(k, precision),
        keys_t: Packed::new(k.t(), precision),
        values_t: Packed::new(v.t(), precision),
    };
    // All query heads of the group add to the gradients of this key/value head.
    for rows in [k_rows, v_rows] {
        // SAFETY: these columns are this task's alone.
        (0..t).for_each(|row| unsafe { dqkv.range(rows.from + row * rows.stride, rows.dim) }.fill(0.0));
    }
    let grad = Gradient { dqkv, stride: heads.packed(), dim: heads.dim, dk: k_rows.from, dv: v_rows.from };
    for head in kv * heads.group()..(kv + 1) * heads.group() {
        let q = Rows::packed(qkv, heads, t, sequence, head);
        let o = Rows::output(out, heads, t, sequence, head);
        let d_o = Rows::output(dout, heads, t, sequence, head);
        let lse = &lse[(sequence * heads.q + head) * t..][..t];
        // dK and dV are sums over these blocks: one task takes them in order, which fixes the bits.
        for first in (0..t).step_by(BLOCK) {
            let block = Span::new(first, t, 0, starts);
            work.begin_block(block, q, o, d_o);
            for span in block.parts(PART) {
                // dQ is a sum over the parts of a block's keys; the first part overwrites, so dQ is never cleared.
                let into = if span.lo == block.lo { Into::Overwrite } else { Into::Accumulate };
                // The gradient of `qkv` lies as `qkv` does.
                work.part(span, q, d_o, lse, heads.scale(), &grad, (q.from, into));
            }
        }
    }
}

impl Work {
    fn begin_block(&mut self, block: Span, q: Rows, o: Rows, d_o: Rows) {
        self.q.pack(q.mat(block.first, block.rows), self.precision);
        self.d_o.pack(d_o.mat(block.first, block.rows), self.precision);
        for (i, delta) in self.delta[..block.rows].iter_mut().enumerate() {
            // dO · O equals the row's sum of P · dP, and needs no probabilities (Dao 2023, FlashAttention-2).
            *delta = cpu::simd!(cpu::dot(o.row(block.first + i), d_o.row(block.first + i)));
        }
    }

    /// A block's queries against some of its keys. `dq` is where the query head's gradient starts; `into`, whether to add to it.
    #[allow(clippy::too_many_arguments)]
    fn part(
        &mut self,
        span: Span,
        q: Rows,
        d_o: Rows,
        lse: &[f32],
        scale: f32,
        grad: &Gradient,
        (dq, into): (usize, Into),
    ) {
        let Span { first, rows: n, lo, keys, .. } = span;
        let p = &mut self.p[..n * keys];
        let ds = &mut self.ds[..n * keys];
        let q = q.mat(first, n);
        let d_o = d_o.mat(first, n);
        let part = lo..lo + keys;
        let keys_t = self.keys_t.panels().columns(part.clone());
        let values_t = self.values_t.panels().columns(part.clone());
        // SAFETY: p and ds are ours; the columns of this head's dQ and of this key/value head's dK and dV are this task's alone.
        unsafe {
            matmul_packed(p.as_mut_ptr(), keys, Into::Overwrite, scale, q, keys_t);
            matmul_packed(ds.as_mut_ptr(), keys, Into::Overwrite, 1.0, d_o, values_t);
            probabilities_and_gradient(p, ds, span, lse, scale, &self.delta);
            let p = Mat::new(p, n, keys, keys);
            let ds = Mat::new(ds, n, keys, keys);
            let stride = grad.stride;
            matmul_packed(grad.address(dq, first, n), stride, into, 1.0, ds, self.keys.panels().terms(part));
            matmul_packed(grad.address(grad.dk, lo, keys), stride, Into::Accumulate, 1.0, ds.t(), self.q.panels());
            matmul_packed(grad.address(grad.dv, lo, keys), stride, Into::Accumulate, 1.0, p.t(), self.d_o.panels());
        }
    }
}

/// Turns scores into probabilities and `dP` into `dS`, row by row; both become 0 at the keys that a query does not see.
fn probabilities_and_gradient(p: &mut [f32], ds: &mut [f32], span: Span, lse: &[f32], scale: f32, delta: &[f32]) {
    cpu::simd!({
        for (i, (p, ds)) in p.chunks_exact_mut(span.keys).zip(ds.chunks_exact_mut(span.keys)).enumerate() {
            let seen = span.seen(i);
            let lse = lse[span.first + i];
            let delta = delta[i];
            for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen.clone()]) {
                // The saved log-sum-exp normalises in one go: no second search for the maximum, no second sum.
                *p = cpu::exp(*p - lse);
                *ds = *p * (*ds - delta) * scale;
            }
            clear_unseen(p, &seen);
            clear_unseen(ds, &seen);
        }
    });
}
