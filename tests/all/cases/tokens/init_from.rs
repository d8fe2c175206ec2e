//! Weights come with the tokenizer that they were trained with: no default may take its place.

use super::vocabulary::{Form, tokenizer_json};
use super::{tiny_with, train_on};
use crate::support::{arg, checkpoint, fails, ok};
use std::path::Path;

/// As many rows as GPT-2's ids need, so that the wrong tokenizer would go unnoticed.
const LARGE: [&str; 4] = ["--set", "model.vocab_size=50304", "--set", "train.steps=3"];

fn write_text(dir: &Path) -> String {
    let path = dir.join("text.txt");
    std::fs::write(&path, "the cat sat on a mat and was happy ".repeat(60)).unwrap();
    arg(&path).to_owned()
}

#[test]
fn the_models_tokenizer_is_the_default_and_no_other_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (text, tokenizer) = (write_text(dir.path()), dir.path().join("tokenizer.json"));
    std::fs::write(&tokenizer, tokenizer_json(Form::Llama2).to_string()).unwrap();
    let data = format!("train = [{text:?}]\nval_fraction = 0.1");
    let first = train_on(dir.path(), "first", &format!("{data}\ntokenizer = {:?}", arg(&tokenizer)), &LARGE);
    let own = std::fs::read(checkpoint(&first, 3).join("tokenizer.json")).unwrap();
    assert!(own == std::fs::read(&tokenizer).unwrap());
    // Of a run, and of a plain directory.
    let plain = dir.path().join("plain");
    ok(&["export", "--ckpt", arg(&first), "--out", arg(&plain)]);
    for (name, model) in [("second", &first), ("third", &plain)] {
        let next = train_on(dir.path(), name, &data, &[&LARGE[..], &["--init-from", arg(model)]].concat());
        assert!(std::fs::read(checkpoint(&next, 3).join("tokenizer.json")).unwrap() == own, "{name}");
    }
    // The same tokenizer in a file that is written in another way.
    let pretty = dir.path().join("pretty.json");
    std::fs::write(&pretty, serde_json::to_string_pretty(&tokenizer_json(Form::Llama2)).unwrap()).unwrap();
    let named = format!("data.tokenizer={}", arg(&pretty));
    train_on(dir.path(), "fourth", &data, &[&LARGE[..], &["--init-from", arg(&plain), "--set", &named]].concat());

    let config = tiny_with(dir.path(), "other", &data);
    let refused = |more: &[&str]| {
        let out = dir.path().join("other");
        let said = fails(
            &[
                &["pretrain", "--config", arg(&config), "--out", arg(&out), "--init-from", arg(&plain)],
                &LARGE[..],
                more,
            ]
            .concat(),
            78,
        );
        assert!(!out.exists(), "{said}");
        said
    };
    let mut changed = tokenizer_json(Form::Llama2);
    changed["model"]["vocab"]["a"] = 10.into();
    changed["model"]["vocab"]["b"] = 9.into();
    let swapped = dir.path().join("swapped.json");
    std::fs::write(&swapped, changed.to_string()).unwrap();
    for other in ["gpt2", arg(&swapped)] {
        let said = refused(&["--set", &format!("data.tokenizer={other}")]);
        assert!(
            said.contains("is not the tokenizer that the weights in") && said.contains("leave data.tokenizer out"),
            "{said}"
        );
    }
    let shards = dir.path().join("shards");
    ok(&["data", "prepare", "--input", &text, "--tokenizer", "gpt2", "--out", arg(&shards)]);
    let said = refused(&["--set", &format!("data.train=[{:?}]", arg(&shards))]);
    assert!(said.contains("made with another tokenizer"), "{said}");
    std::fs::remove_file(plain.join("tokenizer.json")).unwrap();
    assert!(refused(&[]).contains("the model has no tokenizer.json"));
}

#[test]
fn a_name_on_the_hub_is_told_from_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (write_text(dir.path()), dir.path().join("out"));
    let config = tiny_with(dir.path(), "tiny", &format!("train = [{text:?}]"));
    let prepare =
        |name: &str| fails(&["data", "prepare", "--input", &text, "--tokenizer", name, "--out", arg(&out)], 74);
    let pretrain = |name: &str| {
        let set = format!("data.tokenizer={name}");
        fails(&["pretrain", "--config", arg(&config), "--out", arg(&out), "--set", &set], 74)
    };
    for said in [prepare("some-org/some-model"), prepare("hub:some-org/some-model"), pretrain("some-org/some-model")] {
        assert!(said.contains("hf download some-org/some-model tokenizer.json"), "{said}");
        assert!(!said.contains("space on the disk"), "{said}");
    }
    for said in
        [prepare("./nowhere/tokenizer.json"), prepare("nowhere/tokenizer.json"), pretrain("/nowhere/tokenizer.json")]
    {
        assert!(said.contains("no such tokenizer file") && said.contains("gpt2 (built in)"), "{said}");
    }
}
