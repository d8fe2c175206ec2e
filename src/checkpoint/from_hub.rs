//! The files of a repository of the Hub that are a model: its configuration, its weights as safetensors, its tokenizer; or adapters.

use anyhow::Result;
use serde_json::Value;

use super::export::TOKENIZER_FILES;
use super::names;
use super::open::{MAX_INDEX, shard_names};
use super::tensors::replacement_hint;
use crate::hub::{Hub, ModelRepo, RemoteFile};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::read_bounded;

/// The files of `repo` that [`Opened::open`](super::Opened::open) wants in its directory. The index of sharded weights is downloaded to
/// know them.
///
/// # Errors
/// [`Exit::Config`] for a repository whose weights are not read, or that holds no model; [`Exit::Data`] for a damaged index; those of the
/// download.
pub fn model_files(hub: &Hub, repo: &ModelRepo) -> Result<Vec<RemoteFile>> {
    let has = |name: &str| repo.file(name).is_some();
    let adapters = has(names::ADAPTER_CONFIG);
    if !adapters && !has(names::CONFIG) {
        return Err(missing(hub, repo, names::CONFIG, &other_files(repo)).into());
    }
    if adapters && has(names::ADAPTER) && has(names::CONFIG) && (has(names::WEIGHTS) || has(names::INDEX)) {
        let message = format!("{repo} holds a whole model and adapters");
        let (name, config, matrices) = (&repo.repo, names::ADAPTER_CONFIG, names::ADAPTER);
        let hint = format!(
            "get what you mean into a directory of its own, such as: hf download {name} {config} {matrices} --local-dir DIR"
        );
        return Err(fail(Exit::Config, message).hint(hint).into());
    }
    let weights = if has(names::WEIGHTS) {
        vec![names::WEIGHTS.to_owned()]
    } else if has(names::INDEX) {
        indexed_weights(hub, repo)?
    } else if adapters && has(names::ADAPTER) {
        Vec::new()
    } else {
        return Err(no_safetensors(hub, repo, adapters).into());
    };
    let small =
        [names::CONFIG, names::GENERATION, names::ADAPTER_CONFIG, names::ADAPTER].into_iter().chain(TOKENIZER_FILES);
    let mut files: Vec<RemoteFile> = small.filter_map(|name| repo.file(name).cloned()).collect();
    for name in weights {
        let file = repo.file(&name).ok_or_else(|| missing(hub, repo, &name, &format!("{} names it", names::INDEX)))?;
        files.push(file.clone());
    }
    Ok(files)
}

/// The index and the shards that it names.
fn indexed_weights(hub: &Hub, repo: &ModelRepo) -> Result<Vec<String>> {
    let Some(index) = repo.file(names::INDEX) else { return Ok(Vec::new()) };
    let path = hub.fetch(index, &|_| {})?;
    let json: Value = serde_json::from_slice(&read_bounded(&path, MAX_INDEX, true)?).map_err(|e| {
        fail(Exit::Data, format!("{repo}: {} is not valid JSON: {e}", names::INDEX)).hint(replacement_hint(&path))
    })?;
    let mut files = shard_names(&json, &path)?;
    files.push(names::INDEX.to_owned());
    Ok(files)
}

/// The failure for a file that the repository must have. Where its files are not known, the cache may be at fault.
fn missing(hub: &Hub, repo: &ModelRepo, name: &str, why: &str) -> Failure {
    if !repo.is_listed {
        return hub.incomplete(repo);
    }
    fail(Exit::Config, format!("{repo} has no {name}")).hint(format!("{why}; see {}/tree/{}", repo.page, repo.commit))
}

fn other_files(repo: &ModelRepo) -> String {
    let names: Vec<String> = repo.paths().take(8).map(|path| format!("`{}`", path.escape_debug())).collect();
    match names.is_empty() {
        true => "the repository is empty".to_owned(),
        false => format!("a model of transformers is needed, and the repository holds {}", names.join(", ")),
    }
}

/// What the weights are instead.
fn no_safetensors(hub: &Hub, repo: &ModelRepo, adapters: bool) -> Failure {
    let wanted = if adapters { names::ADAPTER } else { names::WEIGHTS };
    let ModelRepo { repo: name, page, .. } = repo;
    let is_pickle = |path: &str| !path.contains('/') && [".bin", ".pt", ".pth"].iter().any(|end| path.ends_with(end));
    if let Some(pickle) = repo.paths().find(|path| is_pickle(path) && path.contains("model")) {
        let message = format!("{repo}: its weights are {pickle}, a pickle, which can run code: it is not read");
        return fail(Exit::Config, message).hint(format!(
            "see whether a pull request adds {wanted} ({page}/discussions): hub:{name}@refs/pr/NUMBER names it; or convert the model \
             with transformers' save_pretrained"
        ));
    }
    if let Some(gguf) = repo.paths().find(|path| path.ends_with(".gguf")) {
        let why = format!(
            "its weights are {gguf}, for llama.cpp alone: name the repository of the model that they were made of"
        );
        return missing(hub, repo, wanted, &why);
    }
    missing(hub, repo, wanted, &other_files(repo))
}
