//! How a fine-tuning run begins: a model, conversations, the proof of what will be trained; then it is a run like any other.

use super::requests::{NOTHING_TO_RESUME, Requests};
use super::schedule::check_new_run;
use crate::checkpoint::Opened;
use crate::config::{Config, SftInputs};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::write_atomic;
use crate::runtime::shell::quoted;
use crate::sft::load::BadRecord;
use crate::sft::mask_report::MaskReport;
use crate::tokenizer::Tokenizer;
use crate::train::run_data::RunData;
use crate::train::setup::{
    Fresh, assemble, begin_fresh, check_disk, check_machine, check_same_model, make_paths_absolute, say,
};
use anyhow::Result;
use std::path::Path;

/// Characters of the example that is shown before a run.
const EXCERPT: usize = 1500;

/// The records that are left out, in the run's directory.
const QUARANTINE: &str = "quarantine.jsonl";

/// What is tuned, and on what.
pub struct Request<'a> {
    pub config: &'a Path,
    pub sets: &'a [String],
    pub ckpt: &'a Path,
    /// Files of records, on this machine.
    pub data: &'a [String],
}

/// Data and model of a request, ready to begin.
pub struct Tune {
    config: Config,
    data: RunData,
    source: Opened,
    console: Console,
}

impl Tune {
    /// Reads model and records.
    ///
    /// # Errors
    /// Those of configuration, model and data.
    pub fn open(request: &Request, console: Console) -> Result<Self> {
        let source = Opened::open(request.ckpt)?;
        if source.adapter().is_some() {
            let merge = format!("llama-lite export --ckpt {} --merge-lora --out DIR", quoted(&source.dir));
            return Err(fail(Exit::Config, format!("{}: adapters, not a model", source.dir.display()))
                .hint(format!("make a model of them, then fine-tune that: {merge}"))
                .into());
        }
        let base = std::path::absolute(&source.dir)?;
        let data = request.data.iter().map(|path| Ok(std::path::absolute(path)?.to_string_lossy().into_owned()));
        let data: Vec<String> = data.collect::<Result<_>>()?;
        let tuned = |steps| SftInputs { base: &base, model: &source.model, data: &data, steps };
        let load = |steps| -> Result<Config> {
            let mut config = Config::load_sft(request.config, request.sets, &tuned(steps))?;
            check_new_run(&config)?;
            make_paths_absolute(&mut config)?;
            Ok(config)
        };
        let config = load(None)?;
        check_same_model(&config, &source)?;
        say(console, "preparing the data ...");
        let data = RunData::open(&config, None)?;
        let config = load(Some(steps(&config, &data)))?;
        Ok(Self { config, data, source, console })
    }

    /// Shows what will be trained of the first `n` conversations, at most `limit` characters of each.
    ///
    /// # Errors
    /// Those of decoding.
    pub fn show(&self, n: usize, limit: usize) -> Result<Vec<String>> {
        let Some((proof, tokenizer)) = self.proof() else { return Ok(Vec::new()) };
        let marks =
            if self.console.color { ["\x1b[32m", "\x1b[0m", "\x1b[2m", "\x1b[0m"] } else { ["⟦", "⟧", "", ""] };
        proof.excerpts(tokenizer, n, limit, marks)
    }

    /// The counts, a line each.
    pub fn counts(&self) -> Vec<String> {
        self.proof().map_or_else(Vec::new, |(proof, _)| proof.lines())
    }

    /// The records that are left out, at most `limit` of them, a line each.
    pub fn bad(&self, limit: usize) -> Vec<String> {
        let bad = self.data.sft.as_ref().map_or(&[][..], |tuning| &tuning.bad);
        let mut lines: Vec<String> =
            bad.iter().take(limit).map(|bad| format!("  {}:{}: {}", bad.file, bad.line, bad.what)).collect();
        if bad.len() > limit {
            lines.push(format!("  and {} more", bad.len() - limit));
        }
        lines
    }

    /// What is wrong with some of the data.
    pub fn warning(&self) -> Option<String> {
        self.proof().and_then(|(proof, _)| proof.warning())
    }

    /// Refuses data that would not teach what they are meant to.
    ///
    /// # Errors
    /// [`Exit::Data`], saying why.
    pub fn check(&self) -> Result<()> {
        self.proof().map_or(Ok(()), |(proof, _)| Ok(proof.check()?))
    }

    fn proof(&self) -> Option<(&MaskReport, &Tokenizer)> {
        let tuning = self.data.sft.as_ref()?;
        Some((&tuning.mask_report, &tuning.tokenizer))
    }

    /// Trains, in the new run directory `out`.
    ///
    /// # Errors
    /// Those of data that should not be trained on, and of [`Run::train`](super::run::Run::train).
    pub fn train(self, out: &Path) -> Result<()> {
        let requests = Requests::listen(out, NOTHING_TO_RESUME)?;
        if !self.console.quiet {
            let colors = if self.console.color { "green" } else { "in ⟦ ⟧" };
            note(&format!("what is trained is {colors}:\n"));
            self.show(1, EXCERPT)?.iter().for_each(|text| note(text));
            note(&format!("\n{}", self.counts().join("\n")));
        }
        self.check()?;
        if let Some(warning) = self.warning() {
            note(&format!("{warning} (all of them: {})", out.join(QUARANTINE).display()));
        }
        check_machine(&self.config)?;
        check_disk(&self.config, out)?;
        let bad = self.data.sft.as_ref().map(|tuning| tuning.bad.clone()).unwrap_or_default();
        let parts = assemble(self.config, self.data, Some(&self.source))?;
        let begun = Fresh { parts, source: Some(self.source), requests, console: self.console };
        begin_fresh(begun, out, |dir| write_quarantine(dir, &bad))
    }
}

/// As many steps as `sft.epochs` passes over the rows take.
fn steps(config: &Config, data: &RunData) -> u64 {
    let rows = data.sft.as_ref().map_or(0, |tuning| tuning.train.len());
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
