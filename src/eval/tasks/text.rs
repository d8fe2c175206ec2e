//! How the harness rewrites text before a model sees it: HellaSwag's cleaning, WikiText's detokenisation.

use crate::eval::python::{is_space, strip};

/// HellaSwag: WikiHow's marks of titles and other brackets are taken out.
pub(super) fn clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    remove_brackets(&text).replace("  ", " ")
}

/// Without every shortest `[...]` that stays on its line.
fn remove_brackets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let inside = &rest[open + 1..];
        let close = inside.find(']').filter(|&close| !inside[..close].contains('\n'));
        match close {
            Some(close) => {
                out.push_str(&rest[..open]);
                rest = &inside[close + 1..];
            }
            None => {
                out.push_str(&rest[..=open]);
                rest = inside;
            }
        }
    }
    out + rest
}

/// WikiText's tokens with spaces between them, as text: the order of the replacements is the harness's.
pub(super) fn detokenize(page: &str) -> String {
    let mut text = page.replace("s '", "s'");
    // The harness replaces "/' [0-9]/" by the pattern's own letters.
    text = replace_digit_quotes(&text);
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')] {
        text = trim_inside(&text, open, close);
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" ° ", "°"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

fn replace_digit_quotes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/' ") {
        let after = &rest[at + 3..];
        if after.starts_with(|c: char| c.is_ascii_digit()) && after[1..].starts_with('/') {
            out.push_str(&rest[..at]);
            out.push_str("/'[0-9]/");
            rest = &after[2..];
        } else {
            out.push_str(&rest[..at + 3]);
            rest = after;
        }
    }
    out + rest
}

/// Takes the white space away just inside each pair of marks, pairs being found from left to right.
fn trim_inside(text: &str, open: char, close: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(open) {
        let inside = &rest[at + 1..];
        let Some(end) = inside.find(close) else { break };
        out.push_str(&rest[..=at]);
        out.push_str(inside[..end].trim_matches(is_space));
        out.push(close);
        rest = &inside[end + 1..];
    }
    out + rest
}

/// Pieces of `text` between runs of white space; those before the first and after the last run count even when empty.
pub(super) fn words(text: &str) -> usize {
    let mut pieces = 1;
    let mut in_space = false;
    for c in text.chars() {
        pieces += usize::from(is_space(c) && !in_space);
        in_space = is_space(c);
    }
    pieces
}
