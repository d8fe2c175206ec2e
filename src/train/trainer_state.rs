//! What a step changes and a checkpoint keeps beside its tensors: [`TrainerState`], in `trainer_state.json` together with what identifies
//! the run ([`TrainerStateFile`]).
//!
//! Randomness and data order are counter-based (keyed by seed and purpose), so the state of "the RNG" at any step is a pair of
//! seeds, and the data cursor is one integer.

use super::guard::Guard;
use super::schedule::Schedule;
use crate::checkpoint::Opened;
use crate::config::Config;
use crate::data::order::DataHash;
use crate::metrics::LogDigests;
use crate::ops::product_algorithms::ProductAlgorithms;
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Layout of `trainer_state.json` written by this version; older ones are read.
pub const VERSION: u32 = 2;

/// The state of a run beside its tensors. The order of the fields is that of `trainer_state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps attempted, refused ones included.
    pub step: u64,
    pub tokens: u64,
    /// Global index of the next training sequence.
    pub next_sequence: u64,
    /// Hash of all token ids so far.
    #[serde(rename = "chain", with = "hex")]
    pub data_hash: DataHash,
    /// Updates applied: refused ones do not count.
    pub updates: u64,
    /// Which process of the run's history this is, from 1.
    pub attempt: u64,
    /// Learning rate of every step.
    pub schedule: Schedule,
    /// What the guard remembers of earlier steps. Not in version 1.
    #[serde(default)]
    pub guard: Guard,
    /// Where the data of the run were advanced past their order. Not in version 1.
    #[serde(default)]
    pub data_offsets: Vec<DataOffset>,
    /// Pieces of state given up on purpose at this very step, as `--reset` names them. Not in version 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset: Vec<String>,
}

/// A stretch of data that a rollback or a reset leaves out (or repeats): after `step`, the next sequence is `to` instead of `from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataOffset {
    /// The step after which the order was left.
    pub step: u64,
    /// The sequence that would have come.
    pub from: u64,
    pub to: u64,
}

/// `trainer_state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainerStateFile {
    pub version: u32,
    #[serde(flatten)]
    pub state: TrainerState,
    /// Keys of the counter-based random streams.
    pub rng: Seeds,
    /// Identifies the training and validation tokens.
    pub data_fingerprint: String,
    /// The resolved configuration, as TOML.
    pub config: String,
    pub build: serde_json::Value,
    /// The algorithms of matrix products that were chosen on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<ProductAlgorithms>,
    /// Identifies the frozen weights beside adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Length and hash of every log of the run when it was saved. Not in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "LogDigests::is_empty")]
    pub logs: LogDigests,
}

/// Every random draw of a run follows from these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds {
    pub train_seed: u64,
    pub data_seed: u64,
}

impl TrainerState {
    /// At step 0 of the first attempt.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            step: 0,
            tokens: 0,
            next_sequence: 0,
            data_hash: DataHash::default(),
            updates: 0,
            attempt: 1,
            schedule,
            guard: Guard::default(),
            data_offsets: Vec::new(),
            reset: Vec::new(),
        }
    }

    /// Continues the data with sequence `to` instead of the next one, and records that.
    pub fn jump_to_sequence(&mut self, to: u64) {
        self.data_offsets.push(DataOffset { step: self.step, from: self.next_sequence, to });
        self.next_sequence = to;
    }

    /// Skips `n` sequences of the data; returns the first skipped one and the one after the last.
    pub fn skip_sequences(&mut self, n: u64) -> [u64; 2] {
        let from = self.next_sequence;
        let to = from.saturating_add(n);
        self.jump_to_sequence(to);
        [from, to]
    }
}

impl TrainerStateFile {
    /// Reads that of a verified checkpoint.
    ///
    /// # Errors
    /// [`Exit::Data`] if it is not ours or of a newer version.
    pub fn read(source: &Opened) -> Result<Self> {
        let path = format!("{}/trainer_state.json", source.dir.display());
        let value = source.trainer_state()?;
        let version = value["version"].as_u64().unwrap_or(0);
        if version > u64::from(VERSION) {
            let message = format!("{path}: version {version}, this program knows up to {VERSION}");
            return Err(fail(Exit::Data, message).hint("use the version of llama-lite that wrote it").into());
        }
        let file = serde_json::from_value(value);
        Ok(file.map_err(|e| fail(Exit::Data, format!("{path}: {e}")).hint("use another checkpoint"))?)
    }

    /// The configuration that the checkpoint was made with.
    ///
    /// # Errors
    /// Those of the configuration.
    pub fn run_config(&self) -> Result<Config> {
        let mut config = Config::from_toml_str(&self.config, "the checkpoint's config")?;
        self.state.schedule.complete(&mut config.schedule);
        // Before there were lanes, a step was one.
        config.train.lanes.get_or_insert(1);
        Ok(config)
    }

    /// As `trainer_state.json` holds it, read back: a checkpoint that no resume could read must not take the place of one that can be
    /// read.
    ///
    /// # Errors
    /// [`Exit::Internal`] if it reads as something else.
    pub fn to_checked_json(&self) -> Result<serde_json::Value> {
        let value = serde_json::to_value(self)?;
        let reread = serde_json::from_str::<Self>(&value.to_string()).and_then(serde_json::to_value);
        let reason = match reread {
            Ok(reread) if reread == value => return Ok(value),
            Ok(_) => "it reads as another state".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(fail(
            Exit::Internal,
            format!("step {}: trainer_state.json could not be read again: {reason}", self.state.step),
        )
        .hint("nothing was saved; resume the last checkpoint")
        .into())
    }
}

/// A hash of the data as hex digits.
mod hex {
    use crate::data::order::DataHash;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &DataHash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DataHash, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|failure: crate::runtime::error::Failure| D::Error::custom(failure.message))
    }
}
