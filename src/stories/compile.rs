//! The notation that the grammar is written in, and its compiler.
//!
//! Word tables (`words.rs`), one entry per `;`, its forms separated by `|`:
//! ```text
//! animal s:~s = cat; dog; 2*fox|foxes
//! ```
//! The table `animal` has a column `s` whose default is the word and an `s`; `fox` has weight 2 and a plural of its
//! own. Every table has a column `a`: the entry with its indefinite article.
//!
//! Rules (`plots.rs`); a rule starts in the first column of a line and continues on indented lines:
//! ```text
//! walk =
//!   {hero:boy} (3*walked|ran)( slowly|) to <place>, and {hero.he} saw {x:animal.a} and {:animal.a!x}. //
//!   The end.
//! ```
//! `(..|..)` is a choice with optional weights, `<place>` another rule, `{hero:boy}` a random entry of the table
//! `boy` kept in the variable `hero`, `{hero.he}` a form of that entry, `{:animal}` an entry that is not kept, `!x`
//! an entry other than the one in `x`, `{v:x/y}` one of those in `x` and `y`, `{^hero}` a form with a capital first
//! letter. A line break is one space, but nothing on the inner side of `(`, `|` and `)`.

use super::grammar::{Form, Grammar, Node, NodeId, Pick, Row, RowSource, Table};

/// Compiles word tables and rules. The story is the rule `start`.
///
/// # Errors
/// One line that names the rule or the table and what is wrong there.
pub(super) fn compile(words: &str, rules: &[&str], start: &str) -> Result<Grammar, String> {
    let mut columns = vec![String::new(), "a".to_owned()];
    let blocks = words.split("\n\n").map(str::trim).filter(|block| !block.is_empty());
    let tables = blocks.map(|block| table(block, &mut columns)).collect::<Result<_, _>>()?;
    let sources = rules.iter().flat_map(|text| definitions(text)).collect::<Result<Vec<_>, String>>()?;
    let mut compiler = Compiler {
        compiled: vec![RuleState::Untouched; sources.len()],
        sources,
        grammar: Grammar { tables, columns, nodes: Vec::new(), start: 0, slots: Vec::new() },
    };
    compiler.grammar.start = compiler.rule(start)?;
    // A rule that nothing uses is most likely a misspelt name.
    match compiler.compiled.iter().position(|progress| *progress == RuleState::Untouched) {
        Some(unused) => Err(format!("rule {} is never used", compiler.sources[unused].0)),
        None => Ok(compiler.grammar),
    }
}

/// Splits `NUMBER*TEXT`; the weight is 1 without a number.
fn weighted(text: &str) -> (u32, &str) {
    match text.split_once('*').map(|(number, rest)| (number.trim().parse(), rest)) {
        Some((Ok(weight), rest)) if weight > 0 => (weight, rest),
        _ => (1, text),
    }
}

/// Position of `name` in `names`, to whose end it is added if it is not there.
fn intern(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

fn table(block: &str, columns: &mut Vec<String>) -> Result<Table, String> {
    let (header, body) = block.split_once('=').ok_or_else(|| format!("table without `=`: {block}"))?;
    let mut header = header.split_whitespace();
    let name = header.next().ok_or_else(|| format!("table without a name: {block}"))?.to_owned();
    let columns: Vec<(usize, &str)> = header
        .map(|column| column.split_once(':').unwrap_or((column, "")))
        .map(|(column, default)| (intern(columns, column), default))
        .collect();
    let rows = body.split(';').map(|entry| row(entry, &columns)).collect::<Result<Vec<Row>, _>>();
    let rows = rows.map_err(|error| format!("table {name}: {error}"))?;
    let total = rows.iter().map(|row| row.weight).sum();
    Ok(Table { name, rows, total })
}

/// A table's entry; `columns` are the number and the default of the forms after the first.
fn row(entry: &str, columns: &[(usize, &str)]) -> Result<Row, String> {
    let (weight, forms) = weighted(entry.trim());
    let mut forms = forms.split('|').map(|form| form.split_whitespace().collect::<Vec<_>>().join(" "));
    let word = forms.next().unwrap_or_default();
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let mut row = Row { weight, cells: Vec::new() };
    row.set(0, &word);
    row.set(1, &format!("{article} {word}"));
    for &(column, default) in columns {
        let form = forms.next().unwrap_or_else(|| default.replace('~', &word));
        if form.is_empty() {
            return Err(format!("entry `{}` has too few forms", entry.trim()));
        }
        row.set(column, &form);
    }
    match forms.next() {
        None if !word.is_empty() => Ok(row),
        _ => Err(format!("entry `{}` has no word or too many forms", entry.trim())),
    }
}

/// The `(name, body)` of every rule of a source.
fn definitions(source: &str) -> Vec<Result<(String, String), String>> {
    let mut rules: Vec<Result<(String, String), String>> = Vec::new();
    for line in source.lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with(char::is_whitespace) {
            if let Some(Ok((_, body))) = rules.last_mut() {
                body.push('\n');
                body.push_str(line.trim());
            }
        } else {
            let rule = line.split_once('=').map(|(name, body)| (name.trim().to_owned(), body.trim().to_owned()));
            rules.push(rule.ok_or_else(|| format!("rule without `=`: {line}")));
        }
    }
    rules.into_iter().map(|rule| rule.map(|(name, body)| (name, join_lines(&body)))).collect()
}

/// Turns line breaks into spaces, or into nothing where the notation says so.
fn join_lines(body: &str) -> String {
    let mut joined = String::new();
    for line in body.split('\n') {
        let open = joined.is_empty() || joined.ends_with(['(', '|']) || line.starts_with(['|', ')']);
        joined.push_str(if open { "" } else { " " });
        joined.push_str(line);
    }
    joined
}

#[derive(Clone, Copy, PartialEq)]
enum RuleState {
    Untouched,
    /// Its body is being compiled; a use of it now is a cycle.
    Open,
    Done(NodeId),
}

struct Compiler {
    sources: Vec<(String, String)>,
    compiled: Vec<RuleState>,
    grammar: Grammar,
}

impl Compiler {
    fn push(&mut self, node: Node) -> NodeId {
        self.grammar.nodes.push(node);
        self.grammar.nodes.len() - 1
    }

    fn rule(&mut self, name: &str) -> Result<NodeId, String> {
        let index = self.sources.iter().position(|(rule, _)| rule == name).ok_or_else(|| format!("no rule {name}"))?;
        match self.compiled[index] {
            RuleState::Done(node) => Ok(node),
            RuleState::Open => Err(format!("rule {name} contains itself")),
            RuleState::Untouched => {
                self.compiled[index] = RuleState::Open;
                let body = self.sources[index].1.clone();
                let mut rest = body.as_str();
                let node = self.choice(&mut rest).map_err(|error| format!("{error} (in rule {name})"))?;
                if !rest.is_empty() {
                    return Err(format!("`)` without `(` before `{rest}` (in rule {name})"));
                }
                self.compiled[index] = RuleState::Done(node);
                Ok(node)
            }
        }
    }

    /// Alternatives up to `)` or the end, which is left in `rest`.
    fn choice(&mut self, rest: &mut &str) -> Result<NodeId, String> {
        let mut alternatives = Vec::new();
        loop {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let weight = match rest[digits..].strip_prefix('*') {
                Some(after) if digits > 0 => {
                    let weight =
                        rest[..digits].parse::<u32>().map_err(|error| format!("weight in `{rest}`: {error}"))?;
                    *rest = after;
                    weight.max(1)
                }
                _ => 1,
            };
            alternatives.push((weight, self.sequence(rest)?));
            match rest.strip_prefix('|') {
                Some(after) => *rest = after,
                None if alternatives.len() == 1 => return Ok(alternatives[0].1),
                None => break,
            }
        }
        let total = alternatives.iter().map(|(weight, _)| weight).sum();
        Ok(self.push(Node::Choice { alternatives, total }))
    }

    /// Parts up to `|`, `)` or the end.
    fn sequence(&mut self, rest: &mut &str) -> Result<NodeId, String> {
        let mut parts = Vec::new();
        while let Some(first) = rest.chars().next().filter(|first| !matches!(first, '|' | ')')) {
            let close = match first {
                '(' => ")",
                '<' => ">",
                '{' => "}",
                _ => {
                    let end = rest.find(['(', '|', ')', '<', '{']).unwrap_or(rest.len());
                    parts.push(self.push(Node::Text(rest[..end].to_owned())));
                    *rest = &rest[end..];
                    continue;
                }
            };
            *rest = &rest[1..];
            if first == '(' {
                parts.push(self.choice(rest)?);
                *rest = rest.strip_prefix(close).ok_or("`(` without `)`")?;
            } else {
                let (inner, after) = rest.split_once(close).ok_or_else(|| format!("`{first}` without `{close}`"))?;
                parts.push(if first == '<' { self.rule(inner)? } else { self.braces(inner)? });
                *rest = after;
            }
        }
        Ok(if parts.len() == 1 { parts[0] } else { self.push(Node::Seq(parts)) })
    }

    /// What stands between braces: `^x.form`, `^x:table.form!y!z` or `^x:y/z.form`.
    fn braces(&mut self, inner: &str) -> Result<NodeId, String> {
        let capital = inner.starts_with('^');
        let mut unlike = inner.trim_start_matches('^').split('!');
        let main = unlike.next().unwrap_or_default();
        let (main, column) = main.split_once('.').unwrap_or((main, ""));
        let column = self.grammar.columns.iter().position(|name| name == column);
        let form = Form { column: column.ok_or_else(|| format!("no column for `{inner}`"))?, capital };
        let node = match main.split_once(':') {
            Some((variable, list)) => {
                let slots = &mut self.grammar.slots;
                let source = match self.grammar.tables.iter().position(|table| table.name == list) {
                    Some(table) => RowSource::Table(table),
                    None if list.contains('/') => {
                        RowSource::Bound(list.split('/').map(|name| intern(slots, name)).collect())
                    }
                    None => return Err(format!("no table for `{inner}`")),
                };
                let unlike = unlike.map(|variable| intern(slots, variable)).collect();
                let bind = (!variable.is_empty()).then(|| intern(slots, variable));
                Node::Pick(Pick { source, form, bind, unlike })
            }
            None => Node::Use { slot: intern(&mut self.grammar.slots, main), form },
        };
        Ok(self.push(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stories::tests::parser::parse;

    const WORDS: &str = "animal s:~s = cat; 3*owl; fox|foxes\n\nperson he him:him = Ann|she|her;\n  Bob | he";

    fn accepts(rules: &str, text: &str) -> bool {
        !parse(&compile(WORDS, &[rules], "story").unwrap(), text).bits.is_empty()
    }

    #[test]
    fn forms_of_words() {
        assert!(accepts("story = {x:animal.a}, {x.s}, {^x}", "an owl, owls, Owl"));
        assert!(accepts("story = {x:animal.a}, {x.s}, {^x.a}", "a fox, foxes, A fox"));
        assert!(!accepts("story = {x:animal}, {x.s}", "fox, foxs"));
        assert!(accepts("story = {p:person} {p.he} {p.him}", "Ann she her"));
        assert!(accepts("story = {p:person} {p.he} {p.him}", "Bob he him"));
        assert!(!accepts("story = {p:person} {p.he}", "Ann he"));
        assert!(!accepts("story = {x:animal} {:animal!x}", "cat cat"));
    }

    #[test]
    fn line_breaks() {
        let rules = "story =\n  One\n  (two\n  |<three>\n  )\n  four. Five.\n  Six.\n\nthree = 3";
        assert!(accepts(rules, "One two four. Five. Six."));
        assert!(accepts(rules, "One 3 four. Five. Six."));
    }

    #[test]
    fn weights() {
        let grammar = compile(WORDS, &["story = (3*a|b|4*c) {:animal}"], "story").unwrap();
        let bits = |text: &str| parse(&grammar, text).bits[0];
        assert!((bits("a owl") - (8.0f64 / 3.0 * 5.0 / 3.0).log2()).abs() < 1e-12);
        assert!((bits("b cat") - (8.0f64 * 5.0).log2()).abs() < 1e-12);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |words: &str, rules: &str| compile(words, &[rules], "story").err().unwrap();
        for (rules, expected) in [
            ("story = a <b>", "no rule b (in rule story)"),
            ("story = <story>", "rule story contains itself (in rule story)"),
            ("story = a\nb = c", "rule b is never used"),
            ("story = (a|b", "`(` without `)` (in rule story)"),
            ("story = a) b", "`)` without `(` before `) b` (in rule story)"),
            ("story = {x", "`{` without `}` (in rule story)"),
            ("story = {:plant}", "no table for `:plant` (in rule story)"),
            ("story = {:animal.big}", "no column for `:animal.big` (in rule story)"),
            ("story a", "rule without `=`: story a"),
            ("other = a", "no rule story"),
        ] {
            assert_eq!(error(WORDS, rules), expected);
        }
        assert_eq!(error("t = a; b|c", "story = {:t}"), "table t: entry `b|c` has no word or too many forms");
        assert_eq!(error("t he = a", "story = {:t}"), "table t: entry `a` has too few forms");
    }
}
