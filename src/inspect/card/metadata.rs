//! The head of a card: YAML that the Hub reads. Every value that comes from elsewhere is a quoted scalar.

use super::facts::Facts;
use crate::metrics::Eval;

/// `text` as a double-quoted scalar of YAML, in which nothing but an escape has a meaning.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            // What YAML calls not printable, and what it would take for a line break.
            _ if c.is_control() || ('\u{2028}'..='\u{2029}').contains(&c) || "\u{feff}\u{fffe}\u{ffff}".contains(c) => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list(key: &str, values: &[String]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let items: Vec<String> = values.iter().map(|value| format!("- {}\n", quoted(value))).collect();
    format!("{key}:\n{}", items.concat())
}

/// The head of the card, its marks included.
pub(super) fn metadata(facts: &Facts) -> String {
    let mut out = String::from("---\nlibrary_name: transformers\npipeline_tag: text-generation\n");
    out += "license: unknown # fill in the licence of the model, such as apache-2.0\n";
    out += &list("tags", &tags(facts));
    out += &list("datasets", &facts.datasets);
    if let Some(base) = &facts.base_on_hub {
        out += &format!("base_model: {}\n", quoted(base));
    }
    out += &results(facts);
    out + "---\n"
}

fn tags(facts: &Facts) -> Vec<String> {
    let mut tags = vec!["llama-lite"];
    if facts.is_tuned() {
        tags.push("sft");
    }
    if facts.merged {
        tags.push("lora");
    }
    if facts.is_chat {
        tags.push("conversational");
    }
    tags.into_iter().map(str::to_owned).collect()
}

/// The scores of benchmark tasks, which the Hub shows beside the card.
fn results(facts: &Facts) -> String {
    let scores: Vec<&Eval> = facts.scores().into_iter().filter(|score| score.value.is_finite()).collect();
    if scores.is_empty() {
        return String::new();
    }
    let mut out = format!("model-index:\n- name: {}\n  results:\n", quoted(&facts.name));
    let mut task = None;
    for score in scores {
        if task != Some(&score.task) {
            let name = quoted(&score.task);
            out += &format!(
                "  - task:\n      type: text-generation\n    dataset:\n      type: {name}\n      name: {name}\n    metrics:\n"
            );
            task = Some(&score.task);
        }
        out += &format!("    - type: {}\n      value: {}\n", quoted(&score.metric), score.value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scalar_cannot_end_before_its_end() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            ("a: b # c\n---\n- x", r#""a: b # c\u000a---\u000a- x""#),
            (r#"say "hi" \n"#, r#""say \"hi\" \\n""#),
            ("\u{85}\u{2028}\u{feff}\u{1b}é", r#""\u0085\u2028\ufeff\u001bé""#),
            ("", r#""""#),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }
}
