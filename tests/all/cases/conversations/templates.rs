//! Conversations as templates write them.

use super::{marked, refused, shared, shown};
use serde_json::json;

#[test]
fn templates_that_rewrite_earlier_turns_are_written_turn_by_turn_or_refused_with_a_remedy() {
    let bench = shared();
    // Thoughts of earlier turns are left out, and the last answer has a place for them, as in Qwen3.
    bench.write(
        "thinks.jinja",
        "{% for m in messages %}{% set said = m.content %}{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1] %}{% if loop.last %}{% set said = '<think></think>' + said %}{% endif %}{% endif %}<{{ m.role }}>{{ said }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    );
    // The text ends with a mark of its own, as in Phi-3.
    bench.write(
        "ends.jinja",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% else %}<end>{{ eos_token }}{% endif %}",
    );
    // The prompt has what no answer has, as in DeepSeek-R1.
    bench.write(
        "asks.jinja",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}",
    );
    let template = |name: &str| format!("sft.template={}", bench.path(name).display());
    let record = marked(json!({}));
    let text = shown(&bench, "turns.jsonl", std::slice::from_ref(&record), &[&template("thinks.jinja")]);
    assert!(text.contains("1 conversations became 2 examples, one for each answer"), "{text}");
    assert!(text.contains("<assistant>⟦<think></think>BAD<|endoftext|>⟧\n"), "{text}");
    assert!(
        text.contains("<assistant>BAD<|endoftext|><user>no<|endoftext|><assistant>⟦<think></think>GOOD<|endoftext|>⟧"),
        "{text}"
    );
    let text = shown(&bench, "turns.jsonl", std::slice::from_ref(&record), &[&template("ends.jinja")]);
    assert!(
        text.contains("became 2 examples") && text.contains("<assistant>⟦GOOD<|endoftext|><end><|endoftext|>⟧"),
        "{text}"
    );
    // One answer needs no parting.
    let last = shown(
        &bench,
        "turns.jsonl",
        std::slice::from_ref(&record),
        &[&template("thinks.jinja"), "sft.train_on=last_answer"],
    );
    assert!(!last.contains("became") && last.contains("⟦<think></think>GOOD"), "{last}");
    let text = refused(&bench, "turns.jsonl", &[record], &[&template("asks.jinja")]);
    assert!(text.contains("it asks for an answer with \"<think>\"") && text.contains("{% generation %}"), "{text}");
}

#[test]
fn conversations_may_begin_with_the_assistant() {
    let bench = shared();
    let record = json!({"messages": [{"role": "assistant", "content": "HELLO"}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "BYE"}]});
    // As in Llama 3.1 and Qwen 2.5, no first message is an error.
    bench.write(
        "default.jinja",
        "{% if messages[0]['role'] != 'system' %}<system>Be good.{{ eos_token }}{% endif %}{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}",
    );
    let own = bench.path("default.jinja").display().to_string();
    for template in ["vicuna", "alpaca", "llama2", "chatml", "zephyr", &own] {
        let text = shown(
            &bench,
            "first.jsonl",
            std::slice::from_ref(&record),
            &[
                &format!("sft.template={template}"),
                "sft.max_truncated=1",
                "train.sequence_length=192",
                "train.tokens_per_step=384",
            ],
        );
        let trained: Vec<&str> = text.split('⟦').skip(1).filter_map(|part| part.split('⟧').next()).collect();
        let [first, second] = trained[..] else { panic!("{template}: {text}") };
        let bare = |text: &str| text.replace("<|endoftext|>", "").trim().to_owned();
        assert_eq!((bare(first).as_str(), bare(second).as_str()), ("HELLO", "BYE"), "{template}: {text}");
        assert!(first.ends_with("<|endoftext|>") && second.ends_with("<|endoftext|>"), "{template}: {text}");
    }
}
