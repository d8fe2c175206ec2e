//! What a run will take on a GPU that need not be here.

use super::memory::{describe, nothing_fits, settings};
use super::time;
use crate::config::Config;
use crate::inspect::plan::Speed;
use crate::metrics::{rate, thousands};
use crate::model::Recompute;
use crate::ops::device::GpuModel;
use crate::ops::precision::Precision;
use crate::runtime::error::{Exit, fail};
use crate::train::checks::check_gpu;
use crate::train::footprint::{Hardware, RanksHere, bytes, micro_batches};
use crate::train::identity::precision_on;
use anyhow::Result;

const MICRO_BATCHES_SHOWN: usize = 6;

/// The fastest micro-batches that fit on `gpu`, the memory of the best of them, and the time of the run.
pub(super) fn plan(config: &Config, gpu: &GpuModel, ranks: RanksHere) -> Result<String> {
    if precision_on(&config.train, true) != Precision::Bf16 {
        let message = "--gpu predicts runs in bf16, and train.precision is \"f32\"";
        return Err(fail(Exit::Config, message).hint("--set train.precision=auto").into());
    }
    check_gpu(config)?;
    let hardware = Hardware::of_gpu(gpu, ranks);
    let room = hardware.room.map_or_else(String::new, bytes);
    let fitting = micro_batches(config, &hardware).filter(|fit| hardware.fits(fit.footprint.needed()));
    let mut speeds: Vec<Speed> = fitting.map(|fit| Speed::predict(config, fit, gpu, ranks.ranks)).collect();
    speeds.sort_by(|a, b| b.tokens_per_second.total_cmp(&a.tokens_per_second));
    let Some(best) = speeds.first() else {
        let room = format!("{room}, which a run may take of the memory of one {}", gpu.name);
        return Err(nothing_fits(config, &hardware, &room).into());
    };
    let mut out = describe(config, &best.fit, &hardware, &format!(" of {room} on one {}", gpu.name));
    out.push_str(&format!("\n{:<17} predicted for bf16 and cuDNN; no speed was measured on a GPU yet\n", gpu.name));
    for speed in speeds.iter().take(MICRO_BATCHES_SHOWN) {
        out.push_str(&line(speed));
    }
    out.push_str(&format!("proposed          {}\n", settings(config, &best.fit, &hardware)));
    out.push_str(&duration_of(config, best, ranks.ranks));
    Ok(out)
}

fn line(speed: &Speed) -> String {
    let again = match speed.fit.recompute {
        Recompute::None => "nothing computed again",
        Recompute::Selective => "norms and SwiGLU computed again",
        Recompute::Full => "whole blocks computed again",
    };
    format!(
        "  micro-batch {:<3} {:>15} {:>9} tokens/s, {:.0} % MFU, {again}\n",
        speed.fit.micro_batch_size,
        bytes(speed.fit.footprint.needed()),
        thousands(speed.tokens_per_second as u64),
        100.0 * speed.mfu,
    )
}

fn duration_of(config: &Config, speed: &Speed, ranks: u64) -> String {
    let tokens = config.train.steps as f64 * config.train.tokens_per_step as f64;
    let seconds = tokens / speed.tokens_per_second;
    let hours = rate(seconds * ranks as f64 / 3600.0);
    let several = if ranks > 1 { format!(" on {ranks} GPUs, exchange aside") } else { String::new() };
    format!("time              {}{several}: {hours} GPU hours, validation and saving aside\n", time(seconds))
}
