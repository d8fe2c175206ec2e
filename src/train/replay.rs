//! What a killed attempt logged after its last checkpoint is what the next one must compute again: the steps are repeated, and must give
//! the same bits. Every crash is a determinism test for free.

use crate::metrics::{Record, Train, Val};
use std::collections::BTreeMap;
use std::path::Path;

/// The lines that a resume has cut from `metrics.jsonl`.
#[derive(Debug, Default)]
pub struct ReplayCheck {
    train: BTreeMap<u64, Train>,
    val: BTreeMap<u64, Val>,
}

/// The first quantity of a repeated step that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    pub step: u64,
    /// The field of `metrics.jsonl`.
    pub quantity: &'static str,
    /// What was logged the first time.
    pub recorded: String,
    pub replayed: String,
}

impl ReplayCheck {
    /// With the records of the file `cut`; lines that cannot be read are left out.
    pub fn new(cut: Option<&Path>) -> Self {
        let mut known = Self::default();
        let records = cut.and_then(|path| crate::metrics::read(path).ok()).unwrap_or_default();
        for record in records {
            match record {
                Record::Train(train) => drop(known.train.insert(train.step, train)),
                Record::Val(val) => drop(known.val.insert(val.step, val)),
                Record::Eval(_) | Record::Layers(_) => {}
            }
        }
        known
    }

    /// Compares a record that is about to be logged with the first one of its step. After a mismatch all are forgotten: what follows
    /// differs too.
    pub fn check(&mut self, record: &Record) -> Option<Mismatch> {
        let mismatch = match record {
            Record::Train(now) => self.train.remove(&now.step).and_then(|then| train_mismatch(&then, now)),
            Record::Val(now) => self.val.remove(&now.step).and_then(|then| val_mismatch(&then, now)),
            Record::Eval(_) | Record::Layers(_) => None,
        };
        if mismatch.is_some() {
            *self = Self::default();
        }
        mismatch
    }
}

/// The first difference of two records of one step, clock readings aside. Inputs are compared before what follows from them.
pub fn train_mismatch(then: &Train, now: &Train) -> Option<Mismatch> {
    let quantities = [
        ("lr", number(then.lr), number(now.lr)),
        ("chain", then.chain.clone(), now.chain.clone()),
        ("tokens", then.tokens.to_string(), now.tokens.to_string()),
        ("loss", number(then.loss), number(now.loss)),
        ("grad_norm", number(then.grad_norm), number(now.grad_norm)),
        ("skipped", then.skipped.to_string(), now.skipped.to_string()),
    ];
    let (quantity, recorded, replayed) = quantities.into_iter().find(|(_, then, now)| then != now)?;
    Some(Mismatch { step: now.step, quantity, recorded, replayed })
}

fn val_mismatch(then: &Val, now: &Val) -> Option<Mismatch> {
    let recorded = number(then.loss);
    let replayed = number(now.loss);
    // Losses over other validation tokens cannot be compared.
    let differs = then.tokens == now.tokens && recorded != replayed;
    differs.then_some(Mismatch { step: now.step, quantity: "validation loss", recorded, replayed })
}

/// As the log writes it: equal texts are equal bits, and what is not finite is null.
fn number(x: f64) -> String {
    if x.is_finite() { format!("{x:?}") } else { "null".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64, loss: f64) -> Train {
        Train {
            step,
            loss,
            grad_norm: 0.5,
            lr: 1e-3,
            tokens: step * 8,
            trained_tokens: None,
            tokens_per_second: 1.0,
            mfu: f64::NAN,
            data_seconds: 0.0,
            chain: "ab".into(),
            skipped: false,
            hardware: Vec::new(),
            reset: vec![],
        }
    }

    #[test]
    fn one_differing_bit_is_named_and_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attempt-1.jsonl");
        let lines: Vec<String> =
            (6..=9).map(|s| serde_json::to_string(&Record::Train(train(s, 2.0))).unwrap() + "\n").collect();
        std::fs::write(&path, lines.concat()).unwrap();
        let mut replay = ReplayCheck::new(Some(&path));
        let clock = Train { tokens_per_second: 9.0, data_seconds: 3.0, ..train(6, 2.0) };
        assert_eq!(replay.check(&Record::Train(clock)), None);
        let bit = f64::from_bits(2.0f64.to_bits() + 1);
        let found = replay.check(&Record::Train(train(7, bit))).unwrap();
        assert_eq!((found.step, found.quantity), (7, "loss"));
        assert_eq!((found.recorded.as_str(), found.replayed.as_str()), ("2.0", "2.0000000000000004"));
        assert_eq!(replay.check(&Record::Train(train(8, bit))), None);
        assert_eq!(ReplayCheck::new(None).check(&Record::Train(train(8, bit))), None);
    }

    #[test]
    fn every_quantity_counts_and_inputs_come_first() {
        let then = train(3, 2.0);
        let other = |change: fn(&mut Train)| {
            let mut now = then.clone();
            change(&mut now);
            train_mismatch(&then, &now).unwrap().quantity
        };
        assert_eq!(other(|t| t.grad_norm = 0.6), "grad_norm");
        assert_eq!(other(|t| t.skipped = true), "skipped");
        assert_eq!(other(|t| t.tokens = 1), "tokens");
        assert_eq!(other(|t| (t.loss, t.lr) = (1.0, 2.0)), "lr");
        assert_eq!(other(|t| (t.loss, t.chain) = (1.0, "cd".into())), "chain");
        let refused = Train { loss: f64::NAN, grad_norm: f64::INFINITY, skipped: true, ..train(3, 2.0) };
        assert_eq!(train_mismatch(&refused, &refused.clone()), None);
    }
}
