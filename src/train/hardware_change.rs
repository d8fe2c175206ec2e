//! A run that is resumed on other hardware: another processor, build or number of threads. That is allowed and reported: what has
//! changed, what rounding alone may do to the loss, and how fast the run was before and is now.

use super::model_state::ModelState;
use crate::data::batch::Batch;
use crate::eval::total_loss;
use crate::metrics::{Record, Train, read_log};
use crate::ops::cpu;
use crate::ops::noise::draw;
use crate::ops::transfer::copy_flat;
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// Keys of an identity whose change may change bits.
const BITS: [&str; 11] =
    ["version", "arch", "os", "cpu", "simd", "device", "gpu", "attention", "products", "dtype", "numerics"];

/// Keys whose change affects the speed alone.
const SPEED: [&str; 3] = ["threads", "ranks", "driver"];

/// Steps whose speeds are compared, before and after; the first one warms up and does not count.
const COMPARED: usize = 20;

/// Draws of the estimate of rounding.
const DRAWS: u64 = 4;

/// Elements rounded by one task.
const PIECE: usize = 1 << 16;

/// The differences of two identities of machine and build.
#[derive(Clone, Debug)]
pub struct HardwareChange {
    /// Key, value then, value now.
    changes: Vec<(&'static str, Value, Value)>,
    /// A fixed forward and backward gives the same bits as then.
    same_arithmetic: bool,
}

impl HardwareChange {
    /// What differs; none if nothing does. Hosts and kernels do not matter; what an older version did not record is not compared.
    pub fn between(then: &Value, now: &Value) -> Option<Self> {
        let pairs = BITS.into_iter().chain(SPEED).map(|key| (key, then[key].clone(), now[key].clone()));
        let changes: Vec<_> = pairs.filter(|(_, a, b)| a != b && !a.is_null() && !b.is_null()).collect();
        let same_arithmetic = !then["numerics"].is_null() && then["numerics"] == now["numerics"];
        (!changes.is_empty()).then_some(Self { changes, same_arithmetic })
    }

    /// Whether the bits of what follows may be others.
    pub fn changes_bits(&self) -> bool {
        !self.keys().is_empty()
    }

    /// What one rounding changes of a number, at most, by the coarser of the two precisions where they differ.
    pub fn unit(&self) -> f32 {
        let other = self.changes.iter().any(|(key, ..)| *key == "dtype");
        // A bf16 has eight significant bits.
        if other { 2f32.powi(-8) } else { f32::EPSILON }
    }

    /// For the first step after it, in metrics.jsonl: what may be why it is not what it would have been.
    pub fn mark(&self) -> Vec<String> {
        if self.same_arithmetic { Vec::new() } else { self.keys() }
    }

    /// What has changed that may change bits.
    pub fn keys(&self) -> Vec<String> {
        self.changes.iter().map(|(key, ..)| *key).filter(|key| BITS.contains(key)).map(str::to_owned).collect()
    }

    /// For events.jsonl. `rounding`: what it may do to the loss, see [`rounding_of_loss`].
    pub fn event(&self, step: u64, rounding: Option<f64>) -> Value {
        let changes: Vec<_> = self.changes.iter().map(|(key, a, b)| json!({"key": key, "old": a, "new": b})).collect();
        let expected = rounding.map(|rounding| if self.same_arithmetic { 0.0 } else { rounding });
        json!({
            "step": step,
            "changes": changes,
            "affects": if self.changes_bits() { "bits" } else { "speed" },
            "same_arithmetic": self.same_arithmetic,
            "expected_loss_difference": expected,
        })
    }

    pub fn note(&self, step: u64, rounding: Option<f64>) -> String {
        let ending = match rounding {
            _ if self.same_arithmetic => "; a fixed forward and backward still gives the same bits here".to_owned(),
            Some(rounding) => format!("; rounding may change the loss of the next step by about {rounding:.1e}"),
            None => String::new(),
        };
        format!("note: bit-exactness is not promised from step {step} on: {}{ending}", self.describe())
    }

    /// That other ranks train from here on: the one change of speed that a user makes on purpose and may be unsure about.
    pub fn ranks_note(&self) -> Option<String> {
        let (_, then, now) = self.changes.iter().find(|(key, ..)| *key == "ranks")?;
        Some(format!("note: the number of ranks was {then}, is {now}: that changes the speed alone"))
    }

    /// The differences that may change bits, in words.
    pub fn describe(&self) -> String {
        let bits = self.changes.iter().filter(|(key, ..)| BITS.contains(key));
        bits.map(|(key, then, now)| format!("{key} was {then}, is {now}")).collect::<Vec<_>>().join("; ")
    }
}

/// How far rounding alone moves the mean loss of `batch`: root mean square over draws, in each of which every trained weight is larger or
/// smaller by `unit` of itself. An estimate of what another order of summation does, without the machine that has it.
///
/// The weights are restored afterwards; the gradient buffer serves as their copy, because the next step overwrites it anyway.
///
/// # Errors
/// Those of the device.
pub fn rounding_of_loss(state: &ModelState, batch: &Batch, unit: f32) -> Result<f64> {
    let (_, weights) = state.model.trained();
    let exact = mean_loss(state, batch)?;
    copy_flat(weights, &state.grad)?;
    let mut squares = 0.0;
    for key in 0..DRAWS {
        round(weights, unit, key)?;
        let rounded = mean_loss(state, batch);
        // Restored before an error of the pass is returned.
        copy_flat(&state.grad, weights)?;
        squares += (rounded? - exact).powi(2);
    }
    Ok((squares / DRAWS as f64).sqrt())
}

fn mean_loss(state: &ModelState, batch: &Batch) -> Result<f64> {
    Ok(total_loss(&state.model, batch.clone())? / batch.trained().max(1) as f64)
}

fn round(weights: &Tensor, unit: f32, key: u64) -> candle_core::Result<()> {
    cpu::update("round", weights, |weights| {
        weights.par_chunks_mut(PIECE).enumerate().for_each(|(piece, weights)| {
            for (i, weight) in (piece * PIECE..).zip(weights) {
                *weight *= if draw(key, i as u64) >> 63 == 0 { 1.0 + unit } else { 1.0 - unit };
            }
        });
        Ok(())
    })
}

/// The speed of a run before a change and after it.
#[derive(Debug)]
pub struct SpeedComparison {
    before: f64,
    after: Vec<f64>,
}

impl SpeedComparison {
    /// With the speed of the run in `dir` up to `step`; none if it took no step before.
    ///
    /// # Errors
    /// Those of reading its log.
    pub fn new(dir: &Path, step: u64) -> Result<Option<Self>> {
        let mut all = Vec::new();
        for record in read_log(dir)? {
            if let Record::Train(train) = record
                && train.step <= step
                && train.tokens_per_second.is_finite()
            {
                all.push(train.tokens_per_second);
            }
        }
        let last = all[all.len().saturating_sub(COMPARED)..].to_vec();
        Ok((!last.is_empty()).then(|| Self { before: median(last), after: Vec::new() }))
    }

    /// Adds a step; after enough of them returns the event.
    pub fn add(&mut self, record: &Train) -> Option<Value> {
        self.after.push(record.tokens_per_second);
        if self.after.len() <= COMPARED {
            return None;
        }
        let after = median(self.after[1..].to_vec());
        let step = record.step;
        Some(
            json!({"step": step, "tokens_per_second_before": self.before, "tokens_per_second_after": after, "ratio": after / self.before}),
        )
    }
}

/// The middle one of `values`, of which there is one at least.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::group::ProcessGroup;
    use candle_core::Device;

    #[test]
    fn what_changes_bits_is_told_from_what_changes_speed() {
        let then = json!({"cpu": "A", "simd": "x", "threads": 2, "numerics": "12", "host": "one"});
        assert!(
            HardwareChange::between(
                &then,
                &json!({"cpu": "A", "simd": "x", "threads": 2, "numerics": "12", "host": "two"})
            )
            .is_none()
        );
        let threads =
            HardwareChange::between(&then, &json!({"cpu": "A", "simd": "x", "threads": 4, "numerics": "12"})).unwrap();
        assert!(!threads.changes_bits() && threads.keys().is_empty() && threads.ranks_note().is_none());
        assert_eq!(threads.event(3, None)["affects"], "speed");
        let ranks =
            HardwareChange::between(&json!({"ranks": 4, "numerics": "1"}), &json!({"ranks": 2, "numerics": "1"}));
        let ranks = ranks.unwrap();
        assert!(!ranks.changes_bits() && ranks.mark().is_empty());
        assert_eq!(ranks.ranks_note().unwrap(), "note: the number of ranks was 4, is 2: that changes the speed alone");
        let same =
            HardwareChange::between(&then, &json!({"cpu": "B", "simd": "x", "threads": 4, "numerics": "12"})).unwrap();
        assert_eq!((same.keys(), same.describe().as_str()), (vec!["cpu".to_owned()], "cpu was \"A\", is \"B\""));
        assert_eq!(same.event(3, Some(1e-7))["expected_loss_difference"], 0.0);
        assert_eq!(same.event(3, Some(1e-7))["affects"], "bits");
        let other = HardwareChange::between(&then, &json!({"cpu": "B", "numerics": "34"})).unwrap();
        assert_eq!(other.event(3, Some(1e-7))["expected_loss_difference"], 1e-7);
        assert!(other.note(3, Some(1e-7)).contains("by about 1.0e-7"));
    }

    #[test]
    fn speeds_before_and_after_are_medians() {
        let dir = tempfile::tempdir().unwrap();
        let record =
            |step: u64, speed: f64| Train { step, tokens_per_second: speed, ..crate::metrics::tests::train(step) };
        let line = |step| serde_json::to_string(&Record::Train(record(step, 100.0 + step as f64))).unwrap() + "\n";
        std::fs::write(dir.path().join("metrics.jsonl"), (1..=50).map(line).collect::<String>()).unwrap();
        assert!(SpeedComparison::new(dir.path(), 0).unwrap().is_none());
        // Steps 21 to 40: the middle of them is 131.
        let mut pace = SpeedComparison::new(dir.path(), 40).unwrap().unwrap();
        let said: Vec<Value> =
            (41..=61).filter_map(|step| pace.add(&record(step, if step == 41 { 1.0 } else { 262.0 }))).collect();
        assert_eq!(said.len(), 1);
        assert_eq!((said[0]["tokens_per_second_before"].as_f64(), said[0]["ratio"].as_f64()), (Some(131.0), Some(2.0)));
        assert_eq!(said[0]["step"], 61);
    }

    /// A thousandth of a percent of a nat in f32, far more in bf16.
    #[test]
    fn rounding_is_small_and_leaves_the_weights_alone() {
        let text = "[model]\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 320\n\
            [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 16\nmicro_batch_size = 4\nsteps = 9\n";
        let config = crate::config::Config::from_toml_str(text, "a.toml").unwrap();
        let state = ModelState::initial(&config, None, &Device::Cpu, &ProcessGroup::one()).unwrap();
        let ids: Vec<u32> = (0..4 * 17).map(|i| (i * 7) % 320).collect();
        let batch = Batch::windows(&ids, 16, None);
        let before = state.model.flat.to_vec1::<f32>().unwrap();
        let fine = rounding_of_loss(&state, &batch, f32::EPSILON).unwrap();
        let coarse = rounding_of_loss(&state, &batch, 2f32.powi(-8)).unwrap();
        assert!((1e-10..1e-6).contains(&fine), "{fine}");
        assert!((1e3 * fine..1e6 * fine).contains(&coarse), "{fine} {coarse}");
        assert_eq!(state.model.flat.to_vec1::<f32>().unwrap(), before);
    }
}
