//! Token embedding: row `id` of the table for every token.
//!
//! Backward adds each row's gradient to the row of its token. Tokens repeat, so the additions are split by COLUMNS: every task walks
//! all tokens in order over its own columns, and no sum depends on scheduling.

use super::cpu::{self, SharedMut};
use super::{elements, on_gpu};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// Columns per task of the backward pass: one cache line.
const COLUMNS: usize = 64;

/// The same in candle's differentiable primitives.
pub fn reference(ids_n: &Tensor, table_vc: &Tensor) -> Result<Tensor> {
    table_vc.index_select(&ids_n.flatten_all()?, 0)
}

fn checked_ids(op: &str, ids: &Tensor, vocab: usize) -> Result<Vec<u32>> {
    let ids = cpu::ids(op, ids)?;
    if let Some(bad) = ids.iter().find(|&&id| id as usize >= vocab) {
        bail!("{op}: token id {bad} is outside the vocabulary of {vocab}");
    }
    Ok(ids)
}

/// `ids` (…) u32, `table` (v, c) → (…, c).
pub fn embedding(ids: &Tensor, table_vc: &Tensor) -> Result<Tensor> {
    let (v, c) = table_vc.dims2()?;
    let id_list = checked_ids("embedding", ids, v)?;
    let mut shape = ids.dims().to_vec();
    shape.push(c);
    on_gpu!(table_vc, super::cuda::embedding(&id_list, &shape, table_vc));
    let rows = elements::read("embedding", [table_vc], |[table]| {
        let mut out = Vec::with_capacity(id_list.len() * c);
        for &id in &id_list {
            table.extend_into(&mut out, id as usize * c, c);
        }
        Ok(out)
    })?;
    cpu::tensor(rows, shape)
}

/// `dtable (v, c)[id] += dy (…, c)` for every token.
pub fn embedding_backward(ids: &Tensor, dy: &Tensor, dtable_vc: &Tensor) -> Result<()> {
    let (v, c) = dtable_vc.dims2()?;
    let id_list = checked_ids("embedding_backward", ids, v)?;
    if dy.dim(D::Minus1)? != c || dy.elem_count() != id_list.len() * c {
        bail!("embedding_backward: dy {:?} does not fit {} ids and {c} channels", dy.shape(), id_list.len());
    }
    on_gpu!(dy, super::cuda::embedding_backward(&id_list, dy, dtable_vc));
    cpu::read("embedding_backward", [dy], |[dy]| {
        cpu::update("embedding_backward", dtable_vc, |dtable| {
            // Tasks have columns of their own, so that no two of them touch one element.
            let table = SharedMut::new(dtable);
            (0..c.div_ceil(COLUMNS)).into_par_iter().for_each(|block| {
                let from = block * COLUMNS;
                let width = COLUMNS.min(c - from);
                for (row, &id) in dy.chunks_exact(c).zip(&id_list) {
                    // SAFETY: tasks own disjoint columns, and each uses one row at a time.
                    let target = unsafe { table.range(id as usize * c + from, width) };
                    for (t, g) in target.iter_mut().zip(&row[from..from + width]) {
                        *t += g;
                    }
                }
            });
            Ok(())
        })
    })
}
