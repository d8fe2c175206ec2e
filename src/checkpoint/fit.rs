//! Whether the weights of a directory are those that its configuration describes, and if not, what was probably done to them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::hf::{EMBED, LM_HEAD};
use super::names;
use super::tensors::TensorFile;
use crate::config::ModelConfig;
use crate::runtime::error::{Exit, fail};
use crate::runtime::shell::quoted;

/// Compares what the files hold with what the model needs; all differences in one message. `place` says in which file a weight is.
pub(super) fn check_tensors(
    dir: &Path,
    model: &ModelConfig,
    files: &[TensorFile],
    place: &BTreeMap<String, usize>,
) -> Result<()> {
    let mut wanted: BTreeMap<String, Vec<usize>> = model.tensor_shapes().into_iter().collect();
    let mut extra = Vec::new();
    let mut wrong = Vec::new();
    if model.tie_word_embeddings && place.contains_key(LM_HEAD) {
        let shape = wanted[EMBED].clone();
        wanted.insert(LM_HEAD.to_owned(), shape);
        // Tied weights are one tensor, which some libraries save under the head's name.
        if !place.contains_key(EMBED) {
            wanted.remove(EMBED);
        }
    }
    for (name, &n) in place {
        let found = files[n].shape(name).unwrap_or_default();
        match wanted.remove(name) {
            Some(shape) if shape == found => drop(files[n].dtype(name)?),
            Some(shape) => wrong.push(format!("{name} is {found:?} instead of {shape:?}")),
            // Old conversions carry RoPE's frequencies, which follow from theta.
            None if name.ends_with(".rotary_emb.inv_freq") => {}
            None => extra.push(name.clone()),
        }
    }
    let missing: Vec<String> = wanted.into_keys().collect();
    if missing.is_empty() && extra.is_empty() && wrong.is_empty() {
        return Ok(());
    }
    let hint = hint(dir, &missing, &extra);
    let parts = [("missing", missing), ("not expected", extra), ("of another shape", wrong)];
    let parts: Vec<String> =
        parts.into_iter().filter(|(_, list)| !list.is_empty()).map(|(what, list)| summary(what, &list)).collect();
    let message = format!("the weights in {} do not fit its config.json: {}", dir.display(), parts.join("; "));
    Err(fail(Exit::Data, message).hint(hint).into())
}

/// `3 missing (a, b, c)`, naming the first few.
fn summary(what: &str, names: &[String]) -> String {
    let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 4 { ", …" } else { "" };
    format!("{} {what} ({shown}{more})", names.len())
}

/// What to do about weights of which `missing` are not there and `extra` are too many.
fn hint(dir: &Path, missing: &[String], extra: &[String]) -> String {
    if let Some(prefix) = common_prefix(missing, extra) {
        return format!("every name begins with {prefix:?}{}: {}", origin(&prefix), renaming(dir, &prefix));
    }
    let is_body = missing.iter().filter_map(|name| name.strip_prefix("model."));
    if is_body.clone().count() > 0 && is_body.clone().all(|name| extra.iter().any(|e| e == name)) {
        return "the names lack \"model.\": this is the body of a model (LlamaModel), saved without its head; save the \
                LlamaForCausalLM that it belongs to"
            .to_owned();
    }
    if extra.iter().any(|name| name.ends_with(".bias")) {
        return "the weights have biases that config.json does not name: copy the config.json that they were saved with".to_owned();
    }
    if extra.is_empty() && *missing == [LM_HEAD] {
        return "if the model's head is its embedding, set tie_word_embeddings to true in config.json; if not, get the \
                weights again"
            .to_owned();
    }
    "check that config.json and the weights belong together".to_owned()
}

/// What stands before every missing name, if all of them are there with it: wrappers of a model add it.
fn common_prefix(missing: &[String], extra: &[String]) -> Option<String> {
    let first = missing.first()?;
    let mut prefixes = extra.iter().filter_map(|name| name.strip_suffix(first.as_str()));
    let prefix = prefixes
        .find(|prefix| !prefix.is_empty() && missing.iter().all(|name| extra.contains(&format!("{prefix}{name}"))));
    prefix.map(str::to_owned)
}

fn origin(prefix: &str) -> &'static str {
    match prefix {
        "module." => ", as DistributedDataParallel and DeepSpeed save it (save `model.module` instead)",
        "_orig_mod." => ", as a model from torch.compile is saved (save `model._orig_mod` instead)",
        _ => "",
    }
}

/// How to take `prefix` off the names: as a command where there is one file.
fn renaming(dir: &Path, prefix: &str) -> String {
    let weights = dir.join(names::WEIGHTS);
    let renamed = quoted(&dir.join("renamed.safetensors"));
    if !weights.exists() || prefix.contains(['\'', '"', '\\']) {
        return "take it off the names, or save the model anew".to_owned();
    }
    let script = format!(
        "from safetensors.torch import load_file, save_file; import sys; \
         save_file({{k.removeprefix(\"{prefix}\"): v for k, v in load_file(sys.argv[1]).items()}}, sys.argv[2], {{\"format\": \"pt\"}})"
    );
    let weights = quoted(&weights);
    format!("python -c '{script}' {weights} {renamed} && mv {renamed} {weights}")
}
