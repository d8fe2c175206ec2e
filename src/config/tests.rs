//! Tests of the configuration as a whole: what is accepted and what comes of it; `refused` has what is not.

mod refused;

use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::runtime::error::Failure;
use crate::runtime::tests::damage::rounds;

/// A complete configuration in which every test below changes something. Line 2 is hidden_size.
const BASE: &str = r#"[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
vocab_size = 512

[data]
source = "stories"
tokenizer = "train"

[train]
sequence_length = 32
micro_batch_size = 2
steps = 100
"#;

const BASE_JSON: &str = r#"{"model": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
  "num_attention_heads": 4, "vocab_size": 512},
 "data": {"source": "stories", "tokenizer": "train"},
 "train": {"sequence_length": 32, "micro_batch_size": 2, "steps": 100}}"#;

fn read(text: &str, name: &str, format: ConfigFormat, sets: &[String]) -> Result<Config> {
    let mut problems = Problems::default();
    let entries = Entries::parse(text, name, format, &mut problems);
    Config::complete(entries, sets, &[], problems)
}

fn load(text: &str, sets: &[&str]) -> Result<Config> {
    let sets: Vec<_> = sets.iter().map(ToString::to_string).collect();
    read(text, "a.toml", ConfigFormat::Toml, &sets)
}

fn load_json(text: &str) -> Result<Config> {
    read(text, "a.json", ConfigFormat::Json, &[])
}

fn failure(result: Result<impl std::fmt::Debug>) -> Failure {
    let error = result.expect_err("was accepted");
    let failure = error.downcast_ref::<Failure>().expect("an error without a class").clone();
    assert_eq!(failure.exit, Exit::Config);
    failure
}

#[test]
fn json_means_the_same_as_toml() {
    assert_eq!(load_json(BASE_JSON).unwrap(), load(BASE, &[]).unwrap());
    for (from, to, expected) in [
        ("64", "64.0", "a.json: model.hidden_size: expected an integer, found 64.0"),
        ("64", "null", "a.json: model.hidden_size: expected an integer, found null"),
        ("64", "18446744073709551615", "found an integer beyond 9,223,372,036,854,775,807"),
        ("64", "64, \"hidden_size\": 65", "not valid JSON: `hidden_size` is given twice"),
        ("\"steps\"", "\"step\"", "a.json: train.step: unknown key"),
        ("{\"model\"", "{\"\": 3, \"model\"", "a.json: (empty name): found 3 where a section was expected"),
        ("100}}", "100}", "a.json:4:70: not valid JSON: EOF while parsing an object"),
        ("{\"model\"", "[{\"model\"", "not valid JSON: "),
    ] {
        let found = failure(load_json(&BASE_JSON.replace(from, to)));
        assert!(found.message.contains(expected), "{from} -> {to}: {found}");
        assert!(found.hint.is_some());
    }
    assert!(failure(load_json("[]")).message.contains("found a list of 0 where an object of sections was expected"));
    assert!(failure(load_json(&"[".repeat(100_000))).message.contains("not valid JSON: recursion limit"));
}

#[test]
fn defaults_follow_the_other_keys() {
    let config = load(BASE, &[]).unwrap();
    assert_eq!((config.model.num_key_value_heads, config.model.head_dim), (4, 16));
    assert_eq!((config.model.max_position_embeddings, config.train.tokens_per_step), (32, 64));
    assert_eq!((config.schedule.kind, config.schedule.decay_steps), (ScheduleKind::Cosine, Some(100)));
    assert_eq!((config.optimizer.lr, config.optimizer.betas, config.optimizer.eps), (6e-4, [0.9, 0.95], 1e-8));
    assert_eq!((config.model.rms_norm_eps, config.model.rope_theta), (1e-5, 500_000.0));
    assert_eq!((config.data.stories, config.data.val_stories, config.eval.val_tokens), (None, 1000, 1_048_576));
    assert!(config.data.shuffle && !config.data.allow_change && !config.model.tie_word_embeddings);
    assert_eq!(load(BASE, &["schedule.kind=wsd"]).unwrap().schedule.decay_steps, Some(20));
    assert_eq!(load(BASE, &["schedule.kind=wsd", "train.steps=3"]).unwrap().schedule.decay_steps, Some(1));
    assert_eq!(load(BASE, &["model.head_dim=6", "model.hidden_size=63"]).unwrap().model.head_dim, 6);
}

#[test]
fn accepts_every_limit() {
    for sets in [
        &["schedule.warmup_steps=99"][..],
        &["schedule.kind=wsd", "schedule.warmup_steps=80"],
        &["schedule.kind=constant", "schedule.warmup_steps=1000"],
        &["schedule.min_lr=6e-4"],
        &["model.vocab_size=257"],
        &["model.vocab_size=50257", "data.tokenizer=gpt2"],
        &["model.max_position_embeddings=32", "train.tokens_per_step=640"],
        &["model.num_key_value_heads=1", "model.head_dim=2"],
        &["optimizer.betas=[0, 0]", "optimizer.weight_decay=0", "optimizer.grad_clip=0", "sample.top_p=1"],
        &["checkpoint.every=50", "checkpoint.keep_every=100", "sample.every=1", "sample.prompts=[\"\"]"],
        &["train.seed=9223372036854775807", "eval.every=0", "sample.temperature=0", "sample.top_k=0"],
    ] {
        let config = load(BASE, sets).unwrap();
        assert_eq!(Config::from_toml_str(&config.to_toml(), "run").unwrap(), config, "{sets:?}");
    }
}

#[test]
fn sets_go_before_the_file_and_explicit_keys_before_the_preset() {
    let config =
        load(BASE, &["train.steps=5", "train.steps = 1_000", "optimizer.weight_decay=0", "data.seed=0x10"]).unwrap();
    assert_eq!((config.train.steps, config.optimizer.weight_decay, config.data.seed), (1000, 0.0, 16));
    let config = load(BASE, &["data.tokenizer=./a=b.json", "sample.prompts=[\"x\", 'y']"]).unwrap();
    assert_eq!(config.data.tokenizer, NameOrPath::Path("./a=b.json".into()));
    assert_eq!(config.sample.prompts, ["x", "y"]);
    let config = load(BASE, &["model.preset=978m"]).unwrap();
    assert_eq!((config.model.hidden_size, config.model.num_hidden_layers), (64, 2));
    assert_eq!((config.model.num_key_value_heads, config.model.max_position_embeddings), (4, 1024));
    refused::refuses(
        &["model.preset=124m"],
        "model.num_key_value_heads",
        "12 does not divide num_attention_heads 4",
        "1, 2, 4",
    );
    // A wrong value in the file does no harm once it is replaced.
    let wrong = BASE.replace("steps = 100", "steps = \"many\"");
    assert_eq!(load(&wrong, &["train.steps=7"]).unwrap().train.steps, 7);
}

#[test]
fn a_resolved_configuration_loads_back() {
    let odd =
        ["data.tokenizer=\"./a\\\"\\n\\u00e9.json\"", "sample.prompts=[\"\", \"'\\\\ #\"]", "optimizer.eps=1e-300"];
    for sets in [&[][..], &odd, &["model.rms_norm_eps=0.1", "optimizer.lr=0.30000000000000004", "data.stories=9"]] {
        let config = load(BASE, sets).unwrap();
        let text = config.to_toml();
        assert_eq!(Config::from_toml_str(&text, "run").unwrap(), config, "{text}");
        assert_eq!(toml::from_str::<toml::Table>(&text).unwrap(), toml::Table::try_from(&config).unwrap());
    }
}

#[test]
fn apply_changes_only_what_is_set() {
    let mut config = load(BASE, &[]).unwrap();
    let before = config.clone();
    let changes =
        config.apply(&["train.steps=200".into(), "data.stories=5".into(), "optimizer.lr=6e-4".into()]).unwrap();
    let change = |key, old: &str, new: &str| Change { key, old: old.into(), new: new.into() };
    assert_eq!(changes, [change("data.stories", "none", "5"), change("train.steps", "100", "200")]);
    assert_eq!(config.schedule, before.schedule, "the learning rates moved");
    let now = config.clone();
    for (set, what) in [
        ("train.micro_batch_size=3", "64 is not a multiple"),
        ("model.preset=124m", "--set: model.preset: a preset has no effect on a resolved configuration"),
        ("train.stepz=1", "train.stepz: unknown key"),
    ] {
        let failure = failure(config.apply(&[set.into()]));
        assert!(failure.message.contains(what), "{failure}");
        assert_eq!(config, now, "{set}");
    }
}

#[test]
fn a_renamed_key_is_read_under_its_old_name() {
    let old = BASE.replace("tokenizer =", "accept_change = true\ntokenizer =");
    let config = load(&old, &[]).unwrap();
    assert!(config.data.allow_change);
    assert!(config.to_toml().contains("\nallow_change = true\n") && !config.to_toml().contains("accept_change"));
    assert!(load(BASE, &["data.accept_change=true"]).unwrap().data.allow_change);
    // Whichever name it has, what is set goes over what the file says.
    for set in ["data.accept_change=false", "data.allow_change=false"] {
        assert!(!load(&old, &[set]).unwrap().data.allow_change, "{set}");
    }
    let both = failure(load(&old.replace("source =", "allow_change = false\nsource ="), &[]));
    assert!(both.message.contains("data.accept_change: is given at a.toml:9:1 as well"), "{both}");
    let wrong = failure(load(&old.replace("= true", "= 1"), &[]));
    assert_eq!(wrong.message, "a.toml:10:1: data.allow_change: expected a boolean, found 1");
}

#[test]
fn prints_size_and_cost_below_the_resolved_keys() {
    let text = "[model]\npreset = \"1.7b\"\n[data]\ntrain = [\"x\"]\n[train]\nsequence_length = 1024\n\
                micro_batch_size = 1\ntokens_per_step = 524288\nsteps = 19073\n";
    let printed = print_config(&load(text, &[]).unwrap());
    assert!(
        printed.contains("\n# parameters: 1,716,144,128\n# flops_per_token: 10,583,801,856\n# tokens: 9,999,745,024\n")
    );
    assert!(printed.starts_with("[model]\narchitecture = \"llama\"\nhidden_size = 2048\n"), "{printed}");
    assert!(Config::from_toml_str(&printed, "printed").is_ok());
}

fn configs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs")
}

#[test]
fn every_configuration_we_ship_loads() {
    let sizes = [("quickstart", None), ("develop", None)];
    let recipe = [("llama-124m", 190_532_352), ("llama-978m", 978_218_240), ("llama-1.7b", 1_716_144_128)];
    let expected: Vec<_> = sizes.into_iter().chain(recipe.map(|(name, size)| (name, Some(size)))).collect();
    for (name, size) in &expected {
        let config = Config::load(&configs().join(format!("{name}.toml")), &[]).unwrap();
        if let Some(size) = size {
            assert_eq!(config.model.n_params(), *size, "{name}");
        }
        assert_eq!(Config::from_toml_str(&config.to_toml(), name).unwrap(), config);
    }
    let files = std::fs::read_dir(configs()).unwrap();
    // Fine-tuning takes its model from the command line.
    let model = Config::load(&configs().join("llama-124m.toml"), &[]).unwrap().model;
    let data = ["alpaca.json".to_owned()];
    let tuned = SftInputs { base: Path::new("/base"), model: &model, data: &data, steps: Some(500) };
    let config = Config::load_sft(&configs().join("sft-alpaca.toml"), &[], &tuned).unwrap();
    assert_eq!((config.lora.rank, config.train.steps, config.schedule.decay_steps), (16, 500, Some(500)));
    assert_eq!(Config::from_toml_str(&config.to_toml(), "sft").unwrap(), config);
    assert_eq!(files.count(), expected.len() + 1, "a configuration without a test");
}

#[test]
fn names_of_a_table_are_set_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sft.toml");
    let file = "[train]\nmicro_batch_size = 1\n[sft.roles]\nbing = \"assistant\"\n\"Wizard of Oz\" = \"user\"\n";
    std::fs::write(&path, file).unwrap();
    let model = Config::load(&configs().join("llama-124m.toml"), &[]).unwrap().model;
    let tuned = SftInputs { base: Path::new("/base"), model: &model, data: &["a.json".to_owned()], steps: Some(5) };
    let load = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Config::load_sft(&path, &sets, &tuned)
    };
    let mut config =
        load(&["sft.roles.bing=tool", "sft.roles.a.b c=system", "sft.fields.\"x\"=ignore", "sft.fields.y=output"])
            .unwrap();
    let roles: Vec<(&str, &str)> = config.sft.roles.iter().map(|(name, role)| (name.as_str(), role.name())).collect();
    assert_eq!(roles, [("Wizard of Oz", "user"), ("a.b c", "system"), ("bing", "tool")]);
    assert_eq!(Config::from_toml_str(&config.to_toml(), "sft").unwrap(), config);
    config.apply(&["sft.fields.z=input".into()]).unwrap();
    assert_eq!(config.sft.fields.len(), 3);
    for (set, key, what) in [
        ("sft.roles.x=boss", "sft.roles.x", "found the string \"boss\""),
        ("sft.roles=user", "sft.roles", "expected a table of strings"),
        ("sft.roles.x=5", "sft.roles", "expected a table of strings"),
        ("sft.roless.x=user", "sft.roless.x", "unknown key"),
    ] {
        let message = failure(load(&[set])).message;
        assert!(message.contains(key) && message.contains(what), "{set}: {message}");
    }
}

#[test]
fn the_1_7b_is_the_recipe() {
    let config = Config::load(&configs().join("llama-1.7b.toml"), &[]).unwrap();
    let (model, train, optimizer, schedule) = (&config.model, &config.train, &config.optimizer, &config.schedule);
    assert_eq!((model.num_hidden_layers, model.hidden_size, model.intermediate_size), (36, 2048, 5120));
    assert_eq!((model.num_attention_heads, model.num_key_value_heads, model.head_dim), (32, 8, 64));
    assert_eq!((model.vocab_size, model.max_position_embeddings), (50_304, 1024));
    assert_eq!((model.rms_norm_eps, model.rope_theta, model.initializer_range), (1e-5, 500_000.0, 0.02));
    assert!(!model.tie_word_embeddings && !model.residual_scaling);
    assert_eq!((train.sequence_length, train.tokens_per_step, train.steps), (1024, 524_288, 19_073));
    assert_eq!((optimizer.lr, optimizer.betas, optimizer.eps), (6e-4, [0.9, 0.95], 1e-8));
    assert_eq!((optimizer.weight_decay, optimizer.grad_clip), (0.1, 1.0));
    assert_eq!((schedule.kind, schedule.warmup_steps), (ScheduleKind::Cosine, 715));
    assert_eq!((schedule.decay_steps, schedule.min_lr), (Some(19_073), 6e-5));
    assert_eq!((config.eval.every, config.checkpoint.every, config.sample.every), (250, 100, 250));
    assert_eq!(config.sample.prompts, ["Hello, I am a language model,"; 4]);
    assert_eq!((config.sample.max_tokens, config.sample.top_k), (32, 50));
}

#[test]
fn files_are_told_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let toml = Config::load(&at("a.toml", BASE.as_bytes()), &["train.steps=3".into()]).unwrap();
    assert_eq!(toml.train.steps, 3);
    assert_eq!(Config::load(&at("a.json", BASE_JSON.as_bytes()), &["train.steps=3".into()]).unwrap(), toml);
    assert!(failure(Config::load(&at("a.yaml", b""), &[])).message.contains("a.yaml: not a configuration file"));
    assert!(failure(Config::load(&at("b.toml", b"a\xff"), &[])).message.contains("b.toml: not UTF-8 text (byte 1)"));
    let error = Config::load(&dir.path().join("none.toml"), &[]).unwrap_err();
    assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, Exit::Io);
}

/// What a mutation writes into valid text.
fn snippets() -> impl Strategy<Value = String> {
    let pieces = vec![
        "[", "]", "{", "}", "\"", "'", "=", ".", ",", "\n", "#", ":", "-", "0x", "1e9", "nan", "é", "\u{0}", "null",
    ];
    prop_oneof![
        prop::sample::select(pieces).prop_map(|piece: &str| piece.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        ".{0,6}"
    ]
}

/// `text` with pieces replaced at arbitrary places.
fn mutate(text: &str, edits: &[(prop::sample::Index, usize, String)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, removed, piece) in edits {
        let at = at.index(chars.len() + 1);
        let end = (at + removed).min(chars.len());
        chars.splice(at..end, piece.chars());
    }
    chars.into_iter().collect()
}

/// Whether a line of a message names what it is about: a place in the file, or a key.
fn says_where(line: &str) -> bool {
    let Some((origin, rest)) = line.split_once(": ") else { return false };
    let is_position = |place: &str| place.split(':').count() == 2 && place.split(':').all(|n| n.parse::<u32>().is_ok());
    let has_key = rest.split_once(": ").is_some_and(|(key, _)| !key.is_empty() && !key.starts_with("not valid "));
    match origin.strip_prefix("file:") {
        Some(place) => is_position(place),
        None if origin == "--set" => has_key,
        None if origin == "file" => has_key || rest.contains("where an object of sections was expected"),
        None => origin.starts_with("model.preset ") && has_key,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(2000) as u32,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is done to a file, the answer is a configuration that loads back, or a failure that keeps its form.
    #[test]
    fn mutated_files_never_break_it(
        json: bool,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, snippets()), 1..6),
        set in prop::option::of("[a-z_.]{0,20}=?.{0,12}"),
    ) {
        let (base, format) = if json { (BASE_JSON, ConfigFormat::Json) } else { (BASE, ConfigFormat::Toml) };
        let sets: Vec<_> = set.into_iter().collect();
        match read(&mutate(base, &edits), "file", format, &sets) {
            Ok(config) => {
                prop_assert_eq!(&Config::from_toml_str(&config.to_toml(), "again").unwrap(), &config);
                prop_assert!(print_config(&config).contains("# parameters: "));
            }
            Err(error) => {
                let failure = error.downcast_ref::<Failure>().unwrap();
                prop_assert_eq!(failure.exit, Exit::Config);
                prop_assert!(failure.hint.as_ref().is_some_and(|hint| !hint.is_empty()));
                prop_assert!(failure.message.lines().all(says_where), "{}", failure);
            }
        }
    }
}
