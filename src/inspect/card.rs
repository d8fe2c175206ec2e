//! The card of an exported model: README.md with the metadata that the Hub reads, and the curves of its run as a picture.
//!
//! | file | holds |
//! |---|---|
//! | `facts.rs` | what the model, its checkpoint and the logs of its run tell |
//! | `metadata.rs` | the head, YAML |
//! | `markdown.rs` | text from elsewhere as Markdown |
//! | `curve.rs` | the picture |
//!
//! What is not known has no section. Nothing of the machine's name or of paths goes into a card, which is made to be published.

mod curve;
mod facts;
mod markdown;
mod metadata;
#[cfg(test)]
mod tests;

pub use facts::Facts;

use crate::checkpoint::{Certificate, TextFile};
use crate::metrics::{duration, fixed, thousands};
use crate::runtime::format::shortened;
use crate::runtime::shell::quoted;
use markdown::{fenced, inline, table};
use std::path::Path;
use std::time::Duration;

/// The picture's name beside the card.
const PICTURE: &str = "loss.svg";

/// Samples shown, and the most characters of each.
const SAMPLES: usize = 3;
const SAMPLE_LENGTH: usize = 800;

/// Keys of the configuration that make the recipe, with what they are called.
const RECIPE: [(&str, &str); 19] = [
    ("train.tokens_per_step", "tokens per step"),
    ("train.sequence_length", "sequence length"),
    ("optimizer.kind", "optimizer"),
    ("optimizer.lr", "learning rate"),
    ("schedule.kind", "schedule"),
    ("schedule.warmup_steps", "warm-up steps"),
    ("schedule.decay_steps", "decay until step"),
    ("schedule.min_lr", "final learning rate"),
    ("optimizer.betas", "betas"),
    ("optimizer.weight_decay", "weight decay"),
    ("optimizer.grad_clip", "gradient clipping"),
    ("train.seed", "seed"),
    ("lora.rank", "LoRA rank"),
    ("lora.alpha", "LoRA alpha"),
    ("lora.dropout", "LoRA dropout"),
    ("lora.targets", "LoRA on"),
    ("sft.epochs", "epochs"),
    ("sft.train_on", "trained on"),
    ("sft.neftune_alpha", "NEFTune alpha"),
];

/// The files of a card: README.md and, if there are losses, their picture.
pub fn card(facts: &Facts, certificate: &Certificate) -> Vec<TextFile> {
    let picture = picture(facts);
    let mut text = metadata::metadata(facts);
    text += &format!("\n# {}\n\n{}\n", inline(&facts.name), introduction(facts));
    text += &section("Model", &table(&["", ""], &model_rows(facts, certificate)));
    text += &section("Training", &training(facts, picture.is_some()));
    text += &section("Evaluation", &evaluation(facts));
    text += &section("Samples", &samples(facts));
    text += &section("How to use it", &usage(facts));
    text += &section("Weights", &format!("{}.\n", inline(&capitalized(&certificate.to_string()))));
    let mut files = vec![("README.md", text)];
    files.extend(picture.map(|picture| (PICTURE, picture)));
    files
}

/// A section; nothing where it has no body.
fn section(title: &str, body: &str) -> String {
    if body.is_empty() { String::new() } else { format!("\n## {title}\n\n{body}") }
}

fn introduction(facts: &Facts) -> String {
    let parameters = thousands(facts.model.n_params());
    let how = match (&facts.base_on_hub, &facts.base_here) {
        (Some(base), _) => format!("{} from {}", verb(facts), inline(base)),
        (None, Some(base)) => format!("{} from the model {}", verb(facts), inline(base)),
        (None, None) if facts.run.is_some() => "pretrained from scratch".to_owned(),
        (None, None) => "exported".to_owned(),
    };
    let merged = if facts.merged { "; LoRA adapters are merged into its weights" } else { "" };
    let program = format!("[llama-lite]({})", env!("CARGO_PKG_REPOSITORY"));
    format!("A language model of {parameters} parameters, {how} with {program} {}{merged}.", inline(crate::VERSION))
}

fn verb(facts: &Facts) -> &'static str {
    if facts.is_tuned() { "fine-tuned" } else { "trained further" }
}

fn row(name: &str, value: impl ToString) -> Vec<String> {
    vec![name.to_owned(), value.to_string()]
}

fn model_rows(facts: &Facts, certificate: &Certificate) -> Vec<Vec<String>> {
    let model = &facts.model;
    let heads = format!("{} ({} for keys and values)", model.num_attention_heads, model.num_key_value_heads);
    vec![
        row("architecture", model.architecture.class_name()),
        row("parameters", thousands(model.n_params())),
        row("layers", model.num_hidden_layers),
        row("hidden size", model.hidden_size),
        row("feed-forward size", model.intermediate_size),
        row("attention heads", heads),
        row("context", format!("{} tokens", thousands(model.max_position_embeddings as u64))),
        row("vocabulary", thousands(model.vocab_size as u64)),
        row("embeddings", if model.tie_word_embeddings { "tied to the head" } else { "not tied" }),
        row("weights", certificate.dtype.torch_name()),
    ]
}

/// How it was trained, with the curves; nothing without a run.
fn training(facts: &Facts, has_picture: bool) -> String {
    let Some(run) = &facts.run else { return String::new() };
    let mut rows = vec![row("steps", thousands(facts.step.unwrap_or(run.step)))];
    rows.extend(run.train.tokens.last().map(|&tokens| row("tokens", thousands(tokens))));
    rows.extend(data(facts).map(|data| row("data", data)));
    let recipe = RECIPE.iter().filter_map(|(key, name)| Some(row(name, inline(&facts.key(key)?))));
    rows.extend(recipe);
    rows.extend(hardware(facts).map(|hardware| row("hardware", hardware)));
    rows.extend(run.build.get("dtype").and_then(|dtype| dtype.as_str()).map(|dtype| row("precision", inline(dtype))));
    let seconds: f64 = run.spent.values().sum();
    if seconds > 0.0 && facts.step == Some(run.step) {
        rows.push(row("time", duration(Duration::from_secs_f64(seconds))));
    }
    rows.extend(run.train.smooth.last().map(|&loss| row("final training loss (smoothed)", fixed(loss, 4))));
    let picture = if has_picture { format!("\n![Loss curves]({PICTURE})\n") } else { String::new() };
    table(&["", ""], &rows) + &picture
}

fn data(facts: &Facts) -> Option<String> {
    if !facts.datasets.is_empty() {
        return Some(inline(&facts.datasets.join(", ")));
    }
    (facts.key("data.source")? == "stories").then(|| "stories that llama-lite writes itself".to_owned())
}

/// What it was computed on. Not the name of the machine: a card is read by strangers.
fn hardware(facts: &Facts) -> Option<String> {
    let build = &facts.run.as_ref()?.build;
    let text = |key: &str| build.get(key).and_then(|value| value.as_str());
    let count = |key: &str| build.get(key).and_then(serde_json::Value::as_u64);
    let ranks = count("ranks").filter(|&ranks| ranks > 1).map_or_else(String::new, |ranks| format!("{ranks} x "));
    let device = match (text("gpu"), text("cpu"), count("threads")) {
        (Some(gpu), ..) => gpu.to_owned(),
        (None, Some(cpu), Some(threads)) => format!("{cpu}, {threads} threads"),
        (None, cpu, _) => cpu?.to_owned(),
    };
    Some(inline(&format!("{ranks}{device}")))
}

fn picture(facts: &Facts) -> Option<String> {
    let run = facts.run.as_ref()?;
    let train: Vec<(f64, f64)> =
        run.train.step.iter().map(|&step| step as f64).zip(run.train.smooth.iter().copied()).collect();
    let val: Vec<(f64, f64)> = run.val.iter().map(|point| (point.record.step as f64, point.record.loss)).collect();
    curve::loss_curves(&train, &val)
}

fn evaluation(facts: &Facts) -> String {
    let mut rows = Vec::new();
    if let Some(val) = facts.last_validation() {
        rows.push(vec!["validation data".to_owned(), "loss, nats per token".to_owned(), fixed(val.loss, 4)]);
        if val.bits_per_byte.is_finite() {
            rows.push(vec!["validation data".to_owned(), "bits per byte".to_owned(), fixed(val.bits_per_byte, 4)]);
        }
    }
    for score in facts.scores() {
        let error = if score.stderr.is_finite() { format!(" ± {:.4}", score.stderr) } else { String::new() };
        rows.push(vec![inline(&score.task), inline(&score.metric), format!("{}{error}", fixed(score.value, 4))]);
    }
    if rows.is_empty() { String::new() } else { table(&["on", "metric", "value"], &rows) }
}

fn samples(facts: &Facts) -> String {
    let shown = facts.samples().into_iter().take(SAMPLES).map(|sample| {
        let text = format!("{}{}", sample.prompt, sample.text);
        fenced("text", &shortened(&text, SAMPLE_LENGTH))
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// How to load it. The directory's name stands for wherever it is.
fn usage(facts: &Facts) -> String {
    let place = format!("./{}", facts.name);
    // A string of JSON is one of Python.
    let literal = serde_json::Value::from(place.as_str()).to_string();
    let python = format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         path = {literal}  # or OWNER/NAME on the Hub\n\
         tokenizer = AutoTokenizer.from_pretrained(path)\n\
         lm = AutoModelForCausalLM.from_pretrained(path)\n\
         inputs = tokenizer(\"Once\", return_tensors=\"pt\")\n\
         print(tokenizer.decode(lm.generate(**inputs, max_new_tokens=40)[0]))"
    );
    let here = quoted(Path::new(&place));
    let shell = match facts.is_chat {
        true => format!("llama-lite sample --ckpt {here} --chat   # or hub:OWNER/NAME"),
        false => format!("llama-lite sample --ckpt {here} --prompt 'Once'   # or hub:OWNER/NAME"),
    };
    format!("{}\n{}", fenced("python", &python), fenced("sh", &shell))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
