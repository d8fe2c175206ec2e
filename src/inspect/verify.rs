//! `resume --verify K`: takes K steps from a checkpoint again, without writing anything, and compares them with what the run logged.
//!
//! An uncertain case is never a pass: where the records are missing, or where the run did something between the steps that a replay
//! does not repeat, the answer is that nothing was verified.

use crate::checkpoint::{self, Opened};
use crate::metrics::{AlteredLog, Record, Train, altered_logs, read, read_events};
use crate::train::hardware_change::HardwareChange;
use crate::train::identity::identity;
use crate::train::model_state::ModelState;
use crate::train::products::use_stored_products;
use crate::train::ranks::check_ranks;
use crate::train::replay::{Mismatch, train_mismatch};
use crate::train::run_data::RunData;
use crate::train::run_dir::locate;
use crate::train::session::Session;
use crate::train::step::take_step;
use crate::train::trainer_state::TrainerStateFile;
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The result of a verification.
#[derive(Debug)]
pub enum Verification {
    /// Every record of these steps came out the same, bit for bit; so many records were compared.
    Pass(RangeInclusive<u64>, usize),
    /// The same, but these logs are not what a checkpoint has recorded of them.
    Altered(RangeInclusive<u64>, Vec<AlteredLog>),
    /// The first quantity that did not, and what may explain it.
    Fail(Mismatch, String),
    /// Why there is nothing to compare.
    Unverified(String),
}

/// Replays `count` steps from `ckpt`: a checkpoint, or a run directory (its newest checkpoint with so many logged steps after it).
/// Adapters are replayed beside the model in `base`, if that is given.
///
/// # Errors
/// Those of reading the checkpoint and the data.
pub fn verify(ckpt: &Path, count: u64, base: Option<&Path>, session: &Session) -> Result<(PathBuf, Verification)> {
    let (run_dir, named) = locate(ckpt)?;
    let records = Records::read(&run_dir)?;
    let Some(dir) = named.or(choose(&run_dir, &records, count)?) else {
        let nothing = format!("no checkpoint of {} is followed by {count} logged steps", run_dir.display());
        return Ok((run_dir, Verification::Unverified(nothing)));
    };
    let source = Opened::open_beside(&dir, base)?;
    let saved = TrainerStateFile::read(&source)?;
    let first = saved.state.step + 1;
    let steps = first..=saved.state.step.saturating_add(count);
    if let Some(missing) = steps.clone().find(|step| !records.0.contains_key(step)) {
        return Ok((dir, Verification::Unverified(format!("step {missing} was never logged"))));
    }
    if let Some(what) = disturbance(&run_dir, saved.state.step, *steps.end())? {
        return Ok((dir, Verification::Unverified(what)));
    }
    let outcome = match replay(&source, &saved, steps, &records, session)? {
        Verification::Pass(steps, compared) => match altered(&run_dir, &saved, base)? {
            altered if altered.is_empty() => Verification::Pass(steps, compared),
            altered => Verification::Altered(steps, altered),
        },
        other => other,
    };
    Ok((dir, outcome))
}

/// The logs that are not what was recorded of them by the checkpoint `saved`, or by the newest one, which covers more.
fn altered(run_dir: &Path, saved: &TrainerStateFile, base: Option<&Path>) -> Result<Vec<AlteredLog>> {
    let mut altered = altered_logs(run_dir, &saved.logs)?;
    if let Some(newest) = checkpoint::list_valid(run_dir)?.into_iter().next() {
        let newest = TrainerStateFile::read(&Opened::open_valid(newest, base)?)?;
        let further = altered_logs(run_dir, &newest.logs)?;
        altered.extend(
            further.into_iter().filter(|log| altered.iter().all(|known| known.file != log.file)).collect::<Vec<_>>(),
        );
    }
    Ok(altered)
}

/// The logged training steps of a run: the records of each in `metrics.jsonl`, then those of killed attempts.
struct Records(BTreeMap<u64, Vec<Train>>);

impl Records {
    fn read(run_dir: &Path) -> Result<Self> {
        let mut files = vec![run_dir.join("metrics.jsonl")];
        if let Ok(entries) = std::fs::read_dir(run_dir.join("replaced")) {
            let paths = entries.flatten().map(|entry| entry.path());
            // Lines that a resume has cut are records of the same steps, and must agree as well.
            let mut tails: Vec<_> = paths.filter(|p| !p.to_string_lossy().ends_with(".samples.jsonl")).collect();
            tails.sort();
            files.extend(tails);
        }
        // After a change the steps are no longer comparable with those of killed attempts.
        let events = read_events(run_dir)?;
        let unaltered = events.iter().filter_map(alteration).map(|(step, _)| step).min().unwrap_or(u64::MAX);
        let mut steps: BTreeMap<u64, Vec<Train>> = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for record in read(file)? {
                if let Record::Train(train) = record
                    && (i == 0 || train.step <= unaltered)
                {
                    steps.entry(train.step).or_default().push(train);
                }
            }
        }
        Ok(Self(steps))
    }

    /// How many steps from `first` on are logged without a gap, up to `most`.
    fn count_from(&self, first: u64, most: u64) -> u64 {
        (0..most).take_while(|i| self.0.contains_key(&(first + i))).count() as u64
    }
}

/// The newest checkpoint that is followed by `count` logged steps.
fn choose(run_dir: &Path, records: &Records, count: u64) -> Result<Option<PathBuf>> {
    let valid = checkpoint::list_valid(run_dir)?;
    let followed = valid.iter().find(|found| records.count_from(found.manifest.step + 1, count) == count);
    Ok(followed.map(|valid| valid.dir.clone()))
}

/// What the run did after step `from` and before step `to` that a replay of the steps does not repeat.
fn disturbance(run_dir: &Path, from: u64, to: u64) -> Result<Option<String>> {
    let events = read_events(run_dir)?;
    let mut found = events.iter().filter_map(alteration).filter(|(step, _)| (from..to).contains(step));
    Ok(found.next().map(|(step, what)| format!("the run {what} step {step}, which a replay does not repeat")))
}

/// After which step the run became another one by `event`, and what it was.
fn alteration(event: &Value) -> Option<(u64, &'static str)> {
    let (step, what) = match event["kind"].as_str().unwrap_or_default() {
        "rollback" => (&event["to_step"], "was rolled back to"),
        "resume" if has_items(&event["changes"]) => (&event["step"], "was resumed with another configuration at"),
        "resume" if has_items(&event["reset"]) => (&event["step"], "was resumed with a reset at"),
        // Activations that are computed again have the same bits.
        "out_of_memory" if event["micro_batch_size"].is_object() => {
            (&event["step"], "ran out of memory and changed its micro-batch at")
        }
        _ => return None,
    };
    Some((step.as_u64()?, what))
}

fn has_items(list: &Value) -> bool {
    list.as_array().is_some_and(|items| !items.is_empty())
}

fn replay(
    source: &Opened,
    saved: &TrainerStateFile,
    steps: RangeInclusive<u64>,
    records: &Records,
    session: &Session,
) -> Result<Verification> {
    let config = saved.run_config()?;
    check_ranks(config.train.lanes(), session.group.ranks())?;
    let (data, fingerprint) = RunData::open_for_checkpoint(&config, source, session)?;
    if fingerprint != saved.data_fingerprint {
        return Ok(Verification::Unverified("the training or validation data are not those of the run".into()));
    }
    let loader = data.dataset.loader(&config)?;
    use_stored_products(saved.products.as_ref(), session)?;
    let mut state = ModelState::resumed(&config, source, saved, &session.device, &session.group)?;
    let count = config.train.sequences_per_step();
    let mut compared = 0;
    for at in steps.clone() {
        let batch = loader.batch(state.run.next_sequence, count)?;
        let report = take_step(&mut state, &config, &batch)?;
        let now = report.record(&state.run);
        for then in &records.0[&at] {
            if let Some(mismatch) = train_mismatch(then, &now) {
                return Ok(Verification::Fail(
                    mismatch,
                    explain(&saved.build, &identity(&config.train, &session.device, &session.group)),
                ));
            }
            compared += 1;
        }
    }
    Ok(Verification::Pass(steps, compared))
}

/// What differs between the machine and build that made the checkpoint and these.
fn explain(then: &Value, now: &Value) -> String {
    match HardwareChange::between(then, now).filter(HardwareChange::changes_bits) {
        Some(change) => format!("this may be why: {}", change.describe()),
        None => "same program, processor and settings: the record or the checkpoint's data were altered, the hardware errs, or the \
                 program is at fault"
            .into(),
    }
}
