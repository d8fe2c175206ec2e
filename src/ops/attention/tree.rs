//! Attention over a [`PrefixTree`]: forward only, node by node. A node's keys and values are those of the nodes above it and its own.

use super::Heads;
use super::forward::{FEW, KeysAndValues, few_queries, forward_head};
use super::span::Rows;
use crate::ops::cpu::{self, SharedMut};
use crate::ops::mask::window_first_keys;
use crate::ops::on_gpu;
use crate::ops::precision::Precision;
use crate::ops::prefix_tree::{Node, PrefixTree};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Packed `qkv` (1, t, (h + 2k)·d), already rotated → output (1, t, h·d). `window` is that of a [`Mask`](crate::ops::mask::Mask).
pub fn attention_prefix_tree(
    qkv: &Tensor,
    tree: &PrefixTree,
    heads: Heads,
    window: Option<usize>,
    precision: Precision,
) -> Result<Tensor> {
    let (b, t) = heads.check("attention_prefix_tree", qkv)?;
    if b != 1 || tree.len() != t {
        bail!("attention_prefix_tree: {b} rows of {t} for a prefix tree of {} tokens", tree.len());
    }
    on_gpu!(qkv, crate::ops::cuda::attention_prefix_tree(qkv, tree, heads, window));
    let out = cpu::read("attention_prefix_tree", [qkv], |[qkv]| {
        let mut out = cpu::output(t * heads.out());
        let shared = SharedMut::new(&mut out);
        (0..tree.nodes().len() * heads.kv).into_par_iter().for_each(|task| {
            attend(qkv, &tree.path(task / heads.kv), heads, task % heads.kv, window, precision, shared);
        });
        Ok(out)
    })?;
    cpu::tensor(out, (1, t, heads.out()))
}

/// The queries of the last node of `path` against the keys and values of all of it, for key/value head `kv` and its query heads.
fn attend(
    qkv: &[f32],
    path: &[Node],
    heads: Heads,
    kv: usize,
    window: Option<usize>,
    precision: Precision,
    out: SharedMut,
) {
    let Some(node) = path.last() else { return };
    let d = heads.dim;
    let n = node.position + node.len;
    let k_column = heads.q + kv;
    let v_column = heads.q + heads.kv + kv;
    // The rows of a path's nodes do not follow each other in the batch; those of a root do, and need no copy.
    let copies =
        (path.len() > 1).then(|| (path_rows(qkv, path, heads, k_column), path_rows(qkv, path, heads, v_column)));
    let (keys, values) = match &copies {
        None => (node_rows(qkv, node, heads, k_column), node_rows(qkv, node, heads, v_column)),
        Some((keys, values)) => {
            (Rows { data: keys, from: 0, stride: d, dim: d }, Rows { data: values, from: 0, stride: d, dim: d })
        }
    };
    let first_keys = window_first_keys(window, node.position, node.len);
    let starts = first_keys.as_deref();
    let packed = (node.len >= FEW).then(|| KeysAndValues::pack(keys, values, n, precision));
    let mut lse = vec![0.0; node.len];
    for head in kv * heads.group()..(kv + 1) * heads.group() {
        let q = node_rows(qkv, node, heads, head);
        let place = (node.start * heads.out() + head * d, heads.out());
        match &packed {
            Some(packed) => {
                forward_head(q, packed, (node.len, node.position, heads.scale(), starts), out, place, &mut lse)
            }
            None => few_queries(q, keys, values, (node.len, node.position, heads.scale(), starts), out, place),
        }
    }
}

/// Head `column` of the tokens of a node.
fn node_rows<'a>(qkv: &'a [f32], node: &Node, heads: Heads, column: usize) -> Rows<'a> {
    let stride = heads.packed();
    Rows { data: qkv, from: node.start * stride + column * heads.dim, stride, dim: heads.dim }
}

/// A copy of head `column` of the tokens of all nodes of a path, (tokens, d).
fn path_rows(qkv: &[f32], path: &[Node], heads: Heads, column: usize) -> Vec<f32> {
    let mut rows = Vec::new();
    for node in path {
        let node_rows = node_rows(qkv, node, heads, column);
        (0..node.len).for_each(|i| rows.extend_from_slice(node_rows.row(i)));
    }
    rows
}
