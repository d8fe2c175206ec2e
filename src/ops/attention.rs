//! Causal grouped-query attention on packed QKV, block by block, so that no T x T tensor ever exists (Dao 2023, adapted to the CPU).
//!
//! For query head `j` with key/value head `j / (h/k)`: `S = Q Kᵀ / √d`, masked to `key <= query`; `P = softmax(S)`; `O = P V`. Saved besides
//! QKV and `O`: the log-sum-exp of each row of `S`. Backward recomputes `P = exp(S - lse)` per block and uses, with
//! `δ = rowsum(dO · O)`: `dV = Pᵀ dO`, `dS = P · (dO Vᵀ - δ) / √d`, `dQ = dS K`, `dK = dSᵀ Q`.
//!
//! A block is 64 queries against all keys they see: the softmax of a block is exact in one pass, and the buffer is 64 x T per thread.
//! With [`Segments`] a query sees the keys of its own document only, and a block begins at its first query's.
//! One task owns one key/value head of one sequence, so `dK` and `dV` gather their sums in the order of heads and blocks.

use super::cpu::{self, SharedMut};
use super::gemm::{Into, Mat, matmul_at};
use super::segments::Segments;
use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Queries per block.
const BLOCK: usize = 64;

/// Head counts and width of packed rows (h query heads ‖ k key heads ‖ k value heads), each d wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads h; a multiple of k.
    pub q: usize,
    /// Key/value heads k.
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

    fn group(&self) -> usize {
        self.q / self.kv
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    fn check(&self, op: &str, qkv: &Tensor) -> Result<(usize, usize)> {
        let (b, t, width) = qkv.dims3()?;
        if self.kv == 0 || !self.q.is_multiple_of(self.kv) || width != self.packed() {
            bail!("{op}: rows of {width} do not hold {self:?}");
        }
        Ok((b, t))
    }
}

/// The same in candle's differentiable primitives, with the whole score matrix.
pub fn reference(qkv: &Tensor, heads: Heads, segments: Option<&Segments>) -> Result<Tensor> {
    let (b, t) = heads.check("attention reference", qkv)?;
    let part = |from: usize, n: usize| -> Result<Tensor> {
        let x = qkv.narrow(2, from * heads.dim, n * heads.dim)?.reshape((b, t, n, heads.dim))?.transpose(1, 2)?;
        let repeats = heads.q / n;
        let x = x.unsqueeze(2)?.broadcast_as((b, n, repeats, t, heads.dim))?;
        x.reshape((b, heads.q, t, heads.dim))?.contiguous()
    };
    let (q, k, v) = (part(0, heads.q)?, part(heads.q, heads.kv)?, part(heads.q + heads.kv, heads.kv)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * heads.scale() as f64)?;
    let hidden = |sequence: usize, query: usize, key: usize| {
        key > query || segments.is_some_and(|s| key < s.row(sequence)[query] as usize)
    };
    let mask = (0..b * t * t).map(|i| if hidden(i / (t * t), i / t % t, i % t) { f32::NEG_INFINITY } else { 0.0 });
    let scores = scores.broadcast_add(&Tensor::from_vec(mask.collect::<Vec<_>>(), (b, 1, t, t), qkv.device())?)?;
    let shifted = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let p = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(1, 2)?.reshape((b, t, heads.out()))
}

/// One sequence's rows as a head sees them: `n` rows of width d, `stride` apart, from `from` on.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    from: usize,
    stride: usize,
    dim: usize,
}

impl<'a> Rows<'a> {
    fn mat(&self, first: usize, n: usize) -> Mat<'a> {
        Mat::new(&self.data[self.from + first * self.stride..], n, self.dim, self.stride)
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[self.from + i * self.stride..][..self.dim]
    }
}

/// Queries `first..first + rows` of a sequence against the keys `lo..lo + keys`: all that any of them sees.
#[derive(Clone, Copy)]
struct Span<'a> {
    first: usize,
    rows: usize,
    lo: usize,
    keys: usize,
    /// Position of query 0 among the keys.
    offset: usize,
    /// The first key that each query sees; 0 without.
    starts: Option<&'a [u32]>,
}

impl<'a> Span<'a> {
    fn new(first: usize, queries: usize, offset: usize, starts: Option<&'a [u32]>) -> Self {
        let rows = BLOCK.min(queries - first);
        let lo = starts.map_or(0, |starts| starts[first] as usize);
        Self { first, rows, lo, keys: offset + first + rows - lo, offset, starts }
    }

    /// The part of row `i` that its query sees.
    fn seen(&self, i: usize) -> Range<usize> {
        let start = self.starts.map_or(0, |starts| starts[self.first + i] as usize);
        start - self.lo..self.offset + self.first + i + 1 - self.lo
    }
}

/// Sets all of `row` but `seen` to 0.
fn clear_unseen(row: &mut [f32], seen: &Range<usize>) {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
}

/// Fills `p` (rows x keys) with the unnormalised probabilities of a span's queries; gives each row's maximum and sum to `row_done`.
/// What a query does not see becomes 0.
fn block_softmax(p: &mut [f32], q: Rows, k: Rows, scale: f32, span: Span, mut row_done: impl FnMut(usize, f32, f32)) {
    let (scores, q, k) = (p.as_mut_ptr(), q.mat(span.first, span.rows), k.mat(span.lo, span.keys));
    // SAFETY: `p` is exclusively borrowed and holds rows x keys.
    unsafe { matmul_at(scores, span.keys, Into::Overwrite, scale, q, k.t()) };
    cpu::simd(|| {
        for (i, row) in p.chunks_exact_mut(span.keys).enumerate() {
            let seen = span.seen(i);
            let top = cpu::max(&row[seen.clone()]);
            let sum = cpu::exp_and_sum(&mut row[seen.clone()], top);
            clear_unseen(row, &seen);
            row_done(i, top, sum);
        }
    });
}

/// One head of one sequence: writes its output columns and, if asked, the log-sum-exp of its rows.
fn forward_head(
    q: Rows,
    k: Rows,
    v: Rows,
    (queries, offset, scale, starts): (usize, usize, f32, Option<&[u32]>),
    out: SharedMut,
    (out_from, out_stride): (usize, usize),
    lse: &mut [f32],
) {
    let d = q.dim;
    let mut p = cpu::zeros(BLOCK.min(queries) * (offset + queries));
    let mut inverse = [0f32; BLOCK];
    for first in (0..queries).step_by(BLOCK) {
        let span = Span::new(first, queries, offset, starts);
        let Span { rows, keys, lo, .. } = span;
        let p = &mut p[..rows * keys];
        block_softmax(p, q, k, scale, span, |i, top, sum| {
            inverse[i] = 1.0 / sum;
            lse[first + i] = top + sum.ln();
        });
        let place = out_from + first * out_stride;
        let (extent, p) = ((rows - 1) * out_stride + d, Mat::new(p, rows, keys, keys));
        // SAFETY: this task alone writes these columns of the output.
        unsafe {
            matmul_at(out.at(place, extent), out_stride, Into::Overwrite, 1.0, p, v.mat(lo, keys));
            for (i, inverse) in inverse[..rows].iter().enumerate() {
                out.range(place + i * out_stride, d).iter_mut().for_each(|x| *x *= inverse);
            }
        }
    }
}

/// Packed `qkv` (b, t, (h + 2k)·d), already rotated → output (b, t, h·d) and log-sum-exp (b, h, t).
pub fn attention(qkv: &Tensor, heads: Heads, segments: Option<&Segments>) -> Result<(Tensor, Tensor)> {
    let (b, t) = heads.check("attention", qkv)?;
    check_segments("attention", segments, b, t)?;
    let (d, width, out_width) = (heads.dim, heads.packed(), heads.out());
    let (out, lse) = cpu::read("attention", [qkv], |[qkv]| {
        let (mut out, mut lse) = (cpu::zeros(b * t * out_width), cpu::zeros(b * heads.q * t));
        let shared = SharedMut::new(&mut out);
        lse.par_chunks_mut(t).enumerate().for_each(|(task, lse)| {
            let (sequence, head) = (task / heads.q, task % heads.q);
            let rows =
                |column: usize| Rows { data: qkv, from: sequence * t * width + column * d, stride: width, dim: d };
            let kv = heads.q + head / heads.group();
            let place = (sequence * t * out_width + head * d, out_width);
            let (scale, starts) = (heads.scale(), segments.map(|s| s.row(sequence)));
            forward_head(rows(head), rows(kv), rows(kv + heads.kv), (t, 0, scale, starts), shared, place, lse);
        });
        Ok((out, lse))
    })?;
    Ok((cpu::tensor(out, (b, t, out_width))?, cpu::tensor(lse, (b, heads.q, t))?))
}

fn check_segments(op: &str, segments: Option<&Segments>, b: usize, t: usize) -> Result<()> {
    if segments.is_some_and(|segments| !segments.fits(b, t)) {
        bail!("{op}: segments of another batch than ({b}, {t})");
    }
    Ok(())
}

/// Gradient of packed `qkv`, from its value, the output, the log-sum-exp and the output's gradient.
pub fn attention_backward(
    qkv: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: Heads,
    segments: Option<&Segments>,
) -> Result<Tensor> {
    let (b, t) = heads.check("attention_backward", qkv)?;
    check_segments("attention_backward", segments, b, t)?;
    if out.dims() != [b, t, heads.out()] || dout.dims() != out.dims() || lse.dims() != [b, heads.q, t] {
        bail!("attention_backward: shapes of output, gradient or log-sum-exp do not fit qkv {:?}", qkv.shape());
    }
    let dqkv = cpu::read("attention_backward", [qkv, out, lse, dout], |slices| {
        let mut dqkv = cpu::zeros(b * t * heads.packed());
        let shared = SharedMut::new(&mut dqkv);
        (0..b * heads.kv).into_par_iter().for_each(|task| {
            let (sequence, kv) = (task / heads.kv, task % heads.kv);
            let starts = segments.map(|s| s.row(sequence));
            backward_kv_head(slices, shared, heads, t, (sequence, kv), starts);
        });
        Ok(dqkv)
    })?;
    cpu::tensor(dqkv, qkv.dims())
}

/// All query heads of one key/value head of one sequence.
fn backward_kv_head(
    [qkv, out, lse, dout]: [&[f32]; 4],
    dqkv: SharedMut,
    heads: Heads,
    t: usize,
    (sequence, kv): (usize, usize),
    starts: Option<&[u32]>,
) {
    let (d, width, out_width, scale) = (heads.dim, heads.packed(), heads.out(), heads.scale());
    let from = |column: usize| sequence * t * width + column * d;
    let rows = |column: usize| Rows { data: qkv, from: from(column), stride: width, dim: d };
    let (k_column, v_column) = (heads.q + kv, heads.q + heads.kv + kv);
    let (k, v) = (rows(k_column), rows(v_column));
    let block = BLOCK.min(t);
    let (mut p, mut ds) = (cpu::zeros(block * t), cpu::zeros(block * t));
    for head in kv * heads.group()..(kv + 1) * heads.group() {
        let q = rows(head);
        let out_rows = |data| Rows { data, from: sequence * t * out_width + head * d, stride: out_width, dim: d };
        let (o, d_o) = (out_rows(out), out_rows(dout));
        let lse = &lse[(sequence * heads.q + head) * t..][..t];
        for first in (0..t).step_by(BLOCK) {
            let span = Span::new(first, t, 0, starts);
            let Span { rows: n, keys, lo, .. } = span;
            let (p, ds) = (&mut p[..n * keys], &mut ds[..n * keys]);
            let extent = |rows: usize| (rows - 1) * width + d;
            let (dk_from, dv_from) = (from(k_column) + lo * width, from(v_column) + lo * width);
            // SAFETY: p and ds are ours; the columns of this head's dQ and of this key/value head's dK and dV are this task's alone.
            unsafe {
                matmul_at(p.as_mut_ptr(), keys, Into::Overwrite, scale, q.mat(first, n), k.mat(lo, keys).t());
                matmul_at(ds.as_mut_ptr(), keys, Into::Overwrite, 1.0, d_o.mat(first, n), v.mat(lo, keys).t());
                probabilities_and_gradient(p, ds, span, lse, scale, |i| (o.row(first + i), d_o.row(first + i)));
                let (p, ds) = (Mat::new(p, n, keys, keys), Mat::new(ds, n, keys, keys));
                let dq = dqkv.at(from(head) + first * width, extent(n));
                matmul_at(dq, width, Into::Overwrite, 1.0, ds, k.mat(lo, keys));
                matmul_at(dqkv.at(dk_from, extent(keys)), width, Into::Accumulate, 1.0, ds.t(), q.mat(first, n));
                matmul_at(dqkv.at(dv_from, extent(keys)), width, Into::Accumulate, 1.0, p.t(), d_o.mat(first, n));
            }
        }
    }
}

/// Turns scores into probabilities and `dP` into `dS`, row by row; both become 0 where a query does not see.
fn probabilities_and_gradient<'a>(
    p: &mut [f32],
    ds: &mut [f32],
    span: Span,
    lse: &[f32],
    scale: f32,
    output_rows: impl Fn(usize) -> (&'a [f32], &'a [f32]),
) {
    cpu::simd(|| {
        for (i, (p, ds)) in p.chunks_exact_mut(span.keys).zip(ds.chunks_exact_mut(span.keys)).enumerate() {
            let (o, d_o) = output_rows(i);
            let delta = cpu::dot(o, d_o);
            let (seen, lse) = (span.seen(i), lse[span.first + i]);
            for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen.clone()]) {
                *p = cpu::exp(*p - lse);
                *ds = *p * (*ds - delta) * scale;
            }
            clear_unseen(p, &seen);
            clear_unseen(ds, &seen);
        }
    });
}

/// Attention of new queries over a cache: `q` (b, t, h·d) stands at positions `start..start + t`; `k` and `v` (b, capacity, k·d)
/// hold at least `start + t` rows each, un-expanded. → (b, t, h·d). Forward only.
pub fn attention_cached(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, start: usize) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    let (capacity, d) = (k.dim(1)?, heads.dim);
    if q.dtype() != DType::F32
        || k.dims() != [b, capacity, heads.kv * d]
        || v.dims() != k.dims()
        || start + t > capacity
    {
        bail!("attention_cached: q {:?} at {start} does not fit the cache {:?}", q.shape(), k.shape());
    }
    let (q_width, kv_width) = (heads.out(), heads.kv * d);
    let out = cpu::read("attention_cached", [q, k, v], |[q, k, v]| {
        let (mut out, mut lse) = (cpu::zeros(b * t * q_width), cpu::zeros(b * heads.q * t));
        let shared = SharedMut::new(&mut out);
        lse.par_chunks_mut(t).enumerate().for_each(|(task, lse)| {
            let (sequence, head) = (task / heads.q, task % heads.q);
            let place = (sequence * t * q_width + head * d, q_width);
            let q = Rows { data: q, from: place.0, stride: q_width, dim: d };
            let kv_from = sequence * capacity * kv_width + head / heads.group() * d;
            let kv = |data| Rows { data, from: kv_from, stride: kv_width, dim: d };
            forward_head(q, kv(k), kv(v), (t, start, heads.scale(), None), shared, place, lse);
        });
        Ok(out)
    })?;
    cpu::tensor(out, (b, t, q_width))
}
