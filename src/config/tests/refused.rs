//! What a configuration is refused for, and how it is said: key, fault and remedy of every rule.

use super::*;

/// `BASE` with these sets has exactly one problem: with `key`, saying `what`, and advising `hint`.
pub(super) fn refuses(sets: &[&str], key: &str, what: &str, hint: &str) {
    let failure = failure(load(BASE, sets));
    let advice = failure.hint.expect("no hint");
    let line = &failure.message;
    assert_eq!(line.lines().count(), 1, "{sets:?}: {line}");
    assert!(line.contains(&format!(": {key}: ")), "{sets:?}: {line}");
    assert!(line.contains(what), "{sets:?}: {line}");
    assert!(advice.contains(hint), "{sets:?}: {line}\nhint: {advice}");
}

#[test]
fn refuses_unknown_keys_and_sections() {
    for (set, key, hint) in [
        ("model.hiden_size=8", "model.hiden_size", "did you mean model.hidden_size?"),
        ("model.n_layer=8", "model.n_layer", "did you mean model.num_hidden_layers?"),
        ("train.lr=1.0", "train.lr", "did you mean optimizer.lr?"),
        ("train.learning_rate=1.0", "train.learning_rate", "did you mean optimizer.lr?"),
        ("optimizer.weight_dacay=0", "optimizer.weight_dacay", "did you mean optimizer.weight_decay?"),
        ("train.batch_size=1", "train.batch_size", "did you mean train.micro_batch_size?"),
        (
            "log.xyzzyplugh=1",
            "log.xyzzyplugh",
            "the keys of [log] are every, layers_every, sequences, desync_every, tensorboard",
        ),
        ("train.steps.more=1", "train.steps.more", "did you mean train.steps?"),
    ] {
        refuses(&[set], key, "unknown key", hint);
    }
    refuses(&["optimiser.lr=1"], "optimiser", "unknown section", "did you mean [optimizer]?");
    refuses(&["wandb.on=1", "wandb.name=a"], "wandb", "unknown section", "the sections are model, data, train");
}

#[test]
fn refuses_settings_of_other_architectures() {
    let qwen3 = "model.architecture=\"qwen3\"";
    let smollm3 = "model.architecture=\"smollm3\"";
    let of_another = "is no setting of model.architecture";
    for (sets, key, what, hint) in [
        (&["model.architecture=\"qwen4\""][..], "model.architecture", "must be \"llama\"", "did you mean \"qwen"),
        (&["model.sliding_window=8"], "model.sliding_window", of_another, "choose an architecture"),
        (&[qwen3, "model.mlp_bias=true"], "model.mlp_bias", of_another, "remove it"),
        (&[smollm3, "model.sliding_window=8"], "model.sliding_window", of_another, "remove it"),
        (&[qwen3, "model.no_rope_layers=[1, 0]"], "model.no_rope_layers", of_another, "remove it"),
        (&[qwen3, "model.max_window_layers=1"], "model.max_window_layers", "no effect", "set model.sliding_window"),
        (&[smollm3, "model.no_rope_layers=[1]"], "model.no_rope_layers", "1 numbers for 2 layers", "each layer"),
        (&[smollm3, "model.no_rope_layers=[1, 2]"], "model.no_rope_layers", "0 to 1", "range"),
        (&[smollm3, "model.no_rope_layers=1"], "model.no_rope_layers", "expected a list of integers", "[1, 1, 1, 0]"),
        (&["model.rope_scaling=4"], "model.rope_scaling", "expected a table", "rope_type"),
        (&["model.rope_scaling.factor=4"], "model.rope_scaling", "rope_type is missing", "yarn"),
        (
            &["model.rope_scaling.rope_type=\"linear\"", "model.rope_scaling.factr=4"],
            "model.rope_scaling",
            "has no setting factr",
            "did you mean factor?",
        ),
        (
            &[
                "model.rope_theta=1.0",
                "model.rope_scaling={ rope_type = \"yarn\", factor = 2, original_max_position_embeddings = 8 }",
            ],
            "model.rope_scaling",
            "model.rope_theta above 1",
            "10000.0",
        ),
        (
            &["model.head_dim=2", "model.rope_scaling={ rope_type = \"dynamic\", factor = 2 }"],
            "model.rope_scaling",
            "heads of 2",
            "linear",
        ),
    ] {
        refuses(sets, key, what, hint);
    }
}

#[test]
fn scaled_rope_lengthens_what_can_be_trained_on() {
    let scaled = ["model.max_position_embeddings=16", "model.rope_scaling={ rope_type = \"linear\", factor = 2.0 }"];
    let config = load(BASE, &scaled).unwrap();
    assert_eq!((config.model.context_length(), config.train.sequence_length), (32, 32));
    let sets = [&scaled[..], &["train.sequence_length=33"]].concat();
    refuses(&sets, "train.sequence_length", "33 is more than model.max_position_embeddings 32", "shorter");
}

#[test]
fn refuses_wrong_types() {
    for (set, key, what, hint) in [
        ("train.steps=1e3", "train.steps", "expected an integer, found 1000.0", "write 1000 without point or exponent"),
        ("train.steps=\"100\"", "train.steps", "found the string \"100\"", "without quotes"),
        ("train.steps=100.5", "train.steps", "found 100.5", "whole number"),
        (
            "train.steps=9223372036854775808",
            "train.steps",
            "an integer beyond 9,223,372,036,854,775,807",
            "whole number",
        ),
        ("train.steps=inf", "train.steps", "found inf", "whole number"),
        ("train.seed=-1", "train.seed", "expected an integer, found -1", "cannot be negative"),
        ("data.shuffle=False", "data.shuffle", "expected a boolean, found the string \"False\"", "true or false"),
        ("data.shuffle=0", "data.shuffle", "expected a boolean, found 0", "true or false"),
        (
            "model.tie_word_embeddings=\"true\"",
            "model.tie_word_embeddings",
            "found the string \"true\"",
            "without quotes",
        ),
        ("optimizer.lr=nan", "optimizer.lr", "expected a number, found NaN", "finite"),
        ("optimizer.grad_clip=inf", "optimizer.grad_clip", "expected a number, found inf", "finite"),
        ("optimizer.lr=1e999", "optimizer.lr", "expected a number, found inf", "finite"),
        ("optimizer.lr=3e-4x", "optimizer.lr", "found the string \"3e-4x\"", "without quotes"),
        ("optimizer.lr=", "optimizer.lr", "found the string \"\"", "without quotes"),
        ("optimizer.lr=2024-01-01", "optimizer.lr", "found a date", "without quotes"),
        ("optimizer.betas=0.9", "optimizer.betas", "expected a list of 2 numbers, found 0.9", "[0.9, 0.95]"),
        ("optimizer.betas=[0.9]", "optimizer.betas", "found a list of 1", "[0.9, 0.95]"),
        ("optimizer.betas=[0.9, nan]", "optimizer.betas", "found a list of 2", "[0.9, 0.95]"),
        ("data.val=text.txt", "data.val", "expected a list of strings, found the string", "write [\"text.txt\"]"),
        ("data.val=[1]", "data.val", "expected a list of strings, found a list of 1", "[\"one\", \"two\"]"),
        ("data.tokenizer=5", "data.tokenizer", "expected a string, found 5", "quotes"),
        ("data.tokenizer={a = 1}", "data.tokenizer", "found a table", "quotes"),
    ] {
        refuses(&[set], key, what, hint);
    }
}

#[test]
fn refuses_values_out_of_range() {
    for (set, key, what, hint) in [
        ("train.steps=0", "train.steps", "must be at least 1, found 0", "Number of optimizer steps"),
        ("train.micro_batch_size=-4", "train.micro_batch_size", "found -4", "cannot be negative"),
        ("model.hidden_size=0", "model.hidden_size", "must be 1 to 1048576, found 0", "into this range"),
        ("model.hidden_size=1_000_000_000_000", "model.hidden_size", "must be 1 to 1048576", "into this range"),
        ("model.rms_norm_eps=0", "model.rms_norm_eps", "must be above 0, at most 0.1, found 0", "into this range"),
        ("model.initializer_range=-0.02", "model.initializer_range", "must be above 0", "into this range"),
        ("optimizer.lr=0", "optimizer.lr", "must be above 0", "Peak learning rate"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas", "must be at least 0 and below 1", "into this range"),
        ("optimizer.betas=[-0.1, 0.9]", "optimizer.betas", "must be at least 0 and below 1", "into this range"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay", "must be 0 to 10", "into this range"),
        ("optimizer.grad_clip=-1.0", "optimizer.grad_clip", "must be at least 0", "0 = no clipping"),
        ("data.val_fraction=1", "data.val_fraction", "must be at least 0 and below 1, found 1", "into this range"),
        ("sample.top_p=0.0", "sample.top_p", "must be above 0, at most 1", "into this range"),
        ("checkpoint.keep=0", "checkpoint.keep", "must be at least 1", "Newest checkpoints to keep"),
        ("train.precision=fp32", "train.precision", "must be \"auto\", \"f32\", \"bf16\"", "did you mean \"f32\"?"),
        ("schedule.kind=cosin", "schedule.kind", "found the string \"cosin\"", "did you mean \"cosine\"?"),
        ("optimizer.kind=muon", "optimizer.kind", "must be \"adamw\"", "choose one of these"),
        ("model.preset=1.7B", "model.preset", "must be \"1.7b\", \"978m\", \"124m\"", "did you mean \"1.7b\"?"),
    ] {
        refuses(&[set], key, what, hint);
    }
}

#[test]
fn refuses_impossible_models_and_batches() {
    for (sets, key, what, hint) in [
        (&["model.num_key_value_heads=3"][..], "model.num_key_value_heads", "3 does not divide", "one of 1, 2, 4"),
        (&["model.num_key_value_heads=8"], "model.num_key_value_heads", "8 does not divide", "one of 1, 2, 4"),
        (&["model.head_dim=5"], "model.head_dim", "5 is odd", "6 would do"),
        (
            &["model.hidden_size=66"],
            "model.head_dim",
            "66 is not a multiple of num_attention_heads 4",
            "set model.head_dim",
        ),
        (
            &["model.max_position_embeddings=16"],
            "train.sequence_length",
            "32 is more than",
            "max_position_embeddings to 32",
        ),
        (
            &["train.tokens_per_step=100"],
            "train.tokens_per_step",
            "100 is not a multiple of micro_batch_size",
            "64 or 128",
        ),
        (&["train.tokens_per_step=63"], "train.tokens_per_step", "63 is not a multiple", "set it to 64,"),
        (&["train.tokens_per_step=9223372036854775807"], "train.tokens_per_step", "not a multiple", "set it to"),
        (&["train.steps=9223372036854775807"], "train.steps", "more tokens than 63 bits", "fewer steps"),
        (&["train.steps=200000000000000000"], "train.steps", "more tokens than 63 bits", "fewer steps"),
        (&["model.vocab_size=256"], "model.vocab_size", "256 is less than 257", "512 or more"),
        (&["data.tokenizer=gpt2"], "model.vocab_size", "512 is less than 50257", "50304"),
        (&["data.tokenizer=gtp2"], "data.tokenizer", "neither \"gpt2\" nor \"train\"", "did you mean \"gpt2\"?"),
        (&["data.tokenizer="], "data.tokenizer", "neither \"gpt2\" nor \"train\"", "\"./\""),
    ] {
        refuses(sets, key, what, hint);
    }
}

#[test]
fn refuses_impossible_data_schedules_and_services() {
    for (sets, key, what, hint) in [
        (&["data.train=[\"a.txt\"]"][..], "data.train", "given beside data.source", "remove one of the two"),
        (&["data.val=[\"a.txt\"]"], "data.val", "given beside data.source", "remove one of the two"),
        (&["data.source=poems"], "data.source", "must be \"stories\"", "choose one of these"),
        (&["data.text_field="], "data.text_field", "is empty", "\"text\""),
        (
            &["schedule.warmup_steps=100"],
            "schedule.warmup_steps",
            "leaves nothing of schedule.decay_steps 100",
            "shorter warm-up",
        ),
        (
            &["schedule.kind=wsd", "schedule.warmup_steps=81"],
            "schedule.warmup_steps",
            "do not fit into train.steps 100",
            "more steps",
        ),
        (
            &["schedule.kind=wsd", "schedule.decay_steps=101"],
            "schedule.warmup_steps",
            "do not fit",
            "shorter warm-up or tail",
        ),
        (&["schedule.min_lr=1e-3"], "schedule.min_lr", "0.001 is more than optimizer.lr 0.0006", "lower one"),
        (
            &["checkpoint.every=30", "checkpoint.keep_every=100"],
            "checkpoint.keep_every",
            "100 is not a multiple",
            "set it to 0",
        ),
        (
            &["checkpoint.every=0", "checkpoint.keep_every=100"],
            "checkpoint.keep_every",
            "not a multiple",
            "set it to 0",
        ),
        (&["eval.tasks=[\"hellaswag\"]"], "eval.tasks", "missing: eval.data_dir", "does not use the network"),
        (
            &["eval.tasks_every=300"],
            "eval.tasks_every",
            "300 is not a multiple of eval.every",
            "a multiple of eval.every",
        ),
        (&["sample.every=10"], "sample.prompts", "sample.every is 10, but there is no text", "Once upon a time"),
        (
            &["optimizer.lr"],
            "optimizer.lr",
            "\"optimizer.lr\" is not of the form section.key=value",
            "--set optimizer.lr=3e-4",
        ),
        (&["steps=5"], "steps", "is not of the form section.key=value", "--set"),
        (&[".steps=5"], ".steps", "is not of the form section.key=value", "--set"),
        (&["train.=5"], "train.", "is not of the form section.key=value", "--set"),
    ] {
        refuses(sets, key, what, hint);
    }
    let raw = BASE.replace("source = \"stories\"", "stories = 10\ntrain = [\"a.txt\", \"\"]");
    let failure = failure(load(&raw, &[]));
    assert!(
        failure.message.contains("a.toml:9:1: data.stories: has no effect without the built-in corpus"),
        "{failure}"
    );
    assert!(failure.message.contains("a.toml:10:1: data.train: holds an empty path"), "{failure}");
}

#[test]
fn refuses_what_is_missing() {
    for line in BASE.lines().filter(|line| line.contains('=') && !line.contains("tokenizer")) {
        let (name, _) = line.split_once(" =").unwrap();
        let failure = failure(load(&BASE.replace(line, ""), &[]));
        let key = if name == "source" { "train" } else { name };
        assert!(
            failure.message.starts_with("a.toml: ") && failure.message.contains(&format!(".{key}: missing")),
            "{failure}"
        );
        assert!(failure.hint.is_some());
    }
    let empty = failure(load("", &[]));
    assert_eq!(empty.message.lines().count(), 9, "{empty}");
}

#[test]
fn says_where_in_the_file() {
    let text = BASE.replace("hidden_size = 64", "hidden_size = 64.5");
    let found = failure(load(&text, &[]));
    assert_eq!(found.message, "a.toml:2:1: model.hidden_size: expected an integer, found 64.5");
    let found = failure(load(&format!("{BASE}  \"schritte\\nzwei\" = 1\n"), &[]));
    assert_eq!(found.message, "a.toml:16:3: train.schritte\\nzwei: unknown key");
    let found = failure(load("[model\n", &[]));
    assert!(found.message.starts_with("a.toml:1:7: not valid TOML: "), "{found}");
    let found = failure(load(&format!("{BASE}steps = 100\n"), &[]));
    assert!(found.message.starts_with("a.toml:16:1: not valid TOML: duplicate key"), "{found}");
    let found = failure(load(&format!("model = 3\n{}", BASE.replace("[model]", "[other]")), &[]));
    assert!(found.message.starts_with("a.toml:1:1: model: found 3 where a section was expected"), "{found}");
    let misspelt = failure(load(&BASE.replace("[train]", "[trian]"), &[]));
    assert_eq!(misspelt.message, "a.toml:13:1: trian: unknown section");
    // One mistake of syntax: what the parser makes of the rest is not reported.
    let syntax = failure(load("model = 3\nb = = 1\n", &[]));
    assert!(
        syntax.message.lines().all(|line| line.starts_with("a.toml:2:") && line.contains("not valid TOML")),
        "{syntax}"
    );
    let set = failure(load(BASE, &["train.steps=0"]));
    assert!(set.message.starts_with("--set: train.steps: "), "{set}");
}

#[test]
fn reports_all_problems_at_once_and_none_twice() {
    let text = BASE.replace("hidden_size = 64", "hiden_size = 64").replace("steps = 100", "steps = 1e2");
    let failure =
        failure(load(&text, &["optimizer.lr=nan", "schedule.min_lr=2.0", "model.num_key_value_heads=3", "oops"]));
    let lines: Vec<_> = failure.message.lines().collect();
    // hidden_size is misspelt, not missing; min_lr is not compared with a learning rate that is none.
    assert_eq!(lines.len(), 5, "{failure}");
    for (start, hint) in [
        ("--set: oops: \"oops\" is not of the form", "(write for example --set optimizer.lr=3e-4)"),
        ("a.toml:2:1: model.hiden_size: unknown key", "(did you mean model.hidden_size?)"),
        ("a.toml:15:1: train.steps: expected an integer", "(write 100 without point or exponent)"),
        ("--set: optimizer.lr: expected a number", "(only finite numbers make sense here)"),
        ("--set: model.num_key_value_heads: 3 does not divide", "(choose one of 1, 2, 4)"),
    ] {
        assert!(lines.iter().any(|line| line.starts_with(start) && line.ends_with(hint)), "{start}: {failure}");
    }
    assert!(failure.hint.unwrap().starts_with("5 problems"));
}
