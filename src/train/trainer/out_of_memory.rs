//! A step that its device has no memory for: it is taken again with more computed anew in backward, or with fewer sequences at once.

use super::Trainer;
use crate::config::RecomputeSetting;
use crate::model::Recompute;
use crate::runtime::error::{Exit, fail};
use crate::train::footprint::{Hardware, HostFootprint, RanksHere, recompute};
use anyhow::Result;
use serde_json::{Value, json};

impl Trainer {
    /// What training here is predicted to take.
    pub(super) fn footprint(&self) -> HostFootprint {
        HostFootprint::with(&self.config, self.state.model.recompute, &self.hardware())
    }

    fn hardware(&self) -> Hardware {
        Hardware::here(&self.device, RanksHere::in_group(&self.group))
    }

    /// Makes the next try of a step that has failed with `error` take less memory. Norms and SwiGLU are computed again first, which costs
    /// next to nothing; then the micro-batch is halved; whole blocks are computed again only where one sequence is too much.
    pub(super) fn use_less_memory(&mut self, error: &anyhow::Error) -> Result<()> {
        // A device's errors may come with backtraces.
        let text = format!("{error:#}");
        let error = text.lines().next().unwrap_or_default();
        let train = &self.config.train;
        let lighter = next_recompute(train.recompute, self.state.model.recompute, train.sequences_per_pass());
        // Every rank has room for its own; none halves the micro-batch of all while another one can do without.
        if self.group.any("less memory", lighter.is_some())? {
            return lighter.map_or(Ok(()), |lighter| self.recompute_more(lighter, error));
        }
        self.halve_micro_batch(error)
    }

    fn recompute_more(&mut self, lighter: Recompute, error: &str) -> Result<()> {
        let old = std::mem::replace(&mut self.state.model.recompute, lighter);
        let (old, new) = (setting(old), setting(lighter));
        self.report(error, "train.recompute", &json!(old), &json!(new))
    }

    /// The step is taken again with half as many sequences at once, or fewer; their number and order stay.
    fn halve_micro_batch(&mut self, error: &str) -> Result<()> {
        let old = self.config.train.sequences_per_pass();
        if old == 1 {
            let step = self.state.run.step + 1;
            let message =
                format!("step {step}: {error}, with one sequence at a time; {} were expected", self.footprint());
            return Err(fail(Exit::Memory, message)
                .hint("shorten train.sequence_length or choose a smaller model")
                .into());
        }
        // It divides the step's sequences, or the configuration of the next checkpoint could not be loaded again.
        let sequences = self.config.train.sequences_per_step();
        let new = (1..=old / 2).rev().find(|n| sequences.is_multiple_of(*n)).unwrap_or(1);
        self.config.train.micro_batch_size = new;
        // Decided anew: a smaller micro-batch may spare whole blocks. That all activations fit was wrong once and is not tried again.
        let kept_all = self.state.model.recompute == Recompute::None;
        self.state.model.recompute = match recompute(&self.config, &self.hardware()) {
            Recompute::None if !kept_all => Recompute::Selective,
            decided => decided,
        };
        self.report(error, "train.micro_batch_size", &json!(old), &json!(new))
    }

    fn report(&mut self, error: &str, key: &str, old: &Value, new: &Value) -> Result<()> {
        let step = self.state.run.step + 1;
        self.progress.warn(&format!("step {step}: {error}: {key} is {new} from now on"));
        let name = key.trim_start_matches("train.");
        self.logs.events.append("out_of_memory", json!({"step": step, "error": error, name: {"old": old, "new": new}}))
    }
}

/// What is computed again after `now` was too much for micro-batches of `size` sequences; none if that is not to be changed.
fn next_recompute(setting: RecomputeSetting, now: Recompute, size: usize) -> Option<Recompute> {
    match (setting, now) {
        (RecomputeSetting::Auto, Recompute::None) => Some(Recompute::Selective),
        (RecomputeSetting::Auto, Recompute::Selective) if size == 1 => Some(Recompute::Full),
        _ => None,
    }
}

/// The setting that stands for `recompute`.
fn setting(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "none",
        Recompute::Selective => "selective",
        Recompute::Full => "full",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_ends_and_keeps_to_the_setting() {
        let next = |now, size| next_recompute(RecomputeSetting::Auto, now, size);
        assert_eq!(next(Recompute::None, 16), Some(Recompute::Selective));
        assert_eq!(next(Recompute::Selective, 16), None, "half the micro-batch costs less than whole blocks");
        assert_eq!(next(Recompute::Selective, 1), Some(Recompute::Full));
        assert_eq!(next(Recompute::Full, 1), None);
        for fixed in [RecomputeSetting::None, RecomputeSetting::Selective, RecomputeSetting::Full] {
            assert_eq!(next_recompute(fixed, Recompute::None, 1), None);
        }
    }
}
