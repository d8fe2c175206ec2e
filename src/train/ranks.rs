//! Lanes and ranks of a run: which numbers of them go together, and what is written down of them.

use crate::config::Config;
use crate::distributed::group::{Member, ProcessGroup};
use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use serde_json::{Value, json};

/// Settles `train.lanes` of a run that starts: as many as there are ranks, if the configuration does not say.
///
/// # Errors
/// [`Exit::Config`] if the sequences of a step cannot be shared out.
pub fn settle_lanes(config: &mut Config, ranks: usize) -> Result<()> {
    let lanes = *config.train.lanes.get_or_insert(ranks);
    check_ranks(lanes, ranks)?;
    let sequences = config.train.sequences_per_step();
    if sequences.is_multiple_of(lanes) {
        return Ok(());
    }
    let tokens = sequences.next_multiple_of(lanes) * config.train.sequence_length;
    let message = format!("{ranks} ranks cannot share out the {sequences} sequences of a step evenly");
    Err(fail(Exit::Config, message).hint(format!("use fewer ranks, or --set train.tokens_per_step={tokens}")).into())
}

/// Refuses a number of ranks that does not divide the lanes of a run.
///
/// # Errors
/// [`Exit::Config`], with what would work.
pub fn check_ranks(lanes: usize, ranks: usize) -> Result<(), Failure> {
    if lanes.is_multiple_of(ranks) {
        return Ok(());
    }
    Err(fail(Exit::Config, format!("{ranks} ranks cannot share out train.lanes = {lanes}")).hint(format!(
        "use {} of them for the same bits, or go on with other rounding: --set train.lanes={ranks}",
        one_of(&powers_of_two_in(lanes))
    )))
}

/// The numbers of ranks that can train `config`, ascending: powers of two that divide its lanes or, where these follow from the number
/// of ranks at the start, the sequences of a step.
pub fn permitted_ranks(config: &Config) -> Vec<usize> {
    powers_of_two_in(config.train.lanes.unwrap_or_else(|| config.train.sequences_per_step()))
}

/// The powers of two that divide `number`, ascending.
fn powers_of_two_in(number: usize) -> Vec<usize> {
    (0..=number.trailing_zeros()).map(|bits| 1 << bits).collect()
}

/// Ranks and lanes of a run in words, such as "4 ranks (2 hosts), 8 lanes"; none for a process alone that has one lane.
pub fn describe_ranks(members: &[Member], lanes: usize) -> Option<String> {
    let ranks = members.len().max(1);
    let mut hosts: Vec<&str> = members.iter().map(|member| member.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let hosts = if hosts.len() > 1 { format!(" ({} hosts)", hosts.len()) } else { String::new() };
    let ranks_and_lanes = format!("{}{hosts}, {}", plural(ranks, "rank"), plural(lanes, "lane"));
    (ranks > 1 || lanes > 1).then_some(ranks_and_lanes)
}

/// The lanes of a step in words, such as "8 lanes of 64 sequences".
pub fn describe_lanes(config: &Config) -> String {
    let lanes = config.train.lanes();
    let sequences = config.train.sequences_per_step() / lanes;
    format!("{} of {}", plural(lanes, "lane"), plural(sequences, "sequence"))
}

/// "1", "1 or 2", "1, 2 or 4".
pub fn one_of(numbers: &[usize]) -> String {
    match numbers {
        [] => String::new(),
        [one] => one.to_string(),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(ToString::to_string).collect();
            format!("{} or {last}", most.join(", "))
        }
    }
}

/// "1 rank", "2 ranks".
fn plural(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The processes of a run, for its events; `parameters` are trained.
pub fn ranks_event(group: &ProcessGroup, step: u64, lanes: usize, parameters: u64) -> Value {
    json!({
        "step": step,
        "ranks": group.ranks(),
        "lanes": lanes,
        "members": group.members(),
        "bytes_per_step": bytes_per_step(group.ranks() as u64, parameters),
    })
}

/// Bytes that a rank sends for each step, on average over ranks: its part of the gradients in f32, and of the weights that it has
/// updated. Messages of some kilobytes come on top.
pub fn bytes_per_step(ranks: u64, parameters: u64) -> u64 {
    2 * 4 * parameters.saturating_mul(ranks - 1) / ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::error::failure_in;

    #[test]
    fn ranks_must_divide_the_lanes() {
        for (lanes, ranks) in [(1, 1), (8, 1), (8, 8), (4, 2)] {
            assert!(check_ranks(lanes, ranks).is_ok());
        }
        let failure = check_ranks(4, 8).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert_eq!(
            failure.hint.unwrap(),
            "use 1, 2 or 4 of them for the same bits, or go on with other rounding: --set train.lanes=8"
        );
        assert!(check_ranks(1, 2).unwrap_err().hint.unwrap().starts_with("use 1 of them"));
    }

    #[test]
    fn permitted_numbers_are_powers_of_two_that_share_out_the_step() {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
                    [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\n\
                    tokens_per_step = 1536\nsteps = 9\n";
        let mut config = Config::from_toml_str(text, "a.toml").unwrap();
        // 24 sequences.
        assert_eq!(permitted_ranks(&config), [1, 2, 4, 8]);
        for ranks in permitted_ranks(&config) {
            let mut config = config.clone();
            settle_lanes(&mut config, ranks).unwrap();
            assert_eq!((config.train.lanes, permitted_ranks(&config).last()), (Some(ranks), Some(&ranks)));
        }
        let hint = failure_in(&settle_lanes(&mut config.clone(), 16).unwrap_err()).unwrap().hint.clone().unwrap();
        assert_eq!(hint, "use fewer ranks, or --set train.tokens_per_step=2048");
        config.train.lanes = Some(4);
        assert_eq!(one_of(&permitted_ranks(&config)), "1, 2 or 4");
        assert!(settle_lanes(&mut config, 8).is_err());
    }

    #[test]
    fn ranks_are_described_where_there_is_something_to_say() {
        let member = |rank: usize, host: &str| Member { rank, host: host.into(), pid: 1, device: "cpu".into() };
        let members = [(0, "a"), (1, "a"), (2, "b"), (3, "b")].map(|(rank, host)| member(rank, host));
        assert_eq!(describe_ranks(&[], 1), None);
        assert_eq!(describe_ranks(&[], 8).unwrap(), "1 rank, 8 lanes");
        assert_eq!(describe_ranks(&members[..2], 2).unwrap(), "2 ranks, 2 lanes");
        assert_eq!(describe_ranks(&members, 8).unwrap(), "4 ranks (2 hosts), 8 lanes");
    }

    #[test]
    fn the_most_is_sent_by_many_ranks() {
        assert_eq!([1, 2, 4, 8].map(|ranks| bytes_per_step(ranks, 1000)), [0, 4000, 6000, 7000]);
    }
}
