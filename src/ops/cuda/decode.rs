//! One token at a time: launches of `decode.cu`, on buffers that are kept, so that launches can be recorded once and replayed for every token.

use super::gpu::{Arg, Grid, Replay, address, empty, int, launch, list, pointer, pointer_or_null, suffix};
use crate::ops::heads::Heads;
use candle_core::{D, DType, Device, Result, Tensor};

/// Sequences that can be decoded together.
pub(crate) const MOST_ROWS: usize = 8;

const THREADS: usize = 256;

/// Outputs that a block computes at a time.
const OUTPUTS: usize = 8;

/// Blocks of a product, which share its outputs. Enough to fill a GPU.
const BLOCKS: usize = 1024;

/// Shared memory for the normed rows of a product.
const MOST_SHARED: usize = 64 << 10;

/// Warps that share the keys of a head.
const ATTENTION_WARPS: usize = 16;

/// Whether there are kernels for `rows` sequences of a model of these widths, in elements of `dtype`.
pub(crate) fn can_decode(rows: usize, widths: [usize; 3], head_dim: usize, dtype: DType) -> bool {
    let shared = rows * widths[0] * dtype.size_in_bytes();
    (1..=MOST_ROWS).contains(&rows)
        && widths.iter().all(|width| width.is_multiple_of(8))
        && head_dim.is_multiple_of(8)
        && head_dim <= 256
        && shared <= MOST_SHARED
}

/// The position and the ids that the kernels read, and the recorded launches.
pub(crate) struct Recorder {
    feed: Tensor,
    replay: Replay,
}

impl Recorder {
    pub(crate) fn new(rows: usize, device: &Device) -> Result<Self> {
        Ok(Self { feed: Tensor::zeros(1 + rows, DType::U32, device)?, replay: Replay::default() })
    }

    /// Runs `work` for `ids` at `position`. `work` must queue the same launches on the same buffers each time: later calls replay them.
    pub(crate) fn run(&mut self, position: usize, ids: &[u32], work: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
        // Through a buffer: a recording repeats its arguments, but reads anew what they point to.
        let values: Vec<u32> = std::iter::once(position as u32).chain(ids.iter().copied()).collect();
        self.feed.slice_set(&list(&values, self.feed.device())?, 0, 0)?;
        self.replay.run(self.feed.device(), || work(&self.feed))
    }
}

/// An uninitialised buffer: kernels must write every element before one is read.
pub(crate) fn buffer(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    empty(shape, dtype, device)
}

/// The embeddings of the ids in `feed` into `out` (rows, c).
pub(crate) fn embed(feed: &Tensor, table_vc: &Tensor, out: &Tensor) -> Result<()> {
    let (rows, c) = out.dims2()?;
    let ids = Arg::Pointer(address(feed)? + DType::U32.size_in_bytes() as u64);
    let args = [ids, pointer(table_vc)?, pointer(out)?, int(c)?];
    launch(out.device(), &format!("embedding_{}", suffix(table_vc)?), Grid::linear(rows, THREADS), &args)
}

/// The left operand of a product.
pub(crate) enum ProductInput<'a> {
    /// (rows, in)
    Plain(&'a Tensor),
    /// RMSNorm of `x + pending`. The sum itself is stored in `sum`.
    Normed { x: &'a Tensor, pending: Option<&'a Tensor>, sum: Option<&'a Tensor>, weight: &'a Tensor, eps: f64 },
}

/// What is computed from a product, and the type that it is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProductKind {
    Plain,
    /// SwiGLU; the weight has the rows of gate, then those of up.
    Gated,
    Logits,
}

/// `y (rows, out)` = input times Wᵀ.
pub(crate) fn product(input: &ProductInput, w: &Tensor, y: &Tensor, kind: ProductKind) -> Result<()> {
    let (rows, outputs) = y.dims2()?;
    let inner = w.dim(D::Minus1)?;
    let device = w.device();
    let (x, pending, sum, weight, eps) = match *input {
        ProductInput::Plain(x) => (x, None, None, None, 0.0),
        ProductInput::Normed { x, pending, sum, weight, eps } => (x, pending, sum, Some(weight), eps),
    };
    let args = [
        pointer(x)?,
        pointer_or_null(pending)?,
        pointer_or_null(weight)?,
        pointer_or_null(sum)?,
        Arg::F32(eps as f32),
        pointer(w)?,
        pointer(y)?,
        int(rows)?,
        int(inner)?,
        int(outputs)?,
    ];
    let name = match kind {
        ProductKind::Plain => "product",
        ProductKind::Gated => "gated",
        ProductKind::Logits => "logits",
    };
    let count = if rows == 1 { "one" } else { "some" };
    let shared = if weight.is_some() { rows * inner * w.dtype().size_in_bytes() } else { 0 };
    let grid = Grid { shared, ..Grid::linear(outputs.div_ceil(OUTPUTS).min(BLOCKS), THREADS) };
    launch(device, &format!("decode_{name}_{count}_{}", suffix(w)?), grid, &args)
}

/// Rotates `qkv` (rows, (h + 2k)·d) for the position in `feed`, stores its keys and values in the cache and attends to all of the cache. Keys
/// and values (rows, capacity, k·d); `cos` and `sin` (positions, d/2); out (rows, h·d).
pub(crate) fn attend(
    qkv: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    (cos, sin): (&Tensor, &Tensor),
    feed: &Tensor,
    heads: Heads,
    out: &Tensor,
) -> Result<()> {
    let rows = qkv.dim(0)?;
    let capacity = keys.dim(1)?;
    let d = heads.dim;
    let mut args = [qkv, keys, values, cos, sin, feed, out].map(pointer).into_iter().collect::<Result<Vec<_>>>()?;
    args.extend([int(capacity)?, int(heads.q)?, int(heads.kv)?, int(d)?, Arg::F32(heads.scale())]);
    let shared = 4 * (d + ATTENTION_WARPS * (d + 2));
    let grid = Grid { blocks: [heads.q, rows, 1], threads: 32 * ATTENTION_WARPS, shared };
    launch(qkv.device(), &format!("decode_attend_{}", suffix(qkv)?), grid, &args)
}
