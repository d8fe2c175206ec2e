//! `plan`: parameters, memory, time and disk that a run will take.

mod gpu;
mod memory;

use super::arguments::path;
use super::ranks::RanksArgs;
use super::{print, session};
use crate::config::Config;
use crate::inspect::plan::{OtherPrecision, Probe, parameters, passes, probe, rates};
use crate::metrics::{Console, ascii_plot, duration, rate, thousands};
use crate::ops::device::{GPUS, GpuModel};
use crate::ops::precision::Precision;
use crate::train::disk::{kept_bytes, kept_checkpoints};
use crate::train::footprint::{Fit, Hardware, RanksHere, bytes, checkpoint_bytes, trained_params};
use crate::train::ranks::{bytes_per_step, describe_lanes, one_of, permitted_ranks, settle_lanes};
use crate::train::schedule::remark;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite plan --config configs/llama-1.7b.toml
  llama-lite plan --config my.toml --probe
  llama-lite plan --config my.toml --fit 16GB
  llama-lite plan --config configs/llama-1.7b.toml --gpu h200
  llama-lite plan --config my.toml --ranks 4")]
pub struct PlanArgs {
    /// Configuration, TOML or JSON
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub config: PathBuf,
    /// Set one configuration key; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Run a few steps on the run's own data, writing nothing, and measure time and memory
    #[arg(long)]
    pub probe: bool,
    /// Propose the largest micro-batch that fits into this much memory, such as 8GB or 8000000000
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub fit: Option<u64>,
    /// Plan for a GPU that need not be here: the micro-batch, its memory, and how long the run will take
    #[arg(long, value_name = "GPU", value_parser = gpu_named, conflicts_with_all = ["probe", "fit"])]
    pub gpu: Option<GpuModel>,
    #[command(flatten)]
    pub ranks: RanksArgs,
}

fn gpu_named(name: &str) -> Result<GpuModel, String> {
    let known = GPUS.iter().find(|gpu| gpu.key == name.to_ascii_lowercase()).copied();
    known.ok_or_else(|| format!("expected one of {}", GPUS.map(|gpu| gpu.key).join(", ")))
}

/// The model FLOPs utilisations for which a time is given.
const MFU: [f64; 2] = [0.4, 0.5];

pub(crate) fn run(args: &PlanArgs, console: Console) -> Result<()> {
    let session = session(console);
    let mut config = Config::load(&args.config, &args.set)?;
    let is_gpu = args.gpu.is_some() || !session.device.is_cpu();
    let ranks = args.ranks.number(is_gpu)?;
    // Before the lanes are settled, as the number of ranks at the start decides them.
    let permitted = permitted_ranks(&config);
    settle_lanes(&mut config, ranks)?;
    let here = RanksHere::all(ranks as u64);
    let mut out = size(&config);
    match &args.gpu {
        Some(gpu) => out.push_str(&gpu::plan(&config, gpu, here)?),
        None => out.push_str(&memory::plan(&config, args.fit, &Hardware::here(&session.device, here))?),
    }
    if config.train.lanes() > 1 {
        out.push_str(&ranks_of(&config, ranks, &permitted));
    }
    out.push_str(&work(&config, args.gpu.is_none()));
    if !args.probe {
        out.push_str(&epochs(&config));
    }
    out.push_str(&format!("\n{}", ascii_plot(&rates(&config)?, 72, 10, None, "learning rate")));
    if let Some(remark) = remark(&config, 0)? {
        out.push_str(&format!("\n{}\n", remark.text));
    }
    if args.probe {
        let probed;
        (config, probed) = probe(config, &session)?;
        out.push_str(&measured(&config, &probed, &Hardware::here(&session.device, RanksHere::ONE)));
        if ranks > 1 {
            out.push_str(&steps_of_ranks(&config, &probed, ranks));
        }
    }
    print(&out)
}

fn size(config: &Config) -> String {
    let mut out = format!("parameters        {}\n", thousands(config.model.n_params()));
    for (class, n) in parameters(config).iter().filter(|(_, n)| *n > 0) {
        out.push_str(&format!("  {class:<15} {:>15}\n", thousands(*n)));
    }
    let per_token = config.model.flops_per_token(config.train.sequence_length);
    out + &format!("FLOPs per token   {}\n", rate(per_token as f64))
}

/// Lanes of the run, the numbers of ranks that can train it, and what `ranks` send.
fn ranks_of(config: &Config, ranks: usize, permitted: &[usize]) -> String {
    let lanes = config.train.lanes();
    let mut out = format!("\nranks             {ranks}, {}\n", describe_lanes(config));
    let started = if permitted.last() == Some(&lanes) { "" } else { " at the start" };
    out.push_str(&format!("  permitted       {}{started}\n", numbers(permitted)));
    if !started.is_empty() {
        out.push_str(&format!("  later           {}, with the same bits\n", numbers(&permitted_ranks(config))));
    }
    if ranks > 1 {
        let sent = bytes(bytes_per_step(ranks as u64, trained_params(config)));
        out.push_str(&format!("  exchange        {sent} sent by each rank for each step\n"));
    }
    out
}

/// Powers of two that are permitted, in words.
fn numbers(permitted: &[usize]) -> String {
    match permitted {
        [.., last] if permitted.len() > 6 => format!("powers of two up to {last}"),
        few => one_of(few),
    }
}

/// What links carry one way at most, by their names: bytes a second.
const LINKS: [(&str, f64); 4] =
    [("10 Gbit/s Ethernet", 1.25e9), ("100 Gbit/s", 12.5e9), ("400 Gbit/s", 50e9), ("NVLink 4", 450e9)];

/// The time of a step of `ranks`, by what a link carries.
fn steps_of_ranks(config: &Config, probe: &Probe, ranks: usize) -> String {
    let sent = bytes_per_step(ranks as u64, trained_params(config));
    let mut out = format!("with {ranks} ranks, each on a machine like this one, by the full rate of their link\n");
    for (link, bandwidth) in LINKS {
        let seconds = probe.step_of_ranks(ranks, sent, bandwidth);
        let times = probe.step_seconds / seconds;
        out.push_str(&format!("  {link:<19} {seconds:.3} s a step, {times:.2} times as fast\n"));
    }
    out
}

/// Steps and disk, and the time `on_gpus` of those that are known.
fn work(config: &Config, on_gpus: bool) -> String {
    let train = &config.train;
    let tokens = train.steps * train.tokens_per_step as u64;
    let mut out = format!(
        "\nsteps             {} of {} tokens: {} tokens, {:.3} per parameter\n",
        thousands(train.steps),
        thousands(train.tokens_per_step as u64),
        thousands(tokens),
        tokens as f64 / config.model.n_params() as f64,
    );
    let checkpoints = match kept_checkpoints(config) {
        0 => "none".to_owned(),
        most => {
            let one = bytes(checkpoint_bytes(config));
            format!("{one} each; at most {most} of them, {}", bytes(kept_bytes(config)))
        }
    };
    out.push_str(&format!("checkpoints       {checkpoints}\n"));
    out.push_str(&format!("FLOPs             {:.3e}\n", config.flops_after(0)));
    for GpuModel { name, peak_flops, .. } in GPUS.iter().filter(|_| on_gpus) {
        let times =
            MFU.map(|mfu| format!("{} at {:.0} % MFU", time(config.flops_after(0) / (peak_flops * mfu)), 100.0 * mfu));
        out.push_str(&format!("  {name:<15} {}\n", times.join(", ")));
    }
    out
}

/// Epochs of the data, where they are known without reading them. A probe reads them and says it itself.
fn epochs(config: &Config) -> String {
    match passes(config) {
        Ok(known) => known.as_deref().map_or_else(unread, over_data),
        // The data of a plan need not be there yet.
        Err(error) => format!("data              not read: {error:#}\n"),
    }
}

fn unread() -> String {
    "data              epochs are known with --probe, which reads the text, or once the shards are there\n".to_owned()
}

fn over_data(passes: &[(String, f64)]) -> String {
    passes.iter().map(|(name, passes)| format!("data              {passes:.2} epochs of {name}\n")).collect()
}

/// Seconds as people read them, up to more than a [`Duration`] can hold.
fn time(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn measured(config: &Config, probe: &Probe, hardware: &Hardware) -> String {
    let speed = config.train.tokens_per_step as f64 / probe.step_seconds;
    let mut out = format!(
        "\n{}probe             {:.3} s a step ({} tokens/s)",
        over_data(&probe.passes),
        probe.step_seconds,
        rate(speed)
    );
    let others = [
        ("validation", probe.validation_seconds.unwrap_or(0.0)),
        ("round of samples", probe.sample_seconds),
        ("round of tasks", probe.task_seconds),
    ];
    for (what, seconds) in others.into_iter().filter(|(_, seconds)| *seconds > 1e-3) {
        out.push_str(&format!(", {seconds:.3} s a {what}"));
    }
    if let Some(other) = &probe.other_precision {
        out.push_str(&in_other_precision(other, probe.step_seconds));
    }
    let total = probe.total(config);
    out.push_str(&format!(
        "\ntime              {} ({total:.0} s) in all, reading data and saving aside\n",
        time(total)
    ));
    if let Some(peak) = probe.peak {
        let needed = Fit::of_config(config, hardware).footprint.needed();
        out.push_str(&format!(
            "peak memory       {} measured, {} predicted without the copy being saved\n",
            bytes(peak),
            bytes(needed)
        ));
    }
    out
}

/// What a step would take in the precision that the run does not use, where it takes `step_seconds` in its own.
fn in_other_precision(other: &OtherPrecision, step_seconds: f64) -> String {
    let name = match other.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    format!(
        "\n  {:<15} {:.3} s a step, {:.2} times as fast (train.precision = \"{name}\")\nproducts          {}",
        format!("in {name}"),
        other.step_seconds,
        step_seconds / other.step_seconds,
        other.rates
    )
}

/// A number of bytes, with MB, GB, MiB or GiB behind it if it has a unit.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "mb" => 1e6,
        "gb" => 1e9,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        _ => return Err("expected bytes, such as 8GB, 8GiB or 8000000000".into()),
    };
    let number: f64 =
        number.trim().parse().map_err(|_| "expected bytes, such as 8GB, 8GiB or 8000000000".to_owned())?;
    if number > 0.0 && (number * unit).is_finite() {
        Ok((number * unit) as u64)
    } else {
        Err("expected more than 0".into())
    }
}

#[cfg(test)]
mod tests {
    use super::{in_other_precision, parse_bytes};
    use crate::inspect::plan::OtherPrecision;
    use crate::ops::precision::Precision;
    use crate::ops::product_rate::ProductRates;

    #[test]
    fn the_other_precision_is_compared_with_the_runs_own() {
        let rates = ProductRates { f32: 190e9, bf16: 380e9 };
        let other = OtherPrecision { precision: Precision::Bf16, step_seconds: 0.3, rates };
        assert_eq!(
            in_other_precision(&other, 0.42),
            "\n  in bf16         0.300 s a step, 1.40 times as fast (train.precision = \"bf16\")\n\
             products          f32 190 GFLOP/s, bf16 380 GFLOP/s (2.0 times as fast)"
        );
        let other = OtherPrecision { precision: Precision::F32, step_seconds: 0.42, rates };
        assert!(in_other_precision(&other, 0.3).starts_with("\n  in f32          0.420 s a step, 0.71 times as fast"));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            (parse_bytes("8GB"), parse_bytes("1.5 GiB"), parse_bytes("70")),
            (Ok(8_000_000_000), Ok(1_610_612_736), Ok(70))
        );
        for wrong in ["", "GB", "8 stones", "-1", "nan", "1e400"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
