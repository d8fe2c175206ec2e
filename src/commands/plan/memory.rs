//! The memory of a run by what it goes into, and that of other micro-batches.

use crate::config::Config;
use crate::model::Recompute;
use crate::ops::device;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::memory;
use crate::train::disk::kept_checkpoints;
use crate::train::footprint::{
    Fit, Hardware, HostFootprint, bytes, checkpoint_bytes, largest_fits, micro_batches, what_to_shrink,
};
use anyhow::Result;

/// The memory of the run on `hardware`. With a `limit` it is as if the hardware had so many bytes, and a micro-batch is proposed for them.
pub(super) fn plan(config: &Config, limit: Option<u64>, hardware: &Hardware) -> Result<String> {
    let hardware = limit.map_or(*hardware, |bytes| hardware.with_room(bytes));
    let place = match (limit, device::memory().or_else(memory::usable)) {
        (Some(limit), _) => format!(" of {}", bytes(limit)),
        (None, Some(total)) => format!(" of {} here", bytes(total)),
        (None, None) => String::new(),
    };
    let mut out = describe(config, &Fit::of_config(config, &hardware), &hardware, &place);
    out.push_str(&others(config, &hardware));
    if let Some(limit) = limit {
        out.push_str(&proposal(config, limit, &hardware)?);
    }
    Ok(out)
}

/// The memory of `fit`, in all, as a part of what `place` says, and by class.
pub(super) fn describe(config: &Config, fit: &Fit, hardware: &Hardware, place: &str) -> String {
    let again = match fit.recompute {
        Recompute::None => "nothing",
        Recompute::Selective => "norms and SwiGLU",
        Recompute::Full => "whole blocks",
    };
    let mut total = bytes(fit.footprint.needed());
    let copy = with_copy(&fit.footprint);
    match hardware.ranks.ranks {
        1 => total.push_str(&copy),
        _ if hardware.is_gpu => total.push_str(" for the GPU of a rank,"),
        n => total.push_str(&format!(" for {n} ranks together,")),
    }
    let comma = if copy.is_empty() { "" } else { "," };
    let device = if hardware.is_gpu { "GPU" } else { "CPU" };
    let mut out = format!("\nmemory            {total}{comma}{place} ({device}; {again} computed again in backward)\n");
    out.push_str(&classes(&fit.footprint, hardware.ranks.ranks > 1));
    // Several ranks always save from a copy: that is where their parts come together.
    let is_copied = config.checkpoint.background || hardware.ranks.ranks > 1;
    if hardware.is_gpu && is_copied && kept_checkpoints(config) > 0 {
        let copy = bytes(checkpoint_bytes(config));
        out.push_str(&format!("  main memory     {copy:>15} for the copy that a checkpoint is written from\n"));
    }
    out
}

/// What training takes with the copy that is made where there is room for it, if that is more.
fn with_copy(footprint: &HostFootprint) -> String {
    match footprint.peak() {
        peak if peak == footprint.needed() => String::new(),
        peak => format!(", {} with the copy being saved", bytes(peak)),
    }
}

/// What the memory goes into; of `several` ranks, on rank 0 and on each of the others.
fn classes(footprint: &HostFootprint, several: bool) -> String {
    let HostFootprint { first, other, .. } = footprint;
    let mut out = String::new();
    if several {
        out.push_str(&format!("  {:<15} {:>15} {:>15}\n", "", "rank 0", "each other"));
    }
    let peaks = [("peak", first.peak(), other.peak())];
    let classes =
        first.classes().into_iter().zip(other.classes()).map(|((class, first), (_, other))| (class, first, other));
    for (class, first, other) in classes.chain(peaks.into_iter().filter(|_| several)).filter(|(_, n, _)| *n > 0) {
        let beside = match other {
            _ if !several => String::new(),
            0 => format!(" {:>15}", "-"),
            _ => format!(" {:>15}", bytes(other)),
        };
        out.push_str(&format!("  {class:<15} {:>15}{beside}\n", bytes(first)));
    }
    out
}

/// The memory of other micro-batches, powers of two among those that divide a step.
fn others(config: &Config, hardware: &Hardware) -> String {
    let fits: Vec<Fit> = micro_batches(config, hardware).filter(|fit| fit.micro_batch_size.is_power_of_two()).collect();
    let lines = fits.iter().rev().map(|fit| {
        let size = fit.micro_batch_size;
        let needed = bytes(fit.footprint.needed());
        let copy = with_copy(&fit.footprint);
        let blocks = if fit.recompute == Recompute::Full { ", whole blocks computed again" } else { "" };
        let mark = if size == config.train.sequences_per_pass() { " <" } else { "" };
        format!("  micro-batch {size:<3} {needed:>15}{copy}{blocks}{mark}\n")
    });
    lines.collect()
}

fn proposal(config: &Config, limit: u64, hardware: &Hardware) -> Result<String> {
    let fits = largest_fits(config, hardware);
    if fits.is_empty() {
        return Err(nothing_fits(config, hardware, &bytes(limit)).into());
    }
    let mut out = format!("\nfits into {:<8}", bytes(limit));
    for (i, fit) in fits.iter().enumerate() {
        let or = if i > 0 { "\n          or      " } else { "" };
        let copy = if fit.with_copy { "" } else { "; saving then holds training up: there is no room for a copy" };
        out.push_str(&format!("{or} {}{copy}", settings(config, fit, hardware)));
    }
    Ok(out + "\n")
}

/// That no micro-batch fits into the room of `hardware`, which `room` describes.
pub(super) fn nothing_fits(config: &Config, hardware: &Hardware, room: &str) -> Failure {
    fail(Exit::Memory, format!("not even a micro-batch of one sequence fits into {room}"))
        .hint(what_to_shrink(config, hardware))
}

/// The settings of `fit`, and how often its micro-batch is in a step.
pub(super) fn settings(config: &Config, fit: &Fit, hardware: &Hardware) -> String {
    let ranks = hardware.ranks.ranks;
    let micro = fit.micro_batch_size;
    let per_step = config.train.passes_per_step(micro) / ranks as usize;
    let on_rank = if ranks > 1 { " on a rank" } else { "" };
    let again = if fit.recompute == Recompute::Full { ", train.recompute = \"full\"" } else { "" };
    format!("train.micro_batch_size = {micro}, {per_step} of them for each step{on_rank}{again}")
}
