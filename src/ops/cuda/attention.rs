//! Attention: launches of `attention.cu`, whose header has the table of them.
//!
//! bf16 with heads of 64 or 128 goes through the tensor cores; f32, of any width up to 256, is plain: for comparisons.

use super::gpu::{Arg, Grid, empty, int, launch, list, pointer, pointer_or_null, suffix};
use crate::ops::heads::{GPU_BF16_DIMS, Heads};
use crate::ops::mask::Mask;
use crate::ops::positions::DocumentStarts;
use crate::ops::prefix_tree::{Node, PrefixTree};
use crate::ops::transfer::to_host;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::LazyLock;

const MOST_DIMS: usize = 256;

/// Warps that share the keys of a query over a cache.
const CACHED_WARPS: usize = 8;

/// Rows of a block (queries, or keys in the gradient of keys and values) and its shared memory in bytes.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    shared: usize,
}

const FORWARD: [Tile; 2] = [Tile { rows: 128, shared: 49_152 }, Tile { rows: 128, shared: 98_304 }];
const BACKWARD_KV: [Tile; 2] = [Tile { rows: 128, shared: 49_920 }, Tile { rows: 64, shared: 99_840 }];
const BACKWARD_Q: [Tile; 2] = [Tile { rows: 128, shared: 65_536 }, Tile { rows: 64, shared: 98_304 }];
const PREFIX_TREE: [Tile; 2] = [Tile { rows: 64, shared: 40_960 }, Tile { rows: 64, shared: 81_920 }];
const TILE_THREADS: usize = 128;

/// Keys that the kernels for prefix trees read at a time.
const STEP_KEYS: usize = 64;

/// Shared memory of the kernels with one query per block and `warps` warps, in bytes.
fn plain_shared(dim: usize, warps: usize) -> usize {
    4 * (dim + warps * (dim + 2))
}

/// The arguments of every kernel besides tensors.
struct Call {
    b: usize,
    t: usize,
    heads: Heads,
    starts: Option<Tensor>,
}

impl Call {
    fn new(qkv: &Tensor, heads: Heads, mask: Mask) -> Result<Self> {
        let (b, t, _) = qkv.dims3()?;
        let known =
            if qkv.dtype() == DType::BF16 { GPU_BF16_DIMS.contains(&heads.dim) } else { heads.dim <= MOST_DIMS };
        if !known {
            bail!("attention on a GPU: no kernel for heads of {} in {:?}", heads.dim, qkv.dtype());
        }
        let starts = mask.all_first_keys(b, t).map(|first| list(&first, qkv.device())).transpose()?;
        Ok(Self { b, t, heads, starts })
    }

    /// Launches `attention_NAME`: with tiles of rows in bf16, with one row per block in f32.
    fn run(
        &self,
        name: &str,
        tiles: [Tile; 2],
        plain: Grid,
        heads: usize,
        tensors: &[Arg],
        like: &Tensor,
    ) -> Result<()> {
        let Heads { q, kv, dim } = self.heads;
        let t = self.t;
        let mut args = tensors.to_vec();
        args.extend([int(t)?, int(q)?, int(kv)?]);
        let (kernel, grid) = if like.dtype() == DType::BF16 {
            let tile = tiles[usize::from(dim == GPU_BF16_DIMS[1])];
            let blocks = [t.div_ceil(tile.rows), heads, self.b];
            (format!("attention_{name}_d{dim}_bf16"), Grid { blocks, threads: TILE_THREADS, shared: tile.shared })
        } else {
            args.push(int(dim)?);
            (format!("attention_{name}_f32"), Grid { blocks: [t, heads, self.b], ..plain })
        };
        args.push(Arg::F32(self.heads.scale()));
        launch(like.device(), &kernel, grid, &args)
    }
}

/// Output and log-sum-exp. Also fills `tops`, if there is one, with the largest logit of each query.
fn forward(qkv: &Tensor, heads: Heads, mask: Mask, tops: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let call = Call::new(qkv, heads, mask)?;
    let device = qkv.device();
    let out = empty(&[call.b, call.t, heads.out()], qkv.dtype(), device)?;
    let lse = empty(&[call.b, heads.q, call.t], DType::F32, device)?;
    #[cfg(feature = "cudnn")]
    if call.starts.is_none() && tops.is_none() && super::gpu::cudnn::forward(qkv, heads, &out, &lse)? {
        return Ok((out, lse));
    }
    let tensors =
        [pointer(qkv)?, pointer_or_null(call.starts.as_ref())?, pointer(&out)?, pointer(&lse)?, pointer_or_null(tops)?];
    let plain = Grid { shared: plain_shared(heads.dim, 4), ..Grid::linear(1, 128) };
    call.run("forward", FORWARD, plain, heads.q, &tensors, qkv)?;
    Ok((out, lse))
}

/// See [`attention`](crate::ops::attention::attention).
pub(in crate::ops) fn attention(qkv: &Tensor, heads: Heads, mask: Mask) -> Result<(Tensor, Tensor)> {
    forward(qkv, heads, mask, None)
}

/// See [`max_logit`](crate::ops::attention::max_logit). Runs forward once more and ignores its other results.
pub(in crate::ops) fn max_logit(qkv: &Tensor, heads: Heads, mask: Mask) -> Result<f32> {
    let (b, t, _) = qkv.dims3()?;
    let tops = empty(&[b, heads.q, t], DType::F32, qkv.device())?;
    forward(qkv, heads, mask, Some(&tops))?;
    Ok(to_host(&tops)?.flatten_all()?.to_vec1::<f32>()?.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// A prefix tree as its kernels take it: tiles of up to `rows` queries of one node, and for each tile the keys along its path, in steps of
/// up to `keys`.
struct Paths {
    tiles: Vec<u32>,
    steps: Vec<u32>,
}

impl Paths {
    fn new(tree: &PrefixTree, rows: usize, keys: usize) -> Self {
        let mut tiles = Vec::new();
        let mut steps = Vec::new();
        for (number, node) in tree.nodes().iter().enumerate() {
            let end = node.start + node.len;
            for first in (node.start..end).step_by(rows) {
                let from = steps.len() / 2;
                let last_key = (first + rows).min(end) - 1;
                for Node { start, len, .. } in tree.path(number) {
                    // Of the last node only the keys up to the tile's last query.
                    let seen = (start..start + len).step_by(keys).take_while(|&key| key <= last_key);
                    steps.extend(seen.flat_map(|key| [key as u32, (start + len) as u32]));
                }
                tiles.extend([first, end, from, steps.len() / 2].map(|n| n as u32));
            }
        }
        Self { tiles, steps }
    }

    /// The same where a query sees the last `window` keys of its path alone: a tile for each query, because each sees other keys.
    fn within_window(tree: &PrefixTree, window: usize, keys: usize) -> Self {
        let mut tiles = Vec::new();
        let mut steps = Vec::new();
        for (number, node) in tree.nodes().iter().enumerate() {
            let path = tree.path(number);
            for i in 0..node.len {
                let query = node.start + i;
                // Position of the first key that it sees.
                let first = (node.position + i + 1).saturating_sub(window);
                let from = steps.len() / 2;
                for Node { start, len, position, .. } in &path {
                    let end = start + len;
                    let seen = (start + first.saturating_sub(*position)..end).step_by(keys);
                    steps.extend(seen.take_while(|&key| key <= query).flat_map(|key| [key as u32, end as u32]));
                }
                tiles.extend([query, query + 1, from, steps.len() / 2].map(|n| n as u32));
            }
        }
        Self { tiles, steps }
    }

    fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
        Ok([list(&self.tiles, device)?, list(&self.steps, device)?])
    }
}

/// See [`attention_prefix_tree`](crate::ops::attention::attention_prefix_tree).
pub(in crate::ops) fn attention_prefix_tree(
    qkv: &Tensor,
    tree: &PrefixTree,
    heads: Heads,
    window: Option<usize>,
) -> Result<Tensor> {
    let call = Call::new(qkv, heads, Mask::default())?;
    let device = qkv.device();
    let rounded = qkv.dtype() == DType::BF16;
    let (rows, keys) = if rounded { (PREFIX_TREE[0].rows, STEP_KEYS) } else { (1, usize::MAX) };
    let paths = match window.filter(|window| *window <= tree.longest()) {
        Some(window) => Paths::within_window(tree, window, keys),
        None => Paths::new(tree, rows, keys),
    };
    let [tiles, steps] = paths.on(device)?;
    let out = empty(&[1, call.t, heads.out()], qkv.dtype(), device)?;
    let mut args = vec![
        pointer(qkv)?,
        pointer(&tiles)?,
        pointer(&steps)?,
        pointer(&out)?,
        int(call.t)?,
        int(heads.q)?,
        int(heads.kv)?,
    ];
    let (kernel, shared) = if rounded {
        (
            format!("attention_prefix_tree_d{}_bf16", heads.dim),
            PREFIX_TREE[usize::from(heads.dim == GPU_BF16_DIMS[1])].shared,
        )
    } else {
        args.push(int(heads.dim)?);
        ("attention_prefix_tree_f32".into(), plain_shared(heads.dim, 4))
    };
    args.push(Arg::F32(heads.scale()));
    let grid = Grid { blocks: [paths.tiles.len() / 4, heads.q, 1], threads: TILE_THREADS, shared };
    launch(device, &kernel, grid, &args).map(|()| out)
}

/// The variable that sets how many sequences attention's backward pass computes at once.
///
/// cuDNN's workspace for 16 x 1024 tokens of 32 heads is 1.07 GB, written to memory and read again in each layer; that of fewer sequences may
/// stay in the GPU's cache. Estimated gain: 5 to 12 ms a micro-batch, against more and smaller launches, so a GPU must say what is best.
const SLICE: &str = "LLAMA_LITE_ATTENTION_SLICE";

/// Sequences of a slice of `b`, by the text of [`SLICE`].
fn sequences_of_slice(setting: Option<&str>, b: usize) -> Result<usize> {
    match setting.map(str::parse::<usize>) {
        None => Ok(b),
        Some(Ok(n)) if n > 0 => Ok(n.min(b)),
        Some(_) => bail!("{SLICE}={} is not a number of sequences, which is 1 or more", setting.unwrap_or_default()),
    }
}

/// See [`attention_backward`](crate::ops::attention::attention_backward).
pub(in crate::ops) fn attention_backward(
    qkv: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: Heads,
    mask: Mask,
) -> Result<Tensor> {
    static SETTING: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var(SLICE).ok().filter(|text| !text.is_empty()));
    let slice = sequences_of_slice(SETTING.as_deref(), qkv.dim(0)?)?;
    backward_in_slices(slice, qkv, [out, lse, dout], heads, mask)
}

/// The gradient of packed QKV, of `slice` sequences at a time. Sequences do not know of each other, so our own kernels give the same bits
/// whatever the slice.
fn backward_in_slices(slice: usize, qkv: &Tensor, saved: [&Tensor; 3], heads: Heads, mask: Mask) -> Result<Tensor> {
    let (b, t, _) = qkv.dims3()?;
    let dqkv = empty(qkv.dims(), qkv.dtype(), qkv.device())?;
    if slice >= b {
        backward(qkv, saved, heads, mask, &dqkv)?;
        return Ok(dqkv);
    }
    for first in (0..b).step_by(slice) {
        let n = slice.min(b - first);
        let part = |t: &Tensor| t.narrow(0, first, n);
        let [out, lse, dout] = saved;
        let starts = mask
            .documents
            .map(|all| DocumentStarts::new(all.starts()[first * t..][..n * t].to_vec(), t))
            .transpose()?;
        let mask = Mask { documents: starts.as_ref(), ..mask };
        backward(&part(qkv)?, [&part(out)?, &part(lse)?, &part(dout)?], heads, mask, &part(&dqkv)?)?;
    }
    Ok(dqkv)
}

/// Fills `dqkv` from forward's input, its saved `out` and `lse`, and the gradient `dout`.
fn backward(qkv: &Tensor, [out, lse, dout]: [&Tensor; 3], heads: Heads, mask: Mask, dqkv: &Tensor) -> Result<()> {
    let call = Call::new(qkv, heads, mask)?;
    let device = qkv.device();
    #[cfg(feature = "cudnn")]
    if call.starts.is_none() && super::gpu::cudnn::backward(qkv, heads, (out, lse, dout), dqkv)? {
        return Ok(());
    }
    // Row sums of dO · O, which both kernels below need.
    let delta = empty(lse.dims(), DType::F32, device)?;
    let grid = Grid { blocks: [call.t.div_ceil(4), heads.q, call.b], threads: 128, shared: 0 };
    let args = [pointer(out)?, pointer(dout)?, pointer(&delta)?, int(call.t)?, int(heads.q)?, int(heads.dim)?];
    launch(device, &format!("attention_delta_{}", suffix(out)?), grid, &args)?;
    let starts = pointer_or_null(call.starts.as_ref())?;
    let tensors = [pointer(qkv)?, starts, pointer(dout)?, pointer(lse)?, pointer(&delta)?, pointer(dqkv)?];
    // Two kernels, each of which owns what it writes: there are no atomic additions, whose order would change the bits.
    call.run("backward_kv", BACKWARD_KV, Grid::linear(1, 256), heads.kv, &tensors, qkv)?;
    call.run("backward_q", BACKWARD_Q, Grid::linear(1, 256), heads.q, &tensors, qkv)
}

/// See [`attention_cached`](crate::ops::attention::attention_cached).
pub(in crate::ops) fn attention_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    start: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    let capacity = k.dim(1)?;
    let d = heads.dim;
    if d > MOST_DIMS {
        bail!("attention_cached on a GPU: no kernel for heads of {d}");
    }
    let q = &q.contiguous()?;
    let out = empty(q.dims(), q.dtype(), q.device())?;
    let tensors = [pointer(q)?, pointer(k)?, pointer(v)?, pointer(&out)?];
    // Of a window that hides nothing, the length of everything.
    let window = window.map_or(start + t, |window| window.min(start + t));
    let sizes = [t, start, window, capacity, heads.q, heads.kv, d].map(int);
    let mut args = tensors.to_vec();
    for size in sizes {
        args.push(size?);
    }
    args.push(Arg::F32(heads.scale()));
    let shared = plain_shared(d, CACHED_WARPS);
    let grid = Grid { blocks: [t, heads.q, b], threads: 32 * CACHED_WARPS, shared };
    launch(q.device(), &format!("attention_cached_{}", suffix(q)?), grid, &args).map(|()| out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::test_tensors::{bits, numbers};

    #[test]
    fn backward_in_slices_has_the_bits_of_all_at_once() {
        let (b, t) = (3, 36);
        let heads = Heads { q: 4, kv: 2, dim: 64 };
        // Documents of three tokens in the first sequence, of four in the second, and so on.
        let starts = (0..b * t).map(|i| (i % t / (3 + i / t) * (3 + i / t)) as u32).collect();
        let documents = DocumentStarts::new(starts, t).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let qkv = numbers((b, t, heads.packed()), 1, dtype);
            let dout = numbers((b, t, heads.out()), 2, dtype);
            for (documents, window) in
                [(None, None), (Some(&documents), None), (Some(&documents), Some(2)), (None, Some(9))]
            {
                let mask = Mask { documents, window };
                let (out, lse) = attention(&qkv, heads, mask).unwrap();
                let of_slices = |slice: usize| {
                    let dqkv = backward_in_slices(slice, &qkv, [&out, &lse, &dout], heads, mask).unwrap();
                    assert_eq!(dqkv.dims(), qkv.dims());
                    bits(&dqkv)
                };
                let whole = of_slices(b);
                assert!(whole.iter().all(|&bits| f32::from_bits(bits).is_finite()));
                for slice in [1, 2] {
                    assert!(of_slices(slice) == whole, "slices of {slice}, {dtype:?}, {mask:?}");
                }
            }
        }
    }

    #[test]
    fn the_slice_is_a_number_of_sequences() {
        let slice = |setting| sequences_of_slice(setting, 16).ok();
        assert_eq!([None, Some("1"), Some("4"), Some("99")].map(slice), [16, 1, 4, 16].map(Some));
        assert_eq!([Some("0"), Some("-1"), Some("four")].map(slice), [None; 3]);
        let error = sequences_of_slice(Some("four"), 16).unwrap_err().to_string();
        assert!(error.contains("LLAMA_LITE_ATTENTION_SLICE=four"), "{error}");
    }
}
