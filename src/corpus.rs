//! `data prepare`: text files into token shards.
//!
//! files -> batches of records -> outcomes -> encode -> shards, and `shards.json` last.
//!
//! | file | holds |
//! |---|---|
//! | `options.rs` | what to prepare, how, and how far it has come |
//! | `expand.rs`, `left_out.rs`, `source.rs` | patterns to files, files that are left out, files to records |
//! | `batches.rs` | reading and fetching ahead, on threads |
//! | `outcomes.rs`, `dedup.rs`, `quarantine.rs` | what becomes of each record |
//! | `split.rs`, `sample.rs` | what goes to validation |
//! | `job.rs`, `writer.rs`, `digest.rs` | encoding and writing |
//! | `journal.rs`, `output_dir.rs` | resuming an interrupted run |
//! | `shards.rs`, `npy.rs`, `table.rs` | reading shards, token files and whole rows |
//!
//! Memory is bounded by two batches, whatever the corpus. No byte of the output depends on the number of threads, nor
//! on how often the run was interrupted: it resumes from what its journal counts.

mod batches;
mod dedup;
mod digest;
pub mod expand;
mod job;
mod journal;
pub mod left_out;
mod list_dir;
pub mod npy;
mod options;
mod outcomes;
mod output_dir;
mod quarantine;
mod sample;
pub mod shards;
pub mod source;
pub mod split;
pub mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;

use anyhow::Result;

use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

use job::Job;
use journal::{Identity, State};

pub use crate::corpus::shards::PREPARE_FILE;
pub use crate::corpus::shards::manifest::{Eot, ValSplit};
pub use expand::{ExpandedFiles, FileKind, expand, find};
pub use options::{Encode, Grain, InputFile, Inputs, PrepareOptions, PrepareProgress, Summary};
pub use quarantine::QUARANTINE_FILE;
pub use source::{ReadOptions, TextDocument, documents};

/// Prepares `inputs` into `opts.out`, and resumes there if an earlier run with the same options and inputs was
/// interrupted.
///
/// # Errors
/// [`Exit::Config`] for impossible options, or an output directory that is taken or holds an unfinished output of other
/// options; [`Exit::Data`] if more than 0.1 % of the records are bad or a file ends early (unless `allow_bad`), or if
/// there is no text; [`Exit::Io`] if reading or writing fails; [`Exit::Busy`] if another process prepares into the same
/// directory.
pub fn prepare(
    opts: &PrepareOptions,
    inputs: &Inputs,
    tok: &dyn Encode,
    progress: &dyn Fn(PrepareProgress),
) -> Result<Summary> {
    opts.check()?;
    let separator = tok.separator();
    let vocab_size = tok.vocab_size();
    if separator as usize >= vocab_size {
        let message = format!("the tokenizer's separator {separator} is not among its {vocab_size} ids");
        return Err(fail(Exit::Internal, message).into());
    }
    // Checked before anything is touched, and again under the lock, when no other process can interfere.
    let tokenizer = tok.files()?;
    output_dir::refuse_taken(&opts.out, &tokenizer)?;
    files::create_dirs(&opts.out)?;
    let lock = files::lock(&opts.out.join("prepare.lock"))?;
    output_dir::refuse_taken(&opts.out, &tokenizer)?;

    let identity = Identity::new(opts, inputs, tok);
    let (state, note) = unfinished(&opts.out, &identity)?;
    if state.is_none() {
        output_dir::remove_unfinished(&opts.out)?;
    }
    output_dir::remove_temporary(&opts.out)?;
    identity.save(&opts.out)?;
    let state = match state {
        Some(state) => state,
        None => State::new(inputs, sample::choose_rule(opts, inputs, tok)?),
    };
    let mut job = Job::new(opts, inputs, tok, (progress, &lock), state)?;
    job.run()?;
    let mut summary = job.finish()?;
    summary.notes.splice(..0, note);
    Ok(summary)
}

/// The state from which a run of `identity` can resume in `out`, if any, and a note about it for the user.
fn unfinished(out: &Path, identity: &Identity) -> Result<(Option<State>, Option<String>)> {
    let Some(state) = State::load(out)? else { return Ok((None, None)) };
    match Identity::load(out)?.difference(identity)? {
        None => {
            let note = format!("resumed an interrupted run after {} records", state.lines.read);
            Ok((Some(state), Some(note)))
        }
        // After a stop for bad input the user repairs a file, so other inputs are expected. Other options start
        // again only if no record was used yet: otherwise they would throw work away.
        Some(difference) if state.stopped && (difference.inputs_only || state.lines.used == 0) => {
            let note = format!("started again: {}", difference.what);
            Ok((None, Some(note)))
        }
        Some(difference) => {
            let message = format!("{}: holds an unfinished output of another run: {}", out.display(), difference.what);
            let state = out.join(journal::STATE_FILE);
            let hint = format!(
                "to resume, give the options and inputs of that run; to start again, delete {} or choose another --out",
                state.display()
            );
            Err(fail(Exit::Config, message).hint(hint).into())
        }
    }
}
