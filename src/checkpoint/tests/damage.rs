//! Damage is found, whatever it is, and costs no more than the checkpoint it hit; failures in the middle of a save cost
//! nothing.

use std::os::unix::fs::symlink;

use super::super::manifest::{Manifest, VERSION};
use super::super::names;
use super::*;
use crate::checkpoint::{checkpoints_dir, newest_valid, resolve, step_name, supersede, verify};
use crate::runtime::files::tests::fault_injection::{Mode, trace};

/// A run with checkpoints of these steps.
fn run_with(steps: &[u64]) -> tempfile::TempDir {
    let run = quick_dir();
    for &step in steps {
        Toy::at(step).save(run.path()).unwrap();
    }
    run
}

fn flip(path: &Path, at: usize, mask: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= mask;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn every_flipped_byte_is_detected() {
    let run = run_with(&[1]);
    let dir = checkpoints_dir(run.path()).join(step_name(1));
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut tried = 0;
    for name in listing(&dir) {
        let path = dir.join(&name);
        let size = path.metadata().unwrap().len() as usize;
        for _ in 0..40 {
            let (at, mask) = (rng.random_range(0..size), rng.random_range(1..=255));
            flip(&path, at, mask);
            let error = verify(&dir).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Data, "{name} byte {at}");
            flip(&path, at, mask);
            tried += 1;
        }
    }
    assert!(tried >= 200);
    verify(&dir).unwrap();
}

#[test]
fn cuts_additions_and_foreign_kinds_are_detected() {
    let run = run_with(&[1]);
    let dir = checkpoints_dir(run.path()).join(step_name(1));
    let aside = run.path().join("aside");
    for name in listing(&dir) {
        let path = dir.join(&name);
        let good = std::fs::read(&path).unwrap();
        let zeros = vec![0; good.len()];
        let contents: [&[u8]; 5] = [&[], &good[..1], &good[..good.len() - 1], &[&good, &b"\n"[..]].concat(), &zeros];
        for bytes in contents {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(exit_of(&verify(&dir).unwrap_err()), Exit::Data, "{name} of {} bytes", bytes.len());
        }
        std::fs::write(&aside, &good).unwrap();
        std::fs::remove_file(&path).unwrap();
        let assert_bad = |what: &str| {
            let error = verify(&dir).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Data, "{what} {name}");
            assert!(error.to_string().contains(&name), "{error}");
        };
        assert_bad("missing");
        symlink(&aside, &path).unwrap();
        assert_bad("link");
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_bad("fifo");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_bad("folder");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, &good).unwrap();
    }
    verify(&dir).unwrap();
}

#[test]
fn resume_falls_back_and_sets_the_damaged_aside() {
    let run = run_with(&[5, 10, 15, 20]);
    let root = checkpoints_dir(run.path());
    flip(&root.join("step-00000020").join(names::OPTIMIZER), 900, 1);
    std::fs::remove_file(root.join("step-00000015").join(names::MANIFEST)).unwrap();
    let found = newest_valid(run.path()).unwrap();
    let newest = found.newest.unwrap();
    assert_eq!((newest.manifest.step, newest.dir.as_path()), (10, root.join("step-00000010").as_path()));
    Toy::at(10).assert_weights(&Opened::open_valid(newest, None).unwrap());
    let aside: Vec<_> = found.quarantined.iter().map(|(path, what)| (path.clone(), what.clone())).collect();
    assert_eq!(aside.len(), 2);
    assert!(
        aside.iter().any(|(path, what)| path.ends_with(".bad-20-hash") && what.contains(names::OPTIMIZER)),
        "{aside:?}"
    );
    assert!(aside.iter().any(|(path, what)| path.ends_with(".bad-15-missing") && what.contains("step-00000015")));
    assert_eq!(listing(&root), [".bad-15-missing", ".bad-20-hash", "step-00000005", "step-00000010"]);
    let again = newest_valid(run.path()).unwrap();
    assert!(again.quarantined.is_empty());
    // A second of the same name finds its place.
    Toy::at(20).save(run.path()).unwrap();
    flip(&root.join("step-00000020").join(names::WEIGHTS), 900, 1);
    assert!(newest_valid(run.path()).unwrap().quarantined[0].0.ends_with(".bad-20-hash-2"));
}

#[test]
fn nothing_good_left_is_an_error_and_stays_one() {
    let run = run_with(&[5, 10]);
    let root = checkpoints_dir(run.path());
    for name in ["step-00000005", "step-00000010"] {
        flip(&root.join(name).join(names::TRAINER), 3, 64);
    }
    for attempt in 0..2 {
        let error = newest_valid(run.path()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Data, "attempt {attempt}");
    }
    assert_eq!(listing(&root), [".bad-10-hash", ".bad-5-hash"]);
    let fresh = tempfile::tempdir().unwrap();
    assert!(newest_valid(fresh.path()).unwrap().newest.is_none());
}

#[test]
fn order_is_that_of_the_manifests() {
    let run = run_with(&[5, 10, 15]);
    let root = checkpoints_dir(run.path());
    // The names lie, and the newest was touched last of all.
    std::fs::rename(root.join("step-00000015"), root.join("step-00000001")).unwrap();
    let old = std::fs::File::open(root.join("step-00000001")).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let found = newest_valid(run.path()).unwrap();
    assert_eq!(found.newest.unwrap().manifest.step, 15);
    assert!(found.quarantined.is_empty());
    assert_eq!(resolve(run.path()).unwrap(), root.join("step-00000001"));
}

#[test]
fn explicit_checkpoint_never_falls_back_and_readers_change_nothing() {
    let run = run_with(&[5, 10]);
    let root = checkpoints_dir(run.path());
    let newest = root.join("step-00000010");
    flip(&newest.join(names::WEIGHTS), 700, 2);
    let error = Opened::open(&newest).unwrap_err();
    assert_eq!(exit_of(&error), Exit::Data);
    assert!(error.to_string().contains("step-00000010"), "{error}");
    // Without its manifest it is still recognised as a checkpoint, and refused.
    std::fs::remove_file(newest.join(names::MANIFEST)).unwrap();
    assert_eq!(exit_of(&Opened::open(&newest).unwrap_err()), Exit::Data);
    let before = listing(&root);
    Toy::at(5).assert_weights(&Opened::open(run.path()).unwrap());
    assert_eq!(listing(&root), before);
}

#[test]
fn moments_are_verified_before_they_are_read() {
    let run = run_with(&[5]);
    let dir = checkpoints_dir(run.path()).join(step_name(5));
    flip(&dir.join(names::OPTIMIZER), dir.join(names::OPTIMIZER).metadata().unwrap().len() as usize - 1, 1);
    let opened = Opened::open(&dir).unwrap();
    let error = opened.read_optimizer_state(&mut |_, _, _| panic!("unverified moments were handed out")).unwrap_err();
    assert_eq!(exit_of(&error), Exit::Data);
}

#[test]
fn newer_layout_is_refused_but_not_set_aside() {
    let run = run_with(&[5, 10]);
    let root = checkpoints_dir(run.path());
    let path = root.join(step_name(10)).join(names::MANIFEST);
    let mut manifest = Manifest::parse(&std::fs::read(&path).unwrap()).unwrap();
    manifest.version = VERSION + 1;
    std::fs::write(&path, manifest.render().unwrap()).unwrap();
    assert!(newest_valid(run.path()).unwrap_err().to_string().contains("layout version"));
    assert_eq!(listing(&root), ["step-00000005", "step-00000010"]);
}

#[test]
fn newer_checkpoints_are_superseded() {
    let run = run_with(&[5, 10, 15]);
    let moved = supersede(run.path(), 5, 3).unwrap();
    assert_eq!(moved.len(), 2);
    let root = checkpoints_dir(run.path());
    assert_eq!(listing(&root), [".superseded-10-3", ".superseded-15-3", "step-00000005"]);
    assert_eq!(newest_valid(run.path()).unwrap().newest.unwrap().manifest.step, 5);
    assert!(supersede(run.path(), 5, 4).unwrap().is_empty());
    // That something was saved is remembered even when all that is left was set aside.
    std::fs::remove_dir_all(root.join("step-00000005")).unwrap();
    assert_eq!(exit_of(&newest_valid(run.path()).unwrap_err()), Exit::Data);
}

/// Every operation of a save fails once, or is the last thing the process does.
#[test]
fn no_failure_in_a_save_costs_a_checkpoint() {
    let operations = {
        let run = run_with(&[10]);
        trace(None, || Toy::at(20).save_keeping(run.path(), 1).unwrap()).1
    };
    assert!(operations.len() > 40, "{}", operations.len());
    for (n, operation) in operations.iter().enumerate() {
        for mode in [Mode::DiskFull, Mode::Dead] {
            let run = run_with(&[10]);
            let (saved, _) = trace(Some((n, mode)), || Toy::at(20).save_keeping(run.path(), 1));
            let place = format!("{operation:?}");
            let error = saved.expect_err("an error was ignored");
            assert_eq!(exit_of(&error), Exit::Io, "{place}: {error}");
            let newest = newest_valid(run.path()).unwrap();
            assert!(newest.quarantined.is_empty(), "{place}: half a checkpoint became visible");
            let step = newest.newest.expect("the old checkpoint was lost").manifest.step;
            assert!(step == 10 || step == 20, "{place}");
            Toy::at(step).assert_weights(&Opened::open(run.path()).unwrap());
            if mode == Mode::DiskFull && operation.0 != "remove" && step == 10 {
                assert_eq!(listing(&checkpoints_dir(run.path())), [step_name(10)], "{place}: litter");
            }
            Toy::at(30).save_keeping(run.path(), 1).unwrap();
            assert_eq!(listing(&checkpoints_dir(run.path())), [step_name(30)], "{place}: leftovers");
        }
    }
}

/// What a kill cannot show: everything is synced before it is relied upon.
#[test]
fn save_syncs_before_it_publishes_and_publishes_before_it_deletes() {
    let parent = tempfile::tempdir().unwrap();
    let run = parent.path().join("runs/a");
    let (_, first) = trace(None, || Toy::at(10).save(&run).unwrap());
    let synced_dirs: Vec<_> = first.iter().filter(|(op, _)| *op == "fsync-dir").map(|(_, path)| path.clone()).collect();
    for dir in [parent.path().to_owned(), parent.path().join("runs"), run.clone(), checkpoints_dir(&run)] {
        assert!(synced_dirs.contains(&dir), "{} was not synced", dir.display());
    }
    let (_, log) = trace(None, || Toy::at(20).save_keeping(&run, 1).unwrap());
    let position = |op: &str, path: &Path| log.iter().position(|(o, p)| *o == op && p == path);
    let root = checkpoints_dir(&run);
    let temp = root.join(".tmp-step-00000020-1");
    let published = position("rename", &root.join(step_name(20))).unwrap();
    let created: Vec<_> = log.iter().filter(|(op, _)| *op == "create").collect();
    assert_eq!(created.len(), 8);
    for (_, path) in created {
        let last_write = log.iter().rposition(|(op, p)| *op == "write" && p == path).unwrap();
        let synced = position("fsync", path).unwrap_or_else(|| panic!("{} was not synced", path.display()));
        assert!(last_write < synced && synced < position("fsync-dir", &temp).unwrap());
    }
    assert!(position("fsync-dir", &temp).unwrap() < published);
    let durable = published + log[published..].iter().position(|(op, p)| *op == "fsync-dir" && *p == root).unwrap();
    let deleted = log.iter().position(|(_, path)| path.to_string_lossy().contains(".tmp-step-00000010"));
    assert!(durable < deleted.expect("the old one was not deleted"));
}

/// Saving a step again trades the old directory for the new one: at every moment one of them is there, whole.
#[test]
fn no_failure_while_replacing_costs_a_checkpoint() {
    let mut again = Toy::at(11);
    again.step = 10;
    let (_, operations) = {
        let run = run_with(&[10]);
        trace(None, || again.save(run.path()).unwrap())
    };
    let published = operations.iter().position(|(op, path)| *op == "rename" && path.ends_with(step_name(10))).unwrap();
    let rest: Vec<&str> = operations[published..].iter().map(|(op, _)| *op).collect();
    assert_eq!(rest, ["rename", "fsync-dir", "remove"]);
    for n in 0..operations.len() {
        let run = run_with(&[10]);
        let (saved, _) = trace(Some((n, Mode::Dead)), || again.save(run.path()));
        assert!(saved.is_err());
        let newest = newest_valid(run.path()).unwrap();
        assert!(newest.quarantined.is_empty() && newest.newest.is_some_and(|valid| valid.manifest.step == 10));
        let expected = if n <= published { Toy::at(10) } else { Toy::of(toy_model(false), 11) };
        expected.assert_weights(&Opened::open(run.path()).unwrap());
    }
}

/// What no hash covers may be anything: it does not become part of a checkpoint by lying beside it.
#[test]
fn what_the_manifest_does_not_list_is_not_read() {
    let (run, other) = (quick_dir(), quick_dir());
    let toy = Toy::at(5);
    let dir =
        save_sharded(run.path(), 1, &toy.contents(), Retention { keep: 1, keep_every: 0, log_spaced: false }, 1500)
            .unwrap();
    let foreign = Toy::at(6).save(other.path()).unwrap();
    std::fs::copy(foreign.join(names::WEIGHTS), dir.join(names::WEIGHTS)).unwrap();
    toy.assert_weights(&Opened::open(&dir).unwrap());
    let path = dir.join(names::MANIFEST);
    let whole = Manifest::parse(&std::fs::read(&path).unwrap()).unwrap();
    let shard = whole.files.iter().find(|entry| entry.name.starts_with("model-00002")).unwrap().name.clone();
    for lost in [names::CONFIG, names::TRAINER, names::OPTIMIZER, shard.as_str()] {
        let mut short = whole.clone();
        short.files.retain(|entry| entry.name != lost);
        std::fs::write(&path, short.render().unwrap()).unwrap();
        let read = |opened: Opened| {
            opened.trainer_state()?;
            opened.read_optimizer_state(&mut |_, _, _| Ok(()))
        };
        let error = Opened::open(&dir).and_then(read).expect_err(lost);
        assert!(exit_of(&error) == Exit::Data && error.to_string().contains(lost), "{lost}: {error}");
    }
}
