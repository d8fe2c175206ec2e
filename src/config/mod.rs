//! Configuration: a TOML or JSON file and `--set` become one complete, checked [`Config`].
//!
//! The way of a value: `source` (text to entries) -> `resolve` (unknown keys, preset, `field::Reader` over `schema`,
//! derived defaults, rules across keys) -> [`Config`]. Everything wrong is collected on the way and reported at once,
//! with exit code 78. A resolved configuration has no open choices left: its TOML loads back to an equal one.

mod field;
mod nearest;
mod problems;
mod reference;
mod resolve;
mod schema;
mod size;
mod source;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

pub use reference::{reference, reference_text};
pub use schema::{
    CheckpointConfig, Config, DataConfig, EvalConfig, GuardConfig, LogConfig, ModelConfig, OptimizerConfig,
    SampleConfig, ScheduleConfig, TrainConfig,
};

use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use problems::Problems;
use source::{Entries, Format};

/// A configuration is text written by people.
const MAX_BYTES: u64 = 1 << 20;

/// A key that [`Config::apply`] changed, with its values as TOML (`none` where there is none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: &'static str,
    /// The value before.
    pub old: String,
    /// The value now.
    pub new: String,
}

impl Config {
    /// Loads a `.toml` or `.json` file and applies `sets` (`section.key=value`, later ones over earlier ones) to it.
    ///
    /// # Errors
    /// [`Exit::Io`] if the file cannot be read, [`Exit::Data`] if it is too large to be a configuration, else [`Exit::Config`]
    /// with one line for each problem.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        let file = path.display().to_string();
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Format::Toml,
            Some("json") => Format::Json,
            _ => {
                let failure = fail(Exit::Config, format!("{file}: not a configuration file by its name"));
                return Err(failure.hint("it must end in .toml or .json").into());
            }
        };
        let bytes = read_bounded(path, MAX_BYTES, true)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            fail(Exit::Config, format!("{file}: not UTF-8 text (byte {at})")).hint("save the file as UTF-8")
        })?;
        Self::read(&text, &file, format, sets)
    }

    /// The configuration that TOML text describes; `name` stands for its file in messages.
    ///
    /// # Errors
    /// [`Exit::Config`] with one line for each problem.
    pub fn from_toml_str(text: &str, name: &str) -> Result<Self> {
        Self::read(text, name, Format::Toml, &[])
    }

    fn read(text: &str, file: &str, format: Format, sets: &[String]) -> Result<Self> {
        let mut problems = Problems::default();
        let mut entries = Entries::parse(text, file, format, &mut problems);
        for set in sets {
            entries.set(set, &mut problems);
        }
        // Of a text that cannot be read nothing is known: every key would seem to be missing.
        if let (false, Some(failure)) = (problems.readable(), problems.failure()) {
            return Err(failure.into());
        }
        Ok(resolve::resolve(entries, problems)?)
    }

    /// Every key with its value, as TOML that loads back to an equal configuration.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut current = "";
        self.write(&mut |key, value| {
            let (section, name) = key.split_once('.').unwrap_or(("", key));
            if section != current {
                let gap = if current.is_empty() { "" } else { "\n" };
                out.push_str(&format!("{gap}[{section}]\n"));
                current = section;
            }
            if let Some(value) = value {
                out.push_str(&format!("{name} = {value}\n"));
            }
        });
        out
    }

    /// Applies `sets` to a resolved configuration and says which keys changed. What was derived when the run began
    /// (such as `schedule.decay_steps`) stays as it is unless it is set itself. On an error nothing changes.
    ///
    /// # Errors
    /// [`Exit::Config`] with one line for each problem.
    pub fn apply(&mut self, sets: &[String]) -> Result<Vec<Change>> {
        let mut problems = Problems::default();
        let name = "the run's config.toml";
        let mut entries = Entries::parse(&self.to_toml(), name, Format::Toml, &mut problems);
        for set in sets {
            entries.set(set, &mut problems);
        }
        if let Some(preset) = entries.take("model.preset") {
            let hint = "set the keys of [model] one by one";
            problems.add(preset.origin, &preset.key, "a preset has no effect on a resolved configuration", hint);
        }
        let changed = resolve::resolve(entries, problems)?;
        let changes = changes(self, &changed);
        *self = changed;
        Ok(changes)
    }
}

/// The keys in which two configurations differ.
fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut before = Vec::new();
    old.write(&mut |_, value| before.push(value));
    let mut before = before.into_iter();
    let mut changes = Vec::new();
    let words = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    new.write(&mut |key, value| {
        let was = before.next().flatten();
        if was != value {
            changes.push(Change { key, old: words(was), new: words(value) });
        }
    });
    changes
}

/// What `--print-config` prints: the resolved configuration as TOML, then the model's size and FLOPs as comments.
pub fn print_config(config: &Config) -> String {
    let model = &config.model;
    let tokens = config.train.steps * config.train.tokens_per_step as u64;
    format!(
        "{}\n# parameters: {}\n# flops_per_token: {}\n# tokens: {}\n",
        config.to_toml(),
        grouped(model.n_params()),
        grouped(model.flops_per_token(config.train.sequence_length)),
        grouped(tokens),
    )
}

/// A count with a comma between groups of three digits.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
