//! Translates what minijinja lacks: `{% generation %}` blocks, and Python's `%` behind a string.

use super::jinja::ANSWER_MARKS;
use super::python::PERCENT;

/// Largest number of `%` operators that are translated: for each the end of its operand is searched.
const MAX_OPERATORS: usize = 256;

/// `source` as minijinja can run it, and whether it marks answers.
pub(super) fn translated(source: &str) -> (String, bool) {
    let mut program = String::with_capacity(source.len());
    let mut rest = source;
    let mut marks = false;
    let mut raw = false;
    let mut operators = MAX_OPERATORS;
    while let Some(at) = rest.find('{') {
        program.push_str(&rest[..at]);
        rest = &rest[at..];
        let close = match rest.as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') if !raw => "}}",
            Some(b'#') if !raw => "#}",
            _ => {
                program.push('{');
                rest = &rest[1..];
                continue;
            }
        };
        // A tag that is not closed is an error, which minijinja reports.
        let Some(length) = tag_length(rest, close) else { break };
        let (tag, after) = rest.split_at(length + close.len());
        let word = tag[2..length].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match (close, word) {
            ("%}", "raw" | "endraw") => {
                raw = word == "raw";
                program.push_str(tag);
            }
            ("%}", "generation") if !raw => {
                marks = true;
                program.push_str(&tag.replace("generation", &format!("filter {ANSWER_MARKS}")));
            }
            ("%}", "endgeneration") if !raw => program.push_str(&tag.replace("endgeneration", "endfilter")),
            ("#}", _) => program.push_str(tag),
            _ if raw => program.push_str(tag),
            _ => program.push_str(&with_percent(tag, &mut operators)),
        }
        rest = after;
    }
    (program + rest, marks)
}

/// Bytes of a tag before `close`, which may also stand in a string; a comment has no strings.
fn tag_length(tag: &str, close: &str) -> Option<usize> {
    if close == "#}" {
        return tag.get(2..)?.find(close).map(|at| at + 2);
    }
    let mut at = 2;
    loop {
        let rest = tag.get(at..)?;
        if rest.starts_with(close) {
            return Some(at);
        }
        let c = rest.chars().next()?;
        at += if is_quote(c) { string_length(rest)? } else { c.len_utf8() };
    }
}

fn is_quote(c: char) -> bool {
    ['"', '\''].contains(&c)
}

/// Bytes of the string literal that `text` begins with.
fn string_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| is_quote(*c))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// `tag` with `'...' | percent_format(x)` for `'...' % x`, as long as there are `operators` left.
fn with_percent(tag: &str, operators: &mut usize) -> String {
    let mut out = String::with_capacity(tag.len());
    let mut at = 0;
    // Ends of the operands that `at` is in, the innermost last.
    let mut ends: Vec<usize> = Vec::new();
    while let Some(c) = tag[at..].chars().next() {
        while ends.pop_if(|end| *end <= at).is_some() {
            out.push(')');
        }
        let length = string_length(&tag[at..]).unwrap_or(c.len_utf8());
        out.push_str(&tag[at..at + length]);
        at += length;
        let is_operand = ends.last() == Some(&at);
        let operator = tag[at..].trim_start();
        let operand = operator.strip_prefix('%').filter(|operand| !operand.starts_with('}'));
        if let Some(operand) = operand.filter(|_| is_quote(c) && !is_operand && *operators > 0) {
            *operators -= 1;
            let operand = operand.trim_start();
            at = tag.len() - operand.len();
            ends.push(at + operand_length(operand));
            out.push_str(&format!(" | {PERCENT}("));
        }
    }
    out + &")".repeat(ends.len())
}

/// Bytes of the operand that `text` begins with: a value, its attributes, items, calls and filters.
fn operand_length(text: &str) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        at += match c {
            '"' | '\'' => string_length(rest).unwrap_or(rest.len()),
            '(' | '[' | '{' => group_length(rest),
            '|' => 1 + (rest.len() - 1 - rest[1..].trim_start().len()),
            '-' if at == 0 => 1,
            c if c.is_alphanumeric() || c == '_' || c == '.' => c.len_utf8(),
            // A filter may follow after a space.
            ' ' if rest.trim_start().starts_with('|') => rest.len() - rest.trim_start().len(),
            _ => return at,
        };
    }
    at
}

/// Bytes of the parentheses that `text` begins with.
fn group_length(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += string_length(&text[at..]).unwrap_or(c.len_utf8());
        if depth == 0 {
            return at;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_is_translated() {
        for (source, program) in [
            ("{{ '%s' % x }}!", "{{ '%s' | percent_format(x) }}!"),
            ("{% set a = 'x' %}{{ 5 % 3 }}", "{% set a = 'x' %}{{ 5 % 3 }}"),
            ("{% set a = 'x' -%}", "{% set a = 'x' -%}"),
            ("{{ 'a' %(b, ')') + 'c' }}", "{{ 'a' | percent_format((b, ')')) + 'c' }}"),
            ("{{ '%d' % m.a[0](1) | length + 1 }}", "{{ '%d' | percent_format(m.a[0](1) | length) + 1 }}"),
            ("{% if x == '%}' %}'%s' % y{% endif %}", "{% if x == '%}' %}'%s' % y{% endif %}"),
            ("{% raw %}{{ '%s' % x }}{% endraw %}", "{% raw %}{{ '%s' % x }}{% endraw %}"),
            ("{# '%s' % x #}{", "{# '%s' % x #}{"),
            ("{{ unclosed 'a' % ", "{{ unclosed 'a' % "),
            ("{#}{{ 'a' % '%s' % b }}", "{#}{{ 'a' % '%s' % b }}"),
            ("{#}#}{{ 'a' % '%s' % b }}", "{#}#}{{ 'a' | percent_format('%s') % b }}"),
            ("{{ '%s' % ('%s' % (x), 1) }}", "{{ '%s' | percent_format(('%s' | percent_format((x)), 1)) }}"),
        ] {
            assert_eq!(translated(source), (program.to_owned(), false));
        }
        let (program, marks) = translated("{%- generation -%}x{% endgeneration %}");
        assert_eq!((program.as_str(), marks), ("{%- filter answer_marks -%}x{% endfilter %}", true));
    }
}
