//! One token at a time: the fused kernels against the ops they stand for.

use super::{Bench, wide};
use crate::ops::attention::Heads;
use crate::ops::cuda::decode::{ProductInput, ProductKind, Recorder, attend, buffer, embed, product};
use crate::ops::positions::Positions;
use crate::ops::precision::Precision::F32;
use crate::ops::{attention, linear, rms_norm, rope, swiglu};
use candle_core::{DType, Device, Result, Tensor};

/// Products of one and of several rows, plain and with all that is fused into them.
pub(super) fn products(bench: &mut Bench) -> Result<()> {
    for (rows, inner, outputs) in bench.shapes([(1, 296, 21), (5, 296, 21), (1, 5120, 2048)]) {
        let x = bench.tensor(&[rows, inner])?;
        let pending = bench.tensor(&[rows, inner])?;
        let w = bench.tensor(&[2 * outputs, inner])?;
        let weight = bench.exact(&[inner])?;
        let half = w.narrow(0, 0, outputs)?;
        let plain = buffer(&[rows, outputs], bench.dtype, bench.device)?;
        let sum = buffer(&[rows, inner], bench.dtype, bench.device)?;
        let logits = buffer(&[rows, 2 * outputs], DType::F32, bench.device)?;
        product(&ProductInput::Plain(&x), &half, &plain, ProductKind::Plain)?;
        bench.near("decoding: product", &plain, &linear::linear(&wide(&x)?, &wide(&half)?, F32)?)?;

        let input =
            ProductInput::Normed { x: &x, pending: Some(&pending), sum: Some(&sum), weight: &weight, eps: 1e-5 };
        product(&input, &w, &logits, ProductKind::Logits)?;
        let added = (wide(&x)? + wide(&pending)?)?.to_dtype(bench.dtype)?.to_dtype(DType::F32)?;
        bench.within(0.0, "decoding: sum", &sum, &added)?;
        let normed = rms_norm::add_rms_norm(&added, None, &wide(&weight)?, 1e-5, F32)?.y;
        let want = linear::linear(&normed, &wide(&w)?, F32)?;
        bench.within(bench.twice(), "decoding: logits of a norm", &logits, &want)?;

        let gated = buffer(&[rows, outputs], bench.dtype, bench.device)?;
        let input = ProductInput::Normed { x: &x, pending: None, sum: None, weight: &weight, eps: 1e-5 };
        product(&input, &w, &gated, ProductKind::Gated)?;
        let normed = rms_norm::add_rms_norm(&wide(&x)?, None, &wide(&weight)?, 1e-5, F32)?.y;
        let want = swiglu::swiglu(&linear::linear(&normed, &wide(&w)?, F32)?, F32)?;
        bench.within(bench.twice(), "decoding: gated product", &gated, &want)?;
    }
    Ok(())
}

/// Embedding and attention by a recorder, three times: done, recorded and replayed.
pub(super) fn attention(bench: &mut Bench) -> Result<()> {
    let rows = 2;
    let capacity = 45;
    let before = 38;
    let heads = Heads { q: 4, kv: 2, dim: 64 };
    let q = heads.out();
    let kv = heads.kv * heads.dim;
    let tables = rope::Rope::new(heads.dim, 100.0, capacity);
    let (cos, sin) = tables.tensors()?;
    let on_device = (cos.to_device(bench.device)?, sin.to_device(bench.device)?);
    let table = bench.tensor(&[7, heads.packed()])?;
    let keys = bench.tensor(&[rows, capacity, kv])?;
    let values = bench.tensor(&[rows, capacity, kv])?;
    let want_keys = wide(&keys)?.copy()?;
    let want_values = wide(&values)?.copy()?;
    let qkv = buffer(&[rows, heads.packed()], bench.dtype, bench.device)?;
    let out = buffer(&[rows, q], bench.dtype, bench.device)?;
    let mut recorder = Recorder::new(rows, bench.device)?;
    for position in before..before + 3 {
        let ids = [(position % 7) as u32, (position * 3 % 7) as u32];
        recorder.run(position, &ids, |feed| {
            embed(feed, &table, &qkv)?;
            attend(&qkv, (&keys, &values), (&on_device.0, &on_device.1), feed, heads, &out)
        })?;
        let row = wide(&table)?.index_select(&Tensor::new(&ids, &Device::Cpu)?, 0)?.unsqueeze(1)?.contiguous()?;
        rope::rope(&row, &tables, heads.q + heads.kv, Positions::From(position))?;
        // As it is stored.
        let row = row.to_dtype(bench.dtype)?.to_dtype(DType::F32)?;
        want_keys.slice_set(&row.narrow(2, q, kv)?.contiguous()?, 1, position)?;
        want_values.slice_set(&row.narrow(2, q + kv, kv)?.contiguous()?, 1, position)?;
        let queries = row.narrow(2, 0, q)?.contiguous()?;
        let want = attention::attention_cached(&queries, &want_keys, &want_values, heads, position, None)?;
        bench.near("decoding: attention", &out, &want.squeeze(1)?)?;
    }
    bench.near("decoding: keys", &keys, &want_keys)?;
    bench.within(0.0, "decoding: values", &values, &want_values)
}
