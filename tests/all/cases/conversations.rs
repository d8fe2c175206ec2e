//! Fine-tuning data as people have them: shapes, roles, marks, held-out records, templates.

mod arithmetic;
mod templates;

use crate::sft::Bench;
use crate::support::{arg, ok, stderr, stdout};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, Weak};

/// A model and configurations, shared by the tests that run at the same time; each writes files of its own names.
fn shared() -> Arc<Bench> {
    static SHARED: Mutex<Weak<Bench>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let bench = Arc::new(Bench::new());
        *shared = Arc::downgrade(&bench);
        bench
    })
}

/// Writes `records` as lines of `name`.
fn write(bench: &Bench, name: &str, records: &[Value]) {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    bench.write(name, &lines.join("\n"));
}

fn sets<'a>(of: &[&'a str]) -> Vec<&'a str> {
    of.iter().flat_map(|set| ["--set", set]).collect()
}

/// What `--show-data` says of `records`: trained text stands in ⟦ ⟧.
fn shown(bench: &Bench, name: &str, records: &[Value], set: &[&str]) -> String {
    write(bench, name, records);
    let output = bench.sft("full.toml", name, &[&["--show-data", "9"], &sets(set)[..]].concat());
    assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// The error about `records`.
fn refused(bench: &Bench, name: &str, records: &[Value], set: &[&str]) -> String {
    write(bench, name, records);
    bench.refused("full.toml", name, &[&["--show-data", "9"], &sets(set)[..]].concat(), 65)
}

/// A short conversation whose second answer is a good one, the first one with `mark`.
fn marked(mark: Value) -> Value {
    let mut bad = json!({"role": "assistant", "content": "BAD"});
    bad.as_object_mut().unwrap().extend(mark.as_object().unwrap().clone());
    json!({"messages": [{"role": "user", "content": "q"}, bad, {"role": "user", "content": "no"},
        {"role": "assistant", "content": "GOOD"}]})
}

#[test]
fn answers_that_are_marked_are_not_trained() {
    let bench = shared();
    let all_trained = shown(&bench, "marks.jsonl", &[marked(json!({"weight": 1}))], &[]);
    assert!(all_trained.contains("⟦BAD") && all_trained.contains("⟦GOOD"), "{all_trained}");
    for mark in [
        json!({"weight": 0}),
        json!({"weight": 0.0}),
        json!({"train": false}),
        json!({"loss": 0}),
        json!({"mask": true}),
        json!({"masked": true}),
        json!({"label": false}),
        json!({"label": 0}),
    ] {
        for train_on in ["answers", "all", "last_answer"] {
            let set = format!("sft.train_on={train_on}");
            let text = shown(&bench, "marks.jsonl", &[marked(mark.clone())], &[&set]);
            let trained: String = text.split('⟦').skip(1).filter_map(|part| part.split('⟧').next()).collect();
            assert!(trained.contains("GOOD") && !trained.contains("BAD"), "{mark} {train_on}: {text}");
            assert_eq!(trained.contains("no"), train_on == "all", "{mark} {train_on}: {text}");
        }
    }
    // A name of one's own, and one that only looks like a mark.
    let own = marked(json!({"good": false}));
    assert!(!shown(&bench, "marks.jsonl", std::slice::from_ref(&own), &["sft.fields.good=train"]).contains("⟦BAD"));
    let text = shown(&bench, "marks.jsonl", &[own], &[]);
    assert!(text.contains("⟦BAD") && text.contains("not used, and in how many records: good (1)"), "{text}");
}

#[test]
fn marks_that_cannot_be_honoured_are_refused_and_whole_records_can_be_marked() {
    let bench = shared();
    for (mark, says) in [
        (json!({"weight": 0.5}), "weight = 0.5: only 0 and 1"),
        (json!({"mask": 1}), "mask = 1 can be read both ways"),
        (json!({"train": "no"}), "train = \"no\": only 0 and 1"),
    ] {
        let text = refused(&bench, "whole.jsonl", &[marked(mark)], &[]);
        assert!(text.contains(says) && text.contains("whole.jsonl:1: turn 2"), "{text}");
    }
    let asked =
        json!({"messages": [{"role": "user", "content": "q", "train": true}, {"role": "assistant", "content": "a"}]});
    assert!(refused(&bench, "whole.jsonl", &[asked], &[]).contains("only answers are trained"));
    let good = json!({"instruction": "a", "output": "b"});
    let records =
        [good.clone(), json!({"prompt": "p", "completion": "c", "label": false}), good, marked(json!({"weight": 1}))];
    let text = shown(&bench, "whole.jsonl", &records, &[]);
    assert!(text.contains("1 records have no answer that is to be trained"), "{text}");
    assert!(!text.contains("⟦c"), "{text}");
    let text = refused(&bench, "whole.jsonl", &[json!({"prompt": "p", "completion": "c", "train": 0})], &[]);
    assert!(text.contains("1 are marked as not to be trained"), "{text}");
}

#[test]
fn fields_that_mean_something_are_used_or_refused_by_name() {
    let bench = shared();
    let history = json!({"instruction": "and his name?", "output": "Tim", "history": [["who ran?", "the cat"], ["where?", "home"]]});
    let text = shown(&bench, "fields.jsonl", &[history], &["train.sequence_length=128", "train.tokens_per_step=512"]);
    for part in ["who ran?", "⟦the cat", "⟦home", "and his name?", "⟦Tim"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let pirate =
        json!({"system_prompt": "You are a pirate", "question": "hi", "response": "arr", "id": 7, "source": ""});
    let text = shown(&bench, "fields.jsonl", &[pirate], &[]);
    assert!(text.contains("<|system|>\nYou are a pirate") && text.contains("⟦arr"), "{text}");
    assert!(text.contains("not used, and in how many records: id (1)\n"), "{text}");
    let tool = json!({"type": "function", "function": {"name": "calc"}});
    let call = json!([{"id": "1", "type": "function", "function": {"name": "calc", "arguments": "{\"x\": [1]}"}}]);
    let said = |extra: Value| {
        let mut record =
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null}]});
        record["messages"][1]["tool_calls"] = call.clone();
        record.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        record
    };
    for (record, field) in [
        (said(json!({})), "turn 2: tool_calls would be lost"),
        (json!({"instruction": "a", "output": "b", "tools": [tool]}), "tools would be lost"),
        (json!({"instruction": "a", "output": "b", "documents": [{"text": "x"}]}), "documents would be lost"),
        (json!({"instruction": "a", "output": "b", "reasoning": "because"}), "reasoning would be lost"),
        (json!({"instruction": "a", "output": "b", "images": ["a.png"]}), "the field \"images\" is not supported"),
        (
            json!({"instruction": "a", "output": "b", "chat_template_kwargs": {"loud": true}}),
            "loud of chat_template_kwargs",
        ),
        (
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "answer": "other"}),
            "\"answer\" would be lost",
        ),
    ] {
        let text = refused(&bench, "fields.jsonl", std::slice::from_ref(&record), &[]);
        assert!(
            text.contains(field) && text.contains("fields.jsonl:1: ") && text.contains("sft.fields."),
            "{field}: {text}"
        );
        // What the hint says works, but for an answer that was nothing but a call.
        let name = text.split("--set sft.fields.").nth(1).unwrap().split('=').next().unwrap();
        if name != "tool_calls" {
            shown(&bench, "fields.jsonl", &[record], &[&format!("sft.fields.{name}=ignore")]);
        }
    }
    // A template that writes them is given them: arguments as an object, what is not said as none.
    bench.write(
        "tools.jinja",
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{% if m.content is none %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments.x[0] }}){% endfor %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    );
    let template = format!("sft.template={}", bench.path("tools.jinja").display());
    let text = shown(&bench, "fields.jsonl", &[said(json!({"tools": [tool]}))], &[&template]);
    assert!(text.contains("[{\"type\": \"function\"") && text.contains("⟦calc(1)<|endoftext|>⟧"), "{text}");
}

#[test]
fn every_shape_and_role_in_the_table_is_read() {
    let bench = shared();
    let two = |role: &str, content: &str, [user, assistant]: [&str; 2]| json!([{role: user, content: "ask"}, {role: assistant, content: "ANSWER"}]);
    let turns = [two("role", "content", ["user", "assistant"]), two("from", "value", ["human", "gpt"])];
    let mut records = vec![
        json!({"instruction": "ask", "context": "ctx", "response": "ANSWER", "category": "x"}),
        json!({"question": "ask", "answer": "ANSWER"}),
        json!({"instruction": "ask", "response": "ANSWER"}),
        json!({"input": "ask", "output": "ANSWER"}),
        json!({"prompt": [{"role": "user", "content": "ask"}], "completion": [{"role": "assistant", "content": "ANSWER"}]}),
        json!({"prompt": "ask", "completion": [{"role": "assistant", "content": "ANSWER"}]}),
        // What is asked, told once more beside the messages.
        json!({"prompt": "ask", "messages": two("role", "content", ["user", "assistant"])}),
    ];
    for name in ["messages", "conversations", "conversation"] {
        records.extend(turns.iter().map(|turns| json!({name: turns})));
    }
    for roles in [["user ", "bing"], ["Human", "bard"], ["HUMAN", " Assistant "], ["prompter", "chatgpt"]] {
        records.push(json!({"messages": two("role", "content", roles)}));
    }
    for record in records {
        let text = shown(&bench, "shapes.jsonl", std::slice::from_ref(&record), &[]);
        assert!(text.contains("<|user|>\nask") && text.contains("⟦ANSWER<|endoftext|>⟧"), "{record}: {text}");
    }
    let help = stdout(&ok(&["sft", "--help"]));
    for name in
        ["bing", "bard", "developer", "observation", "context", "question", "sft.roles.NAME=user|assistant|system|tool"]
    {
        assert!(help.contains(name), "{name}: {help}");
    }
}

#[test]
fn turns_of_tools_are_context() {
    let bench = shared();
    for role in ["tool", "function_call", "observation", "ipython"] {
        let record = json!({"conversations": [{"from": "developer", "value": "RULES"}, {"from": "human", "value": "ask"},
            {"from": role, "value": "CONTEXT"}, {"from": "gpt", "value": "ANSWER"}]});
        let text = shown(&bench, "tools.jsonl", std::slice::from_ref(&record), &[]);
        assert!(text.contains("<|system|>\nRULES") && text.contains("<|tool|>\nCONTEXT<|endoftext|>"), "{text}");
        assert_eq!(text.matches('⟦').count(), 1, "{text}");
        // A template without a place for it does not drop it.
        let text = refused(&bench, "tools.jsonl", &[record], &["sft.template=vicuna"]);
        assert!(
            text.contains("turn 3 of the role tool would be lost") && text.contains("\"chatml\" or \"zephyr\""),
            "{text}"
        );
    }
    // Calls can be learned: by saying so.
    let call = json!({"conversations": [{"from": "human", "value": "ask"}, {"from": "function_call", "value": "f()"}]});
    assert!(shown(&bench, "tools.jsonl", &[call], &["sft.roles.function_call=assistant"]).contains("⟦f()"));
}

#[test]
fn other_names_are_refused_with_the_mapping_that_reads_them() {
    let bench = shared();
    let odd = json!({"dialog": [{"speaker": "Wizard of Oz", "text": "ANSWER"}]});
    let text = refused(&bench, "odd.jsonl", std::slice::from_ref(&odd), &[]);
    assert!(
        text.contains("no shape that is known; the fields are dialog") && text.contains("--set sft.fields."),
        "{text}"
    );
    let mapped = ["sft.fields.dialog=messages", "sft.fields.speaker=role", "sft.fields.text=content"];
    let text = refused(&bench, "odd.jsonl", std::slice::from_ref(&odd), &mapped);
    assert!(text.contains("turn 1: the role \"Wizard of Oz\" is not known"), "{text}");
    assert!(text.contains("--set 'sft.roles.Wizard of Oz=user'"), "{text}");
    let text = shown(&bench, "odd.jsonl", &[odd], &[&mapped[..], &["sft.roles.wizard of oz=assistant"]].concat());
    assert!(text.contains("⟦ANSWER"), "{text}");
    let pairs = json!({"Problem": "ask", "Solution": "ANSWER"});
    assert!(
        shown(&bench, "odd.jsonl", &[pairs], &["sft.fields.Problem=instruction", "sft.fields.Solution=output"])
            .contains("⟦ANSWER")
    );
    // A format that was named goes before the fields, and is what the hint speaks of.
    let text = refused(&bench, "odd.jsonl", &[json!({"question": "a", "answer": "b"})], &["sft.format=messages"]);
    assert!(text.contains("no list \"messages\"") && text.contains("--set sft.format=auto"), "{text}");
    // Two fields that could be the answer: neither is taken by chance.
    let both = json!({"question": "ask", "answer": "a", "response": "ANSWER"});
    assert!(
        refused(&bench, "odd.jsonl", std::slice::from_ref(&both), &[])
            .contains("\"answer\" and \"response\" stand for the same")
    );
    assert!(shown(&bench, "odd.jsonl", &[both], &["sft.fields.answer=ignore"]).contains("⟦ANSWER"));
    let text = bench.refused("full.toml", "records.json", &["--set", "sft.roles.bing=nobody"], 78);
    assert!(text.contains("sft.roles.bing") && text.contains("must be \"user\""), "{text}");
}

#[test]
fn every_record_has_a_format_of_its_own_and_few_may_be_bad() {
    let bench = shared();
    let alpaca: Vec<Value> = (0..30).map(|i| json!({"instruction": format!("q{i}"), "output": "a"})).collect();
    let chats: Vec<Value> = (0..20)
        .map(|i| json!({"conversations": [{"from": "human", "value": format!("h{i}")}, {"from": "gpt", "value": "a"}]}))
        .collect();
    write(&bench, "a.jsonl", &alpaca);
    write(&bench, "b.jsonl", &chats);
    let b = bench.path("b.jsonl");
    let output = bench.sft("full.toml", "a.jsonl", &[arg(&b), "--show-data", "1"]);
    assert!(stdout(&output).contains("50 records (30 alpaca, 20 sharegpt)"), "{}{}", stdout(&output), stderr(&output));
    let mixed = shown(&bench, "mixed.jsonl", &[&chats[..3], &alpaca[..2]].concat(), &[]);
    assert!(mixed.contains("5 records (2 alpaca, 3 sharegpt)"), "{mixed}");
    // 998 of 1,000.
    let mut bad = vec![json!({"instruction": "q", "output": ""}); 998];
    bad.splice(1..1, alpaca[..2].iter().cloned());
    let text = refused(&bench, "bad.jsonl", &bad, &[]);
    assert!(text.contains("998 of 1000 records (99.8 %) cannot be learned from"), "{text}");
    assert!(text.contains("the first, ") && text.contains("bad.jsonl:1: turn 2: the answer is empty"), "{text}");
    // Accepted, the loss is still told, to those who want to hear little too, and listed where it is said to be.
    let out = bench.path("accepted");
    let set = [
        "--out",
        arg(&out),
        "--quiet",
        "--set",
        "sft.max_bad=1",
        "--set",
        "train.steps=1",
        "--set",
        "sft.judged_prompts=0",
    ];
    let done = bench.sft("full.toml", "bad.jsonl", &set);
    let text = stderr(&done);
    assert!(done.status.success() && text.contains("warning: 998 of 1000 records"), "{text}");
    let list = text.split("all of them: ").nth(1).unwrap().split(')').next().unwrap();
    assert_eq!(std::fs::read_to_string(list).unwrap().lines().count(), 998);
}

#[test]
fn show_data_lists_what_is_left_out_and_names_no_file_that_is_not_there() {
    let bench = shared();
    write(&bench, "some.jsonl", &[json!({"instruction": "a", "output": "b"}), json!({"instruction": "c"}), json!(7)]);
    let output = bench.sft("full.toml", "some.jsonl", &["--show-data", "1"]);
    let text = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(!text.contains("quarantine"), "{text}");
    for line in ["some.jsonl:2: no field \"output\"", "some.jsonl:3: not an object"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn equal_prompts_leave_something_to_train_on() {
    let bench = shared();
    let record = |i: usize| json!({"prompt": "", "completion": format!("story number {i}")});
    let chat = |i: usize| {
        json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": format!("Hello {i}")},
            {"from": "human", "value": "tell me"}, {"from": "gpt", "value": "it is"}]})
    };
    let instruction =
        |i: usize| json!({"instruction": "Write a poem.", "input": "", "output": format!("the cat {i} ran")});
    let kinds: [&dyn Fn(usize) -> Value; 3] = [&record, &chat, &instruction];
    for kind in kinds {
        let records: Vec<Value> = (0..200).map(kind).collect();
        let text = shown(&bench, "same.jsonl", &records, &[]);
        let conversations = text.lines().find(|line| line.contains(" conversations, ")).unwrap();
        let count: usize = conversations.split(' ').next().unwrap().parse().unwrap();
        assert!((190..200).contains(&count) && text.contains("note: most conversations begin alike"), "{text}");
        let text = shown(&bench, "same.jsonl", &records, &["data.val_fraction=0"]);
        assert!(text.contains("200 conversations, ") && text.contains("; 0 trained tokens held out"), "{text}");
    }
    let text = shown(&bench, "same.jsonl", &vec![record(0); 20], &[]);
    assert!(text.contains("20 conversations, ") && text.contains("note: nothing is held out"), "{text}");
}

#[test]
fn what_is_too_long_is_called_so_and_found() {
    let bench = shared();
    let long = json!({"instruction": "a", "output": "word ".repeat(300)});
    let text = refused(&bench, "long.jsonl", std::slice::from_ref(&long), &["sft.max_truncated=1"]);
    assert!(
        text.contains("every answer is cut off at train.sequence_length = 96")
            && text.contains("raise train.sequence_length"),
        "{text}"
    );
    assert!(text.contains("long.jsonl:1, has ") && !text.contains("choose an sft.template"), "{text}");
    let short = json!({"instruction": "b", "output": "c"});
    let text =
        refused(&bench, "long.jsonl", &[short.clone(), short, long], &["sft.max_truncated=0", "data.val_fraction=0"]);
    assert!(text.contains("lose the end of an answer at 96 tokens") && text.contains("long.jsonl:3, has "), "{text}");
}
