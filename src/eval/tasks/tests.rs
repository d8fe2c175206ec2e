//! Rows in each task's own schema, and what the harness makes of them.

use super::text::{clean, detokenize, words};
use super::*;
use serde_json::json;

fn document(name: &str, row: serde_json::Value) -> Document {
    find(name).unwrap()[0].form.document(&row).unwrap()
}

#[test]
fn names_are_found_and_groups_are_complete() {
    assert_eq!(find("mmlu").unwrap().len(), 57);
    let sizes: Vec<usize> = GROUPS.iter().map(|(name, _)| find(&format!("mmlu_{name}")).unwrap().len()).collect();
    assert_eq!(sizes, [19, 13, 12, 13]);
    assert_eq!(find("mmlu_anatomy").unwrap()[0].folder, "mmlu/anatomy");
    for name in names() {
        assert!(!find(&name).unwrap().is_empty(), "{name}");
    }
    for unknown in ["hella", "mmlu_", "mmlu_x", ""] {
        let error = find(unknown).unwrap_err().to_string();
        assert!(error.contains("no task"), "{unknown}: {error}");
    }
}

#[test]
fn hellaswag_is_cleaned() {
    assert_eq!(clean(" a [header] b [title] c   d [step] "), "a b. c  d ");
    assert_eq!(clean("x [a\nb] [c] y"), "x [a\nb] y");
    let row = json!({"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "the DJ", "ctx": "unused",
        "endings": ["is up.", "[substeps] Go.", "c", "d"], "label": "1"});
    let Document::Choices { context, choices, gold } = document("hellaswag", row.clone()) else { panic!() };
    assert_eq!((context.as_str(), choices[1].as_str(), gold), ("Roof: A man sits. The dj", " Go.", Some(1)));
    let Document::Endings { context, endings, .. } = document("hellaswag_completion", row) else { panic!() };
    assert_eq!((context.as_str(), endings[1].as_str()), ("unused", "[substeps] Go."));
}

#[test]
fn every_schema_is_read() {
    let labelled = json!({"text": ["p", "q", "r"], "label": ["1", "2", "3"]});
    let arc = document("arc_easy", json!({"id": "x", "question": "Why?", "choices": labelled, "answerKey": "2"}));
    let want = |context: &str, choices: &[&str], gold| Document::Choices {
        context: context.into(),
        choices: choices.iter().map(|&c| c.into()).collect(),
        gold,
    };
    assert_eq!(arc, want("Question: Why?\nAnswer:", &["p", "q", "r"], Some(1)));
    let piqa = document("piqa", json!({"goal": "g", "sol1": "a ", "sol2": "b", "label": 1}));
    assert_eq!(piqa, want("Question: g\nAnswer:", &["a ", "b"], Some(1)));
    let open = json!({"question_stem": "Stem ", "choices": labelled, "answerKey": " 3"});
    assert_eq!(document("openbookqa", open), want("Stem ", &["p", "q", "r"], Some(2)));
    let boolq = document("boolq", json!({"passage": "P.", "question": "is it", "label": 1}));
    assert_eq!(boolq, want("P.\nQuestion: is it?\nAnswer:", &["no", "yes"], Some(1)));
    let sciq = json!({"support": "  s", "question": "q", "distractor1": "1", "distractor2": "2", "distractor3": "3", "correct_answer": "4"});
    assert_eq!(document("sciq", sciq), want("s\nQuestion: q\nAnswer:", &["1", "2", "3", "4"], Some(3)));
    let five = json!({"label": ["A", "B", "C", "D", "E"], "text": ["a", "b", "c", "d", "e"]});
    let common = document("commonsense_qa", json!({"question": " q ", "choices": five, "answerKey": "D"}));
    assert_eq!(common, want("Question: q\nA. a\nB. b\nC. c\nD. d\nE. e\nAnswer:", &["A", "B", "C", "D", "E"], Some(3)));
    let mmlu = document("mmlu_anatomy", json!({"question": " q\n", "choices": ["a ", "b", "c", "d"], "answer": 2}));
    assert_eq!(mmlu, want("q\nA. a \nB. b\nC. c\nD. d\nAnswer:", &["A", "B", "C", "D"], Some(2)));
    let wino = document(
        "winogrande",
        json!({"sentence": "The _ ate _ it. ", "option1": "cat", "option2": "dog ", "answer": "2"}),
    );
    assert_eq!(
        wino,
        Document::Contexts {
            contexts: vec!["The cat".into(), "The dog ".into()],
            continuation: " ate _ it.".into(),
            gold: Some(1)
        }
    );
    let word = document("lambada_openai", json!({"text": "one  two\nthree four"}));
    assert_eq!(word, Document::Word { context: "one  two\nthree".into(), continuation: " four".into() });
    let truth = json!({"question": "Q?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["a", "b", "c"], "labels": [0, 1, 1]}});
    let Document::Choices { context, gold, .. } = document("truthfulqa_mc1", truth.clone()) else { panic!() };
    assert!(context.starts_with("Q: What is human") && context.ends_with("Spain.\n\nQ: Q?\nA:") && gold == Some(0));
    let Document::Truths { truths, .. } = document("truthfulqa_mc2", truth) else { panic!() };
    assert_eq!(truths, [false, true, true]);
}

#[test]
fn examples_carry_their_answers() {
    let example = |name: &str, row| find(name).unwrap()[0].form.example(&row).unwrap();
    let wino = json!({"sentence": "The _ ate. ", "option1": "cat", "option2": "dog", "answer": "2"});
    assert_eq!(example("winogrande", wino), "The dog ate.\n\n");
    assert_eq!(example("lambada_openai", json!({"text": "a b c"})), "a b  c\n\n");
    let piqa = json!({"goal": "g", "sol1": "a ", "sol2": "b", "label": 0});
    assert_eq!(example("piqa", piqa), "Question: g\nAnswer: a \n\n");
    assert_eq!(
        find("mmlu_high_school_us_history").unwrap()[0].form.description(),
        "The following are multiple choice questions (with answers) about high school us history.\n\n"
    );
}

#[test]
fn unlabelled_rows_and_missing_fields_are_named() {
    for (name, row, word) in [
        ("piqa", json!({"goal": "g", "sol1": "a", "sol2": "b", "label": -1}), "label"),
        ("hellaswag", json!({"activity_label": "a", "ctx_a": "a", "ctx_b": "", "endings": [], "label": ""}), "label"),
        ("winogrande", json!({"sentence": "_", "option1": "a", "option2": "b", "answer": ""}), "answer"),
        ("commonsense_qa", json!({"question": "q", "choices": {"text": []}, "answerKey": ""}), "answerKey"),
        ("boolq", json!({"question": "q", "label": 0}), "passage"),
        ("arc_easy", json!({"question": "q", "answerKey": "A"}), "choices"),
        ("wikitext", json!({"text": "q"}), "page"),
    ] {
        let error = find(name).unwrap()[0].form.document(&row).unwrap_err();
        assert!(error.contains(word), "{name}: {error}");
    }
}

#[test]
fn wikitext_is_detokenized() {
    let page = " = Title = \n The 1 @,@ 000 birds ' ( two ) , he said : \" yes \" ; it 's N @-@ fold . = = Part = = \n";
    assert_eq!(detokenize(page), " = Title =\nThe 1,000 birds'(two), he said: \"yes\"; it's N-fold. == Part ==\n");
    assert_eq!(words(" a b "), 4);
    assert_eq!((words(""), words("a"), words("a \n b")), (1, 1, 2));
}
