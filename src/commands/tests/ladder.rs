//! Steps that are not finite: refused, rolled back, given up.

use super::Lab;

#[test]
fn a_refused_step_leaves_no_trace_but_its_record() {
    for fault in ["loss@3=nan", "loss@3=inf", "gradient@3000=nan", "gradient@3001=inf", "gradient@3001=-inf"] {
        let lab = Lab::new();
        lab.pretrain("run", fault, &[], 0);
        let train = lab.train("run");
        assert_eq!(train.len(), 12);
        let skipped: Vec<_> = train.iter().filter(|r| r["skipped"] == true).map(|r| r["step"].as_u64()).collect();
        assert_eq!(skipped, [Some(3)], "{fault}");
        assert!(train[2]["loss"].is_null() && train[3]["loss"].is_f64());
        assert_eq!(lab.events("run", "skip").len(), 1);
        let (_, _, state) = lab.state("run", 12);
        assert_eq!((&state["step"], &state["updates"]), (&12.into(), &11.into()));
        // Resumed from before it and from after it, with the fault still there: the same decisions, the same bits.
        for from in [4, 8] {
            let again = format!("from-{from}");
            lab.copy("run", &again);
            lab.resume(&format!("{again}/checkpoints/step-{from:08}"), fault, &[], 0);
            assert!(lab.state("run", 12) == lab.state(&again, 12), "{fault} from {from}");
        }
    }
}

#[test]
fn a_large_finite_gradient_is_clipped_and_applied() {
    let lab = Lab::new();
    lab.pretrain("run", "gradient@3000=1e30", &[], 0);
    assert!(lab.train("run")[2]["grad_norm"].as_f64().unwrap() > 1e29);
    assert!(lab.events("run", "skip").is_empty());
}

/// Sequences 20 to 31 are those of steps 6, 7 and 8.
const BAD_DATA: &str = "loss-of-sequence@20-31=nan";

#[test]
fn bad_data_are_left_behind_by_going_back_to_the_last_good_checkpoint() {
    let lab = Lab::new();
    let said = lab.pretrain("run", BAD_DATA, &[], 0);
    assert!(said.contains("going back to step 4"), "{said}");
    let rollback = lab.events("run", "rollback");
    assert_eq!(rollback.len(), 1);
    assert_eq!((&rollback[0]["step"], &rollback[0]["to_step"]), (&8.into(), &4.into()));
    assert_eq!(rollback[0]["skipped_sequences"], serde_json::json!([16, 32]));
    let train = lab.train("run");
    assert!(train.len() == 12 && train.iter().all(|r| r["loss"].is_f64()));
    assert_eq!(lab.lines("run/replaced/attempt-1.jsonl").len(), 4, "steps 5 to 8");
    let (_, _, state) = lab.state("run", 12);
    assert_eq!(state["next_sequence"], 64);
    assert_eq!(state["data_offsets"], serde_json::json!([{"step": 4, "from": 16, "to": 32}]));
    assert_eq!(state["guard"]["rollbacks"], 1);
    // A run that was killed in the middle of the trouble comes to the same end.
    lab.copy("run", "again");
    lab.resume("again/checkpoints/step-00000004", BAD_DATA, &[], 0);
    assert!(lab.state("run", 12) == lab.state("again", 12));
}

#[test]
fn weights_that_cannot_be_saved_send_the_run_back() {
    let lab = Lab::new();
    lab.pretrain("run", "weight@7-8=nan", &[], 76);
    let rollbacks = lab.events("run", "rollback");
    assert_eq!(rollbacks.len(), 2);
    assert!(rollbacks.iter().all(|r| r["to_step"] == 4), "{rollbacks:?}");
    assert!(lab.path("run/checkpoints/step-00000004").exists() && !lab.path("run/checkpoints/step-00000008").exists());
    lab.resume("run", "", &[], 0);
    lab.pretrain("well", "", &[], 0);
    assert!(lab.state("run", 12).0 == lab.state("well", 12).0);
}

#[test]
fn a_hopeless_run_is_given_up_with_a_report_and_its_good_checkpoints() {
    let lab = Lab::new();
    let sets = ["checkpoint.every=1", "checkpoint.keep=1"];
    let said = lab.pretrain("run", "loss@6-99=nan", &sets, 76);
    assert_eq!(lab.events("run", "rollback").len(), 2);
    assert_eq!(lab.events("run", "diverged").len(), 1);
    let name = said.split("see ").nth(1).unwrap().lines().next().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(name).unwrap()).unwrap();
    assert_eq!((&report["step"], &report["sequences"]["count"]), (&8.into(), &4.into()));
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 2 * 9 + 3);
    assert!(tensors.iter().all(|t| t["weight"]["norm"].as_f64() > Some(0.0) && t["weight"]["not_finite"] == 0));
    // One is kept of a healthy run, but the sick one has not rotated the last healthy one away.
    lab.state("run", 5);
    lab.resume("run/checkpoints/step-00000005", "", &["optimizer.lr=1e-3"], 0);
    assert_eq!(lab.train("run").len(), 12);
}

#[test]
fn without_a_checkpoint_from_before_the_trouble_there_is_no_way_back() {
    let lab = Lab::new();
    let said = lab.pretrain("run", "loss@2-99=nan", &[], 76);
    assert!(said.contains("no checkpoint from before it"), "{said}");
    assert!(lab.events("run", "rollback").is_empty());
}

#[test]
fn a_spike_is_told_and_only_skipped_when_asked_to() {
    let lab = Lab::new();
    let sets = ["train.steps=76", "checkpoint.every=0", "eval.every=0"];
    lab.pretrain("calm", "", &sets, 0);
    lab.pretrain("warned", "loss@70=50", &sets, 0);
    let spikes = lab.events("warned", "spike");
    assert_eq!((spikes.len(), &spikes[0]["step"], &spikes[0]["quantity"]), (1, &70.into(), &"loss".into()));
    // What was planted is the number, not the gradient: a run that only warns goes on as if nothing had been seen.
    assert!(lab.state("calm", 76).0 == lab.state("warned", 76).0);
    lab.pretrain("skipped", "loss@70=50", &[&sets[..], &["guard.spike=skip"]].concat(), 0);
    assert_eq!(lab.train("skipped")[69]["skipped"], true);
    assert!(lab.state("calm", 76).0 != lab.state("skipped", 76).0);
    lab.pretrain("off", "loss@70=50", &[&sets[..], &["guard.spike=off"]].concat(), 0);
    assert!(lab.events("off", "spike").is_empty());
}
