use super::event::short;
use super::*;
use crate::inspect::report::{page, text};

fn step(step: u64, loss: f64) -> Train {
    Train {
        step,
        loss,
        grad_norm: 1.0,
        lr: 1e-3,
        tokens: step * 100,
        trained_tokens: None,
        tokens_per_second: 50.0,
        mfu: f64::NAN,
        data_seconds: 0.5,
        chain: "0".into(),
        skipped: !loss.is_finite(),
        hardware: Vec::new(),
        reset: vec![],
    }
}

/// A run of `n` steps, one of them refused.
fn made(dir: &Path, n: u64, lr: &str) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let mut lines = Vec::new();
    for i in 1..=n {
        lines.push(Record::Train(step(i, if i == 3 { f64::NAN } else { 2.0 + 1.0 / i as f64 })));
    }
    let parts =
        [("data", 0.25), ("forward", 0.5), ("head", 0.125), ("backward", 1.0), ("optimizer", 0.025), ("step", 2.0)];
    let mut times: Vec<Times> = Vec::new();
    let seconds = |parts: &[(&str, f64)]| parts.iter().map(|&(name, s)| (name.to_owned(), s)).collect();
    times.extend((1..=n).map(|step| Times { step, seconds: seconds(&parts) }));
    times.push(Times { step: n, seconds: seconds(&[("validation", 7.0)]) });
    let times: String = times.iter().map(|times| serde_json::to_string(times).unwrap() + "\n").collect();
    std::fs::write(dir.join("times.jsonl"), times).unwrap();
    let val = Val { step: n, loss: 2.0, bits_per_byte: 1.0, tokens: 10, floor_bits_per_byte: Some(0.5) };
    lines.push(Record::Val(val));
    lines.push(Record::Eval(Eval { step: n, task: "piqa".into(), metric: "acc".into(), value: 0.6, stderr: 0.01 }));
    let lines: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    std::fs::write(dir.join("metrics.jsonl"), lines).unwrap();
    std::fs::write(dir.join("config.toml"), format!("[optimizer]\nlr = {lr}\n[train]\nsteps = {n}\n")).unwrap();
    let sample = SampleRecord { step: 1, prompt: "</script><b>".into(), text: " x".into(), seed: 1 };
    std::fs::write(dir.join("samples.jsonl"), serde_json::to_string(&sample).unwrap() + "\n").unwrap();
    let events = "{\"time\":\"t\",\"kind\":\"start\",\"step\":0,\"build\":{\"cpu\":\"x\"}}\n{\"time\":\"u\",\"kind\":\"skip\",\"step\":3,\"why\":\"not finite\"}\n";
    std::fs::write(dir.join("events.jsonl"), events).unwrap();
    dir.to_owned()
}

#[test]
fn a_run_becomes_points_that_keep_its_extremes() {
    let dir = tempfile::tempdir().unwrap();
    let report = collect(&[made(&dir.path().join("a"), 4000, "0.1")]).unwrap();
    let run = &report.runs[0];
    assert!(run.train.step.len() <= POINTS && run.train.step.last() == Some(&4000));
    assert_eq!((run.name.as_str(), run.step, run.finished), ("a", 4000, false));
    // The first point holds the largest loss, the refused step is no number among them.
    assert_eq!(run.train.high[0], 3.0);
    assert!(run.train.smooth.iter().all(|loss| (2.0..3.0).contains(loss)));
    assert!((run.train.tokens_per_second[5] - 50.0).abs() < 1e-9);
    // 4000 steps of 2 s, of which 0.1 s are in no part, and one validation.
    assert_eq!((run.spent["forward"], run.spent["validation"]), (2000.0, 7.0));
    assert!((run.spent["other"] - 400.0).abs() < 1e-6 && !run.spent.contains_key("step"));
    assert!(run.parts.step.len() <= POINTS && run.parts.seconds["backward"].iter().all(|&s| s == 1.0));
    assert_eq!(run.parts.tokens.last(), Some(&400_000));
    assert_eq!(run.flops_per_token, None, "of half a configuration nothing is known");
    assert_eq!((run.val[0].seen, run.evals[0].seen), (400_000, 400_000));
    assert_eq!(
        (run.events[1].tokens, run.events[1].marked, run.events[1].text.as_str()),
        (300, true, "why not finite")
    );
    assert_eq!(run.build["cpu"], "x");
}

/// A point stands for several steps: its speed and its utilisation are those of its tokens over its time, whatever the steps took.
#[test]
fn uneven_steps_count_for_the_time_they_took() {
    let dir = tempfile::tempdir().unwrap();
    let run = made(&dir.path().join("a"), 4, "0.1");
    // 100 tokens a step, by turns in 1 s and in 4 s; 1,000 tokens a second are all that the device can do.
    let uneven = |i: u64| {
        let tokens_per_second = if i.is_multiple_of(2) { 100.0 } else { 25.0 };
        let grad_norm = if i == 2 { 9.0 } else { 1.0 };
        Record::Train(Train { tokens_per_second, mfu: tokens_per_second / 1000.0, grad_norm, ..step(i, 2.0) })
    };
    let lines: String =
        (1..=2 * POINTS as u64 + 2).map(|i| serde_json::to_string(&uneven(i)).unwrap() + "\n").collect();
    std::fs::write(run.join("metrics.jsonl"), lines).unwrap();
    let curve = &collect(&[run]).unwrap().runs[0].train;
    assert!(curve.step.len() <= POINTS && curve.step.len() > POINTS / 2);
    let total = |rates: &[f64]| -> f64 {
        let tokens = curve.tokens.iter().scan(0, |before, &now| Some(now - std::mem::replace(before, now)));
        tokens.zip(rates).map(|(tokens, rate)| tokens as f64 / rate).sum()
    };
    let (steps, seconds) = (2.0 * POINTS as f64 + 2.0, 2.5 * (2.0 * POINTS as f64 + 2.0));
    assert!((total(&curve.tokens_per_second) / seconds - 1.0).abs() < 1e-9);
    let mean = curve.tokens_per_second[0];
    assert!((mean - 300.0 / 9.0).abs() < 1e-9, "three steps of 4, 1 and 4 s: {mean}");
    assert_eq!((curve.step[0], curve.grad_norm[0], curve.grad_norm[1]), (3, 9.0, 1.0), "peaks stay");
    for (speed, mfu) in curve.tokens_per_second.iter().zip(&curve.mfu) {
        assert!((mfu * 1000.0 - speed).abs() < 1e-9, "{mfu} {speed}");
    }
    assert_eq!(curve.tokens.last(), Some(&(steps as u64 * 100)));
}

/// A finished run that is given more steps goes on.
#[test]
fn an_extended_run_is_not_finished_until_it_ends_again() {
    let dir = tempfile::tempdir().unwrap();
    let run = made(&dir.path().join("a"), 4, "0.1");
    let mut events = String::new();
    for (kind, finished) in [("start", false), ("save", false), ("finish", true), ("resume", false), ("finish", true)] {
        events += &format!("{{\"time\":\"t\",\"kind\":\"{kind}\",\"step\":4}}\n");
        std::fs::write(run.join("events.jsonl"), &events).unwrap();
        let report = collect(std::slice::from_ref(&run)).unwrap();
        assert_eq!(report.runs[0].finished, finished, "{events}");
        assert_eq!(text(&report).contains(", finished"), finished);
    }
}

#[test]
fn runs_are_compared_and_text_of_strangers_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = [made(&dir.path().join("a/run"), 10, "0.1"), made(&dir.path().join("b/run"), 10, "0.2")];
    let report = collect(&dirs).unwrap();
    let names: Vec<_> = report.runs.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(names, ["a/run", "b/run"]);
    let [d] = report.differences.as_slice() else { panic!("{:?}", report.differences) };
    assert_eq!((d.key.as_str(), d.values.clone()), ("optimizer.lr", vec![Some("0.1".into()), Some("0.2".into())]));
    assert!(report.replicas.is_empty());
    let html = page(&report, Some(5)).unwrap();
    assert_eq!(html.matches("</script>").count(), 2, "a sample ends no script");
    assert!(
        !html.contains("http://")
            || html.matches("http://").count() == html.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(html.contains("Content-Security-Policy") && html.contains("content=\"5\""));
    let said = text(&report);
    for part in ["a/run: step 10 of 10", "piqa  acc 0.6000 ± 0.0100", "skip  why not finite", "optimizer.lr: 0.1 | 0.2"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(collect(&[dir.path().join("none")]).unwrap_err().to_string().contains("no metrics.jsonl"));
}

/// Two seeds of one configuration are replicas; not so a run that was given other data on the way, a copy, or a branch that shares
/// its first steps with another run.
#[test]
fn runs_that_differ_in_their_seeds_show_the_noise() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d", "copy-of-a", "branch-of-c", "a-with-other-samples", "c-again"];
    let dirs: Vec<PathBuf> = names.iter().map(|name| made(&dir.path().join(name), 4, "0.1")).collect();
    for (i, dir) in dirs.iter().enumerate() {
        let (i, past) = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 0), (9, 2), (0, 5), (2, 6)][i];
        let metrics = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        std::fs::write(dir.join("metrics.jsonl"), metrics.replace("\"chain\":\"0\"", &format!("\"chain\":\"{past}\"")))
            .unwrap();
        let seed = format!("[optimizer]\nlr = {}\n[data]\nseed = {i}\n", if i == 1 { 0.2 } else { 0.1 });
        std::fs::write(dir.join("config.toml"), seed).unwrap();
    }
    let skipped = "{\"time\":\"t\",\"kind\":\"resume\",\"step\":2,\"reset\":[],\"skipped_sequences\":[8,16]}\n";
    std::fs::write(dirs[3].join("events.jsonl"), skipped).unwrap();
    assert_eq!(collect(&dirs).unwrap().replicas, [[0, 2]]);
}

#[test]
fn numbers_of_events_are_short() {
    let said = |x: f64| short(&x.into());
    let all = [30351.56973, 0.58894638, 1.5, 2.0, 1234.56, 12.0, 1e-7, 0.0, -0.25, 100.0].map(said);
    assert_eq!(all, ["30352", "0.5889", "1.5", "2", "1235", "12", "1.000e-7", "0.0", "-0.25", "100"]);
    assert_eq!(short(&serde_json::json!(1200)), "1200");
}

/// A run that goes on with other ranks: every part of a step has a value for every point, and the events say who trained and what it means.
#[test]
fn ranks_of_a_run_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let run = made(&dir.path().join("a"), 4, "0.1");
    let times = [
        r#"{"step":1,"seconds":{"forward":1.0,"exchange":0.5,"step":2.0}}"#,
        r#"{"step":2,"seconds":{"forward":1.0,"exchange":0.25,"step":2.0}}"#,
        r#"{"step":3,"seconds":{"forward":1.0,"step":2.0}}"#,
    ];
    std::fs::write(run.join("times.jsonl"), times.map(|line| line.to_owned() + "\n").concat()).unwrap();
    let members: Vec<Value> = (0..4)
        .map(|rank| serde_json::json!({"rank": rank, "host": if rank < 2 { "a" } else { "b" }, "pid": 10 + rank, "device": "cpu"}))
        .collect();
    let events = [
        serde_json::json!({"time": "t", "kind": "ranks", "step": 0, "ranks": 4, "lanes": 8, "members": members, "bytes_per_step": 6000}),
        serde_json::json!({"time": "t", "kind": "hardware", "step": 2, "changes": [{"key": "ranks", "old": 4, "new": 1}], "affects": "speed",
            "same_arithmetic": true, "expected_loss_difference": null}),
        serde_json::json!({"time": "t", "kind": "lanes", "step": 2, "old": "8", "new": "1", "equal": "within rounding"}),
    ];
    std::fs::write(run.join("events.jsonl"), events.map(|event| event.to_string() + "\n").concat()).unwrap();
    let report = collect(&[run]).unwrap();
    let parts = &report.runs[0].parts;
    assert_eq!((parts.step.as_slice(), parts.seconds["exchange"].as_slice()), (&[1, 2, 3][..], &[0.5, 0.25, 0.0][..]));
    assert_eq!((report.runs[0].spent["exchange"], parts.seconds["other"].as_slice()), (0.75, &[0.5, 0.75, 1.0][..]));
    let events: Vec<_> = report.runs[0].events.iter().map(|event| (event.text.as_str(), event.marked)).collect();
    assert_eq!(
        events,
        [
            ("ranks 4, lanes 8, bytes_per_step 6000, hosts a (2 x cpu); b (2 x cpu)", false),
            ("changes ranks 4 → 1, affects the speed alone, no bits", true),
            ("old 8, new 1, equal within rounding", true),
        ]
    );
    assert!(text(&report).contains("exchange 12.5 %"), "{}", text(&report));
    let html = page(&report, None).unwrap();
    assert!(html.contains("a (2 x cpu); b (2 x cpu)") && html.contains("\"exchange\""));
}
