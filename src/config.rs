//! Configuration: a TOML or JSON file and `--set` become one complete, checked [`Config`].
//!
//! The path of a value: `source` (text to entries) -> `resolve` (unknown keys, preset, `reader` over `schema`,
//! derived defaults, rules across keys) -> [`Config`]. Everything wrong is collected on the way and reported at once,
//! with exit code 78. A resolved configuration has no open choices left: its TOML loads back to an equal one.

mod architecture;
mod choices;
mod field;
mod nearest;
mod problems;
mod reader;
mod record_shapes;
mod reference;
mod renamed;
mod resolve;
mod rope_scaling;
mod schema;
mod shapes;
mod size;
mod source;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

pub use choices::{
    Architecture, BuiltinCorpus, Choice, DiskFullPolicy, LoraTarget, MomentsDtype, NameOrPath, OptimizerKind,
    PrecisionSetting, Preset, RecomputeSetting, RecordFormat, Role, RopeType, ScheduleKind, SpikePolicy, TemplateName,
    TokenizerName, TrainOn,
};
pub use record_shapes::{Meaning, plain_role, record_shapes_text, usual_role};
pub use reference::{reference, reference_text};
pub use renamed::{current_key, silence_renamed_keys};
pub use rope_scaling::{Llama3Scaling, RopeScaling, YarnScaling};
pub use schema::{
    CheckpointConfig, Config, DataConfig, EvalConfig, GuardConfig, LogConfig, LoraConfig, ModelConfig, OptimizerConfig,
    SampleConfig, ScheduleConfig, SftConfig, TrainConfig,
};
pub use shapes::{CLASSES, Init, Parameter, ParameterRole, Product};

use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use crate::runtime::format::thousands;
use field::Section;
use problems::Problems;
use source::{ConfigFormat, Entries, Raw};

/// A configuration is text written by people.
const MAX_BYTES: u64 = 1 << 20;

/// A key that [`Config::apply`] changed, with its values as TOML (`none` where there is none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: &'static str,
    pub old: String,
    pub new: String,
}

impl Config {
    /// Loads a `.toml` or `.json` file and applies `sets` (`section.key=value`, later ones over earlier ones) to it.
    ///
    /// # Errors
    /// [`Exit::Io`] if the file cannot be read, [`Exit::Data`] if it is too large to be a configuration, else [`Exit::Config`]
    /// with one line for each problem.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        Self::load_with(path, sets, &[])
    }

    /// [`load`](Self::load) for a run that starts from a model's weights: its tokenizer, in `tokenizer`, is the default.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_for_model(path: &Path, sets: &[String], tokenizer: &Path) -> Result<Self> {
        let tokenizer = Raw::String(tokenizer.to_string_lossy().into_owned());
        Self::load_with(path, sets, &[("data.tokenizer", tokenizer, "--init-from")])
    }

    /// [`load`](Self::load) for fine-tuning, whose model and data come from the command line.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_sft(path: &Path, sets: &[String], given: &SftInputs) -> Result<Self> {
        Self::load_with(path, sets, &given.entries())
    }

    fn load_with(path: &Path, sets: &[String], supplied: &[Supplied]) -> Result<Self> {
        let (text, format) = text_of(path)?;
        let mut problems = Problems::default();
        let entries = Entries::parse(&text, &path.display().to_string(), format, &mut problems);
        entries.note_renamed_keys();
        Self::complete(entries, sets, supplied, problems)
    }

    /// The configuration that TOML text describes; `name` stands for its file in messages.
    ///
    /// # Errors
    /// [`Exit::Config`] with one line for each problem.
    pub fn from_toml_str(text: &str, name: &str) -> Result<Self> {
        let mut problems = Problems::default();
        let entries = Entries::parse(text, name, ConfigFormat::Toml, &mut problems);
        Self::complete(entries, &[], &[], problems)
    }

    /// The configuration of a file: `sets` override its `entries`, and `supplied` fills what neither gives.
    fn complete(mut entries: Entries, sets: &[String], supplied: &[Supplied], mut problems: Problems) -> Result<Self> {
        apply_sets(&mut entries, sets, &mut problems);
        for (key, value, origin) in supplied {
            entries.supply(key, value.clone(), origin);
        }
        // If the text cannot be parsed, every key would be reported as missing.
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

    /// [`to_toml`](Self::to_toml), read back: what is stored can be loaded again and is this configuration.
    ///
    /// # Errors
    /// [`Exit::Internal`] if it is not.
    pub fn to_checked_toml(&self) -> Result<String> {
        let text = self.to_toml();
        let why = match Self::from_toml_str(&text, "config.toml") {
            Ok(back) if back == *self => return Ok(text),
            Ok(back) => {
                self.differences(&back).iter().map(|c| format!("{} = {} reads as {}", c.key, c.old, c.new)).collect()
            }
            Err(error) => vec![format!("{error:#}")],
        };
        let message = format!("the configuration could not be read again if it were saved: {}", why.join("; "));
        Err(fail(Exit::Internal, message).hint("nothing was written; set the keys named here to other values").into())
    }

    /// The keys in which `new` differs.
    pub fn differences(&self, new: &Self) -> Vec<Change> {
        changes(self, new)
    }

    /// Applies `sets` to a resolved configuration and returns the keys that changed. What was derived when the run started
    /// (such as `schedule.decay_steps`) stays as it is unless it is set itself. On an error nothing changes.
    ///
    /// # Errors
    /// [`Exit::Config`] with one line for each problem.
    pub fn apply(&mut self, sets: &[String]) -> Result<Vec<Change>> {
        let mut problems = Problems::default();
        let name = "the run's config.toml";
        let mut entries = Entries::parse(&self.to_toml(), name, ConfigFormat::Toml, &mut problems);
        apply_sets(&mut entries, sets, &mut problems);
        if let Some(preset) = entries.take("model.preset") {
            let hint = "set the keys of [model] one by one";
            problems.add(preset.origin, &preset.key, "a preset has no effect on a resolved configuration", hint);
        }
        entries.forget_derived_lengths(self.schedule.kind);
        let changed = resolve::resolve(entries, problems)?;
        let changes = changes(self, &changed);
        *self = changed;
        Ok(changes)
    }
}

/// A key that the command line gives: name, value, where it comes from.
type Supplied = (&'static str, Raw, &'static str);

/// What the command line of `sft` gives, from which keys of the configuration follow.
#[derive(Clone, Debug)]
pub struct SftInputs<'a> {
    /// `--ckpt`: the directory of the model.
    pub base: &'a Path,
    pub model: &'a ModelConfig,
    /// `--data`.
    pub data: &'a [String],
    /// How many steps the data give; none before they are read.
    pub steps: Option<u64>,
}

/// The largest `train.sequence_length`; models may declare more.
const LONGEST_ROW: usize = 16_777_216;

impl SftInputs<'_> {
    fn entries(&self) -> Vec<Supplied> {
        let m = self.model;
        let ckpt = "--ckpt";
        let steps = self.steps.map_or(UNKNOWN_STEPS, |steps| i64::try_from(steps).unwrap_or(i64::MAX));
        let base = Raw::String(self.base.to_string_lossy().into_owned());
        let data = Raw::List(self.data.iter().cloned().map(Raw::String).collect());
        let mut entries = Vec::new();
        m.write(&mut |key, value| entries.extend(value.map(|text| (key, Raw::from_text(&text), ckpt))));
        entries.extend([
            ("train.sequence_length", integer(m.max_position_embeddings.min(LONGEST_ROW)), ckpt),
            ("train.steps", Raw::Integer(steps), "--data"),
            ("data.train", data, "--data"),
            ("data.tokenizer", base.clone(), ckpt),
            ("sft.base", base, ckpt),
        ]);
        entries
    }
}

fn integer(n: usize) -> Raw {
    Raw::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

/// Stands for a number of steps that follows from data that are not read yet; more than any run has.
const UNKNOWN_STEPS: i64 = 1 << 30;

/// Applies `--set` arguments, later ones over earlier ones.
fn apply_sets(entries: &mut Entries, sets: &[String], problems: &mut Problems) {
    let tables = reference::tables();
    for set in sets {
        entries.set(set, &tables, problems);
    }
}

/// Text and language of a configuration file.
fn text_of(path: &Path) -> Result<(String, ConfigFormat)> {
    let file = path.display();
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => ConfigFormat::Toml,
        Some("json") => ConfigFormat::Json,
        _ => {
            let failure = fail(Exit::Config, format!("{file}: not a configuration file by its name"));
            return Err(failure.hint("it must end in .toml or .json").into());
        }
    };
    let text = String::from_utf8(read_bounded(path, MAX_BYTES, true)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        fail(Exit::Config, format!("{file}: not UTF-8 text (byte {at})")).hint("save the file as UTF-8")
    })?;
    Ok((text, format))
}

/// The keys in which two configurations differ.
fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut before = Vec::new();
    old.write(&mut |_, value| before.push(value));
    let mut before = before.into_iter();
    let mut changes = Vec::new();
    new.write(&mut |key, value| {
        let was = before.next().flatten();
        if was != value {
            let [old, new] = [was, value].map(|value| value.unwrap_or_else(|| "none".to_owned()));
            changes.push(Change { key, old, new });
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
        thousands(model.n_params()),
        thousands(model.flops_per_token(config.train.sequence_length)),
        thousands(tokens),
    )
}
