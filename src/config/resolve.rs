//! From entries to a complete configuration: refuse unknown keys, expand the preset, read, derive, check across keys.
//!
//! Every rule names the keys it speaks of and is skipped when one of them has no usable value, so that one mistake is
//! one message.

mod lanes;
mod model;
mod sft;

use super::choices::{Choice, NameOrPath, Preset, ScheduleKind, TokenizerName};
use super::field::Visitor;
use super::nearest::{nearest, nearest_key};
use super::problems::Problems;
use super::reader::KeyReader;
use super::reference;
use super::schema::{self, Config};
use super::source::{Entries, Raw};
use crate::runtime::error::Failure;

/// The configuration that `entries` describe; all of `problems` and of its own findings if there are any.
pub(super) fn resolve(mut entries: Entries, mut problems: Problems) -> Result<Config, Failure> {
    refuse_unknown(&entries, &mut problems);
    // Before any key is read, because what it stands for is read like other keys.
    expand_preset(&mut entries, &mut problems);
    // Keys first, rules after: a rule that joins several keys is silent where one of them is wrong by itself.
    let mut config = Config::visit(&mut KeyReader { entries: &entries, problems: &mut problems });
    let mut rules = Rules { entries: &entries, problems: &mut problems };
    rules.derive(&mut config);
    model::derive(&mut rules, &mut config);
    sft::derive(&mut rules, &mut config);
    model::rules(&mut rules, &config);
    rules.data(&config);
    rules.train(&config);
    rules.schedule(&config);
    rules.checkpoints_and_logs(&config);
    sft::rules(&mut rules, &config);
    problems.failure().map_or(Ok(config), Err)
}

fn refuse_unknown(entries: &Entries, problems: &mut Problems) {
    let groups = reference::groups();
    let sections: Vec<_> = groups.iter().map(|group| group.name).collect();
    let keys = reference::keys();
    for entry in entries.iter().filter(|entry| !keys.contains(&entry.key.as_str())) {
        let section = entry.key.split('.').next().unwrap_or_default();
        let Some(group) = groups.iter().find(|group| group.name == section) else {
            if problems.usable(&[section]) {
                let hint = match nearest(section, &sections) {
                    Some(name) => {
                        problems.mark_unusable(name);
                        format!("did you mean [{name}]?")
                    }
                    None => format!("the sections are {}", sections.join(", ")),
                };
                problems.add(&entry.origin, section, "unknown section", hint);
            }
            continue;
        };
        let hint = match nearest_key(&entry.key, &keys) {
            Some(key) => {
                problems.mark_unusable(key);
                format!("did you mean {key}?")
            }
            None => {
                let names: Vec<_> = group.rows.iter().filter_map(|row| row.key.split('.').nth(1)).collect();
                format!("the keys of [{section}] are {}", names.join(", "))
            }
        };
        problems.add(&entry.origin, &entry.key, "unknown key", hint);
    }
}

/// Gives the keys that a preset stands for, where the configuration does not give them itself.
fn expand_preset(entries: &mut Entries, problems: &mut Problems) {
    let preset = KeyReader { entries, problems }.field(schema::preset());
    let given = entries.take("model.preset").is_some();
    let Some(preset) = preset else {
        if given {
            // What the preset would have given is not missing.
            problems.mark_unusable("model");
        }
        return;
    };
    let [layers, heads, key_value_heads, hidden, ffn] = match preset {
        Preset::Llama124M => [12, 12, 12, 768, 3072],
        Preset::Llama978M => [36, 20, 4, 1280, 5120],
        Preset::Llama1700M => [36, 32, 8, 2048, 5120],
    };
    let shape = [
        ("model.hidden_size", hidden),
        ("model.intermediate_size", ffn),
        ("model.num_hidden_layers", layers),
        ("model.num_attention_heads", heads),
        ("model.num_key_value_heads", key_value_heads),
        ("model.head_dim", 64),
        // GPT-2's 50,257 ids, padded to a multiple of 128 that matrix products like.
        ("model.vocab_size", 50_304),
        ("model.max_position_embeddings", 1024),
    ];
    for (key, value) in shape {
        entries.supply(key, Raw::Integer(value), &format!("model.preset {:?}", preset.name()));
    }
}

/// What is wrong, and what to do about it.
type Broken = (String, String);

fn broken(what: impl Into<String>, hint: impl Into<String>) -> Broken {
    (what.into(), hint.into())
}

/// The remedy for a value that is neither a built-in name nor the path of a file.
fn path_hint<T: Choice>(value: &NameOrPath<T>) -> String {
    let name = value.as_str();
    let near = nearest(name, T::NAMES).map_or(String::new(), |near| format!("did you mean {near:?}? "));
    format!("{near}a file in the current directory is written \"./{name}\"")
}

/// Defaults and conditions that join several keys.
struct Rules<'a> {
    entries: &'a Entries,
    problems: &'a mut Problems,
}

impl Rules<'_> {
    /// Reports what `check` finds, under the first of the keys it speaks of.
    fn rule(&mut self, keys: &[&str], check: impl FnOnce() -> Option<Broken>) {
        if self.problems.usable(keys)
            && let Some((what, hint)) = check()
        {
            self.problems.add(self.entries.origin(keys[0]), keys[0], what, hint);
        }
    }

    /// Computes the value of `key` from others, unless it is given.
    fn default<T>(&mut self, key: &str, from: &[&str], target: &mut T, value: impl FnOnce() -> Result<T, Broken>) {
        if self.entries.get(key).is_some() {
            return;
        }
        if !self.problems.usable(from) {
            return self.problems.mark_unusable(key);
        }
        match value() {
            Ok(value) => *target = value,
            Err((what, hint)) => self.problems.add(self.entries.origin(from[0]), key, what, hint),
        }
    }

    fn derive(&mut self, config: &mut Config) {
        let model = &mut config.model;
        let train = &mut config.train;
        let hidden = model.hidden_size;
        let heads = model.num_attention_heads;
        let length = train.sequence_length;
        let batch = train.micro_batch_size;
        let steps = train.steps;
        let wsd = config.schedule.kind == ScheduleKind::Wsd;
        self.default("model.num_key_value_heads", &[HEADS], &mut model.num_key_value_heads, || Ok(heads));
        self.default("model.head_dim", &[HEADS, "model.hidden_size"], &mut model.head_dim, || {
            if hidden.is_multiple_of(heads) {
                return Ok(hidden / heads);
            }
            let what =
                format!("no default, because hidden_size {hidden} is not a multiple of num_attention_heads {heads}");
            Err(broken(what, "set model.head_dim, or change one of the two"))
        });
        self.default("model.max_position_embeddings", &[LENGTH], &mut model.max_position_embeddings, || Ok(length));
        self.default("train.tokens_per_step", &[BATCH, LENGTH], &mut train.tokens_per_step, || Ok(batch * length));
        let has_prompts = !config.sample.prompts.is_empty();
        let validation = config.eval.every;
        self.default("sample.every", &["sample.prompts", "eval.every", STEPS], &mut config.sample.every, || {
            // A run without validations in between has them at its start and its end; so it is with samples.
            let with_validations = if validation > 0 { validation } else { steps };
            Ok(if has_prompts { with_validations } else { 0 })
        });
        let schedule = &mut config.schedule;
        let length = steps.saturating_sub(schedule.start_step.unwrap_or(0));
        self.default("schedule.total_steps", &[STEPS, "schedule.kind"], &mut schedule.total_steps, || {
            Ok(wsd.then_some(length))
        });
        let total = schedule.total_steps.unwrap_or(length);
        self.default("schedule.decay_steps", &[STEPS, "schedule.kind"], &mut schedule.decay_steps, || {
            Ok(Some(if wsd { (total / 5).max(1) } else { steps }))
        });
    }

    fn data(&mut self, config: &Config) {
        let data = &config.data;
        self.rule(&["data.train", "data.source"], || match (data.source, data.train.is_empty()) {
            (None, true) => {
                Some(broken("missing: there is nothing to train on", "name files, or set data.source = \"stories\""))
            }
            (Some(source), false) => {
                let what = format!("given beside data.source {:?}, which brings its own text", source.name());
                Some(broken(what, "remove one of the two"))
            }
            _ => None,
        });
        self.rule(&["data.val", "data.source"], || {
            (data.source.is_some() && !data.val.is_empty()).then(|| {
                broken("given beside data.source, which brings its own validation text", "remove one of the two")
            })
        });
        for (key, paths) in [("data.train", &data.train), ("data.val", &data.val)] {
            self.rule(&[key], || {
                paths.iter().any(|path| path.trim().is_empty()).then(|| {
                    broken("holds an empty path", "remove it, or write the path of a file, a glob or a directory")
                })
            });
        }
        self.rule(&["data.weights", "data.train"], || {
            let weights = data.weights.len();
            let entries = data.train.len();
            (weights > 0 && weights != entries).then(|| {
                broken(
                    format!("has {weights} numbers for {entries} entries"),
                    "give each entry of data.train its share",
                )
            })
        });
        self.rule(&["data.text_separator"], || {
            let empty = data.text_separator.as_ref().is_some_and(String::is_empty);
            empty.then(|| broken("is empty", "remove it, or write the string between documents"))
        });
        self.rule(&["data.stories", "data.source"], || {
            (data.stories.is_some() && data.source.is_none()).then(|| {
                broken("has no effect without the built-in corpus", "set data.source = \"stories\" or remove it")
            })
        });
        self.rule(&["data.text_field"], || {
            data.text_field
                .is_empty()
                .then(|| broken("is empty", "name the field that holds the text, such as \"text\""))
        });
        self.tokenizer(config);
    }

    fn tokenizer(&mut self, config: &Config) {
        let tokenizer = &config.data.tokenizer;
        let vocab = config.model.vocab_size;
        self.rule(&["data.tokenizer"], || {
            tokenizer.is_unknown_name().then(|| {
                let name = tokenizer.as_str();
                let what = format!("{name:?} is neither \"gpt2\" nor \"train\" nor the path of a tokenizer.json");
                broken(what, path_hint(tokenizer))
            })
        });
        let NameOrPath::Name(built_in) = *tokenizer else { return };
        let (least, because, hint) = match built_in {
            TokenizerName::Gpt2 => {
                (50_257, "GPT-2's tokenizer has 50,257 ids", "set it to 50304, or data.tokenizer = \"train\"")
            }
            TokenizerName::Train => (257, "256 bytes and the end of text need an id each", "set it to 512 or more"),
        };
        self.rule(&["model.vocab_size", "data.tokenizer"], || {
            (vocab < least).then(|| broken(format!("{vocab} is less than {least}: {because}"), hint))
        });
    }

    fn train(&mut self, config: &Config) {
        let train = &config.train;
        let pass = train.micro_batch_size * train.sequence_length;
        self.rule(&["train.tokens_per_step", BATCH, LENGTH], || {
            (!train.tokens_per_step.is_multiple_of(pass)).then(|| {
                let tokens = train.tokens_per_step;
                let what = format!("{tokens} is not a multiple of micro_batch_size x sequence_length = {pass}");
                let below = tokens / pass * pass;
                let near =
                    if below == 0 { format!("{pass}") } else { format!("{below} or {}", below.saturating_add(pass)) };
                broken(what, format!("set it to {near}, or change micro_batch_size"))
            })
        });
        lanes::rules(self, config);
        self.rule(&[STEPS, "train.tokens_per_step"], || {
            let total = train.steps.checked_mul(train.tokens_per_step as u64);
            let countable = total.is_some_and(|tokens| i64::try_from(tokens).is_ok());
            (!countable).then(|| {
                broken(
                    "train.steps x train.tokens_per_step is more tokens than 63 bits can count",
                    "choose fewer steps",
                )
            })
        });
    }

    fn schedule(&mut self, config: &Config) {
        let schedule = &config.schedule;
        let steps = config.train.steps;
        let warmup = schedule.warmup_steps;
        let decay = schedule.decay_steps.unwrap_or(steps);
        let total = schedule.total_steps.unwrap_or(steps);
        let total_key = if self.entries.get("schedule.total_steps").is_some() { "schedule.total_steps" } else { STEPS };
        let keys = ["schedule.warmup_steps", "schedule.decay_steps", "schedule.kind", total_key];
        self.rule(&keys, || match schedule.kind {
            ScheduleKind::Cosine | ScheduleKind::Linear => (warmup >= decay).then(|| {
                let what =
                    format!("{warmup} leaves nothing of schedule.decay_steps {decay}, which counts the warm-up in");
                broken(what, "choose a shorter warm-up or a longer decay")
            }),
            ScheduleKind::Wsd => warmup.checked_add(decay).is_none_or(|sum| sum > total).then(|| {
                let what = format!(
                    "{warmup} and the tail of schedule.decay_steps {decay} do not fit into {total_key} {total}"
                );
                broken(what, "choose a shorter warm-up or tail, or more steps")
            }),
            ScheduleKind::Constant => None,
        });
        self.rule(&["schedule.total_steps", "schedule.kind"], || {
            (schedule.total_steps.is_some() && schedule.kind != ScheduleKind::Wsd).then(|| {
                broken(
                    "has no effect: only \"wsd\" has a tail that ends there",
                    "remove it, or set schedule.decay_steps",
                )
            })
        });
        self.rule(&["schedule.min_lr", "optimizer.lr"], || {
            let least = schedule.min_lr;
            let peak = config.optimizer.lr;
            (least > peak).then(|| {
                let what = format!("{least:?} is more than optimizer.lr {peak:?}");
                broken(what, "the schedule goes down from optimizer.lr to schedule.min_lr: choose a lower one")
            })
        });
    }

    /// Rules of checkpoints, evaluation, samples and logging.
    fn checkpoints_and_logs(&mut self, config: &Config) {
        let every = config.checkpoint.every;
        let keep_every = config.checkpoint.keep_every;
        self.rule(&["checkpoint.keep_every", "checkpoint.every"], || {
            let is_multiple = keep_every == 0 || (every != 0 && keep_every.is_multiple_of(every));
            (!is_multiple).then(|| {
                let what = format!(
                    "{keep_every} is not a multiple of checkpoint.every {every}, so most of its steps are never saved"
                );
                broken(what, "set it to 0 or to a multiple of checkpoint.every")
            })
        });
        self.rule(&["eval.tasks", "eval.data_dir"], || {
            (!config.eval.tasks.is_empty() && config.eval.data_dir.is_none()).then(|| {
                broken(
                    "missing: eval.data_dir, where the data of the tasks are",
                    "a run does not use the network: see eval --help",
                )
            })
        });
        let tasks_every = config.eval.tasks_every;
        let validation = config.eval.every;
        self.rule(&["eval.tasks_every", "eval.every"], || {
            (tasks_every > 0 && (validation == 0 || !tasks_every.is_multiple_of(validation))).then(|| {
                broken(
                    format!(
                        "{tasks_every} is not a multiple of eval.every {validation}, and tasks come with a validation"
                    ),
                    "set it to 0 or to a multiple of eval.every",
                )
            })
        });
        self.rule(&["sample.prompts", "sample.every"], || {
            (config.sample.every > 0 && config.sample.prompts.is_empty()).then(|| {
                let what =
                    format!("missing: sample.every is {}, but there is no text to continue", config.sample.every);
                broken(what, "write for example prompts = [\"Once upon a time\"]; \"\" starts from nothing")
            })
        });
    }
}

const HEADS: &str = "model.num_attention_heads";
const LENGTH: &str = "train.sequence_length";
const BATCH: &str = "train.micro_batch_size";
const STEPS: &str = "train.steps";
