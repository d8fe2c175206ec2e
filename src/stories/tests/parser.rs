//! The parser: finds every derivation of a text and adds up their probabilities.
//!
//! It backtracks over all decisions and never trusts that the grammar is unambiguous; that there is one derivation
//! per text is what it measures. It shares with the generator only the grammar itself.

use crate::stories::grammar::{Env, Grammar, Node, NodeId, surprisal};

/// What the parser found out about a text.
pub(in crate::stories) struct Parses {
    /// The bits of each derivation. Empty if the grammar cannot produce the text.
    pub(in crate::stories) bits: Vec<f64>,
    /// Bytes of the longest prefix that some derivation reaches.
    pub(in crate::stories) reached: usize,
}

impl Parses {
    /// -log2 of the probability of the text over all its derivations; `None` if there is none.
    pub(in crate::stories) fn surprisal(&self) -> Option<f64> {
        let least = self.bits.iter().copied().reduce(f64::min)?;
        // Relative to the most probable derivation, so that nothing underflows.
        Some(least - self.bits.iter().map(|bits| (least - bits).exp2()).sum::<f64>().log2())
    }
}

/// Every derivation of exactly `text`.
pub(in crate::stories) fn parse(grammar: &Grammar, text: &str) -> Parses {
    let parses = Parses { bits: Vec::new(), reached: 0 };
    let mut search = Search { grammar, text, env: grammar.empty_env(), parses };
    search.node(grammar.start, None, 0, 0.0);
    search.parses
}

/// What is still to be matched after the current node: the parts of a sequence from `next` on, then the `outer` rest.
struct Rest<'a> {
    parts: &'a [NodeId],
    outer: Option<&'a Rest<'a>>,
}

struct Search<'g, 'a> {
    grammar: &'g Grammar,
    text: &'a str,
    env: Env<'g>,
    parses: Parses,
}

impl<'g> Search<'g, '_> {
    /// Matches `id` at byte `at` and then `rest`; `bits` is the price so far.
    fn node(&mut self, id: NodeId, rest: Option<&Rest<'_>>, at: usize, bits: f64) {
        let grammar: &'g Grammar = self.grammar;
        match &grammar.nodes[id] {
            Node::Text(text) => self.literal(text, rest, at, bits),
            Node::Seq(parts) => self.rest(Some(&Rest { parts, outer: rest }), at, bits),
            Node::Choice { alternatives, total } => {
                for &(weight, alternative) in alternatives {
                    self.node(alternative, rest, at, bits + surprisal(weight, *total));
                }
            }
            Node::Pick(pick) => {
                let (rows, total) = pick.candidates(grammar, &self.env);
                for (weight, row) in rows {
                    let bound_before = pick.bind.map(|slot| self.env[slot].replace(row));
                    self.literal(row.text(pick.form), rest, at, bits + surprisal(weight, total));
                    if let (Some(slot), Some(before)) = (pick.bind, bound_before) {
                        self.env[slot] = before;
                    }
                }
            }
            Node::Use { slot, form } => {
                if let Some(row) = self.env[*slot] {
                    self.literal(row.text(*form), rest, at, bits);
                }
            }
        }
    }

    fn literal(&mut self, literal: &str, rest: Option<&Rest<'_>>, at: usize, bits: f64) {
        if self.text.as_bytes()[at..].starts_with(literal.as_bytes()) {
            let end = at + literal.len();
            self.parses.reached = self.parses.reached.max(end);
            self.rest(rest, end, bits);
        }
    }

    fn rest(&mut self, rest: Option<&Rest<'_>>, at: usize, bits: f64) {
        match rest {
            Some(Rest { parts: [], outer }) => self.rest(*outer, at, bits),
            Some(Rest { parts: [first, parts @ ..], outer }) => {
                self.node(*first, Some(&Rest { parts, outer: *outer }), at, bits);
            }
            None if at == self.text.len() => self.parses.bits.push(bits),
            None => {}
        }
    }
}
