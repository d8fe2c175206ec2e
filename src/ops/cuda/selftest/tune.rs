//! What fine-tuning adds: adapters, dropout, noise.

use super::{Bench, wide, zeros};
use crate::ops::lora::{LoraAdapter, LoraPart};
use crate::ops::noise::Dropout;
use crate::ops::precision::Precision;
use crate::ops::{cuda, lora as cpu_lora, noise as cpu_noise};
use candle_core::{Result, Tensor};

/// An adapter, in the type that is checked, of parts of these many rows: the second one has none.
fn adapter(bench: &mut Bench, inner: usize, rank: usize) -> Result<LoraAdapter> {
    let rows = [0..5, 9..12];
    let a = bench.tensor(&[rows.len() * rank, inner])?;
    let parts = rows.map(|rows| Ok(LoraPart { b: bench.tensor(&[rows.len(), rank])?, rows }));
    Ok(LoraAdapter { a, parts: parts.into_iter().collect::<Result<_>>()? })
}

/// The adapter with `f` of each of its matrices.
fn map_matrices(adapter: &LoraAdapter, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<LoraAdapter> {
    let parts = adapter.parts.iter().map(|part| Ok(LoraPart { rows: part.rows.clone(), b: f(&part.b)? }));
    Ok(LoraAdapter { a: f(&adapter.a)?, parts: parts.collect::<Result<_>>()? })
}

pub(super) fn adapters(bench: &mut Bench) -> Result<()> {
    let rows = 33;
    let inner = 24;
    let outputs = 12;
    let rank = 3;
    let scale = 0.7;
    for dropout in [None, Some(Dropout { p: 0.3, key: 5, first: 11 })] {
        let x = bench.tensor(&[rows, inner])?;
        let y = bench.tensor(&[rows, outputs])?;
        let dy = bench.tensor(&[rows, outputs])?;
        let dx = bench.tensor(&[rows, inner])?;
        let device = bench.device.clone();
        let ours = adapter(bench, inner, rank)?;
        let theirs = map_matrices(&ours, wide)?;
        let want = wide(&y)?.copy()?;
        cuda::lora(&y, &x, &ours, scale as f32, dropout.as_ref())?;
        cpu_lora::lora(&want, &wide(&x)?, &theirs, scale, dropout.as_ref(), Precision::F32)?;
        bench.within(bench.twice(), "lora y", &y, &want)?;

        let grads = map_matrices(&theirs, |t| zeros(t.dims())?.to_device(&device)?.copy())?;
        let want_grads = map_matrices(&theirs, |t| zeros(t.dims())?.copy())?;
        let want = wide(&dx)?.copy()?;
        cuda::lora_backward(&dx, &dy, &x, (&ours, &grads), scale as f32, dropout.as_ref())?;
        let wide_dy = wide(&dy)?;
        let precision = Precision::F32;
        cpu_lora::lora_backward(&want, &wide_dy, &wide(&x)?, &theirs, &want_grads, scale, dropout.as_ref(), precision)?;
        bench.within(bench.twice(), "lora dx", &dx, &want)?;
        bench.within(bench.twice(), "lora da", &grads.a, &want_grads.a)?;
        for (got, want) in grads.parts.iter().zip(&want_grads.parts) {
            bench.within(bench.twice(), "lora db", &got.b, &want.b)?;
        }
    }
    Ok(())
}

pub(super) fn noises(bench: &mut Bench) -> Result<()> {
    let x = bench.tensor(&[3, 7, 40])?;
    let want = wide(&x)?.copy()?;
    let most: Vec<f32> = (0..21).map(|i| i as f32 / 10.0).collect();
    cuda::add_noise(&x, &most, 9, 4_000_000_000)?;
    cpu_noise::add_noise(&want, &most, 9, 4_000_000_000)?;
    bench.near("noise on embeddings", &x, &want)
}
