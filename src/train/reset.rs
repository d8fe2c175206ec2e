//! `resume --reset`: pieces of state given up on purpose.
//!
//! The system that this program follows lost some of its state at every resume and showed a spike of the loss for it. Giving up the
//! same piece here shows what that piece does, on any run.

use super::model_state::ModelState;
use crate::config::Config;
use anyhow::Result;
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Piece {
    /// The optimizer's state tensors become 0.
    Moments,
    /// AdamW's count of updates becomes 0: its bias correction starts anew.
    OptimizerStep,
    /// The seed of what is drawn from here on becomes another one.
    Rng,
    /// The data start anew with the first sequence.
    Data,
    /// The learning rate starts anew, warm-up included.
    Schedule,
}

impl Piece {
    /// As on the command line, in metrics and events.
    pub const fn name(self) -> &'static str {
        match self {
            Piece::Moments => "moments",
            Piece::OptimizerStep => "optimizer_step",
            Piece::Rng => "rng",
            Piece::Data => "data",
            Piece::Schedule => "schedule",
        }
    }
}

/// Gives up those of `pieces` that the configuration holds, at `step`. Before any state is made of it: an optimizer or a model that
/// has copied a seed or a schedule would continue with the old one, and a resume of its checkpoint with the new one.
pub fn reset_config(config: &mut Config, pieces: &BTreeSet<Piece>, step: u64) {
    if pieces.contains(&Piece::Rng) {
        let key = [config.train.seed.to_le_bytes(), step.to_le_bytes()].concat();
        let hash = blake3::derive_key("llama-lite reset rng v1", &key);
        // TOML's integers have a sign.
        config.train.seed = u64::from_le_bytes(hash[..8].try_into().unwrap_or_default()) >> 1;
    }
    if pieces.contains(&Piece::Schedule) {
        config.schedule.start_step = Some(step);
    }
}

/// Gives up the others of `pieces`, those of `state`, and marks it with all of them.
///
/// # Errors
/// Those of the device.
pub fn reset_state(state: &mut ModelState, pieces: &BTreeSet<Piece>) -> Result<()> {
    for piece in pieces {
        match piece {
            Piece::Moments => state.optimizer.zero_state()?,
            Piece::OptimizerStep => {
                state.optimizer.updates = 0;
                // The trainer's count is the one that a checkpoint saves, also before the next step.
                state.run.updates = 0;
            }
            Piece::Data => state.run.jump_to_sequence(0),
            Piece::Rng | Piece::Schedule => {} // in the configuration, from which `state` was built
        }
    }
    if pieces.is_empty() {
        return Ok(()); // a mark that the checkpoint carries stays
    }
    state.run.reset = pieces.iter().map(|piece| piece.name().to_owned()).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_seed_can_be_written_and_read() {
        let text = "[model]\nhidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
            vocab_size = 300\n[data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 8\n\
            micro_batch_size = 1\nsteps = 9\n";
        for seed in 0..20 {
            let mut config = Config::from_toml_str(&format!("{text}seed = {seed}\n"), "a.toml").unwrap();
            reset_config(&mut config, &BTreeSet::from([Piece::Rng]), 5);
            assert!(config.train.seed > 1 << 32, "{}", config.train.seed);
            config.to_checked_toml().unwrap();
        }
        let mut config = Config::from_toml_str(text, "a.toml").unwrap();
        config.train.seed = u64::MAX;
        let failure = config.to_checked_toml().unwrap_err().to_string();
        assert!(failure.contains("train.seed"), "{failure}");
    }
}
