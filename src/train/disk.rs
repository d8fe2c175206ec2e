//! The room that a run's checkpoints take on its disk.

use super::footprint::checkpoint_bytes;
use crate::checkpoint::{self, Retention};
use crate::config::{CheckpointConfig, Config};
use anyhow::Result;
use std::path::Path;

/// Which checkpoints `config` keeps.
pub fn retention(config: &CheckpointConfig) -> Retention {
    let CheckpointConfig { keep, keep_every, log_spaced, .. } = *config;
    Retention { keep, keep_every, log_spaced }
}

/// Powers of two up to `step`.
fn powers_of_two(step: u64) -> u64 {
    step.checked_ilog2().map_or(0, |log| u64::from(log) + 1)
}

/// Saves that are due after `step`, those of requests aside. A step that is due for two reasons counts twice.
fn saves_after(config: &Config, step: u64) -> u64 {
    let c = &config.checkpoint;
    let before_last = config.train.steps.saturating_sub(1);
    let between = |count: &dyn Fn(u64) -> u64| count(before_last).saturating_sub(count(step));
    let regular = between(&|step| step.checked_div(c.every).unwrap_or(0));
    let early = if c.log_spaced { between(&powers_of_two) } else { 0 };
    regular + early + u64::from(c.last && step < config.train.steps)
}

/// The most checkpoints on the disk at a time, one being written included.
pub fn kept_checkpoints(config: &Config) -> u64 {
    let c = &config.checkpoint;
    let steps = config.train.steps;
    let often = steps.checked_div(c.keep_every).unwrap_or(0);
    let early = if c.log_spaced { powers_of_two(steps) } else { 0 };
    (c.keep as u64).saturating_add(often + early + 1).min(saves_after(config, 0))
}

/// Bytes of the checkpoints that [`kept_checkpoints`] counts.
pub fn kept_bytes(config: &Config) -> u64 {
    checkpoint_bytes(config).saturating_mul(kept_checkpoints(config))
}

/// Refuses a run that goes on after `step` if the newest checkpoints that it keeps do not fit onto the disk. Those that stay for good are
/// not counted: they may be moved away while it runs.
///
/// # Errors
/// [`Exit::Io`](crate::runtime::error::Exit::Io).
pub fn check_disk(config: &Config, run_dir: &Path, step: u64) -> Result<()> {
    let retention = retention(&config.checkpoint);
    let valid = checkpoint::list_valid(run_dir)?;
    let existing = valid.iter().filter(|found| !retention.keeps_for_good(found.manifest.step)).count() as u64;
    // One more than is kept: the new one is written before the oldest is deleted.
    let kept = (retention.keep as u64).saturating_add(1).saturating_sub(existing);
    let more = kept.min(saves_after(config, step));
    checkpoint::ensure_space(run_dir, checkpoint::space_for(checkpoint_bytes(config), more))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(checkpoint: &str) -> Config {
        let text = format!(
            "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
             [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\nsteps = 1000\n\
             [checkpoint]\n{checkpoint}"
        );
        Config::from_toml_str(&text, "a.toml").unwrap()
    }

    #[test]
    fn the_disk_holds_what_is_kept() {
        // The last two, one being written, and every 200th.
        let kept = config("every = 100\nkeep = 2\nkeep_every = 200\n");
        assert_eq!(kept_checkpoints(&kept), 5 + 2 + 1);
        assert_eq!(kept_bytes(&kept), 8 * 12 * kept.model.n_params());
        // A run that saves less often than it may keep.
        for (checkpoint, most) in
            [("every = 0", 1), ("every = 0\nlast = false", 0), ("every = 600", 2), ("every = 500\nlast = false", 1)]
        {
            assert_eq!(kept_checkpoints(&config(checkpoint)), most, "{checkpoint}");
        }
    }

    #[test]
    fn saves_are_counted_to_the_end() {
        for (checkpoint, step, count) in [
            ("every = 100", 0, 10),
            // The last step is saved once, although it is a multiple.
            ("every = 500", 499, 2),
            ("every = 500", 500, 1),
            ("every = 0", 999, 1),
            ("every = 0", 1000, 0),
            ("every = 0\nlog_spaced = true", 0, 10 + 1),
            ("every = 0\nlog_spaced = true", 4, 7 + 1),
        ] {
            assert_eq!(saves_after(&config(checkpoint), step), count, "{checkpoint} after {step}");
        }
    }
}
