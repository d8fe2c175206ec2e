//! The generator: draws a derivation and writes its text.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::grammar::{Env, Grammar, Node, NodeId, surprisal};

/// Writes a story drawn with `rng` to `out`, which is cleared first; returns the bits of its decisions.
pub(super) fn expand(grammar: &Grammar, rng: &mut ChaCha8Rng, out: &mut String) -> f64 {
    out.clear();
    let mut expansion = Expansion { grammar, env: grammar.empty_env(), rng, out, bits: 0.0 };
    expansion.node(grammar.start);
    expansion.bits
}

struct Expansion<'g, 'a> {
    grammar: &'g Grammar,
    env: Env<'g>,
    rng: &'a mut ChaCha8Rng,
    out: &'a mut String,
    bits: f64,
}

impl Expansion<'_, '_> {
    fn node(&mut self, id: NodeId) {
        let grammar = self.grammar;
        match &grammar.nodes[id] {
            Node::Text(text) => self.out.push_str(text),
            Node::Seq(parts) => parts.iter().for_each(|&part| self.node(part)),
            Node::Choice { alternatives, total } => {
                let (weight, chosen) = self.draw(alternatives.iter().copied(), *total);
                self.bits += surprisal(weight, *total);
                self.node(chosen);
            }
            Node::Pick(pick) => {
                let (rows, total) = pick.candidates(grammar, &self.env);
                let (weight, row) = self.draw(rows, total);
                self.bits += surprisal(weight, total);
                self.out.push_str(row.text(pick.form));
                if let Some(slot) = pick.bind {
                    self.env[slot] = Some(row);
                }
            }
            Node::Use { slot, form } => {
                let row = self.env[*slot].unwrap_or_else(|| unreachable!("{} is not bound", grammar.slots[*slot]));
                self.out.push_str(row.text(*form));
            }
        }
    }

    /// One of the `(weight, item)`, each with probability weight / total; `total` is the sum of the weights.
    fn draw<T>(&mut self, weighted: impl Iterator<Item = (u32, T)>, total: u32) -> (u32, T) {
        let mut ticket = below(self.rng, total);
        for (weight, item) in weighted {
            if ticket < weight {
                return (weight, item);
            }
            ticket -= weight;
        }
        unreachable!("the weights add up to their total")
    }
}

/// A uniform number below `n`, without the bias of a plain remainder (Lemire's multiply-and-reject). It is written here
/// because the corpus must not change when a library changes how it draws.
fn below(rng: &mut ChaCha8Rng, n: u32) -> u32 {
    let reject_under = n.wrapping_neg() % n;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(n);
        if product as u32 >= reject_under {
            return (product >> 32) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand_chacha::rand_core::SeedableRng;

    use super::super::compile::compile;
    use super::*;
    use crate::stories::tests::parser::parse;

    /// The bits are what they claim to be: texts turn up as often as their bits say, whatever decides them.
    #[test]
    fn frequencies_are_as_the_bits_say() {
        let words = "color = 3*red; blue; green\n\nthing s:~s = cup; 2*box|boxes";
        let rules = "story = {x:color} and {y:color!x} {t:thing.s}(3*|, {:x/y} {t}(| <end>))\nend = or {:color!x!y}";
        let grammar = compile(words, &[rules], "story").unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut counts: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        let (draws, mut text) = (200_000, String::new());
        for _ in 0..draws {
            let bits = expand(&grammar, &mut rng, &mut text);
            let entry = counts.entry(text.clone()).or_insert((0.0, bits));
            entry.0 += 1.0;
            assert_eq!(entry.1, bits);
        }
        let probability: f64 = counts.values().map(|(_, bits)| (-bits).exp2()).sum();
        assert!((probability - 1.0).abs() < 1e-12, "the texts have probability {probability} together");
        for (text, (count, bits)) in counts {
            let expected = f64::from(draws) * (-bits).exp2();
            assert!((count - expected).abs() < 5.0 * expected.sqrt(), "{text}: {count}, expected {expected}");
            assert_eq!(parse(&grammar, &text).bits, [bits]);
        }
    }

    #[test]
    fn draws_are_uniform() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut counts = [0u32; 48];
        let draws = 480_000;
        (0..draws).for_each(|_| counts[below(&mut rng, 48) as usize] += 1);
        let expected = f64::from(draws) / 48.0;
        let chi2: f64 = counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
        // 47 degrees of freedom: mean 47, and the fixed seed makes the outcome certain.
        assert!(chi2 < 82.7, "chi2 {chi2} beyond the 99.9 % quantile");
    }
}
