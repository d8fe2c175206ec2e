//! Threads that die, steps that hang, devices that are too small.

use super::Lab;
use std::time::Instant;

#[test]
fn a_run_that_hangs_ends_with_a_report_and_resumes() {
    let lab = Lab::new();
    lab.pretrain("well", "", &[], 0);
    let begun = Instant::now();
    let said = lab.pretrain("run", "hang@6=600", &["guard.hang_seconds=1"], 70);
    assert!(begun.elapsed().as_secs() < 600, "{:?}", begun.elapsed());
    assert!(said.contains("no progress for 1 s: step 6") && said.contains("hint: resume it"), "{said}");
    assert!(said.contains("prefetch"), "every thread is listed: {said}");
    assert_eq!(lab.events("run", "hang").len(), 1);
    lab.resume("run", "", &[], 0);
    assert!(lab.state("run", 12) == lab.state("well", 12));
}

#[test]
fn a_panicking_thread_ends_the_process() {
    let lab = Lab::new();
    let sets = ["train.steps=80", "checkpoint.every=20"];
    lab.pretrain("well", "", &sets, 0);
    for (name, fault) in [("saver", "panicked-save@40=1"), ("prefetch", "panicked-prefetch@160=1")] {
        let said = lab.pretrain(name, fault, &sets, 70);
        assert!(said.contains(name) || said.contains("reads data") || said.contains("writes checkpoints"), "{said}");
        lab.resume(name, "", &[], 0);
        assert!(lab.state(name, 80) == lab.state("well", 80));
    }
    // The loop is stuck while a thread dies: the watchdog ends both, long before the loop comes back.
    const STUCK: u64 = 600;
    let begun = Instant::now();
    let said = lab.pretrain("both", &format!("panicked-save@4=1,hang@6={STUCK}"), &[], 70);
    assert!(begun.elapsed().as_secs() < STUCK && said.contains("has panicked"), "{:?} {said}", begun.elapsed());
}

/// Twice it is tried, and reported; the third start goes on from the checkpoint before it.
#[test]
fn a_checkpoint_that_panics_is_passed_over_in_the_end() {
    let lab = Lab::new();
    lab.pretrain("run", "", &[], 0);
    std::fs::remove_dir_all(lab.path("run/checkpoints/step-00000012")).unwrap();
    for n in ["1 times", "2 times"] {
        let said = lab.resume("run", "panicked-load@8=1", &[], 70);
        assert!(said.contains("step-00000008 has panicked") && said.contains(n), "{said}");
    }
    let said = lab.resume("run", "panicked-load@8=1", &[], 0);
    assert!(said.contains("resuming at step 4") && lab.path("run/checkpoints/.bad-8-panic").exists(), "{said}");
    lab.pretrain("well", "", &[], 0);
    assert!(lab.state("run", 12) == lab.state("well", 12));
}

#[test]
fn a_device_out_of_memory_gets_smaller_micro_batches_and_the_same_data() {
    let lab = Lab::new();
    let whole = ["train.micro_batch_size=4"];
    lab.pretrain("well", "", &whole, 0);
    // Room for one row: 4 is halved twice. In the second: only from the second micro-batch of a step on, so that what the first
    // one has accumulated must be dropped.
    for (name, fault, start, halvings) in [
        ("first", "memory-at-once=1", "train.micro_batch_size=4", 2),
        ("later", "memory=1", "train.micro_batch_size=2", 1),
    ] {
        lab.pretrain(name, fault, &[start], 0);
        let events = lab.events(name, "out_of_memory");
        assert_eq!(events.len(), halvings, "{events:?}");
        for (a, b) in lab.train("well").iter().zip(&lab.train(name)) {
            assert_eq!((&a["chain"], &a["tokens"], &a["lr"]), (&b["chain"], &b["tokens"], &b["lr"]));
            let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
            assert!((a / b - 1.0).abs() < 1e-5, "{a} {b}");
        }
        // Kept after a resume: nothing is halved again, and the end is the same.
        lab.copy(name, "again");
        lab.resume("again/checkpoints/step-00000004", fault, &[], 0);
        assert_eq!(lab.events("again", "out_of_memory").len(), halvings);
        assert!(lab.state("again", 12) == lab.state(name, 12));
        std::fs::remove_dir_all(lab.path("again")).unwrap();
    }
    let said = lab.pretrain("none", "memory-at-once=0", &whole, 71);
    assert!(said.contains("one sequence at a time") && said.contains("expected"), "{said}");
    // Whole blocks are computed again before it gives up, unless the configuration forbids it.
    let last = lab.events("none", "out_of_memory").pop().unwrap();
    assert!(last["recompute"]["old"] == "selective" && last["recompute"]["new"] == "full", "{last}");
    lab.pretrain("fixed", "memory-at-once=0", &["train.micro_batch_size=1", "train.recompute=selective"], 71);
    assert!(lab.events("fixed", "out_of_memory").is_empty());
}

/// What a checkpoint stores must load again: half of five sequences do not make up a step of five.
#[test]
fn a_halved_micro_batch_still_divides_the_step() {
    let lab = Lab::new();
    let sets = ["train.micro_batch_size=5", "train.tokens_per_step=80"];
    lab.pretrain("run", "memory-at-once@2=3", &sets, 0);
    let events = lab.events("run", "out_of_memory");
    assert_eq!(events[0]["micro_batch_size"]["new"], 1, "{events:?}");
    lab.resume("run/checkpoints/step-00000004", "", &[], 0);
}
