//! One file per command: its arguments, and a `run` that calls the library and prints what belongs on stdout. Here is what they share:
//! opening a model, printing, and reporting a failure.

mod arguments;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fork;
mod models;
pub(crate) mod plan;
pub(crate) mod prepare;
pub(crate) mod pretrain;
mod progress_bar;
pub(crate) mod ranks;
pub(crate) mod report;
pub(crate) mod resume;
pub(crate) mod sample;
pub(crate) mod sft;
pub(crate) mod why;

use crate::checkpoint::Opened;
use crate::config::PrecisionSetting;
use crate::metrics::Console;
use crate::model::Llama;
use crate::ops::device;
use crate::runtime::error::{Exit, Failure, alarm, fail, failure_in};
use crate::runtime::files::{Access, io_hint};
use crate::runtime::format::escape_control;
use crate::runtime::memory;
use crate::tokenizer::Tokenizer;
use crate::train::model_state::load_model;
use crate::train::session::Session;
use anyhow::Result;
use models::{model_dir, optional_model_dir};
use ranks::Voice;
pub use ranks::panicked;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Prints a failure and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let Some(exit) = exit_of(error) else { return ExitCode::SUCCESS };
    let failure = failure_in(error);
    let text = match failure {
        Some(f) if exit == Exit::Stopped => f.message.clone(),
        _ => format!("error: {error:#}"),
    };
    let io = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
    let general = match exit {
        Exit::Internal => "this looks like a bug; please report it with the command and its output",
        Exit::Io => io.map_or("check the path and its permissions", |e| io_hint(e, Access::Read)),
        Exit::Memory => "end other programs, or use a machine with more memory",
        Exit::Data => "the file is damaged or not what it should be; use another",
        _ => "see llama-lite --help",
    };
    let hint = failure.and_then(|f| f.hint.as_deref()).unwrap_or(general);
    let text = match ranks::voice() {
        Voice::ForAll => text,
        Voice::AsRank(rank) => format!("rank {rank}: {text}"),
        Voice::Silent => return ExitCode::from(exit as u8),
    };
    // The message can quote names and values from files that came from elsewhere.
    alarm(&escape_control(&format!("{text}\nhint: {hint}")));
    ExitCode::from(exit as u8)
}

/// The class of a failure; none if stdout was closed by its reader, which is no failure (`llama-lite ... | head`).
fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    let io = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        return None;
    }
    let unclassified = match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::OutOfMemory) => Exit::Memory,
        Some(_) => Exit::Io,
        None => Exit::Internal,
    };
    Some(failure_in(error).map_or(unclassified, |failure| failure.exit))
}

/// What training is handed down: the device, the console and the ranks. Only commands read `device::used`.
fn session(console: Console) -> Session {
    Session { group: ranks::group(), ..Session::new(device::used(), console) }
}

/// A model directory ready for use.
struct Loaded {
    source: Opened,
    tokenizer: Tokenizer,
    model: Llama,
}

/// What `ckpt` names, opened; adapters beside the model in `base`, if that is given.
fn open_model(ckpt: &Path, base: Option<&Path>, console: Console) -> Result<Opened> {
    let dir = model_dir(ckpt, console)?;
    Opened::open_beside(&dir, optional_model_dir(base, console)?.as_deref())
}

/// The model of `ckpt` and `base`, as in [`open_model`].
fn load(ckpt: &Path, base: Option<&Path>, precision: PrecisionSetting, console: Console) -> Result<Loaded> {
    let source = open_model(ckpt, base, console)?;
    let tokenizer = Tokenizer::from_dir(source.tokenizer_dir())?;
    let ids = tokenizer.vocab_size();
    let rows = source.model.vocab_size;
    if ids > rows {
        return Err(fail(
            Exit::Data,
            format!("{}: the tokenizer has {ids} ids, the model {rows}", source.dir.display()),
        )
        .hint("put the tokenizer.json that belongs to the model beside it")
        .into());
    }
    check_memory(&source, precision)?;
    let model = load_model(&source, device::used(), precision)?;
    Ok(Loaded { source, tokenizer, model })
}

/// Refuses a model whose weights cannot fit into memory.
fn check_memory(source: &Opened, precision: PrecisionSetting) -> Result<(), Failure> {
    let params = source.model.n_params();
    let is_cpu = device::used().is_cpu();
    let (size, what) = match precision {
        PrecisionSetting::Bf16 if is_cpu => (2, "this model in bf16"),
        _ => (4, "this model in f32"),
    };
    memory::check(params.saturating_mul(size), what, || {
        let hint = if is_cpu && size == 4 {
            "add --precision bf16, which takes half"
        } else {
            "use a machine with more memory"
        };
        hint.to_owned()
    })
}

/// Writes `text` to stdout, with a newline at its end; of several ranks only the first does.
fn print(text: &str) -> Result<()> {
    if !ranks::group().is_first() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
