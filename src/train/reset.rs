//! `resume --reset`: pieces of state given up on purpose.
//!
//! The system that this program follows lost some of its state at every resume and showed a spike of the loss for it. Giving up the
//! same piece here shows what that piece does, on any run.

use super::schedule::Schedule;
use super::state::{DataOffset, State};
use crate::config::Config;
use crate::ops::adamw::zero;
use anyhow::Result;
use std::collections::BTreeSet;

/// A piece of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Piece {
    /// AdamW's moments become 0.
    Moments,
    /// AdamW's count of updates becomes 0: its bias correction begins anew.
    OptimizerStep,
    /// The seed of what is drawn from here on becomes another one.
    Rng,
    /// The data begin anew with the first sequence.
    Data,
    /// The learning rate begins anew, warm-up included.
    Schedule,
}

impl Piece {
    /// As on the command line, in metrics and events.
    pub fn name(self) -> &'static str {
        match self {
            Piece::Moments => "moments",
            Piece::OptimizerStep => "optimizer_step",
            Piece::Rng => "rng",
            Piece::Data => "data",
            Piece::Schedule => "schedule",
        }
    }
}

/// Gives up `pieces` of `state`; `config` follows where it says what they are.
///
/// # Errors
/// Those of the schedule.
pub fn reset(state: &mut State, config: &mut Config, pieces: &BTreeSet<Piece>) -> Result<()> {
    let step = state.counters.step;
    for piece in pieces {
        match piece {
            Piece::Moments => {
                zero(&state.optimizer.exp_avg)?;
                zero(&state.optimizer.exp_avg_sq)?;
            }
            Piece::OptimizerStep => {
                state.optimizer.updates = 0;
                state.counters.updates = 0;
            }
            // Training itself draws nothing after initialisation, and in-loop samples have a seed of their own: this changes what
            // later versions draw, and is here so that a reset of everything is one of everything.
            Piece::Rng => {
                let key = [config.train.seed.to_le_bytes(), step.to_le_bytes()].concat();
                let hash = blake3::derive_key("llama-lite reset rng v1", &key);
                config.train.seed = u64::from_le_bytes(hash[..8].try_into().unwrap_or_default());
            }
            Piece::Data => {
                let from = std::mem::take(&mut state.counters.next_sequence);
                state.data_offsets.push(DataOffset { step, from, to: 0 });
            }
            Piece::Schedule => {
                let anew = Schedule::new(&config.schedule, config.optimizer.lr, state.schedule.horizon())?;
                state.schedule = anew.from_step(step);
            }
        }
    }
    if pieces.is_empty() {
        return Ok(()); // a mark that the checkpoint carries stays
    }
    state.reset = pieces.iter().map(|piece| piece.name().to_owned()).collect();
    Ok(())
}
