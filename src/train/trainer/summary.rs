//! What is printed before the first step: the size of the run, the data, the memory it takes.

use super::Trainer;
use crate::data::eval_set::EvalSet;
use crate::eval::benchmark::Prepared;
use crate::metrics::thousands;
use crate::ops::product_rate::ProductRates;
use crate::train::footprint::trained_params;
use crate::train::precision_remark::precision_remark;
use crate::train::ranks::describe_ranks;
use crate::train::remark::Remark;
use crate::train::schedule::{remark, standstill};
use anyhow::Result;

/// Fewer validation tokens than this make a noisy number.
const FEW_TARGETS: u64 = 2000;

impl Trainer {
    /// # Errors
    /// Those of the schedule.
    pub(super) fn print_summary(&mut self) -> Result<()> {
        let parts = [
            self.size(),
            self.ranks(),
            self.mixture(),
            self.files(),
            self.floor(),
            self.validation(),
            self.truncated(),
        ];
        let lines = parts.concat();
        let at = self.state.run.step;
        let steps = self.config.train.steps;
        let verb = match at {
            0 => "starting".into(),
            _ if at < steps => format!("resuming at step {at}"),
            _ => format!("nothing to do: it has its {at} steps; for more: {}", self.settings_to_extend()?),
        };
        let remarks = [remark(&self.config, at)?, self.precision_remark()?];
        let (warnings, notes): (Vec<Remark>, Vec<Remark>) =
            remarks.into_iter().flatten().partition(|remark| remark.warning);
        let notes: String = notes.iter().map(|note| format!("\n{}", note.text)).collect();
        self.progress.print(&format!("{lines}{notes}\n{verb} · {}", self.context.dir.display()));
        warnings.iter().for_each(|warning| self.progress.warn(&warning.text));
        Ok(())
    }

    /// Only on the terminal: what was measured here and now is nothing of the run, whose files are the same wherever it runs.
    fn precision_remark(&self) -> Result<Option<Remark>> {
        // Of several ranks one measures and speaks; the others are quiet as well.
        if self.context.console.quiet || !self.group.is_first() {
            return Ok(None);
        }
        precision_remark(&self.config, &self.device, self.state.run.step, ProductRates::measure)
    }

    /// The settings with which a finished run continues and learns.
    fn settings_to_extend(&self) -> Result<String> {
        let mut longer = self.config.clone();
        let at = self.state.run.step;
        // The smallest extension is enough to see whether more steps would learn anything.
        longer.train.steps = at.saturating_add(1);
        let stands_still = standstill(&longer, at)?.is_some();
        let key = if longer.schedule.total_steps.is_some() { "total_steps" } else { "decay_steps" };
        let schedule = if stands_still { format!(" --set schedule.{key}=N") } else { String::new() };
        Ok(format!("--set train.steps=N{schedule}"))
    }

    fn sequences(&self) -> u64 {
        let train = &self.config.train;
        train.steps * (train.sequences_per_step()) as u64
    }

    fn size(&self) -> String {
        let model = &self.config.model;
        let train = &self.config.train;
        let drawn = self.prefetch.loader().drawn(self.sequences());
        let passes =
            if let [one] = drawn.as_slice() { format!("{:.2} passes", one.passes) } else { "a mixture".into() };
        let trained = match trained_params(&self.config) {
            n if n < model.n_params() => format!(", {} of adapters trained", thousands(n)),
            _ => String::new(),
        };
        format!(
            "{} parameters{trained} · {} steps of {} tokens · {passes} over {} training tokens · {} of memory",
            thousands(model.n_params()),
            thousands(train.steps),
            thousands(train.tokens_per_step as u64),
            thousands(self.data.dataset.train_tokens()),
            self.footprint()
        )
    }

    /// The processes that train, and the parts of a step that they share out.
    fn ranks(&self) -> String {
        let line = describe_ranks(self.group.members(), self.config.train.lanes());
        line.map_or_else(String::new, |line| format!("\n{line}"))
    }

    fn mixture(&self) -> String {
        let all = self.sequences();
        let drawn = self.prefetch.loader().drawn(all);
        if drawn.len() < 2 {
            return String::new();
        }
        let lines = drawn.iter().map(|source| {
            let percent = 100.0 * source.sequences as f64 / all as f64;
            format!("\n{percent:5.1} % {:.2} passes over {}", source.passes, source.name)
        });
        lines.collect()
    }

    fn files(&self) -> String {
        self.data.dataset.notes.iter().map(|note| format!("\n{note}")).collect()
    }

    fn floor(&self) -> String {
        self.data.dataset.floor.as_ref().map_or_else(String::new, |floor| {
            format!(
                "\nvalidation floor {:.4} ± {:.4} bits per byte: the exact entropy of the {} validation stories",
                floor.bits_per_byte, floor.stderr, floor.stories
            )
        })
    }

    fn validation(&self) -> String {
        match self.data.dataset.val.as_ref().map(EvalSet::targets) {
            None => "\nno validation split: give data.val, or a directory with val shards".into(),
            Some(n) if n < FEW_TARGETS => format!(
                "\nwarning: only {n} validation tokens, their loss says little: give data.val or raise data.val_fraction"
            ),
            Some(n) => format!("\n{} validation tokens", thousands(n)),
        }
    }

    /// Warnings about benchmark texts and prompts that are longer than the model's context.
    fn truncated(&self) -> String {
        let mut lines: Vec<String> = self.benchmarks.iter().filter_map(Prepared::warning).collect();
        let context = self.config.model.context_length();
        for (i, text) in self.config.sample.prompts.iter().enumerate().filter(|_| self.config.sample.every > 0) {
            let tokens = self.prompt(text).map_or(0, |ids| ids.len());
            if tokens > context {
                lines.push(format!(
                    "warning: prompt {} of sample.prompts has {tokens} tokens, the context {context}: only its end is used",
                    i + 1
                ));
            }
        }
        lines.iter().map(|line| format!("\n{line}")).collect()
    }
}
