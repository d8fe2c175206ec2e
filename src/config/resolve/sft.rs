//! What joins the keys of fine-tuning.

use super::{Rules, broken, path_hint};
use crate::config::choices::{Choice, TemplateName};
use crate::config::schema::Config;

/// Computes what follows from other keys.
pub(super) fn derive(rules: &mut Rules, config: &mut Config) {
    let there = rules.entries.iter().any(|entry| entry.key.starts_with("lora."))
        || rules.entries.sections.iter().any(|section| section == "lora");
    let lora = &mut config.lora;
    rules.default("lora.rank", &[], &mut lora.rank, || Ok(if there { 16 } else { 0 }));
    let rank = lora.rank.max(1);
    rules.default("lora.alpha", &["lora.rank"], &mut lora.alpha, || Ok(2.0 * rank as f64));
}

/// Checks what cannot be together.
pub(super) fn rules(rules: &mut Rules, config: &Config) {
    if !config.is_sft() {
        refuse_elsewhere(rules);
        return;
    }
    let data = &config.data;
    rules.rule(&["sft.template"], || {
        let template = &config.sft.template;
        template.is_unknown_name().then(|| {
            let names = TemplateName::NAMES.join(", ");
            let what = format!("{:?} is neither one of {names} nor the path of a template", template.as_str());
            broken(what, path_hint(template))
        })
    });
    for (key, given) in [
        ("data.source", data.source.is_some()),
        ("data.weights", !data.weights.is_empty()),
        ("data.document_mask", data.document_mask),
        ("data.text_separator", data.text_separator.is_some()),
    ] {
        rules.rule(&[key], || {
            given.then(|| broken("has no meaning in fine-tuning", "remove it: conversations come from --data"))
        });
    }
    rules.rule(&["sft.new_tokens"], || {
        let tokens = &config.sft.new_tokens;
        let wrong =
            tokens.iter().enumerate().find(|(i, token)| token.trim().is_empty() || tokens[..*i].contains(token));
        wrong.map(|(_, token)| {
            let what = if token.trim().is_empty() { "holds a token without text" } else { "holds a token twice" };
            broken(format!("{what} ({token:?})"), "remove it")
        })
    });
    rules.rule(&["sft.new_tokens", "lora.rank"], || {
        (!config.sft.new_tokens.is_empty() && !config.lora.is_absent()).then(|| {
            broken(
                "is not supported with LoRA: the embedding is frozen, and the rows of new tokens would not be trained",
                "train all weights: remove [lora], or set lora.rank to 0",
            )
        })
    });
    rules.rule(&["lora.targets", "lora.rank"], || {
        (!config.lora.is_absent() && config.lora.targets.is_empty())
            .then(|| broken("is empty: nothing would be trained", "name layers, or leave it out for all of them"))
    });
}

/// Keys of fine-tuning in another command's configuration would do nothing.
fn refuse_elsewhere(rules: &mut Rules) {
    for section in ["sft", "lora"] {
        let key = rules.entries.iter().map(|e| e.key.clone()).find(|key| key.starts_with(&format!("{section}.")));
        let key = key.or_else(|| rules.entries.sections.iter().find(|s| *s == section).cloned());
        if let Some(key) = key {
            rules.rule(&[&key], || {
                Some(broken(
                    "belongs to fine-tuning",
                    "use the configuration with `llama-lite sft`, or remove the section",
                ))
            });
        }
    }
}
