//! Whether all ranks train the same run: what they start from, and, every so often, their weights.

use super::model_state::ModelState;
use crate::distributed::group::ProcessGroup;
use crate::model::params::with_host_slices;
use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use rayon::prelude::*;
use serde_json::Value;
use std::path::Path;

/// Elements hashed by one task.
const PIECE: usize = 1 << 20;

/// One thing that must be equal on all ranks: what it is, its value on this rank, and the exit code if it is not.
type Quantity = (&'static str, String, Exit);

/// What the ranks of a run start with, as one of them has it.
pub struct Beginning<'a> {
    pub run_dir: &'a Path,
    /// The resolved configuration.
    pub config: &'a str,
    pub data_fingerprint: &'a str,
    /// The identity of program and machine.
    pub build: &'a Value,
    pub state: &'a ModelState,
}

/// Compares what the ranks of a run start with.
///
/// # Errors
/// [`Exit::Config`] or [`Exit::Data`], naming the rank that differs and in what.
pub fn compare_at_start(group: &ProcessGroup, own: &Beginning) -> Result<()> {
    let Beginning { run_dir, config, data_fingerprint, build, state } = own;
    if group.ranks() == 1 {
        return Ok(());
    }
    let quantities = [
        ("the version of the program", crate::VERSION.to_owned(), Exit::Config),
        ("the run directory", std::path::absolute(run_dir)?.display().to_string(), Exit::Config),
        ("the configuration", blake3::hash(config.as_bytes()).to_hex().to_string(), Exit::Config),
        ("the training or validation data", (*data_fingerprint).to_owned(), Exit::Data),
        ("the arithmetic of its processor or GPU", build["numerics"].to_string(), Exit::Config),
        ("the weights to start from", format!("{} {:?}", weights_hash(state)?, state.base), Exit::Data),
    ];
    compare(group, &quantities, None)
}

/// Compares weights and data of all ranks after a step.
///
/// # Errors
/// [`Exit::Internal`], naming the rank that differs.
pub fn compare_states(state: &ModelState) -> Result<()> {
    let group = &state.sharding.group;
    if group.ranks() == 1 {
        return Ok(());
    }
    let quantities = [
        ("the data so far", state.run.data_hash.to_string(), Exit::Internal),
        ("the weights", weights_hash(state)?, Exit::Internal),
    ];
    compare(group, &quantities, Some(state.run.step))
}

fn compare(group: &ProcessGroup, quantities: &[Quantity], step: Option<u64>) -> Result<()> {
    let own: Vec<String> = quantities.iter().map(|(_, value, _)| value.clone()).collect();
    let all = group.gather("what must be equal", &own)?;
    for (i, (what, _, exit)) in quantities.iter().enumerate() {
        let values: Vec<&str> = all.iter().map(|values| values[i].as_str()).collect();
        if let Some(rank) = odd_one_out(&values) {
            return Err(differs(group, rank, what, *exit, step).into());
        }
    }
    Ok(())
}

/// The first rank whose value most of the others do not have; where no value has a majority, rank 0 counts as right.
fn odd_one_out(values: &[&str]) -> Option<usize> {
    let count = |value: &str| values.iter().filter(|other| **other == value).count();
    let usual = values.iter().copied().find(|value| 2 * count(value) > values.len()).or(values.first().copied())?;
    values.iter().position(|value| *value != usual)
}

fn differs(group: &ProcessGroup, rank: usize, what: &str, exit: Exit, step: Option<u64>) -> Failure {
    let who = group.members().get(rank).map_or_else(|| format!("rank {rank}"), ToString::to_string);
    let when = step.map_or_else(String::new, |step| format!("step {step}: "));
    let message = format!("{when}{who} has not the same as the others: {what}");
    let hint = match exit {
        Exit::Internal => {
            "resume from the last checkpoint, without that machine: its memory or processor may be at fault"
        }
        Exit::Data => "give every host the same files at the same paths",
        _ => "start the same program with the same arguments on machines of one kind",
    };
    fail(exit, message).hint(hint)
}

/// A hash of all weights that are trained.
fn weights_hash(state: &ModelState) -> Result<String> {
    let hashes = with_host_slices(&[state.model.trained().1], |slices| {
        let pieces = slices[0].par_chunks(PIECE).map(|piece| *blake3::hash(bytemuck::cast_slice(piece)).as_bytes());
        pieces.collect::<Vec<[u8; 32]>>()
    })?;
    Ok(blake3::hash(&hashes.concat()).to_hex()[..16].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_differs_is_found() {
        assert_eq!(odd_one_out(&["a", "a", "a", "a"]), None);
        assert_eq!(odd_one_out(&["a", "a", "b", "a"]), Some(2));
        assert_eq!(odd_one_out(&["b", "a", "a", "a"]), Some(0));
        assert_eq!(odd_one_out(&["a", "b"]), Some(1), "of two, rank 0 counts as right");
    }
}
