//! Promises that planted mistakes broke without a test noticing.

mod evaluation;

use crate::support::{TINY, arg, config, ok, pretrain, stdout};
use candle_core::Device;
use llama_lite::checkpoint::Opened;
use llama_lite::config::Config;
use llama_lite::config::PrecisionSetting;
use llama_lite::data::batch::Batch;
use llama_lite::data::batch::IGNORE;
use llama_lite::data::dataset::{Dataset, separator};
use llama_lite::data::eval_set::EvalSet;
use llama_lite::data::packed_rows::{Example, PackedRows};
use llama_lite::distributed::group::ProcessGroup;
use llama_lite::eval::{ByteLengths, score, total_loss};
use llama_lite::inspect::plan::rates;
use llama_lite::model::Llama;
use llama_lite::tokenizer::Tokenizer;
use llama_lite::train::footprint::{Fit, Hardware, RanksHere, checkpoint_bytes};
use llama_lite::train::model_state::{ModelState, load_model};
use llama_lite::train::step::take_step;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Mean loss of `rows` when every document is given to the model by itself.
fn loss_of_lone_documents(model: &Llama, rows: &EvalSet, separator: u32, separator_ends: bool) -> f64 {
    let (inputs, targets) = rows.read(0, rows.len()).unwrap();
    let mut nats = 0.0;
    for (inputs, targets) in inputs.chunks(rows.length()).zip(targets.chunks(rows.length())) {
        let begins = |i: usize| if separator_ends { inputs[i - 1] == separator } else { inputs[i] == separator };
        let mut starts: Vec<usize> = (1..inputs.len()).filter(|&i| begins(i)).collect();
        starts.insert(0, 0);
        starts.push(inputs.len());
        for document in starts.windows(2).map(|pair| pair[0]..pair[1]) {
            let (inputs, targets) = (inputs[document.clone()].to_vec(), targets[document].to_vec());
            nats += total_loss(model, Batch { length: inputs.len(), inputs, targets, starts: None }).unwrap();
        }
    }
    nats / targets.iter().filter(|&&target| target != IGNORE).count() as f64
}

/// The last validation of a run, what it should have been for documents that do not see each other, and for those that do.
fn validation_and_references(run: &Path, separator_ends: bool) -> [f64; 3] {
    let logged = lines(&run.join("metrics.jsonl")).into_iter().rfind(|record| record["kind"] == "val").unwrap();
    let checkpoint = Opened::open(run).unwrap();
    let tokenizer = Tokenizer::from_dir(checkpoint.tokenizer_dir()).unwrap();
    let separator = separator(&tokenizer).unwrap();
    let corpus = Dataset::open(&Config::load(&run.join("config.toml"), &[]).unwrap(), Some(tokenizer)).unwrap();
    let model = load_model(&checkpoint, &Device::Cpu, PrecisionSetting::Auto).unwrap();
    let rows = corpus.val.unwrap();
    let alone = loss_of_lone_documents(&model, &rows, separator, separator_ends);
    // No id is this one: nothing is cut.
    let together = loss_of_lone_documents(&model, &rows, u32::MAX, separator_ends);
    [logged["loss"].as_f64().unwrap(), alone, together]
}

/// The built-in stories, text files and shards with the separator on either side: each has rows of its own making.
#[test]
fn validation_keeps_documents_apart_where_training_does() {
    let dir = tempfile::tempdir().unwrap();
    // Rows that hold several stories.
    let long = [
        ["train.sequence_length=704", "train.tokens_per_step=704", "train.micro_batch_size=1", "data.val_stories=4"],
        ["optimizer.lr=5e-2", "eval.val_tokens=100000", "sample.every=0", "eval.every=12"],
    ]
    .concat();
    let stories = pretrain(dir.path(), "stories", &[&long[..], &["data.document_mask=true"]].concat());
    let mut checked = vec![(stories, false)];
    let text: String = (0..300).map(|i| format!("{{\"text\": \"Cat {i} saw a ball. It was {}.\"}}\n", i % 9)).collect();
    std::fs::write(dir.path().join("text.jsonl"), text).unwrap();
    let on = |name: &str, train: &Path, tokenizer: &str| -> PathBuf {
        let text = TINY
            .replace("source = \"stories\"\n", &format!("train = [{train:?}]\ndocument_mask = true\n"))
            .replace("stories = 60\nval_stories = 8\n", "")
            .replace("tokenizer = \"train\"", &format!("tokenizer = {tokenizer:?}"));
        let (config, out) = (config(dir.path(), &text), dir.path().join(name));
        let sets = ["--set", "data.val_fraction=0.1", "--set", "eval.val_tokens=150"];
        let sets: &[&str] = if tokenizer == "train" { &sets } else { &[] };
        ok(&[&["pretrain", "--quiet", "--config", arg(&config), "--out", arg(&out)], sets].concat());
        out
    };
    checked.push((on("text", &dir.path().join("text.jsonl"), "train"), false));
    let tokenizer = dir.path().join("text/checkpoints/step-00000012/tokenizer.json");
    for place in ["before", "after"] {
        let (input, shards) = (dir.path().join("text.jsonl"), dir.path().join(place));
        ok(&[
            &["data", "prepare", "--input", arg(&input), "--tokenizer", arg(&tokenizer), "--out", arg(&shards)][..],
            &["--eot", place, "--val-fraction", "0.1", "--quiet"],
        ]
        .concat());
        checked.push((on(&format!("shards-{place}"), &shards, arg(&tokenizer)), place == "after"));
    }
    let scored = |run: &Path| {
        lines(&run.join("metrics.jsonl"))
            .iter()
            .find_map(|record| record["tokens"].as_u64().filter(|_| record["kind"] == "val"))
    };
    assert_eq!(scored(&dir.path().join("text")), Some(150), "eval.val_tokens");
    for (run, separator_ends) in checked {
        let [logged, alone, together] = validation_and_references(&run, separator_ends);
        assert!((logged / alone - 1.0).abs() < 1e-6, "{}: {logged} {alone}", run.display());
        assert!((together / alone - 1.0).abs() > 5e-6, "{}: nothing is seen: {together} {alone}", run.display());
    }
}

/// Of protobuf's wire format: (field, varint or fixed number or bytes).
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let number = if key & 7 == 0 { varint(&mut bytes) } else { 0 };
        let length = match key & 7 {
            0 => 0,
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        fields.push((key >> 3, number, &bytes[..length]));
        bytes = &bytes[length..];
    }
    fields
}

/// All scalars of a run's event file, sorted: (tag, step, value); of texts the tag and the step. And the seconds from its first event
/// to the last.
fn scalars_and_span(run: &Path) -> (Vec<(String, u64, Option<f32>)>, f64) {
    let file = std::fs::read_dir(run.join("tensorboard")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(file).unwrap();
    let (mut scalars, mut at, mut times) = (Vec::new(), 0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let event = fields(&bytes[at + 12..at + 12 + length]);
        at += 16 + length;
        let time = event.iter().find(|field| field.0 == 1).unwrap().2;
        times.push(f64::from_le_bytes(time.try_into().unwrap()));
        let step = event.iter().find(|field| field.0 == 2).map_or(0, |field| field.1);
        for (_, _, summary) in event.into_iter().filter(|field| field.0 == 5) {
            for (_, _, value) in fields(summary) {
                let value = fields(value);
                let tag = String::from_utf8(value.iter().find(|field| field.0 == 1).unwrap().2.to_vec()).unwrap();
                let number = value.iter().find(|field| field.0 == 2).map(|field| field.2.try_into().unwrap());
                scalars.push((tag, step, number.map(f32::from_le_bytes)));
            }
        }
    }
    scalars.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    assert!(times.is_sorted(), "the clock goes forward");
    (scalars, times.last().unwrap() - times[0])
}

fn scalars(run: &Path) -> Vec<(String, u64, Option<f32>)> {
    scalars_and_span(run).0
}

/// The scalars that belong to a line of metrics.jsonl.
fn scalars_of(record: &Value) -> Vec<(String, u64, Option<f32>)> {
    let step = record["step"].as_u64().unwrap();
    let number = |value: &Value| value.as_f64();
    let list =
        |field: &str| -> Vec<f64> { record[field].as_array().unwrap().iter().filter_map(Value::as_f64).collect() };
    let named = |group: &str, fields: &[&str]| -> Vec<(String, Option<f64>)> {
        fields.iter().map(|field| (format!("{group}/{field}"), number(&record[*field]))).collect()
    };
    let all = match record["kind"].as_str().unwrap() {
        "train" => {
            let mut all = named("train", &["loss", "grad_norm", "lr", "tokens"]);
            all.extend(named("speed", &["tokens_per_second", "mfu", "data_seconds"]));
            all
        }
        "val" => named("val", &["loss", "bits_per_byte", "floor_bits_per_byte"]),
        "layers" => {
            let names = record["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            let mut all = vec![("train/logit_rms".to_owned(), number(&record["logit_rms"]))];
            for (i, name) in names.enumerate() {
                let ratio = list("update_norm")[i] / list("weight_norm")[i];
                all.push((format!("update_to_weight/{name}"), Some(ratio)));
                all.push((format!("layer_grad_norm/{name}"), Some(list("grad_norm")[i])));
                all.push((format!("adam_step/{name}"), Some(list("adam_step")[i])));
            }
            let most = list("attention_logit_max").into_iter().enumerate();
            all.extend(most.map(|(block, x)| (format!("attention_logit_max/{block}"), Some(x))));
            all
        }
        other => panic!("{other}"),
    };
    let kept = all.into_iter().filter(|(_, value)| value.is_some());
    kept.map(|(tag, value)| (tag, step, value.map(|value| value as f32))).collect()
}

/// Every number of the logs stands in the event file once, under its step, whether it was appended or the file was written anew.
#[test]
fn tensorboard_shows_the_numbers_and_steps_of_the_logs() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["log.tensorboard=true", "log.layers_every=4", "schedule.decay_steps=12"];
    let run = pretrain(dir.path(), "run", &[&sets[..], &["train.steps=9"]].concat());
    let compare = || {
        let mut wanted: Vec<_> = lines(&run.join("metrics.jsonl")).iter().flat_map(scalars_of).collect();
        for sample in lines(&run.join("samples.jsonl")) {
            let prompt = sample["prompt"].as_str().unwrap();
            wanted.push((format!("samples/{prompt}"), sample["step"].as_u64().unwrap(), None));
        }
        wanted.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let (scalars, span) = scalars_and_span(&run);
        assert_eq!(scalars, wanted);
        // TINY's steps have 128 tokens.
        let rates =
            lines(&run.join("metrics.jsonl")).into_iter().filter_map(|record| record["tokens_per_second"].as_f64());
        let trained: f64 = rates.map(|rate| 128.0 / rate).sum();
        assert!((span - trained).abs() < 1e-3 * trained, "{span} s, steps took {trained} s");
    };
    compare();
    ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=12", "--quiet"]);
    compare();
    let steps = |tag: &str| -> Vec<u64> {
        scalars(&run).into_iter().filter(|scalar| scalar.0 == tag).map(|scalar| scalar.1).collect()
    };
    assert_eq!(steps("val/loss"), [0, 4, 8, 9, 12]);
    assert_eq!(steps("train/loss"), (1..=12).collect::<Vec<_>>());
}

/// The copy that a checkpoint is written from is as large as the tensors of the checkpoint, and is counted where memory is planned.
#[test]
fn a_plan_counts_the_copy_that_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let tensors = ["model.safetensors", "optimizer.safetensors"].map(|name| {
        let bytes = std::fs::read(run.join("checkpoints/step-00000012").join(name)).unwrap();
        bytes.len() as u64 - 8 - u64::from_le_bytes(bytes[..8].try_into().unwrap())
    });
    let config_of_run = Config::load(&run.join("config.toml"), &[]).unwrap();
    // The plot of a plan is the rate that was used.
    let used = lines(&run.join("metrics.jsonl")).into_iter().filter(|record| record["kind"] == "train");
    let used: Vec<_> = used.map(|record| (record["step"].as_f64().unwrap(), record["lr"].as_f64().unwrap())).collect();
    assert_eq!(rates(&config_of_run).unwrap(), used);
    assert_eq!(used[..2], [(1.0, 5e-3), (2.0, 1e-2)]);
    assert_eq!(checkpoint_bytes(&config_of_run), tensors.iter().sum::<u64>());
    let at_once = Config::load(&run.join("config.toml"), &["checkpoint.background=false".to_owned()]).unwrap();
    let here = Hardware::here(&Device::Cpu, RanksHere::ONE);
    let [at_once, beside] = [&at_once, &config_of_run].map(|config| Fit::of_config(config, &here).footprint.first);
    assert_eq!((beside.snapshot, at_once.snapshot), (tensors.iter().sum(), 0));
    assert_eq!(beside.peak() - at_once.peak(), beside.snapshot);
    // As it is printed: 1,716,144,128 weights and two moments of each.
    let plan = |more: &[&str]| stdout(&ok(&[&["plan", "--config", "configs/llama-1.7b.toml"], more].concat()));
    let gigabytes = |text: &str, class: &str| -> f64 {
        let line = text.lines().find(|line| line.trim_start().starts_with(class));
        let line = line.unwrap_or_else(|| panic!("{class}: {text}")).trim_start();
        line[class.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let beside = plan(&["--set", "checkpoint.background=true"]);
    assert_eq!(gigabytes(&beside, "copy being saved"), 20.6);
    assert_eq!(gigabytes(&beside, "checkpoints"), 20.6);
    let at_once = plan(&["--set", "checkpoint.background=false"]);
    assert!(!at_once.contains("copy being saved"), "{at_once}");
    // What training needs does not depend on it.
    let needed = gigabytes(&at_once, "memory");
    assert_eq!(gigabytes(&beside, "memory"), needed);
    let with_copy = beside.split(" GB with the copy being saved").next().unwrap().rsplit(' ').next().unwrap();
    let saved = with_copy.parse::<f64>().unwrap() - needed;
    assert!((saved - 20.6).abs() < 0.11, "{saved}");
}

fn examples() -> [Example; 4] {
    [(3, 6), (11, 9), (20, 4), (7, 12)].map(|(first, n): (u32, u32)| Example {
        ids: (0..n).map(|i| (first + i * i * 5) % 320).collect(),
        trained: (0..n).map(|i| i > n / 3).collect(),
        ends: vec![],
        truncated: false,
        length: n as usize,
    })
}

/// TINY as a fine-tuning run would have it, with weights that attend to what they see.
fn tuning() -> Config {
    let mut config = Config::from_toml_str(TINY, "tiny.toml").unwrap();
    config.model.initializer_range = 0.3;
    config.sft.base = Some("base".to_owned());
    config.log.sequences = true;
    config
}

/// Held-out conversations that share a row are scored as each would be alone, and by their trained tokens.
#[test]
fn held_out_conversations_do_not_see_each_other() {
    let model = ModelState::initial(&tuning(), None, &Device::Cpu, &ProcessGroup::one()).unwrap().model;
    let loss = |rows: PackedRows| {
        let lengths = ByteLengths::new(&Tokenizer::gpt2().unwrap());
        score(&ProcessGroup::one(), &model, &EvalSet::examples(rows), &lengths, 2, |_| Ok(())).unwrap()
    };
    let packed = PackedRows::new(&examples(), 16, true, 0);
    assert!(packed.len() < 4);
    let (mut nats, mut tokens) = (0.0, 0);
    for example in examples() {
        let alone = loss(PackedRows::new(&[example], 16, true, 0));
        nats += alone.loss * alone.tokens as f64;
        tokens += alone.tokens;
    }
    let together = loss(packed);
    assert_eq!(together.tokens, tokens);
    assert!((together.loss / (nats / tokens as f64) - 1.0).abs() < 1e-6, "{together:?} {nats}");
}

/// What is logged of a step with answers of different lengths; and its noise, which is another one in every step.
#[test]
fn steps_of_fine_tuning_count_trained_tokens_and_draw_anew() {
    let mut config = tuning();
    config.train.sequence_length = 16;
    config.train.micro_batch_size = 2;
    let rows = PackedRows::new(&examples(), 16, false, 0);
    let [inputs, targets, starts] = rows.read(0, rows.len()).map(<[u32]>::to_vec);
    let batch = Batch { length: 16, inputs, targets, starts: Some(starts) };
    let losses = |config: &Config| {
        let mut state = ModelState::initial(config, None, &Device::Cpu, &ProcessGroup::one()).unwrap();
        let weights = state.model.flat.copy().unwrap();
        let both = [0, 1].map(|_| {
            let report = take_step(&mut state, config, &batch).unwrap();
            // The same weights again: what differs is the step.
            state.model.flat.slice_set(&weights, 0, 0).unwrap();
            let trained: Vec<f64> =
                batch.targets.chunks(16).map(|row| row.iter().filter(|&&id| id != IGNORE).count() as f64).collect();
            let sequences = report.sequences.unwrap().losses;
            let mean =
                sequences.iter().zip(&trained).map(|(loss, n)| loss * n).sum::<f64>() / trained.iter().sum::<f64>();
            assert!((mean / report.loss - 1.0).abs() < 1e-6, "{mean} {}", report.loss);
            assert_eq!(report.trained, Some(rows.trained()));
            report.loss
        });
        assert_eq!(state.run.tokens, 2 * 4 * 16, "all that was read");
        both
    };
    let [first, second] = losses(&config);
    assert_eq!(first, second);
    config.sft.neftune_alpha = 5.0;
    let [first, second] = losses(&config);
    assert!((first / second - 1.0).abs() > 1e-4, "{first} {second}");
}

/// Two prompts, even of one text, are continued by draws of their own.
#[test]
fn prompts_are_sampled_independently() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["train.steps=4", "schedule.warmup_steps=1", "sample.prompts=[\"One day\", \"One day\"]"];
    let run = pretrain(dir.path(), "run", &sets);
    let samples = lines(&run.join("samples.jsonl"));
    assert!(samples.len() >= 2 && samples.chunks(2).all(|pair| pair[0]["step"] == pair[1]["step"]));
    assert!(samples.chunks(2).all(|pair| pair[0]["text"] != pair[1]["text"]), "{samples:?}");
}
