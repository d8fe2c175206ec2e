//! Plans before, pages during and after: `plan`, `report`, TensorBoard's files.

use crate::support::{TINY, arg, config, fails, ok, pretrain, program, stderr, stdout};
use candle_core::Device;
use llama_lite::metrics::Console;
use llama_lite::train::session::Session;
use std::path::Path;

fn quiet() -> Session {
    Session::new(&Device::Cpu, Console { quiet: true, terminal: false, color: false })
}

/// A number of MB before `word`.
fn megabytes(text: &str, word: &str) -> f64 {
    let before = text.split(word).next().unwrap().trim_end();
    let before = before.strip_suffix(" MB").unwrap_or_else(|| panic!("no MB before {word}: {text}"));
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

/// The peak of a probe in MB, and what was predicted for it.
fn probed_memory(config: &Path) -> (f64, f64) {
    let said = stdout(&ok(&["plan", "--config", arg(config), "--probe", "--quiet"]));
    let line = said.lines().find(|line| line.starts_with("peak memory")).unwrap();
    (megabytes(line, " measured"), megabytes(line, " predicted"))
}

#[test]
fn predicted_memory_is_near_the_measured() {
    let dir = tempfile::tempdir().unwrap();
    for (hidden, ffn, layers, vocab, length, micro, recompute) in [
        (128, 384, 3, 1024, 256, 8, "selective"),
        (256, 704, 6, 2048, 512, 4, "selective"),
        (384, 1024, 8, 8192, 256, 8, "selective"),
        (384, 1024, 8, 8192, 256, 8, "none"),
        (384, 1024, 8, 8192, 256, 8, "full"),
    ] {
        let text = format!(
            "[model]\nhidden_size = {hidden}\nintermediate_size = {ffn}\nnum_hidden_layers = {layers}\nnum_attention_heads = 8\n\
             num_key_value_heads = 4\nvocab_size = {vocab}\n[data]\nsource = \"stories\"\nstories = 2000\nval_stories = 2\n\
             tokenizer = \"train\"\n[train]\nsequence_length = {length}\nmicro_batch_size = {micro}\nsteps = 100\nrecompute = \"{recompute}\"\n"
        );
        let config = config(dir.path(), &text);
        // Threads that other tests hold up free in another order, and each one's allocator keeps some of it: the middle of three is the run's.
        let mut measured: Vec<(f64, f64)> = (0..3).map(|_| probed_memory(&config)).collect();
        measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (peak, predicted) = measured[1];
        let limit = if recompute == "selective" { 0.1 } else { 0.13 };
        assert!((predicted / peak - 1.0).abs() < limit, "{hidden} {recompute}: {measured:?} MB");
    }
}

#[test]
fn a_plan_says_what_a_run_takes() {
    let said = stdout(&ok(&["plan", "--config", "configs/llama-1.7b.toml", "--fit", "200GB"]));
    for part in [
        "1,716,144,128",
        "feed-forward",
        "micro-batch 16",
        "H200",
        "at 50 % MFU",
        "fits into 200.0 GB",
        "learning rate",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains("epochs are known with --probe"), "its shards are yet to be prepared: {said}");
    assert!(
        fails(&["plan", "--config", "configs/llama-1.7b.toml", "--fit", "1GB"], 71).contains("not even a micro-batch")
    );
    fails(&["plan", "--config", "configs/llama-1.7b.toml", "--set", "train.stepz=1"], 78);
}

/// The two columns of a plan's line about `class`.
fn of_ranks(plan: &str, class: &str) -> (String, String) {
    let line = plan.lines().find(|line| line.trim_start().starts_with(class));
    let line = line.unwrap_or_else(|| panic!("{class}: {plan}"));
    let columns: Vec<&str> =
        line.trim_start()[class.len()..].split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
    (columns[0].to_owned(), columns[1].to_owned())
}

/// 1,716,144,128 parameters: 13.7 GB of weights and gradients on every rank, 13.7 GB of moments over all of them, sums of lanes of 6.9 GB.
#[test]
fn a_plan_says_what_each_rank_takes() {
    let plan = |more: &[&str]| {
        stdout(&ok(&[&["plan", "--device", "cpu", "--config", "configs/llama-1.7b.toml"], more].concat()))
    };
    let alone = plan(&["--fit", "200GB"]);
    assert!(!alone.contains("lane") && !alone.contains("rank"), "{alone}");
    let with_lanes = plan(&["--fit", "200GB", "--set", "train.lanes=8"]);
    assert!(with_lanes.contains("lane sums               20.6 GB"), "three sums on one rank: {with_lanes}");
    let four = plan(&["--fit", "200GB", "--set", "train.lanes=8", "--ranks", "4"]);
    let same = |size: &str| (size.to_owned(), size.to_owned());
    for (class, size) in
        [("weights", "6.9 GB"), ("gradients", "6.9 GB"), ("moments", "3.4 GB"), ("lane sums", "6.9 GB")]
    {
        assert_eq!(of_ranks(&four, class), same(size), "{class}");
    }
    assert_eq!(of_ranks(&four, "copy being saved"), ("20.6 GB".to_owned(), "-".to_owned()));
    for part in [
        " GB for 4 ranks together, of ",
        "ranks             4, 8 lanes of 64 sequences",
        "permitted       1, 2, 4 or 8\n",
        "10.3 GB sent by each rank for each step",
        "on a rank",
    ] {
        assert!(four.contains(part), "{part}: {four}");
    }
    let gigabytes = |text: &str| text.strip_suffix(" GB").unwrap().parse::<f64>().unwrap();
    let (first, other) = of_ranks(&four, "peak");
    assert!((gigabytes(&first) - gigabytes(&other) - 20.6).abs() < 0.11, "{four}");
    let whole = four.lines().find_map(|line| line.strip_prefix("memory")).unwrap().trim().split(" GB").next().unwrap();
    let sum = gigabytes(&first) + 3.0 * gigabytes(&other);
    assert!((whole.parse::<f64>().unwrap() - sum).abs() < 0.3, "{four}");
    // Without lanes they are as many as the ranks, and later numbers must divide those.
    let two = plan(&["--ranks", "2"]);
    assert!(two.contains("permitted       powers of two up to 512 at the start"), "{two}");
    assert!(
        two.contains("2 lanes of 256 sequences") && two.contains("later           1 or 2, with the same bits"),
        "{two}"
    );
}

#[test]
fn a_plan_refuses_ranks_that_cannot_share_a_step_out() {
    let refused = |more: &[&str]| {
        fails(&[&["plan", "--device", "cpu", "--config", "configs/llama-1.7b.toml"], more].concat(), 78)
    };
    let said = refused(&["--ranks", "16", "--set", "train.lanes=8"]);
    assert!(
        said.contains("16 ranks cannot share out train.lanes = 8") && said.contains("use 1, 2, 4 or 8 of them"),
        "{said}"
    );
    assert!(refused(&["--ranks", "3"]).contains("power of two"));
    let said = refused(&["--ranks", "1024"]);
    assert!(said.contains("the 512 sequences of a step") && said.contains("train.tokens_per_step=1048576"), "{said}");
}

/// What a probe of one process says of several.
#[test]
fn a_probe_predicts_the_steps_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), TINY);
    let said = stdout(&ok(&["plan", "--device", "cpu", "--config", arg(&file), "--probe", "--ranks", "2", "--quiet"]));
    let step = |line: &str| line.split(" s a step").next().unwrap().rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    let faster = |line: &str| line.rsplit(", ").next().unwrap().split(' ').next().unwrap().parse::<f64>().unwrap();
    let alone = step(said.lines().find(|line| line.starts_with("probe")).unwrap());
    let links = ["10 Gbit/s Ethernet", "100 Gbit/s", "400 Gbit/s", "NVLink 4"];
    let steps = links.map(|link| step(said.lines().find(|line| line.trim_start().starts_with(link)).unwrap()));
    assert!(steps.is_sorted_by(|a, b| a >= b), "{said}");
    assert!(said.lines().any(|line| line.trim_start().starts_with("NVLink 4") && faster(line) > 1.0), "{said}");
    // Half of it at best, to the digits that are shown.
    assert!(steps.iter().all(|&step| step >= alone / 2.0 - 1e-3), "{said}");
}

/// A probe takes steps in both precisions, and says how the run's products compare.
#[test]
fn a_probe_compares_the_precisions() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), TINY);
    let lines = |plan: &str| -> Vec<String> {
        let prefixes = ["probe ", "  in ", "products "];
        let lines = plan.lines().filter(|line| prefixes.iter().any(|prefix| line.starts_with(prefix)));
        lines.map(str::to_owned).collect()
    };
    for (precision, other) in [("auto", "bf16"), ("f32", "bf16"), ("bf16", "f32")] {
        let set = format!("train.precision={precision}");
        let plan = ["plan", "--device", "cpu", "--config", arg(&file), "--quiet", "--set", &set];
        let said = lines(&stdout(&ok(&[&plan[..], &["--probe"]].concat())));
        let [probe, in_other, products] = &said[..] else { panic!("{precision}: {said:?}") };
        assert!(probe.contains(" s a step (") && products.contains("f32 ") && products.contains(", bf16 "), "{said:?}");
        let remedy = format!("(train.precision = \"{other}\")");
        assert!(in_other.starts_with(&format!("  in {other} ")) && in_other.ends_with(&remedy), "{said:?}");
        assert!(in_other.contains(" s a step, ") && in_other.contains(" times as fast "), "{said:?}");
        assert!(lines(&stdout(&ok(&plan))).is_empty(), "measured without --probe");
    }
}

/// Other lanes on purpose: the terminal, the events and the report say from where on results are equal within rounding alone.
#[test]
fn other_lanes_leave_a_mark() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let output = ok(&["resume", "--ckpt", arg(&run), "--set", "train.lanes=2", "--set", "train.steps=16"]);
    let said = crate::support::stderr(&output);
    assert!(
        said.contains("train.lanes was 1, is 2") && said.contains("after step 12") && said.contains("1 rank, 2 lanes"),
        "{said}"
    );
    let events = crate::support::records(&run.join("events.jsonl"));
    let event = events.iter().find(|event| event["kind"] == "lanes").unwrap();
    assert_eq!(
        (event["step"].as_u64(), event["old"].as_str(), event["new"].as_str()),
        (Some(12), Some("1"), Some("2"))
    );
    assert!(events.last().unwrap().get("bytes_sent").is_none(), "a process alone sends nothing");
    let report = stdout(&ok(&["report", arg(&run), "--text"]));
    assert!(report.contains("lanes  old 1, new 2, equal within rounding"), "{report}");
    // The same lanes again are no change.
    ok(&["resume", "--ckpt", arg(&run), "--set", "train.lanes=2", "--set", "train.steps=18", "--quiet"]);
    let events = crate::support::records(&run.join("events.jsonl"));
    assert_eq!(events.iter().filter(|event| event["kind"] == "lanes").count(), 1);
}

/// Records of an event file, as far as their frames tell.
fn frames(run: &Path) -> usize {
    let mut files = std::fs::read_dir(run.join("tensorboard")).unwrap();
    let bytes = std::fs::read(files.next().unwrap().unwrap().path()).unwrap();
    assert!(files.next().is_none());
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        at += 16 + u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        count += 1;
    }
    assert_eq!(at, bytes.len());
    count
}

#[test]
fn reports_and_event_files_show_a_run_and_its_resume() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=6", "schedule.decay_steps=12", "log.tensorboard=true"]);
    let lines = |name: &str| std::fs::read_to_string(run.join(name)).unwrap().lines().count();
    let clock = |run: &Path| crate::support::records(&run.join("times.jsonl"));
    let all = || 1 + lines("metrics.jsonl") + lines("samples.jsonl");
    assert_eq!(frames(&run), all());
    ok(&["resume", "--ckpt", arg(&run.join("checkpoints/step-00000004")), "--set", "train.steps=12", "--quiet"]);
    assert_eq!(frames(&run), all());
    // Each step once, and its parts are all of it but a little; besides them what came between the steps.
    let times = clock(&run);
    let steps: Vec<_> = times.iter().filter(|t| t["seconds"].get("step").is_some()).collect();
    assert_eq!(steps.iter().map(|t| t["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    for step in steps {
        let seconds = step["seconds"].as_object().unwrap();
        let whole = seconds["step"].as_f64().unwrap();
        let parts: f64 = seconds.iter().filter(|(name, _)| *name != "step").map(|(_, s)| s.as_f64().unwrap()).sum();
        assert!(seconds.len() == 6 && (0.5 * whole..=whole).contains(&parts), "{step}");
    }
    for what in ["validation", "samples", "saving"] {
        assert!(times.iter().any(|t| t["seconds"].get(what).is_some()), "{what}");
    }
    ok(&["report", arg(&run), "--watch", "--quiet"]); // ends, because the run has
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("step 12 of 12, finished") && page.contains("train.steps") && page.contains("One day"));
    let other = pretrain(dir.path(), "other", &["train.steps=4", "optimizer.lr=2e-2"]);
    let said = stdout(&ok(&["report", arg(&run), arg(&other), "--text"]));
    for part in [
        "run: step 12 of 12, finished",
        "other: step 4 of 4",
        "validation loss, bits per byte",
        "resume",
        "optimizer.lr: 0.01 | 0.02",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(TINY.contains("lr = 1e-2"));
    assert!(fails(&["report", arg(dir.path())], 74).contains("no metrics.jsonl"));
}

/// A document of random letters among stories: in the step that meets it, it is the one with the largest loss; and the steps add up to
/// the data of the run.
#[test]
fn a_planted_document_is_ranked_first_in_its_step() {
    const GARBAGE: &str = "qzxj vkwq zzqx jjkv xqzw kvjx qqzz wxkj zvqx jkxw ";
    let dir = tempfile::tempdir().unwrap();
    let story = |i: usize| format!("One day, cat {} saw a red ball. The ball was big. The cat was happy.", i % 7);
    let mut lines: Vec<String> = (0..400).map(|i| serde_json::json!({"text": story(i)}).to_string()).collect();
    lines.insert(211, serde_json::json!({"text": GARBAGE.repeat(6)}).to_string());
    std::fs::write(dir.path().join("text.jsonl"), lines.join("\n")).unwrap();
    let text = TINY
        .replace("source = \"stories\"\n", &format!("train = [{:?}]\n", dir.path().join("text.jsonl")))
        .replace("stories = 60\nval_stories = 8\n", "");
    let (config, run) = (config(dir.path(), &text), dir.path().join("run"));
    ok(&[
        "pretrain",
        "--config",
        arg(&config),
        "--out",
        arg(&run),
        "--set",
        "train.steps=40",
        "--set",
        "checkpoint.every=20",
        "--quiet",
    ]);
    ok(&[
        "resume",
        "--ckpt",
        arg(&run),
        "--set",
        "train.steps=120",
        "--set",
        "checkpoint.every=40",
        "--set",
        "eval.every=0",
        "--set",
        "log.sequences=true",
        "--quiet",
    ]);
    let session = quiet();
    let why = |step: u64| stdout(&ok(&["why", arg(&run), "--step", &step.to_string(), "--full", "--quiet"]));
    let step = (1..=120)
        .find(|&step| {
            llama_lite::inspect::why::why(&run, step, None, &session)
                .unwrap()
                .sequences
                .iter()
                .any(|part| part.text.contains("qzxj"))
        })
        .expect("a pass holds every document");
    let said = why(step);
    let first = said.split("\nloss ").nth(1).unwrap();
    assert!(first.contains("qzxj"), "{said}");
    assert_eq!(said.matches("\nloss ").count(), 4, "{said}");
    assert!(said.contains("logged loss"), "{said}");
    // Where the losses of the sequences were logged they make up the loss of the step; elsewhere a model of some steps before judges.
    let found = |step| llama_lite::inspect::why::why(&run, step, None, &session).unwrap();
    let (late, early) = (found(97), found(31));
    let mean = late.sequences.iter().map(|part| part.loss).sum::<f64>() / late.sequences.len() as f64;
    assert!(late.exact && (mean - late.logged.unwrap()).abs() < 1e-6, "{mean} {:?}", late.logged);
    assert!(!early.exact && early.loss_step == 20, "{}", early.loss_step);
    assert_eq!(found(40).loss_step, 20, "the checkpoint after step 40 has learned from it");
    assert!(fails(&["why", arg(&run), "--step", "121"], 78).contains("steps 1 to 120"));
}

/// The branch without changes is the run itself; the others differ from their first step on, and say what they are.
#[test]
fn branches_go_on_from_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let out = dir.path().join("forks");
    let ckpt = run.join("checkpoints/step-00000004");
    let branches =
        ["exact", "weights-only: reset=optimizer", "hot: optimizer.lr=5e-2", "late: skip=8", "other: data.seed=7"];
    let mut args = vec!["fork", arg(&ckpt), "--steps", "8", "--out", arg(&out), "--quiet"];
    branches.iter().for_each(|branch| args.extend(["--branch", branch]));
    ok(&args);
    let train = |dir: &Path| -> Vec<serde_json::Value> {
        let all = crate::support::records(&dir.join("metrics.jsonl"));
        all.into_iter().filter(|r| r["kind"] == "train").collect()
    };
    let [whole, exact, weights, hot] =
        [run.clone(), out.join("exact"), out.join("weights-only"), out.join("hot")].map(|dir| train(&dir));
    assert_eq!(whole, exact);
    let read = |run: &Path| std::fs::read(run.join("checkpoints/step-00000012/model.safetensors")).unwrap();
    assert!(read(&run) == read(&out.join("exact")));
    for (name, other) in [("weights-only", &weights), ("hot", &hot)] {
        assert_eq!(other.len(), 12, "{name}");
        assert_eq!(other[..4], whole[..4], "{name}");
        assert_eq!(other[4]["loss"], whole[4]["loss"], "{name}: the first loss is before the first update");
        assert_ne!(other[5]["loss"], whole[5]["loss"], "{name}");
    }
    assert_eq!(weights[4]["reset"].as_array().unwrap().len(), 2);
    // Two steps of four sequences are passed over: what the run saw in step 7 the branch sees in step 5.
    let session = quiet();
    let seen = |run: &Path, step| -> Vec<String> {
        llama_lite::inspect::why::why(run, step, None, &session)
            .unwrap()
            .sequences
            .into_iter()
            .map(|part| part.text)
            .collect()
    };
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    assert_eq!(sorted(seen(&out.join("late"), 5)), sorted(seen(&run, 7)));
    assert_ne!(sorted(seen(&out.join("other"), 5)), sorted(seen(&run, 5)));
    assert!(fails(&args, 78).contains("is there already"));
    assert!(fails(&["fork", arg(&ckpt), "--steps", "1", "--branch", "a: lr=1"], 78).contains("section.key=value"));
}

/// Another processor is allowed, and said everywhere: in the terminal, the events, the metrics, the report. Another number of threads
/// changes the speed alone.
#[test]
fn a_run_that_moves_to_another_machine_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=4", "schedule.decay_steps=60", "log.layers_every=2"]);
    let events = |kind: &str| -> Vec<serde_json::Value> {
        crate::support::records(&run.join("events.jsonl")).into_iter().filter(|e| e["kind"] == kind).collect()
    };
    let train = |step: usize| -> serde_json::Value {
        let all = crate::support::records(&run.join("metrics.jsonl"));
        all.into_iter().filter(|r| r["kind"] == "train").nth(step - 1).unwrap()
    };
    let go_on = |steps: &str| crate::support::stderr(&ok(&["resume", "--ckpt", arg(&run), "--set", steps]));
    crate::support::restate(&run.join("checkpoints/step-00000004"), |text| {
        text.replace("\"threads\": 2", "\"threads\": 3")
    });
    assert!(!go_on("train.steps=8").contains("bit-exactness"));
    assert_eq!(events("hardware")[0]["changes"][0]["key"], "threads");
    assert!(train(5).get("hardware").is_none());

    let elsewhere = |text: String| {
        let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
        state["build"]["cpu"] = "Another Processor".into();
        state["build"]["numerics"] = "0123456789abcdef".into();
        serde_json::to_string_pretty(&state).unwrap()
    };
    crate::support::restate(&run.join("checkpoints/step-00000008"), elsewhere);
    let said = go_on("train.steps=32");
    assert!(said.contains("bit-exactness is not promised from step 8 on: cpu was \"Another Processor\""), "{said}");
    assert_eq!(train(9)["hardware"], serde_json::json!(["cpu", "numerics"]));
    assert!(train(10).get("hardware").is_none());
    let event = &events("hardware")[1];
    let expected = event["expected_loss_difference"].as_f64().unwrap();
    assert!((1e-10..1e-5).contains(&expected), "{event}");
    let speed = events("speed");
    assert_eq!((speed.len(), &speed[0]["step"]), (1, &29.into()), "after 20 steps and one to warm up");
    assert!(speed[0]["ratio"].as_f64().unwrap() > 0.0);
    let report = stdout(&ok(&["report", arg(&run), "--text"]));
    assert!(report.contains("expected_loss_difference") && report.contains("tokens_per_second_before"), "{report}");
    // What the layers do is logged along the way: attention logits of each block, and the rest of each layer.
    let layers = crate::support::records(&run.join("metrics.jsonl")).into_iter().filter(|r| r["kind"] == "layers");
    let layers: Vec<_> = layers.collect();
    assert_eq!(layers.len(), 16);
    assert_eq!(layers[0]["attention_logit_max"].as_array().unwrap().len(), 2);
    assert_eq!(layers[0]["adam_step"].as_array().unwrap().len(), layers[0]["names"].as_array().unwrap().len());
}

/// For a GPU that is not here: the micro-batch that is proposed is in the table, and is what the run itself would choose there.
#[test]
fn a_plan_for_a_gpu_needs_none() {
    fn plan<'a>(gpu: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["plan", "--device", "cpu", "--config", "configs/llama-1.7b.toml", "--gpu", gpu], more].concat()
    }
    let said = stdout(&ok(&plan("h200", &[])));
    for part in ["(GPU; nothing computed again in backward)", "main memory", "predicted", "GPU hours"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let proposed = said.split("train.micro_batch_size = ").nth(1).unwrap().split(',').next().unwrap();
    let row = said.lines().find(|line| line.contains(&format!("micro-batch {proposed} "))).unwrap();
    assert!(row.contains("tokens/s") && row.contains("% MFU, nothing computed again"), "{said}");
    let hours = |said: &str| -> f64 {
        let words: Vec<&str> = said.split(" GPU hours").next().unwrap().split_whitespace().collect();
        words.last().unwrap().parse().unwrap()
    };
    // 10 G tokens at 40,000 to 60,000 tokens a second.
    assert!((46.0..70.0).contains(&hours(&said)), "{said}");
    let two = stdout(&ok(&plan("h200", &["--ranks", "2"])));
    assert!(two.contains("on 2 GPUs") && (hours(&two) / hours(&said) - 1.0).abs() < 0.1, "{two}");
    let none = fails(&plan("4090", &[]), 71);
    assert!(
        none.contains("not even a micro-batch of one sequence fits")
            && none.contains("does not depend on the micro-batch takes 31.9 GB")
    );
    assert!(fails(&plan("h200", &["--set", "train.precision=f32"]), 78).contains("train.precision=auto"));
    let narrow =
        ["--set", "model.num_attention_heads=64", "--set", "model.head_dim=32", "--set", "model.num_key_value_heads=8"];
    assert!(fails(&plan("h200", &narrow), 78).contains("model.head_dim = 32 does not work on a GPU yet"));
    let unknown = stderr(&program(&plan("h300", &[])).output().unwrap());
    assert!(unknown.contains("a100-40, a100-80, h100, h200, a6000, 4090"), "{unknown}");
}
