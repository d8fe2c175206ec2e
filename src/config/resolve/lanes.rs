//! The lanes of a step.

use super::{LENGTH, Rules, broken};
use crate::config::schema::Config;

pub(super) fn rules(rules: &mut Rules, config: &Config) {
    let train = &config.train;
    rules.rule(&["train.lanes"], || {
        let lanes = train.lanes();
        (!lanes.is_power_of_two()).then(|| {
            let above = lanes.next_power_of_two();
            broken(format!("{lanes} is no power of two"), format!("set it to {} or {above}", above / 2))
        })
    });
    rules.rule(&["train.lanes", "train.tokens_per_step", LENGTH], || {
        let lanes = train.lanes();
        let sequences = train.sequences_per_step();
        (!sequences.is_multiple_of(lanes)).then(|| {
            let what = format!("{lanes} does not divide the {sequences} sequences of a step");
            let tokens = sequences.next_multiple_of(lanes).saturating_mul(train.sequence_length);
            broken(what, format!("set train.tokens_per_step to {tokens}, or fewer lanes"))
        })
    });
}
