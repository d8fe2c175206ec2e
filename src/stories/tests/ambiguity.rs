//! Proof that every story has exactly one derivation, and other properties of the whole language.
//!
//! The grammar is unfolded into a nondeterministic automaton over characters, in which a derivation is a path.
//! Variables are forgotten: the use of a variable may be any row of the tables it can come from. That adds paths and
//! removes none, so if no text has two paths in the automaton, no story has two derivations. An automaton has a text
//! with two paths exactly if, somewhere, two paths that read the same characters part and meet again; all pairs of
//! states that two different paths can be in are few, and are tried one by one.
//!
//! The same walk checks the use of variables on every path, which samples could miss.

use std::collections::{BTreeMap, BTreeSet};

use super::parser;
use crate::stories::GRAMMAR;
use crate::stories::compile::compile;
use crate::stories::grammar::{Form, Grammar, Node, NodeId, Row, RowSource, Slot};

/// What is known of a variable at some point of the grammar, whatever path led there.
#[derive(Clone, Default)]
struct Variable {
    /// Tables that its row can come from; empty if nothing was ever bound.
    tables: BTreeSet<usize>,
    /// Some path leads here without binding it.
    maybe_unbound: bool,
    /// Variables whose rows are certainly different from its row.
    unlike: BTreeSet<Slot>,
}

type State = usize;

/// States that two different paths are in after the same text.
type Pair = (State, State);

/// The automaton. Its final state is 1, it starts in 0.
struct Automaton {
    edges: Vec<Vec<(u8, State)>>,
    silent: Vec<Vec<State>>,
}

struct Unfolding<'g> {
    grammar: &'g Grammar,
    automaton: Automaton,
    /// Uses of variables or columns that can go wrong.
    faults: BTreeSet<String>,
}

impl<'g> Unfolding<'g> {
    fn new(grammar: &'g Grammar) -> Self {
        let automaton = Automaton { edges: vec![Vec::new(); 2], silent: vec![Vec::new(); 2] };
        let mut unfolding = Self { grammar, automaton, faults: BTreeSet::new() };
        let unbound = Variable { maybe_unbound: true, ..Variable::default() };
        let mut variables = vec![unbound; grammar.slots.len()];
        unfolding.node(grammar.start, 0, 1, &mut variables);
        unfolding
    }

    fn state(&mut self) -> State {
        self.automaton.edges.push(Vec::new());
        self.automaton.silent.push(Vec::new());
        self.automaton.edges.len() - 1
    }

    fn literal(&mut self, text: &str, from: State, to: State) {
        let mut at = from;
        for (i, byte) in text.bytes().enumerate() {
            let next = if i + 1 == text.len() { to } else { self.state() };
            self.automaton.edges[at].push((byte, next));
            at = next;
        }
        if text.is_empty() {
            self.automaton.silent[from].push(to);
        }
    }

    /// Adds the paths of `id` from `from` to `to`. Nothing ever leads back to `from`, so alternatives may share it.
    fn node(&mut self, id: NodeId, from: State, to: State, variables: &mut Vec<Variable>) {
        match &self.grammar.nodes[id] {
            Node::Text(text) => self.literal(text, from, to),
            Node::Seq(parts) => {
                let mut at = from;
                for &part in parts {
                    let next = self.state();
                    self.node(part, at, next, variables);
                    at = next;
                }
                self.automaton.silent[at].push(to);
            }
            Node::Choice { alternatives, .. } => {
                let before = variables.clone();
                let mut after: Option<Vec<Variable>> = None;
                for &(_, alternative) in alternatives {
                    let mut variables = before.clone();
                    self.node(alternative, from, to, &mut variables);
                    after = Some(after.map_or(variables.clone(), |after| merge(&after, &variables)));
                }
                *variables = after.unwrap();
            }
            Node::Pick(pick) => {
                let (sources, tables) = match &pick.source {
                    RowSource::Table(table) => (Vec::new(), BTreeSet::from([*table])),
                    RowSource::Bound(slots) => {
                        (slots.clone(), slots.iter().flat_map(|&slot| variables[slot].tables.clone()).collect())
                    }
                };
                self.check_sources(&sources, variables);
                for &slot in pick.unlike.iter().filter(|&&slot| variables[slot].tables.is_empty()) {
                    self.faults.insert(format!("{} is excluded but never has a value", self.grammar.slots[slot]));
                }
                self.rows(&tables, pick.form).into_iter().for_each(|text| self.literal(text, from, to));
                if let Some(slot) = pick.bind {
                    for variable in variables.iter_mut() {
                        variable.unlike.remove(&slot);
                    }
                    let unlike = pick.unlike.iter().copied().collect();
                    variables[slot] = Variable { tables, maybe_unbound: false, unlike };
                }
            }
            Node::Use { slot, form } => {
                self.check_sources(&[*slot], variables);
                // The row is decided already: rows of equal text are one path here.
                let texts: BTreeSet<&str> = self.rows(&variables[*slot].tables, *form).into_iter().collect();
                texts.into_iter().for_each(|text| self.literal(text, from, to));
            }
        }
    }

    /// What `form` can be for the rows of these tables.
    fn rows(&mut self, tables: &BTreeSet<usize>, form: Form) -> Vec<&'g str> {
        let grammar = self.grammar;
        let rows = tables.iter().flat_map(|&table| &grammar.tables[table].rows);
        for row in rows.clone().filter(|row| row.text(form).is_empty()) {
            self.faults.insert(format!("no column {} for {}", grammar.columns[form.column], row.cells[0][0]));
        }
        rows.map(|row| row.text(form)).collect()
    }

    /// The variables must be bound, to rows that differ from each other.
    fn check_sources(&mut self, slots: &[Slot], variables: &[Variable]) {
        for (i, &slot) in slots.iter().enumerate() {
            if variables[slot].maybe_unbound {
                self.faults.insert(format!("{} may be used without a value", self.grammar.slots[slot]));
            }
            if slots[..i].iter().any(|other| !variables[slot].unlike.contains(other)) {
                self.faults.insert(format!("{} may equal a variable beside it", self.grammar.slots[slot]));
            }
        }
    }
}

/// What is known when either `a` or `b` is the case.
fn merge(a: &[Variable], b: &[Variable]) -> Vec<Variable> {
    let both = a.iter().zip(b).map(|(a, b)| Variable {
        tables: &a.tables | &b.tables,
        maybe_unbound: a.maybe_unbound || b.maybe_unbound,
        unlike: &a.unlike & &b.unlike,
    });
    both.collect()
}

impl Automaton {
    /// The states that silent steps lead to from `state`, itself included; an error if two ways lead to one.
    fn closure(&self, state: State) -> Result<BTreeSet<State>, State> {
        let mut reached = BTreeSet::from([state]);
        let mut open = vec![state];
        while let Some(state) = open.pop() {
            for &next in &self.silent[state] {
                if !reached.insert(next) {
                    return Err(next);
                }
                open.push(next);
            }
        }
        Ok(reached)
    }

    /// A text that some state can be reached with in two ways, if there is one.
    fn ambiguity(&self) -> Option<String> {
        let closures: Result<Vec<_>, _> = (0..self.edges.len()).map(|state| self.closure(state)).collect();
        let Ok(closures) = closures else { return Some("silent steps".into()) };
        let edges = |state: State| closures[state].iter().flat_map(|&state| &self.edges[state]);
        // Pairs of states that two different paths can reach with the same text, each with its way there.
        let mut pairs: BTreeMap<Pair, (Pair, u8)> = BTreeMap::new();
        let mut open = Vec::new();
        for state in 0..self.edges.len() {
            for (i, &(byte, first)) in edges(state).enumerate() {
                let rest = edges(state).skip(i + 1).filter(|(other, _)| *other == byte);
                open.extend(rest.map(|&(_, second)| ((first, second), (state, state), byte)));
            }
        }
        while let Some((pair, from, byte)) = open.pop() {
            if pairs.contains_key(&pair) {
                continue;
            }
            pairs.insert(pair, (from, byte));
            if !closures[pair.0].is_disjoint(&closures[pair.1]) {
                return Some(way(&pairs, pair));
            }
            for &(byte, first) in edges(pair.0) {
                let alike = edges(pair.1).filter(|(other, _)| *other == byte);
                open.extend(alike.map(|&(_, second)| ((first, second), pair, byte)));
            }
        }
        None
    }
}

/// The text that led to `pair` since the two paths parted.
fn way(pairs: &BTreeMap<Pair, (Pair, u8)>, mut pair: Pair) -> String {
    let mut bytes = Vec::new();
    while let Some(&(from, byte)) = pairs.get(&pair) {
        bytes.push(byte);
        pair = from;
    }
    bytes.iter().rev().map(|&byte| char::from(byte)).collect()
}

/// Number of derivations of `id`. Exact where the variables of `unlike` are all bound; they can only be fewer.
fn derivations(grammar: &Grammar, id: NodeId) -> f64 {
    match &grammar.nodes[id] {
        Node::Text(_) | Node::Use { .. } => 1.0,
        Node::Seq(parts) => parts.iter().map(|&part| derivations(grammar, part)).product(),
        Node::Choice { alternatives, .. } => alternatives.iter().map(|&(_, part)| derivations(grammar, part)).sum(),
        Node::Pick(pick) => {
            let rows = match &pick.source {
                RowSource::Table(table) => grammar.tables[*table].rows.len(),
                RowSource::Bound(slots) => slots.len(),
            };
            (rows - pick.unlike.len()) as f64
        }
    }
}

const WORDS: &str = "color = red; blue\n\nthing s:~s = cup; 2*box|boxes";

fn unfold(rules: &str) -> (Option<String>, Vec<String>) {
    let grammar = compile(WORDS, &[rules], "story").unwrap();
    let unfolding = Unfolding::new(&grammar);
    (unfolding.automaton.ambiguity(), unfolding.faults.into_iter().collect())
}

#[test]
fn no_story_has_two_derivations() {
    let unfolding = Unfolding::new(&GRAMMAR);
    assert_eq!(unfolding.faults, BTreeSet::new());
    assert_eq!(unfolding.automaton.ambiguity(), None, "the text read since two derivations parted");
}

#[test]
fn the_proof_finds_ambiguities() {
    let ambiguous = [
        "story = (a|a)",
        "story = (a|)(a|)",
        "story = (|b|)",
        "story = {:thing}( {:color}|)( {:color}|)",
        "story = (a red|a {:color}) {:thing}",
        "story = (ab|a)(c|bc)",
        "story = {x:thing} {y:thing} ({x}|{y})",
    ];
    for rules in ambiguous {
        assert!(unfold(rules).0.is_some(), "{rules}");
    }
    for rules in ["story = (a|b)(a|)", "story = {:thing}( {:color}|)", "story = {x:thing} {y:thing!x} {:x/y}"] {
        assert_eq!(unfold(rules), (None, vec![]), "{rules}");
    }
}

#[test]
fn the_proof_finds_misused_variables() {
    let faults = |rules| unfold(rules).1;
    assert_eq!(faults("story = ({x:thing}|none), {x}"), ["x may be used without a value"]);
    assert_eq!(faults("story = {x:color}, {x.s}"), ["no column s for blue", "no column s for red"]);
    assert_eq!(faults("story = {x:thing} {y:thing!z}"), ["z is excluded but never has a value"]);
    assert_eq!(faults("story = {x:thing} {y:thing} {:x/y}"), ["y may equal a variable beside it"]);
    assert_eq!(faults("story = {x:thing} {y:thing!x} {x:thing} {:x/y}"), ["y may equal a variable beside it"]);
}

/// The parser agrees about an ambiguous grammar: it finds both derivations and adds their probabilities.
#[test]
fn the_parser_counts_derivations() {
    let grammar = compile(WORDS, &["story = (3*a red|a {:color}) {x:thing}, {x.s}"], "story").unwrap();
    let parses = parser::parse(&grammar, "a red box, boxes");
    assert_eq!(parses.bits.len(), 2);
    let probability: f64 = (3.0 / 4.0 + 1.0 / 4.0 / 2.0) * 2.0 / 3.0;
    assert!((parses.surprisal().unwrap() + probability.log2()).abs() < 1e-12);
    assert_eq!(parser::parse(&grammar, "a red box, cups").surprisal(), None);
    assert_eq!(parser::parse(&grammar, "a blue box, boxes").bits.len(), 1);
    assert_eq!(parser::parse(&grammar, "a blue box").surprisal(), None);
    assert_eq!(parser::parse(&grammar, "a blue box, boxes ").surprisal(), None);
}

#[test]
fn there_are_more_stories_than_anyone_can_learn_by_heart() {
    let small = compile(WORDS, &["story = {x:thing} {:thing!x} (a|b {:color})"], "story").unwrap();
    assert_eq!(derivations(&small, small.start), 6.0);
    let stories = derivations(&GRAMMAR, GRAMMAR.start);
    assert!(stories > 1e12, "{stories:e} stories");
}

/// Each pick is from at most 60 rows or so: nothing is too rare to be learnt.
#[test]
fn no_choice_is_rare() {
    for table in &GRAMMAR.tables {
        let rarest = table.rows.iter().map(|row| row.weight).min().unwrap();
        assert!(rarest * 60 >= table.total, "{}", table.name);
        let mut texts: Vec<&str> = table.rows.iter().map(|row: &Row| row.cells[0][0].as_str()).collect();
        texts.sort_unstable();
        assert!(texts.windows(2).all(|pair| pair[0] != pair[1]), "{} has an entry twice", table.name);
    }
    for node in &GRAMMAR.nodes {
        if let Node::Choice { alternatives, total } = node {
            assert!(alternatives.iter().all(|(weight, _)| weight * 60 >= *total));
        }
    }
}
