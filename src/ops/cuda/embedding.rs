//! Token embedding: launches of `embedding.cu`.

use super::gpu::{Grid, empty, int, launch, list, pointer, suffix};
use candle_core::{Result, Tensor};

const THREADS: usize = 256;

/// See [`embedding`](crate::ops::embedding::embedding); `ids` have been checked.
pub(in crate::ops) fn embedding(ids: &[u32], shape: &[usize], table_vc: &Tensor) -> Result<Tensor> {
    let c = table_vc.dim(1)?;
    let device = table_vc.device();
    let out = empty(shape, table_vc.dtype(), device)?;
    let on_device = list(ids, device)?;
    let args = [pointer(&on_device)?, pointer(table_vc)?, pointer(&out)?, int(c)?];
    launch(device, &format!("embedding_{}", suffix(table_vc)?), Grid::linear(ids.len(), THREADS), &args)?;
    Ok(out)
}

/// See [`embedding_backward`](crate::ops::embedding::embedding_backward); `ids` have been checked.
pub(in crate::ops) fn embedding_backward(ids: &[u32], dy: &Tensor, dtable_vc: &Tensor) -> Result<()> {
    let c = dtable_vc.dim(1)?;
    let device = dtable_vc.device();
    let [distinct, ends, order] = sorted(ids).map(|sorted| list(&sorted, device));
    let distinct = distinct?;
    let ends = ends?;
    let order = order?;
    let args = [pointer(&distinct)?, pointer(&ends)?, pointer(&order)?, pointer(dy)?, pointer(dtable_vc)?, int(c)?];
    let grid = Grid { blocks: [distinct.elem_count(), c.div_ceil(THREADS), 1], threads: THREADS, shared: 0 };
    launch(device, &format!("embedding_backward_{}", suffix(dy)?), grid, &args)
}

/// The distinct ids; for each, the end of its positions in the list that follows; and all positions, those of an id side by side.
fn sorted(ids: &[u32]) -> [Vec<u32>; 3] {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&place| ids[place as usize]);
    let mut distinct = Vec::new();
    let mut ends = Vec::new();
    for (i, &place) in order.iter().enumerate() {
        let id = ids[place as usize];
        if distinct.last() != Some(&id) {
            distinct.push(id);
            ends.push(i as u32);
        }
        if let Some(end) = ends.last_mut() {
            *end = i as u32 + 1;
        }
    }
    [distinct, ends, order]
}
