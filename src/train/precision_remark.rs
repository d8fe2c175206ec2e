//! Whether the run's matrix products would be faster in the other precision, said before its first step: `train.precision = "auto"` is f32 on
//! every CPU, because a measurement must not decide bits.

use super::identity::precision;
use super::remark::Remark;
use crate::config::{Config, PrecisionSetting};
use crate::ops::precision::Precision;
use crate::ops::product_rate::{ProductRates, ProductShape};
use anyhow::Result;
use candle_core::Device;

/// The FLOPs from which on a run is long enough for a measurement at its start: two and a half minutes at 200 GFLOP/s.
const WORTH_MEASURING: f64 = 3e13;

/// From this speedup on the coarser rounding of bf16 may be worth it.
const WORTH_SAYING: f64 = 1.2;

/// A lower speedup is a loss; between it and 1 it may be the measurement's error.
const LOSS: f64 = 0.95;

/// Matrix products like the largest of a micro-batch: those that make gate and up.
pub fn product_shape(config: &Config) -> ProductShape {
    ProductShape {
        rows: config.train.sequences_per_pass() * config.train.sequence_length,
        inputs: config.model.hidden_size,
        outputs: 2 * config.model.intermediate_size,
    }
}

/// About the precision of the steps after `step`, if the other one is better by what `measure` finds. It is not called if nothing could follow
/// from it: for a short run, on a GPU, and for f32 by the user's own choice.
///
/// # Errors
/// Those of `measure`.
pub fn precision_remark(
    config: &Config,
    device: &Device,
    step: u64,
    measure: impl FnOnce(ProductShape) -> candle_core::Result<ProductRates>,
) -> Result<Option<Remark>> {
    let chosen = config.train.precision == PrecisionSetting::F32;
    if chosen || !device.is_cpu() || config.flops_after(step) < WORTH_MEASURING {
        return Ok(None);
    }
    let rates = measure(product_shape(config))?;
    Ok(describe(precision(&config.train, device), rates.speedup()))
}

/// A line about a run in the precision `used` on a machine where bf16 is `speedup` times as fast as f32.
fn describe(used: Precision, speedup: f64) -> Option<Remark> {
    match used {
        Precision::F32 if speedup >= WORTH_SAYING => Some(Remark {
            text: format!(
                "note: products like this run's are {speedup:.1} times as fast in bf16 as in f32 on this machine: \
                 train.precision = \"bf16\" uses them, with coarser rounding"
            ),
            warning: false,
        }),
        Precision::Bf16 if speedup < LOSS => Some(Remark {
            text: format!(
                "products like this run's take {:.1} times as long in bf16 as in f32 on this machine: \
                 train.precision = \"f32\" is faster and rounds less",
                1.0 / speedup
            ),
            warning: true,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2.2e9 FLOPs a step.
    fn config(precision: &str, steps: u64) -> Config {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
            [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 24\n";
        let text = format!("{text}precision = \"{precision}\"\nsteps = {steps}\n");
        Config::from_toml_str(&text, "a.toml").unwrap()
    }

    /// What is said of a run after `step`, where bf16 is `speedup` times as fast; and whether that was measured.
    fn remark_at(config: &Config, step: u64, speedup: f64) -> (Option<Remark>, bool) {
        let mut measured = false;
        let remark = precision_remark(config, &Device::Cpu, step, |shape| {
            assert_eq!(shape, ProductShape { rows: 24 * 64, inputs: 64, outputs: 256 });
            measured = true;
            Ok(ProductRates { f32: 1e11, bf16: speedup * 1e11 })
        });
        (remark.unwrap(), measured)
    }

    #[test]
    fn what_is_said_can_be_done() {
        let long = 1_000_000;
        let (note, measured) = remark_at(&config("auto", long), 0, 1.84);
        let note = note.unwrap();
        assert!(measured && !note.warning);
        assert_eq!(
            note.text,
            "note: products like this run's are 1.8 times as fast in bf16 as in f32 on this machine: train.precision = \"bf16\" uses \
             them, with coarser rounding"
        );
        let (warning, _) = remark_at(&config("bf16", long), 0, 0.625);
        let warning = warning.unwrap();
        assert!(warning.warning);
        assert_eq!(
            warning.text,
            "products like this run's take 1.6 times as long in bf16 as in f32 on this machine: train.precision = \"f32\" is faster \
             and rounds less"
        );
    }

    #[test]
    fn a_run_in_the_faster_precision_hears_nothing() {
        let long = 1_000_000;
        for (precision, speedup) in [("auto", 1.19), ("auto", 0.5), ("bf16", 0.96), ("bf16", 2.0)] {
            assert_eq!(remark_at(&config(precision, long), 0, speedup), (None, true), "{precision} {speedup}");
        }
    }

    /// A short run, or the end of a long one, takes less time than would be gained; f32 that was asked for is no accident.
    #[test]
    fn nothing_is_measured_in_vain() {
        let per_step = config("auto", 1).flops_after(0);
        assert!((2e8..2e9).contains(&per_step), "{per_step}");
        let enough = (WORTH_MEASURING / per_step).ceil() as u64;
        for precision in ["auto", "bf16"] {
            assert!(remark_at(&config(precision, enough), 0, 1.0).1);
            assert!(!remark_at(&config(precision, enough - 1), 0, 1.0).1);
            assert!(!remark_at(&config(precision, enough), 1, 1.0).1);
            // A run that has more steps behind it than it will have.
            assert!(!remark_at(&config(precision, enough), enough + 1, 1.0).1);
        }
        assert_eq!(remark_at(&config("f32", enough), 0, 9.0), (None, false));
    }
}
