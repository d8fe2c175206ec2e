//! The directory of a new run: made only when everything else is known to be right.

use super::desync::compare_at_start;
use super::identity::identity;
use super::logs::RunLogs;
use super::products::use_stored_products;
use super::requests::Requests;
use super::session::Session;
use super::setup::RunSetup;
use super::trainer::{RunContext, StartPoint, Trainer};
use crate::checkpoint::Opened;
use crate::metrics::Events;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{Lock, create_dirs, lock, write_atomic};
use crate::runtime::shell::quoted;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// A run that has no directory yet.
pub struct NewRun {
    pub setup: RunSetup,
    /// Where its weights come from, if they are not new.
    pub source: Option<Opened>,
    pub requests: Requests,
}

impl NewRun {
    /// Makes the directory `out`, with what `add_files` puts there, and trains.
    ///
    /// # Errors
    /// [`Exit::Config`] if there is a run in `out`; those of `add_files` and of [`Trainer::train`].
    pub fn train(self, out: &Path, add_files: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let Self { setup, source, requests } = self;
        let Session { device, console, group } = setup.session.clone();
        // Before anything is created: a configuration that cannot be read back must not make a run.
        let config_text = setup.config.to_checked_toml()?;
        use_stored_products(None, &setup.session)?;
        let build = identity(&setup.config.train, &device, &group);
        compare_at_start(&group, &setup.beginning(out, &config_text, &build))?;
        let init_from = source.map(|source| std::path::absolute(source.dir)).transpose()?;
        let start = json!({"attempt": 1, "step": 0, "init_from": init_from, "build": build});
        let created = group.is_first().then(|| create(out, &config_text, start, add_files)).transpose();
        let (lock, logs) = match group.agree("the run directory", created)? {
            Some((lock, events)) => (Some(lock), RunLogs::open(out, &setup.config.log, events, None)?),
            None => (None, RunLogs::discard(&setup.config.log)),
        };
        let start = StartPoint::default();
        let context = RunContext { dir: out.to_path_buf(), lock, requests, console, build, start };
        Trainer::new(setup, context, logs)?.train()
    }
}

/// Makes the directory `out` of a run that starts with the event `start`, locked for this process.
fn create(
    out: &Path,
    config_text: &str,
    start: Value,
    add_files: impl FnOnce(&Path) -> Result<()>,
) -> Result<(Lock, Events)> {
    refuse_existing_run(out)?;
    create_dirs(out)?;
    let lock = lock(&out.join("run.lock"))?;
    // Once more, now under the lock: another process may have started a run here meanwhile.
    refuse_existing_run_locked(out)?;
    add_files(out)?;
    let mut events = Events::open(out)?;
    // Durable before the configuration makes this a run: a restart must start from the same weights.
    events.append("start", start)?;
    write_atomic(&out.join("config.toml"), config_text.as_bytes())?;
    Ok((lock, events))
}

/// # Errors
/// [`Exit::Config`] if there is a run in `out`.
pub fn refuse_existing_run(out: &Path) -> Result<()> {
    if !out.join("config.toml").exists() {
        return Ok(());
    }
    // A run whose process is alive is reported as such.
    let _lock = lock(&out.join("run.lock"))?;
    refuse_existing_run_locked(out)
}

fn refuse_existing_run_locked(out: &Path) -> Result<()> {
    if !out.join("config.toml").exists() && !out.join("checkpoints").exists() {
        return Ok(());
    }
    Err(fail(Exit::Config, format!("{} already holds a run", out.display()))
        .hint(format!("go on with it: llama-lite resume --ckpt {}; or choose another --out", quoted(out)))
        .into())
}
