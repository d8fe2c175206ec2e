//! `sft`: a run that starts from a model and conversations, and shows what will be trained; then it is a run like any other.

use super::checks::{check_machine, check_same_model};
use super::disk::check_disk;
use super::new_run::NewRun;
use super::new_tokens::NewRows;
use super::paths::make_paths_absolute;
use super::ranks::settle_lanes;
use super::requests::{NOTHING_TO_RESUME, Requests};
use super::run_data::RunData;
use super::schedule::check_new_run;
use super::session::Session;
use super::setup::RunSetup;
use crate::checkpoint::Opened;
use crate::config::{Config, SftInputs};
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::write_atomic;
use crate::runtime::shell::quoted;
use crate::sft::load::BadRecord;
use crate::sft::mask_report::MaskReport;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// Characters of the example that is shown before a run.
const EXCERPT: usize = 1500;

/// The records that are left out, in the run's directory.
const QUARANTINE: &str = "quarantine.jsonl";

/// The arguments of `sft`: a model and what to train it on.
pub struct SftRequest<'a> {
    pub config: &'a Path,
    pub sets: &'a [String],
    pub ckpt: &'a Path,
    /// Files of records, on this machine.
    pub data: &'a [String],
}

/// Data and model of a request, read and checked, but not started.
pub struct SftRun {
    config: Config,
    data: RunData,
    source: Opened,
    session: Session,
}

impl SftRun {
    /// # Errors
    /// Those of configuration, model and data.
    pub fn open(request: &SftRequest, session: &Session) -> Result<Self> {
        let source = Opened::open(request.ckpt)?;
        if source.adapter().is_some() {
            let merge = format!("llama-lite export --ckpt {} --merge-lora --out DIR", quoted(&source.dir));
            return Err(fail(Exit::Config, format!("{}: adapters, not a model", source.dir.display()))
                .hint(format!("make a model of them, then fine-tune that: {merge}"))
                .into());
        }
        // Absolute, because a resume may be started in another directory.
        let base = std::path::absolute(&source.dir)?;
        let data = request.data.iter().map(|path| Ok(std::path::absolute(path)?.to_string_lossy().into_owned()));
        let data: Vec<String> = data.collect::<Result<_>>()?;
        let mut tuned = SftInputs { base: &base, model: &source.model, data: &data, steps: None };
        let mut config = load_config(request, &tuned)?;
        let new_rows = NewRows::of(&config, &source)?;
        new_rows.inspect(|rows| rows.grow(&mut config));
        check_same_model(&config, &source)?;
        session.note("preparing the data ...");
        // One rank after the other: what the first one caches or downloads, the others find.
        let data = session.group.first_then_others("the data", || RunData::open(&config, None))?;
        // The length of a run may follow from its number of rows, which is known only now.
        tuned.steps = Some(steps(&config, &data));
        let mut config = load_config(request, &tuned)?;
        new_rows.inspect(|rows| rows.grow(&mut config));
        settle_lanes(&mut config, session.group.ranks())?;
        Ok(Self { config, data, source, session: session.clone() })
    }

    /// Shows what will be trained of the first `n` conversations, at most `limit` characters of each.
    ///
    /// # Errors
    /// Those of decoding.
    pub fn show(&self, n: usize, limit: usize) -> Result<Vec<String>> {
        let Some((report, tokenizer)) = self.mask_report() else { return Ok(Vec::new()) };
        let marks = if self.session.console.color {
            ["\x1b[32m", "\x1b[0m", "\x1b[2m", "\x1b[0m"]
        } else {
            ["⟦", "⟧", "", ""]
        };
        report.excerpts(tokenizer, n, limit, marks)
    }

    /// The counts, a line each.
    pub fn counts(&self) -> Vec<String> {
        self.mask_report().map_or_else(Vec::new, |(report, _)| report.lines())
    }

    /// The records that are left out, at most `limit` of them, a line each.
    pub fn bad(&self, limit: usize) -> Vec<String> {
        let bad = self.data.sft.as_ref().map_or(&[][..], |sft| &sft.bad);
        let mut lines: Vec<String> =
            bad.iter().take(limit).map(|bad| format!("  {}:{}: {}", bad.file, bad.line, bad.what)).collect();
        if bad.len() > limit {
            lines.push(format!("  and {} more", bad.len() - limit));
        }
        lines
    }

    /// What is wrong with some of the data.
    pub fn warning(&self) -> Option<String> {
        self.mask_report().and_then(|(report, _)| report.warning())
    }

    /// Refuses data that would not teach what they are meant to.
    ///
    /// # Errors
    /// [`Exit::Data`], saying why.
    pub fn check(&self) -> Result<()> {
        self.mask_report().map_or(Ok(()), |(report, _)| Ok(report.check()?))
    }

    fn mask_report(&self) -> Option<(&MaskReport, &Tokenizer)> {
        let sft = self.data.sft.as_ref()?;
        Some((&sft.mask_report, &sft.tokenizer))
    }

    /// Trains, in the new run directory `out`.
    ///
    /// # Errors
    /// Those of data that should not be trained on, and of [`Trainer::train`](super::trainer::Trainer::train).
    pub fn train(self, out: &Path) -> Result<()> {
        let requests = Requests::listen(out, NOTHING_TO_RESUME)?;
        if !self.session.console.quiet {
            let colors = if self.session.console.color { "green" } else { "in ⟦ ⟧" };
            note(&format!("what is trained is {colors}:\n"));
            self.show(1, EXCERPT)?.iter().for_each(|text| note(text));
            note(&format!("\n{}", self.counts().join("\n")));
        }
        self.check()?;
        if let Some(warning) = self.warning() {
            note(&format!("{warning} (all of them: {})", out.join(QUARANTINE).display()));
        }
        let group = &self.session.group;
        group.agree("the machine", check_machine(&self.config, &self.session))?;
        group.on_first("the disk", || check_disk(&self.config, out, 0))?;
        let bad = self.data.sft.as_ref().map(|sft| sft.bad.clone()).unwrap_or_default();
        let setup = RunSetup::with_data(self.config, self.data, Some(&self.source), &self.session)?;
        let run = NewRun { setup, source: Some(self.source), requests };
        run.train(out, |dir| write_quarantine(dir, &bad))
    }
}

fn load_config(request: &SftRequest, tuned: &SftInputs) -> Result<Config> {
    let mut config = Config::load_sft(request.config, request.sets, tuned)?;
    check_new_run(&config)?;
    make_paths_absolute(&mut config)?;
    Ok(config)
}

/// As many steps as `sft.epochs` passes over the rows take.
fn steps(config: &Config, data: &RunData) -> u64 {
    let rows = data.sft.as_ref().map_or(0, |sft| sft.train.len());
    let each = config.train.sequences_per_step();
    ((config.sft.epochs * rows as f64 / each as f64).ceil() as u64).max(1)
}

/// The records that nothing is learned from, beside the run that left them out.
fn write_quarantine(run_dir: &Path, bad: &[BadRecord]) -> Result<()> {
    if bad.is_empty() {
        return Ok(());
    }
    let lines = bad.iter().map(|record| Ok(serde_json::to_string(record)? + "\n")).collect::<Result<Vec<_>>>()?;
    write_atomic(&run_dir.join(QUARANTINE), lines.concat().as_bytes())
}
