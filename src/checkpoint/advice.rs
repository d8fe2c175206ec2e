//! What a path holds instead of a model, or instead of weights under their usual names, so that messages can say so and name a remedy.

use std::path::{Path, PathBuf};

use super::names;
use super::tensors::TensorFile;
use super::{entries, name_of};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;
use crate::runtime::shell::quoted;

/// A file where a directory is needed.
pub(super) fn not_a_directory(path: &Path) -> Failure {
    let failure = fail(Exit::Io, format!("{} is a file: a model is a directory", path.display()));
    if name_of(path).ends_with(".gguf") {
        return failure.hint(GGUF);
    }
    match path.parent().filter(|dir| is_model(dir)) {
        Some(dir) => failure.hint(format!("give its directory: {}", quoted(dir))),
        None => failure.hint("give a directory with config.json and model.safetensors"),
    }
}

const GGUF: &str = "GGUF files of llama.cpp are not read: get the model as safetensors, or convert it with transformers' \
                    from_pretrained(DIR, gguf_file=FILE) and save_pretrained";

/// A directory without a model and without checkpoints.
pub(super) fn no_model(dir: &Path) -> Failure {
    let shown = dir.display();
    if let Some(inside) = model_below(dir) {
        let what = match inside.components().any(|part| part.as_os_str() == "snapshots") {
            true => "a folder of the Hugging Face cache, not a model",
            false => "no model itself (no config.json), but holds one",
        };
        return fail(Exit::Io, format!("{shown} is {what}"))
            .hint(format!("give the model's own directory: {}", quoted(&inside)));
    }
    if let Some(file) = file_names(dir).into_iter().find(|name| name.ends_with(".safetensors")) {
        return fail(Exit::Io, format!("{shown} holds weights ({file}), but no config.json"))
            .hint("put the model's config.json (and its tokenizer.json) beside them");
    }
    if file_names(dir).iter().any(|name| name.ends_with(".gguf")) {
        return fail(Exit::Io, format!("{shown} holds no model that can be read")).hint(GGUF);
    }
    fail(Exit::Io, format!("{shown} holds neither a model (config.json) nor a run's checkpoints"))
        .hint("give a checkpoint directory, a run directory that has saved, or a Hugging Face model directory")
}

fn is_model(dir: &Path) -> bool {
    [names::CONFIG, names::ADAPTER_CONFIG].iter().any(|name| dir.join(name).exists())
}

fn file_names(dir: &Path) -> Vec<String> {
    let paths = entries(dir).unwrap_or_default();
    paths.iter().filter(|path| path.is_file()).map(|path| name_of(path).to_owned()).collect()
}

/// The model that is probably meant by `dir`: the revision that a cache calls main, the newest checkpoint of a Trainer, the last
/// of the models or runs below.
pub(super) fn model_below(dir: &Path) -> Option<PathBuf> {
    let snapshots = dir.join("snapshots");
    let main = files::read_bounded(&dir.join("refs/main"), 1 << 10, true).ok();
    let main = main.map(|revision| snapshots.join(String::from_utf8_lossy(&revision).trim()));
    if let Some(main) = main.filter(|main| main.starts_with(&snapshots) && is_model(main)) {
        return Some(main);
    }
    let children = entries(dir).unwrap_or_default();
    if let Some(repository) = children.iter().find(|path| name_of(path).starts_with("models--")) {
        return model_below(repository);
    }
    let below = entries(&snapshots).unwrap_or_default().into_iter().chain(children);
    // Trainer's `checkpoint-1000` is newer than `checkpoint-500`.
    below.filter(|path| is_model(path) || path.join("checkpoints").is_dir()).max_by_key(|path| step_in_name(path))
}

fn step_in_name(path: &Path) -> Option<u64> {
    name_of(path).rsplit('-').next()?.parse().ok()
}

/// A model directory without weights under a name that is read: what is there instead.
pub(super) fn no_weights(dir: &Path) -> Failure {
    let files = file_names(dir);
    let place = dir.display();
    let missing = format!("{place} has no {}", names::WEIGHTS);
    if let Some(shard) = files.iter().find(|name| is_shard(name)) {
        return fail(
            Exit::Data,
            format!("{missing}, and of its shards ({shard}, …) the index {} is missing", names::INDEX),
        )
        .hint("copy or download the index, too");
    }
    if let Some(other) = files.iter().find(|name| is_weight_file(name)) {
        return fail(Exit::Data, format!("{missing}, but {other}")).hint(other_name(&dir.join(other), dir));
    }
    if let Some(pickle) = files.iter().find(|name| is_pickle(name)) {
        let path = dir.join(pickle);
        return fail(Exit::Config, format!("{} is a pickle, which can run code: it is not read", path.display()))
            .hint(conversion(dir));
    }
    if let Some(gguf) = files.iter().find(|name| name.ends_with(".gguf")) {
        return fail(Exit::Config, format!("{missing}, but {gguf}")).hint(GGUF);
    }
    if files.iter().any(|name| name == names::ADAPTER) {
        return fail(Exit::Data, format!("{missing}, but adapters without their {}", names::ADAPTER_CONFIG))
            .hint(format!("copy {} as well", names::ADAPTER_CONFIG));
    }
    let foreign = [".h5", ".msgpack", ".onnx", ".npz", ".pickle"];
    match files.iter().find(|name| foreign.iter().any(|end| name.ends_with(end))) {
        Some(other) => fail(Exit::Config, format!("{missing}, but {other}, a format that is not read"))
            .hint("get the model as safetensors, or convert it with transformers' save_pretrained"),
        None => fail(Exit::Data, format!("{missing} (nor shards of it)")).hint("copy or download the weights again"),
    }
}

/// A directory of adapters without `adapter_model.safetensors`.
pub(super) fn no_adapters(dir: &Path) -> Failure {
    let place = dir.display();
    match file_names(dir).into_iter().find(|name| name == "adapter_model.bin") {
        Some(pickle) => fail(Exit::Config, format!("{place}/{pickle} is a pickle, which can run code: it is not read"))
            .hint("load the adapter with PEFT and `save_pretrained` it, which writes safetensors"),
        None => fail(Exit::Data, format!("{place} has an {}, but no {}", names::ADAPTER_CONFIG, names::ADAPTER))
            .hint("copy or download the adapter again"),
    }
}

fn is_weight_file(name: &str) -> bool {
    name.ends_with(".safetensors") && name != names::ADAPTER && name != names::OPTIMIZER
}

/// `model-00001-of-00002.safetensors`
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_suffix(".safetensors").and_then(|stem| stem.rsplit_once("-of-"));
    numbers.is_some_and(|(stem, total)| is_number(total) && stem.rsplit('-').next().is_some_and(is_number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Pickles that hold a model; Trainer's others (`optimizer.pt`, `training_args.bin`, `rng_state.pth`) do not.
fn is_pickle(name: &str) -> bool {
    let beside = ["optimizer", "scheduler", "training_args", "rng_state", "random_states", "scaler"];
    let pickled = [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|end| name.ends_with(end));
    pickled && !beside.iter().any(|other| name.starts_with(other))
}

/// What to do with the weights in `file`, which has another name than `model.safetensors`.
fn other_name(file: &Path, dir: &Path) -> String {
    let opened = files::open_input(file, true).and_then(|(open, size)| TensorFile::open(open, size, file));
    let tensors = opened.map(|file| file.names()).unwrap_or_default();
    if tensors.iter().any(|name| name.contains("embed_tokens.weight")) {
        let target = dir.join(names::WEIGHTS);
        return format!("rename it: mv {} {}", quoted(file), quoted(&target));
    }
    match tensors.first() {
        Some(name) => {
            format!("its tensors have other names than transformers' ({name}): get the model in its Hugging Face form")
        }
        None => "copy or download the weights again".to_owned(),
    }
}

fn conversion(dir: &Path) -> String {
    let to = PathBuf::from(format!("{}-safetensors", dir.display()));
    let script = "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; \
                  [c.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for c in (M, T)]";
    format!("convert it once: python -c '{script}' {} {}", quoted(dir), quoted(&to))
}
