//! Fine-tuning as a user meets it: proof before training, adapters and whole models, resume to the bit, export, conversations.

use crate::support::{TINY, arg, fails, ok, records, run, stderr, stdout};
use candle_core::{Device, Tensor};
use llama_lite::config::{Config, LoraConfig, LoraTarget};
use llama_lite::data::packed_rows::{Example, PackedRows};
use llama_lite::model::params::Layout;
use llama_lite::model::{Llama, TrainInput, init, lora};
use llama_lite::ops::positions::DocumentStarts;
use llama_lite::ops::selftest::difference;
use serde_json::json;
use std::path::{Path, PathBuf};

const CONFIG: &str = r#"
[train]
sequence_length = 96
micro_batch_size = 2
tokens_per_step = 384
steps = 6
[optimizer]
lr = 1e-2
[checkpoint]
every = 2
keep = 10
[eval]
every = 3
[sft]
template = "zephyr"
judged_prompts = 2
judged_tokens = 8
neftune_alpha = 2.0
max_truncated = 0.5
"#;

const LORA: &str = "[lora]\nrank = 4\ndropout = 0.1\n";

pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A model of a few steps, records of a few formats, and both kinds of configuration.
    pub(crate) fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        bench.write("base.toml", &TINY.replace("warmup_steps = 2", "warmup_steps = 0"));
        let at = |name: &str| bench.path(name).display().to_string();
        ok(&[
            "pretrain",
            "--config",
            &at("base.toml"),
            "--out",
            &at("base"),
            "--set",
            "train.steps=2",
            "--set",
            "model.max_position_embeddings=256",
            "--quiet",
        ]);
        bench.write("lora.toml", &format!("{CONFIG}{LORA}"));
        bench.write("full.toml", CONFIG);
        let record =
            |i: usize| json!({"instruction": format!("Say {i}"), "input": "", "output": format!("It is {i}, {i}.")});
        let records: Vec<_> = (0..60).map(record).collect();
        bench.write("records.json", &serde_json::to_string(&records).unwrap());
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn args(&self, config: &str, data: &str, more: &[&str]) -> Vec<String> {
        let at = |name: &str| self.path(name).display().to_string();
        let mut args = vec![
            "sft".to_owned(),
            "--config".into(),
            at(config),
            "--ckpt".into(),
            at("base"),
            "--data".into(),
            at(data),
        ];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    pub(crate) fn sft(&self, config: &str, data: &str, more: &[&str]) -> std::process::Output {
        let args = self.args(config, data, more);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn refused(&self, config: &str, data: &str, more: &[&str], code: i32) -> String {
        let args = self.args(config, data, more);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), code)
    }
}

/// What a run has logged.
pub(crate) fn logged(run: &Path) -> Vec<serde_json::Value> {
    records(&run.join("metrics.jsonl"))
}

#[test]
fn a_run_that_was_stopped_is_the_run_that_was_not() {
    let bench = Bench::new();
    for config in ["lora.toml", "full.toml"] {
        let (whole, parts) = (bench.path("whole").join(config), bench.path("parts").join(config));
        let done = bench.sft(config, "records.json", &["--out", arg(&whole)]);
        assert!(done.status.success(), "{}", stderr(&done));
        let text = stderr(&done);
        assert!(text.contains("⟦It is 0, 0.<|endoftext|>⟧"), "{text}");
        assert!(
            text.contains("60 records (alpaca)") && text.contains("% are trained")
                || text.contains("tokens are trained"),
            "{text}"
        );
        let stopped = bench.sft(
            config,
            "records.json",
            &["--out", arg(&parts), "--set", "train.steps=3", "--set", "schedule.decay_steps=6"],
        );
        assert!(stopped.status.success(), "{}", stderr(&stopped));
        ok(&["resume", "--ckpt", arg(&parts), "--set", "train.steps=6", "--quiet"]);
        assert_eq!(logged(&whole), logged(&parts));
        let tensors = if config == "lora.toml" { "adapter_model.safetensors" } else { "model.safetensors" };
        for file in [tensors, "optimizer.safetensors"] {
            let read = |run: &Path| std::fs::read(run.join("checkpoints/step-00000006").join(file)).unwrap();
            assert!(read(&whole) == read(&parts), "{config}: {file}");
        }
        assert_eq!(whole.join("checkpoints/step-00000006/model.safetensors").exists(), config == "full.toml");
        let verified = ok(&["resume", "--ckpt", arg(&whole.join("checkpoints/step-00000002")), "--verify", "4"]);
        assert!(stdout(&verified).starts_with("PASS"), "{}", stdout(&verified));
        // The loss goes down, and what is watched is logged at every validation.
        let all = logged(&whole);
        let loss = |step: u64| {
            all.iter().find(|r| r["kind"] == "train" && r["step"] == step).unwrap()["loss"].as_f64().unwrap()
        };
        assert!(loss(6) < loss(1), "{} {}", loss(1), loss(6));
        for (task, metric) in [("answers", "ended"), ("answers", "proper"), ("base_validation", "loss")] {
            let logged = all.iter().filter(|r| r["task"] == task && r["metric"] == metric).count();
            assert_eq!(logged, 3, "{task} {metric}");
        }
        assert!(all.iter().filter(|r| r["kind"] == "train").all(|r| r["trained_tokens"].as_u64().unwrap() > 0));
    }
}

#[test]
fn adapters_are_a_model_for_every_command_and_merge_into_one() {
    let bench = Bench::new();
    let tuned = bench.path("tuned");
    assert!(bench.sft("lora.toml", "records.json", &["--out", arg(&tuned), "--quiet"]).status.success());
    let merged = bench.path("merged");
    assert!(fails(&["export", "--ckpt", arg(&tuned), "--out", arg(&merged)], 78).contains("--merge-lora"));
    assert!(
        fails(&["export", "--ckpt", arg(&bench.path("base")), "--merge-lora", "--out", arg(&merged)], 78)
            .contains("no adapters")
    );
    ok(&["export", "--ckpt", arg(&tuned), "--merge-lora", "--out", arg(&merged), "--quiet"]);
    let file = bench.path("merged.gguf");
    let to_file = ["export", "--ckpt", arg(&tuned), "--format", "gguf", "--out", arg(&file)];
    assert!(fails(&to_file, 78).contains("--merge-lora") && !file.exists());
    ok(&[&to_file[..], &["--merge-lora"]].concat());
    // Adapters are merged before the sum is rounded.
    let in_bf16 = |ckpt: &Path| {
        let args = ["sample", "--ckpt", arg(ckpt), "--prompt", "a", "--max-tokens", "5", "--greedy", "--json"];
        stdout(&ok(&[&args[..], &["--precision", "bf16", "--logprobs", "3", "--seed", "1"]].concat()))
    };
    assert_eq!(in_bf16(&tuned), in_bf16(&merged));
    let sample = |ckpt: &Path| {
        let made = ok(&["sample", "--ckpt", arg(ckpt), "--prompt", "One day", "--greedy", "--json", "--quiet"]);
        let made: serde_json::Value = serde_json::from_str(&stdout(&made)).unwrap();
        made["token_ids"].clone()
    };
    assert_eq!(sample(&tuned), sample(&merged));
    assert_ne!(sample(&tuned), sample(&bench.path("base")));
    // Whoever tunes it further says what is meant.
    let text = fails(
        &[
            "sft",
            "--config",
            arg(&bench.path("lora.toml")),
            "--ckpt",
            arg(&tuned),
            "--data",
            arg(&bench.path("records.json")),
        ],
        78,
    );
    assert!(text.contains("--merge-lora"), "{text}");
    // Other weights under the adapters are noticed, and so is a model that has gone.
    let newest = tuned.join("checkpoints/step-00000006/adapter_config.json");
    let base = bench.path("base/checkpoints/step-00000002");
    assert!(std::fs::read_to_string(&newest).unwrap().contains(arg(&base)));
    let away = bench.path("away");
    std::fs::rename(&base, &away).unwrap();
    assert!(fails(&["sample", "--ckpt", arg(&tuned), "--prompt", "a"], 74).contains("--base DIR"));
    ok(&[
        "pretrain",
        "--config",
        arg(&bench.path("base.toml")),
        "--out",
        arg(&bench.path("other")),
        "--set",
        "train.steps=2",
        "--set",
        "train.seed=9",
        "--set",
        "model.max_position_embeddings=256",
        "--quiet",
    ]);
    std::fs::rename(bench.path("other/checkpoints/step-00000002"), &base).unwrap();
    let longer = ["--set", "train.steps=8", "--set", "schedule.decay_steps=8"];
    let text = fails(&[&["resume", "--ckpt", arg(&tuned)], &longer[..]].concat(), 65);
    assert!(text.contains("not those that the adapters were trained with"), "{text}");
}

#[test]
fn what_is_trained_is_shown_and_bad_data_are_refused() {
    let bench = Bench::new();
    let shown = bench.sft("full.toml", "records.json", &["--show-data", "2"]);
    let text = stdout(&shown);
    assert!(shown.status.success() && text.contains("--- 2 ---") && !text.contains("--- 3 ---"), "{text}");
    assert!(text.contains("<|assistant|>\n⟦It is") && text.contains("rows of 96 tokens"), "{text}");
    // Bad records are counted and kept, never silently dropped.
    let mixed = r#"[{"instruction": "a", "output": "b"}, {"instruction": "c"}, 7, {"instruction": "d", "output": ""}]"#;
    bench.write("mixed.json", mixed);
    let out = bench.path("mixed");
    let done = bench.sft(
        "full.toml",
        "mixed.json",
        &["--out", arg(&out), "--set", "sft.judged_prompts=0", "--set", "sft.max_bad=1"],
    );
    assert!(
        done.status.success() && stderr(&done).contains("3 of 4 records cannot be learned from"),
        "{}",
        stderr(&done)
    );
    let bad = records(&out.join("quarantine.jsonl"));
    let lines: Vec<_> = bad.iter().map(|b| (b["line"].as_u64().unwrap(), b["what"].as_str().unwrap())).collect();
    assert_eq!(lines, [(2, "no field \"output\""), (3, "not an object"), (4, "turn 2: the answer is empty")]);
    // Nothing that could be learned, no end that could be learned, answers cut off.
    bench.write("none.json", r#"[{"text": "a"}]"#);
    assert!(bench.refused("full.toml", "none.json", &[], 65).contains("the fields are text"));
    bench.write("endless.jinja", "{% for m in messages %}{{ m.content }} {% endfor %}");
    let endless = format!("sft.template={}", bench.path("endless.jinja").display());
    assert!(bench.refused("full.toml", "records.json", &["--set", &endless], 65).contains("would never stop"));
    let short = bench.refused(
        "full.toml",
        "records.json",
        &["--set", "train.sequence_length=36", "--set", "train.tokens_per_step=144"],
        65,
    );
    assert!(short.contains("lose the end of an answer at 36 tokens"), "{short}");
    let template = bench.refused("full.toml", "records.json", &["--set", "sft.template=vicunna"], 78);
    assert!(template.contains("did you mean \"vicuna\""), "{template}");
    let text =
        fails(&["pretrain", "--config", arg(&bench.path("base.toml")), "--set", "lora.rank=8", "--print-config"], 78);
    assert!(text.contains("llama-lite sft"), "{text}");
}

#[test]
fn every_format_and_template_trains() {
    let bench = Bench::new();
    let write = |name: &str, line: &dyn Fn(usize) -> serde_json::Value| {
        let lines: Vec<String> = (0..30).map(|i| line(i).to_string()).collect();
        bench.write(name, &lines.join("\n"));
    };
    write(
        "sharegpt.jsonl",
        &|i| json!({"conversations": [{"from": "human", "value": format!("Q{i}")}, {"from": "gpt", "value": "A"}]}),
    );
    write(
        "messages.jsonl",
        &|i| json!({"messages": [{"role": "user", "content": format!("Q{i}")}, {"role": "assistant", "content": "A"}]}),
    );
    write("prompt.jsonl", &|i| json!({"prompt": format!("{i},"), "completion": " then"}));
    let runs = [
        ("sharegpt", "zephyr"),
        ("messages", "chatml"),
        ("messages", "llama2"),
        ("prompt", "vicuna"),
        ("sharegpt", "alpaca"),
        ("messages", "vicuna"),
    ];
    for (format, template) in runs {
        let (data, out) = (format!("{format}.jsonl"), bench.path(&format!("{format}-{template}")));
        let set = format!("sft.template={template}");
        let done = bench.sft(
            "lora.toml",
            &data,
            &[
                "--out",
                arg(&out),
                "--set",
                &set,
                "--set",
                "train.steps=1",
                "--set",
                "train.sequence_length=224",
                "--set",
                "train.tokens_per_step=448",
            ],
        );
        assert!(done.status.success(), "{format} {template}: {}", stderr(&done));
        assert!(stderr(&done).contains(&format!("({format})")), "{}", stderr(&done));
        let settings = std::fs::read_to_string(out.join("checkpoints/step-00000001/tokenizer_config.json")).unwrap();
        assert!(settings.contains("chat_template"));
    }
}

/// Examples in one row, each with a context of its own, train as examples alone do: adapters and whole models.
#[test]
fn packed_examples_are_examples_alone() {
    let example = |first: u32, n: u32| Example {
        ids: (0..n).map(|i| (first + i * i * 5) % 320).collect(),
        trained: (0..n).map(|i| i > n / 3).collect(),
        ends: vec![],
        truncated: false,
        length: n as usize,
    };
    let examples = [example(3, 6), example(11, 9), example(20, 4), example(7, 12)];
    let mut shape = Config::from_toml_str(TINY, "tiny.toml").unwrap().model;
    shape.initializer_range = 0.3;
    let flat = init::init(&shape, &Layout::new(&shape), 3).unwrap();
    let whole = Llama::new(&shape, flat.clone()).unwrap();
    let targets = LoraTarget::ALL.to_vec();
    let config = LoraConfig { rank: 4, alpha: 8.0, dropout: 0.0, targets, rslora: false };
    let adapted =
        Llama::new(&shape, flat).unwrap().with_adapters(lora::init(&shape, &config, 1, &Device::Cpu).unwrap()).unwrap();
    for model in [&adapted, &whole] {
        let run = |packing: bool| {
            let rows = PackedRows::new(&examples, 16, packing, 0);
            let flat = model.trained().0.zeros(&Device::Cpu).unwrap();
            let grads = model.grads(&flat).unwrap();
            let [inputs, targets, starts] = rows.read(0, rows.len()).map(<[u32]>::to_vec);
            let n = targets.len();
            let inputs = Tensor::from_vec(inputs, (rows.len(), 16), &Device::Cpu).unwrap();
            let targets = Tensor::from_vec(targets, n, &Device::Cpu).unwrap();
            let documents = DocumentStarts::new(starts, 16).unwrap();
            let feed = TrainInput { documents: Some(&documents), noise: None, observe: false };
            let scale = 1.0 / rows.trained() as f32;
            let losses = model.loss_and_backward(&inputs, &targets, feed, scale, &grads).unwrap().losses;
            (rows.len(), losses.sum_all().unwrap().to_scalar::<f32>().unwrap(), flat)
        };
        let (packed, padded) = (run(true), run(false));
        assert!(packed.0 < padded.0);
        assert!((packed.1 / padded.1 - 1.0).abs() < 1e-5, "{} {}", packed.1, padded.1);
        assert!(difference(&packed.2, &padded.2).unwrap() < 1e-5);
    }
}

/// Adapters of strangers: whatever a byte of their files becomes, the answer is a model or an error, never a panic.
#[test]
fn damaged_adapters_are_errors() {
    use llama_lite::checkpoint::Opened;
    let bench = Bench::new();
    let tuned = bench.path("tuned");
    assert!(
        bench
            .sft("lora.toml", "records.json", &["--out", arg(&tuned), "--quiet", "--set", "train.steps=1"])
            .status
            .success()
    );
    let (from, plain) = (tuned.join("checkpoints/step-00000001"), bench.path("plain"));
    std::fs::create_dir(&plain).unwrap();
    let names = ["adapter_config.json", "adapter_model.safetensors"];
    for name in names {
        std::fs::copy(from.join(name), plain.join(name)).unwrap();
    }
    let read = || Opened::open(&plain).and_then(|opened| opened.read_weights(&mut |_, _, _| Ok(())));
    read().unwrap();
    let mut refused = 0;
    for name in names {
        let whole = std::fs::read(plain.join(name)).unwrap();
        let places = whole.len().min(2000);
        for i in 0..120 {
            let mut bytes = whole.clone();
            match i % 4 {
                0 => bytes[i * places / 120] ^= 1 << (i % 8),
                1 => bytes[i * places / 120] = b'9',
                2 => bytes.truncate(i * whole.len() / 120),
                _ => bytes[i * places / 120] = 0,
            }
            std::fs::write(plain.join(name), bytes).unwrap();
            refused += usize::from(std::panic::catch_unwind(read).unwrap().is_err());
        }
        std::fs::write(plain.join(name), whole).unwrap();
    }
    assert!(refused > 120, "{refused} of 240 were noticed");
    // Kinds that are computed otherwise are refused by name.
    let config = std::fs::read_to_string(plain.join("adapter_config.json")).unwrap();
    for (was, is) in
        [("\"use_dora\": false", "\"use_dora\": true"), ("\"bias\": \"none\"", "\"bias\": \"all\""), ("LORA", "IA3")]
    {
        std::fs::write(plain.join("adapter_config.json"), config.replace(was, is)).unwrap();
        assert!(format!("{:#}", read().unwrap_err()).contains("is not supported"), "{is}");
    }
}
