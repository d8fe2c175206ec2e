//! How an interrupted run is resumed: `prepare.json` says what the output directory is made from, `prepare.state` how far
//! the work has come.
//!
//! The state is written atomically, after everything it counts is durable. A run starts from it as if it had never been
//! interrupted; what the files hold beyond the counts is cut off.

use std::path::Path;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::corpus::batches::CorpusPosition;
use crate::corpus::options::{Encode, InputFile, Inputs, PrepareOptions};
use crate::corpus::shards::PREPARE_FILE;
use crate::corpus::shards::manifest::{LineCounts, Recipe, SourceCounts};
use crate::corpus::split::SplitRule;
use crate::corpus::writer::Written;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Name of the state in the output directory. It is removed when the output is finished.
pub(super) const STATE_FILE: &str = "prepare.state";

/// Changed with the meaning of either file.
const FORMAT: u32 = 1;

/// Both files are small but for the hashes of blocks.
const MAX_BYTES: u64 = 512 << 20;

/// Everything that decides the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    format: u32,
    recipe: Recipe,
    tokenizer: String,
    inputs: Vec<InputFile>,
}

pub(super) struct Difference {
    pub(super) what: String,
    /// The options are the same.
    pub(super) inputs_only: bool,
}

impl Identity {
    pub(super) fn new(opts: &PrepareOptions, inputs: &Inputs, tok: &dyn Encode) -> Self {
        Self { format: FORMAT, recipe: opts.recipe(), tokenizer: tok.fingerprint(), inputs: inputs.list.to_vec() }
    }

    /// The first difference because of which a run of `now` cannot resume the output of `self`.
    pub(super) fn difference(&self, now: &Self) -> Result<Option<Difference>> {
        // Options first: with others the output is another one, while an input may only have been repaired.
        if let Some(what) = self.other_options(now)? {
            return Ok(Some(Difference { what, inputs_only: false }));
        }
        let what = match self.inputs.iter().zip(&now.inputs).find(|(then, now)| then != now) {
            Some((then, now)) if then.name == now.name => format!("{} has changed", now.name),
            _ if self.inputs.len() != now.inputs.len() => {
                format!("there were {} input files, now {}", self.inputs.len(), now.inputs.len())
            }
            Some((then, now)) => format!("the input file {} has taken the place of {}", now.name, then.name),
            None => return Ok(None),
        };
        Ok(Some(Difference { what, inputs_only: true }))
    }

    fn other_options(&self, now: &Self) -> Result<Option<String>> {
        if self.tokenizer != now.tokenizer {
            return Ok(Some("the tokenizer is another one".into()));
        }
        let then = serde_json::to_value(&self.recipe)?;
        let now = serde_json::to_value(&now.recipe)?;
        let fields = then.as_object().into_iter().flatten();
        // How many bad records are accepted does not change what the good ones give.
        let changed = fields.into_iter().find(|(name, then)| *name != "allow_bad" && **then != now[name.as_str()]);
        Ok(changed.map(|(name, then)| format!("{name} was {then}, now {}", now[name])))
    }

    /// Records `self` as what the output in `dir` is made from.
    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        files::write_atomic(&dir.join(PREPARE_FILE), &bytes)
    }

    pub(super) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(PREPARE_FILE);
        parse(&files::read_bounded(&path, MAX_BYTES, false)?, &path, dir)
    }
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    format: u32,
    /// The run ended because of bad input, and starts anew if the input changes.
    pub(super) stopped: bool,
    /// Where the next record is.
    pub(super) place: CorpusPosition,
    /// Bytes of the input files read.
    pub(super) bytes_read: u64,
    /// Bytes of text of the documents used.
    pub(super) text_bytes: u64,
    /// Divides the text between the splits.
    pub(super) rule: SplitRule,
    pub(super) lines: LineCounts,
    pub(super) sources: Vec<SourceCounts>,
    pub(super) train: Written,
    pub(super) val: Written,
    /// Texts in the log of hashes.
    pub(super) hashes: u64,
    /// Bytes of the quarantine file.
    pub(super) quarantine: u64,
}

impl State {
    pub(super) fn new(inputs: &Inputs, rule: SplitRule) -> Self {
        let sources = inputs.list.iter().map(|input| SourceCounts {
            path: input.name.clone(),
            bytes: input.bytes,
            ..SourceCounts::default()
        });
        Self {
            format: FORMAT,
            stopped: false,
            place: CorpusPosition::default(),
            bytes_read: 0,
            text_bytes: 0,
            rule,
            lines: LineCounts::default(),
            sources: sources.collect(),
            train: Written::default(),
            val: Written::default(),
            hashes: 0,
            quarantine: 0,
        }
    }

    /// Writes JSON, then its hash on a line of its own: from a damaged state a run would quietly make a wrong output.
    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec(self)?;
        let hash = blake3::hash(&bytes).to_hex();
        bytes.extend_from_slice(format!("\n{hash}\n").as_bytes());
        files::write_atomic(&dir.join(STATE_FILE), &bytes)
    }

    /// The state of the unfinished output in `dir`, if there is one.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(STATE_FILE);
        if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let bytes = files::read_bounded(&path, MAX_BYTES, false)?;
        let json = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
        if bytes[json.len()..] != *format!("\n{}\n", blake3::hash(json).to_hex()).as_bytes() {
            return Err(unusable(&path, dir, "is damaged"));
        }
        let state: Self = parse(json, &path, dir)?;
        if state.format != FORMAT || state.place.file > state.sources.len() {
            return Err(unusable(&path, dir, "is of another version of this program"));
        }
        Ok(Some(state))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path, dir: &Path) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| unusable(path, dir, &format!("cannot be used: {e}")))
}

fn unusable(path: &Path, dir: &Path, what: &str) -> anyhow::Error {
    let hint = format!("to start again, delete {}", dir.join(STATE_FILE).display());
    fail(Exit::Data, format!("{}: {what}", path.display())).hint(hint).into()
}
