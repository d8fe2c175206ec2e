//! `export`: a plain Hugging Face directory in another dtype, with the vocabulary's padding rows cut if asked. It appears only after its files
//! were read back and found to be the model ([`certificate`]).

pub mod certificate;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use anyhow::{Context, Result};

use super::dtype::Dtype;
use super::hf::{self, EMBED, LM_HEAD};
use super::names;
use super::open::Opened;
use super::save::{SHARD_BYTES, Writer, ensure_space};
use super::tensors::{ShapeRef, data_size};
use crate::config::ModelConfig;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{self, io_context};
use crate::tokenizer::portable_config;
use certificate::{Certificate, certify};

/// What belongs to a tokenizer, in any of the forms that Hugging Face uses.
pub(super) const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Settings of a tokenizer are text.
const MAX_SETTINGS: u64 = 64 << 20;

/// Writes the model `source` to the new directory `out` in `dtype`, rounding to nearest even, and reads it back.
/// With `trim_vocab`, the size of the tokenizer, the rows of embedding and head beyond it are left out. The directory
/// appears whole or not at all; one that exists and is not empty is refused (exit 78).
pub fn export(source: &Opened, out: &Path, dtype: Dtype, trim_vocab: Option<usize>) -> Result<Certificate> {
    export_with(source, out, dtype, trim_vocab, |_| Vec::new())
}

/// A file of text, by its name in the directory.
pub type TextFile = (&'static str, String);

/// [`export`] with the files that `describe` makes of its certificate.
pub fn export_with(
    source: &Opened,
    out: &Path,
    dtype: Dtype,
    trim_vocab: Option<usize>,
    describe: impl FnOnce(&Certificate) -> Vec<TextFile>,
) -> Result<Certificate> {
    refuse_taken(out)?;
    // Before the directory is made: nothing wrong is to be published.
    source.check_tied()?;
    source.check_base()?;
    let model = trimmed(&source.model, trim_vocab)?;
    let writer = write(source, &model, out, dtype)?;
    publish(writer, source, &model, dtype, describe)
}

/// Writes all files under a temporary name beside `out`; they are removed when the writer is dropped.
fn write(source: &Opened, model: &ModelConfig, out: &Path, dtype: Dtype) -> Result<Writer> {
    let specs = model.tensor_shapes();
    let sizes: Result<Vec<usize>> = specs.iter().map(|(_, shape)| data_size(shape, dtype)).collect();
    let parent = out.parent().unwrap_or(Path::new("."));
    files::create_dirs(parent)?;
    ensure_space(parent, sizes?.iter().map(|&size| size as u64).sum())?;
    let mut writer = Writer::create(out, &std::process::id().to_string())?;
    writer.json(names::CONFIG, &hf::config_json(model, source.bos, &source.eos, dtype))?;
    copy_small(source, &mut writer)?;
    let views: Vec<ShapeRef<'_>> = specs.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let mut next = specs.iter();
    writer.weights(&views, dtype, SHARD_BYTES, &mut |sink| {
        let Some((name, shape)) = next.next() else { return Ok(()) };
        sink(&weight(source, name, shape)?)
    })?;
    Ok(writer)
}

/// The weight `name` of `source` in the shape that it is exported in.
fn weight(source: &Opened, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (_, mut values) = source.weight(name)?;
    // Rows beyond the tokenizer's ids are padding and come last, so the shorter list is the trimmed tensor.
    if name == EMBED || name == LM_HEAD {
        values.truncate(shape.iter().product());
    }
    Ok(values)
}

/// Gives the files, and those that `describe` adds, their name if they are the model `source` in this shape and format.
fn publish(
    mut writer: Writer,
    source: &Opened,
    model: &ModelConfig,
    dtype: Dtype,
    describe: impl FnOnce(&Certificate) -> Vec<TextFile>,
) -> Result<Certificate> {
    let written = Opened::open(writer.txn.path()).context("reading the export back")?;
    let certificate = certify(source, model, &written, dtype)?;
    for (name, text) in describe(&certificate) {
        writer.bytes(name, text.as_bytes())?;
    }
    writer.txn.commit()?;
    Ok(certificate)
}

/// `model` with the first `rows` rows of its vocabulary, if that is given.
pub(super) fn trimmed(model: &ModelConfig, rows: Option<usize>) -> Result<ModelConfig> {
    let vocab_size = rows.unwrap_or(model.vocab_size);
    if !(1..=model.vocab_size).contains(&vocab_size) {
        let message = format!("cannot trim a vocabulary of {} rows to {vocab_size}", model.vocab_size);
        return Err(fail(Exit::Config, message)
            .hint("the tokenizer does not fit the model: check the directory")
            .into());
    }
    Ok(ModelConfig { vocab_size, ..model.clone() })
}

fn refuse_taken(out: &Path) -> Result<()> {
    let taken = match std::fs::symlink_metadata(out) {
        Err(_) => false,
        Ok(meta) if meta.is_dir() => !super::entries(out)?.is_empty(),
        Ok(_) => true,
    };
    if taken {
        let message = format!("{} exists already", out.display());
        return Err(fail(Exit::Config, message).hint("give a new directory, or remove this one").into());
    }
    Ok(())
}

fn copy_small(source: &Opened, writer: &mut Writer) -> Result<()> {
    let generation = source.dir.join(names::GENERATION);
    if generation.exists() {
        writer.bytes(names::GENERATION, &files::read_bounded(&generation, 1 << 20, true)?)?;
    } else {
        writer.json(names::GENERATION, &hf::generation_json(source.bos, &source.eos))?;
    }
    for name in TOKENIZER_FILES {
        let path = source.tokenizer_dir().join(name);
        if path.exists() {
            if name == "tokenizer_config.json" {
                let bytes = files::read_bounded(&path, MAX_SETTINGS, source.manifest.is_none())?;
                writer.bytes(name, &portable_config(&bytes)?.unwrap_or(bytes))?;
                continue;
            }
            let (mut from, _) = files::open_input(&path, source.manifest.is_none())?;
            let mut to = writer.txn.file(name)?;
            io::copy(&mut from, &mut to).map_err(io_context("copy", &path))?;
            to.finish()?;
        }
    }
    Ok(())
}
