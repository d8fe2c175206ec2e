//! The logs of a run: records for programs, a progress line for people.
//!
//! `metrics.jsonl` holds one [`Record`] a line, in step order, each step once: a resume cuts what a killed attempt
//! wrote beyond the checkpoint ([`MetricsLog`]). `events.jsonl` ([`Events`]) is the opposite, a history of attempts
//! that is never cut. On the terminal [`Progress`] shows where the run stands, and [`ascii_plot`] draws its curve.
//!
//! A record's keys always come in the order of the fields below. Numbers print as the shortest decimal that reads back
//! to the same f64, so equal lines mean equal bits; a number that is not finite is written as `null` and read back as
//! NaN, because JSON knows no other.

mod altered;
mod digest;
mod events;
mod jsonl;
mod pace;
mod plot;
mod progress;
mod tensorboard;

pub use crate::runtime::format::{duration, fixed, rate, thousands};
pub use altered::{AlteredLog, altered_logs};
pub use digest::{LogDigest, LogDigests};
pub use events::{Events, iso8601, read_events};
pub use jsonl::{
    Cut, LOG_FILES, Logged, MetricsLog, SampleLog, SampleRecord, Sequences, StepLog, Times, read, read_log,
};
pub use pace::Pace;
pub use plot::ascii_plot;
pub use progress::{Color, Console, Progress};
pub use tensorboard::TensorBoard;

use serde::{Deserialize, Deserializer, Serialize};

/// One line of `metrics.jsonl`; the variant is its `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    Train(Train),
    /// The loss on the fixed validation tokens.
    Val(Val),
    /// One metric of one benchmark task.
    Eval(Eval),
    /// Norms and logits, layer by layer.
    Layers(Layers),
}

/// An optimizer step, attempted or applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// The number of the step, from 1 on.
    pub step: u64,
    /// Mean over the step's tokens before the update, in nats; NaN if the update was refused.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Learning rate of the step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Tokens trained on so far, this step included; in fine-tuning, all positions of the batches, padding included.
    pub tokens: u64,
    /// How many tokens of this step had a loss; written only where that is not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<u64>,
    /// Speed of this step, without evaluation and saving.
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_second: f64,
    /// Model FLOPs utilisation, in [0, 1]; NaN where the device's peak is unknown.
    #[serde(deserialize_with = "null_is_nan")]
    pub mfu: f64,
    /// Time spent waiting for data.
    #[serde(deserialize_with = "null_is_nan")]
    pub data_seconds: f64,
    /// Hash of all token ids so far, in hexadecimal.
    pub chain: String,
    /// The update was refused; written only when true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// What changed in machine or build before this step, so that its bits may differ; written only if anything changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
    /// The pieces of state that were reset on purpose before this step; written only if there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset: Vec<String>,
}

/// What the layers do in a step; each list of norms has one number for each name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layers {
    /// The number of the step, from 1 on.
    pub step: u64,
    /// "embedding", the numbers of the blocks, "norm", "head".
    pub names: Vec<String>,
    /// Norms of the gradient before clipping.
    pub grad_norm: Vec<f64>,
    /// Norms of the weights after the update.
    pub weight_norm: Vec<f64>,
    /// Norms of what the update has changed.
    pub update_norm: Vec<f64>,
    /// Root mean square of AdamW's step before the learning rate, `m̂ / (√v̂ + ε)`: 1 where all gradients agree, near 0 where they cancel.
    #[serde(default)]
    pub adam_step: Vec<f64>,
    /// The largest logit of attention, of every block.
    #[serde(default)]
    pub attention_logit_max: Vec<f64>,
    /// Root mean square of the head's logits; NaN where it was not observed.
    #[serde(default = "unknown", deserialize_with = "null_is_nan")]
    pub logit_rms: f64,
}

/// The loss on the fixed validation tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Val {
    /// The last step the model has taken; 0 before the first.
    pub step: u64,
    /// Mean over the tokens, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The same in bits per UTF-8 byte of the text; NaN where the bytes are unknown.
    #[serde(deserialize_with = "null_is_nan")]
    pub bits_per_byte: f64,
    /// How many tokens were predicted.
    pub tokens: u64,
    /// The exact entropy of the text, where its source is a probability model of our own; no model can stay below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_bits_per_byte: Option<f64>,
}

/// One metric of one benchmark task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// The last step the model has taken.
    pub step: u64,
    /// The task, by its name in the lm-evaluation-harness.
    pub task: String,
    /// The metric, as `acc_norm`.
    pub metric: String,
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// The standard error of the value.
    #[serde(deserialize_with = "null_is_nan")]
    pub stderr: f64,
}

fn unknown() -> f64 {
    f64::NAN
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn train(step: u64) -> Train {
        Train {
            step,
            loss: 2.5,
            grad_norm: 0.1,
            lr: 6e-4,
            tokens: step * 512,
            trained_tokens: None,
            tokens_per_second: 1e4,
            mfu: 0.5,
            data_seconds: 1e-5,
            chain: "0f".into(),
            skipped: false,
            hardware: Vec::new(),
            reset: vec![],
        }
    }

    pub(crate) fn val(step: u64) -> Val {
        Val { step, loss: 1.0, bits_per_byte: 0.3 - 0.1, tokens: 1000, floor_bits_per_byte: None }
    }

    fn line(record: &Record) -> String {
        serde_json::to_string(record).unwrap()
    }

    /// The documented form, key by key and digit by digit.
    #[test]
    fn records_have_exactly_the_documented_lines() {
        assert_eq!(
            line(&Record::Train(Train { mfu: f64::NAN, ..train(1) })),
            r#"{"kind":"train","step":1,"loss":2.5,"grad_norm":0.1,"lr":0.0006,"tokens":512,"tokens_per_second":10000.0,"mfu":null,"data_seconds":0.00001,"chain":"0f"}"#
        );
        let skipped = Train { loss: f64::NAN, grad_norm: f64::INFINITY, skipped: true, ..train(2) };
        assert_eq!(
            line(&Record::Train(skipped)),
            r#"{"kind":"train","step":2,"loss":null,"grad_norm":null,"lr":0.0006,"tokens":1024,"tokens_per_second":10000.0,"mfu":0.5,"data_seconds":0.00001,"chain":"0f","skipped":true}"#
        );
        assert_eq!(
            line(&Record::Train(Train { reset: vec!["moments".into()], mfu: f64::NAN, ..train(1) })),
            r#"{"kind":"train","step":1,"loss":2.5,"grad_norm":0.1,"lr":0.0006,"tokens":512,"tokens_per_second":10000.0,"mfu":null,"data_seconds":0.00001,"chain":"0f","reset":["moments"]}"#
        );
        assert_eq!(
            line(&Record::Val(val(0))),
            r#"{"kind":"val","step":0,"loss":1.0,"bits_per_byte":0.19999999999999998,"tokens":1000}"#
        );
        assert_eq!(
            line(&Record::Val(Val { floor_bits_per_byte: Some(0.125), ..val(3) })),
            r#"{"kind":"val","step":3,"loss":1.0,"bits_per_byte":0.19999999999999998,"tokens":1000,"floor_bits_per_byte":0.125}"#
        );
        let task = "hellaswag".into();
        let metric = "acc_norm".into();
        assert_eq!(
            line(&Record::Eval(Eval { step: 9, task, metric, value: 0.25, stderr: 0.004 })),
            r#"{"kind":"eval","step":9,"task":"hellaswag","metric":"acc_norm","value":0.25,"stderr":0.004}"#
        );
    }

    #[test]
    fn records_read_back_to_the_same_bits() {
        for loss in [std::f64::consts::PI, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e21, -0.0, 3.0] {
            let record = Record::Train(Train { loss, ..train(7) });
            assert_eq!(serde_json::from_str::<Record>(&line(&record)).unwrap(), record);
        }
        let Record::Train(read) =
            serde_json::from_str(&line(&Record::Train(Train { mfu: f64::NAN, ..train(7) }))).unwrap()
        else {
            panic!("a train record")
        };
        assert!(read.mfu.is_nan());
    }

    /// Records from before these fields existed, and from runs that do not observe logits.
    #[test]
    fn what_was_not_observed_is_not_a_number() {
        let old =
            r#"{"kind":"layers","step":5,"names":["0"],"grad_norm":[1.0],"weight_norm":[1.0],"update_norm":[1.0]}"#;
        let Record::Layers(read) = serde_json::from_str(old).unwrap() else { panic!("a layers record") };
        assert!(read.logit_rms.is_nan() && read.attention_logit_max.is_empty());
        let Record::Layers(again) = serde_json::from_str(&line(&Record::Layers(read))).unwrap() else { panic!() };
        assert!(again.logit_rms.is_nan());
    }
}
