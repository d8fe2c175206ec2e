//! Markdown of text from elsewhere: names, paths and generated text stay text.

use crate::runtime::format::escape_control;

/// Characters that begin something in Markdown, HTML or formulas.
const SPECIAL: &[char] = &['\\', '`', '*', '_', '[', ']', '<', '>', '|', '~', '&', '$', '#'];

/// `text` on one line of prose, a heading or a cell of a table.
pub(super) fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escape_control(text).chars() {
        match c {
            '\n' | '\t' | '\u{2028}' | '\u{2029}' => out.push(' '),
            _ => {
                if SPECIAL.contains(&c) {
                    out.push('\\');
                }
                out.push(c);
            }
        }
    }
    out.trim().to_owned()
}

/// `text` as a block of code, whose fence is longer than any run of backticks in it.
pub(super) fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    format!("{fence}{language}\n{}\n{fence}\n", escape_control(text).trim_end_matches('\n'))
}

/// A table of these columns. The cells are Markdown: see [`inline`].
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut out = line(&mut head.iter().copied());
    out += &format!("|{}\n", "---|".repeat(head.len()));
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_strangers_stays_text() {
        assert_eq!(inline("my-run_2.5"), "my-run\\_2.5");
        assert_eq!(inline("a|b\n# c\r<script>[x](y)`$"), "a\\|b \\# c\\\\u{d}\\<script\\>\\[x\\](y)\\`\\$");
        assert_eq!(fenced("text", "plain\n\n"), "```text\nplain\n```\n");
        let broken = fenced("text", "a\n````\n# out\x1b[2J");
        assert!(broken.starts_with("`````text\n") && broken.ends_with("\n`````\n"), "{broken}");
        assert!(broken.contains("\\u{1b}[2J"), "{broken}");
        assert_eq!(table(&["a", "b"], &[vec!["1".into(), "2".into()]]), "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }
}
