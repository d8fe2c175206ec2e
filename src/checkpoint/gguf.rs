//! A model as one GGUF file, which llama.cpp, Ollama and the programs that build on them read: `export --format gguf`.
//!
//! [`header`] is the format, [`model`] the keys and tensors of an architecture ([`rope`] its scaled frequencies), [`vocabulary`] the tokenizer with its two kinds
//! ([`split_name`], [`sentencepiece`]), [`values`] what the tensors hold. What a reader would silently do in another way is refused by
//! name: neither a wrong split of text nor a wrong rotation would ever be an error, only worse text.

mod header;
mod model;
mod rope;
mod sentencepiece;
mod split_name;
mod values;
mod vocabulary;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::dtype::ExportDtype;
use super::export::trimmed;
use super::open::Opened;
use super::save::ensure_space;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{self, AtomicFile, io_context};
use crate::runtime::shell::quoted;
use crate::tokenizer::Tokenizer;
use header::GgufHeader;
use model::{Dialect, PlannedTensor, PlannedValues, pair_rows};

/// The extension of the files, by which programs know them.
pub const EXTENSION: &str = "gguf";

/// What goes into a file beside the weights.
pub struct GgufExport<'a> {
    /// How matrices are stored; vectors are always f32.
    pub dtype: ExportDtype,
    pub tokenizer: &'a Tokenizer,
    /// The source of the model's chat template.
    pub chat_template: Option<&'a str>,
    /// Whether the rows of embedding and head beyond the tokenizer's ids are left out.
    pub trim_vocab: bool,
}

/// Writes the model `source` to the new file `out`, which appears whole or not at all. Tensors are read and written one at a time.
/// Returns where llama.cpp gives a text other tokens than the model's tokenizer, if it does.
///
/// # Errors
/// [`Exit::Config`] for a name that does not end in `.gguf` or exists, and for a model or tokenizer that such a file cannot describe.
pub fn export_gguf(source: &Opened, out: &Path, export: &GgufExport<'_>) -> Result<Option<&'static str>> {
    refuse_name(out)?;
    // Before the file is made: nothing wrong is to be published.
    source.check_tied()?;
    source.check_base()?;
    let rows = export.trim_vocab.then(|| export.tokenizer.vocab_size());
    let model = trimmed(&source.model, rows)?;
    let dialect = Dialect::of(model.architecture);
    let tensors = dialect.tensors(&model, export.dtype)?;
    let mut header = GgufHeader::default();
    let title = out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    dialect.describe(&mut header, &model, &title, export.dtype)?;
    let remark = vocabulary::describe(&mut header, export.tokenizer, export.chat_template, model.vocab_size)?;
    for tensor in &tensors {
        header.tensor(&tensor.name, &tensor.shape, tensor.storage)?;
    }
    let size = header.tensor_bytes() as u64;
    let header = header.finish();
    let parent = out.parent().unwrap_or(Path::new("."));
    files::create_dirs(parent)?;
    ensure_space(parent, size.saturating_add(header.len() as u64))?;
    let mut file = AtomicFile::create(out)?;
    file.write_all(&header).map_err(io_context("write", out))?;
    for tensor in &tensors {
        write_tensor(source, tensor, &mut file, out)?;
    }
    file.commit()?;
    Ok(remark)
}

fn write_tensor(source: &Opened, tensor: &PlannedTensor, file: &mut AtomicFile, out: &Path) -> Result<()> {
    let (name, values) = match &tensor.values {
        PlannedValues::Given(values) => (&tensor.name, values.clone()),
        PlannedValues::Weight { source: name, reordered_heads } => {
            let (_, mut values) = source.weight(name)?;
            // Only embedding and head can be shorter than what was read: their last rows are padding.
            values.truncate(tensor.shape.iter().product());
            if let Some(heads) = reordered_heads {
                values = pair_rows(&values, *heads, tensor.shape[1..].iter().product());
            }
            (name, values)
        }
    };
    values::write_tensor(file, out, name, &values, tensor.storage)
}

fn refuse_name(out: &Path) -> Result<()> {
    if out.extension().is_none_or(|extension| extension != EXTENSION) {
        let named =
            if out.is_dir() { out.join("model.gguf") } else { PathBuf::from(format!("{}.{EXTENSION}", out.display())) };
        return Err(fail(
            Exit::Config,
            format!("--out {}: the name of a GGUF file ends in .{EXTENSION}", out.display()),
        )
        .hint(format!("give one file, such as --out {}", quoted(&named)))
        .into());
    }
    if out.symlink_metadata().is_ok() {
        return Err(fail(Exit::Config, format!("{} exists already", out.display()))
            .hint("give a new file name, or remove this one")
            .into());
    }
    Ok(())
}

/// The failure of a model that a GGUF file cannot describe, because of `what`.
fn model_refusal(what: &str) -> anyhow::Error {
    fail(Exit::Config, format!("the model cannot be written to a GGUF file: {what}"))
        .hint("export with --format hf, which writes it as it is")
        .into()
}

/// The failure of a tokenizer that a GGUF file cannot describe, because of `what`, which begins with "it" or "its".
fn refusal(what: &str) -> anyhow::Error {
    fail(Exit::Config, format!("the tokenizer cannot be written to a GGUF file: {what}"))
        .hint("export with --format hf, which copies the tokenizer as it is")
        .into()
}
