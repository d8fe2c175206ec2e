//! Interrupted runs go on, and leave no trace of the interruption in the output.

use super::*;
use crate::runtime::files::tests::fault_injection::{Mode, trace};

/// Text in two files, with bad records, repetitions and short documents; all options that have a state.
fn bench() -> (Bench, PrepareOptions) {
    // In memory where possible: this is about the order of operations, and there are tens of thousands of syncs.
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let bench = Bench { dir: dir.unwrap() };
    bench.corpus("a.jsonl", 22);
    let a = fs::read_to_string(bench.dir.path().join("in/a.jsonl")).unwrap();
    let lines: Vec<&str> = a.lines().collect();
    bench.write("b.jsonl", format!("{}\n{{\n{}\n{{\"text\": \"x\"}}\n{a}oops\n", lines[3], lines[20]));
    let grain = Grain { batch_records: 13, journal: Duration::ZERO, hashes: 4, ..Grain::default() };
    let options = bench.options("out");
    let opts = PrepareOptions { shard_tokens: 700, min_chars: 3, dedup: true, allow_bad: true, grain, ..options };
    (bench, opts)
}

/// The output of a run nobody interrupts, and the file operations it takes.
fn uninterrupted(bench: &Bench, opts: &PrepareOptions) -> (BTreeMap<String, Vec<u8>>, usize) {
    let (done, log) = trace(None, || bench.run(&PrepareOptions { out: bench.out("whole"), ..opts.clone() }));
    let lines = done.unwrap().manifest.lines;
    assert_eq!((lines.used, lines.duplicate, lines.filtered, lines.bad()), (22, 24, 1, 2));
    (contents(&bench.out("whole")), log.len())
}

#[test]
fn a_death_at_any_file_operation_changes_nothing() {
    let (bench, opts) = bench();
    let (whole, operations) = uninterrupted(&bench, &opts);
    assert!(whole.len() > 8 && operations > 80, "{operations} operations for {} files", whole.len());
    let mut continued = 0;
    for at in 0..operations {
        for mode in [Mode::Dead, Mode::DiskFull] {
            let _ = fs::remove_dir_all(&opts.out);
            let (died, _) = trace(Some((at, mode)), || bench.run(&opts));
            assert_eq!(exit_of(died), Exit::Io, "at {at}");
            // Only the very last operations leave a finished output behind, and then it is whole.
            assert_eq!(verify(&opts.out).is_ok(), opts.out.join(MANIFEST_FILE).exists());
            let batches = std::cell::Cell::new(0);
            let summary = prepare(&opts, &bench.inputs(), &BYTES, &|_| batches.set(batches.get() + 1)).unwrap();
            assert!(contents(&opts.out) == whole, "after a death at {at}");
            if summary.notes[0].starts_with("resumed") {
                continued += 1;
                assert!(
                    batches.get() < 5 && (batches.get() == 0 || at < operations * 9 / 10),
                    "{at} {}",
                    batches.get()
                );
            }
        }
    }
    assert!(continued > operations, "{continued} of {}", 2 * operations);
    verify(&opts.out).unwrap();
}

#[test]
fn many_deaths_with_changing_threads_change_nothing() {
    let (bench, opts) = bench();
    let (whole, _) = uninterrupted(&bench, &opts);
    for threads in [1, 2, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for seed in 0..4 {
            let _ = fs::remove_dir_all(&opts.out);
            let deaths = (0..1000).find(|death| {
                let at = 15 + (seed * 31 + death * 17) % 60;
                let (done, _) = pool.install(|| trace(Some((at, Mode::Dead)), || bench.run(&opts)));
                done.is_ok()
            });
            assert!(deaths > Some(0) && contents(&opts.out) == whole, "{threads} threads, {deaths:?} deaths");
        }
    }
}

#[test]
fn other_options_or_inputs_do_not_go_on() {
    let (bench, opts) = bench();
    let (whole, operations) = uninterrupted(&bench, &opts);
    let (died, _) = trace(Some((operations / 2, Mode::Dead)), || bench.run(&opts));
    died.unwrap_err();
    let refused = |opts: &PrepareOptions, what: &str| {
        let error = bench.run(opts).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(exit_of::<()>(Err(error)), Exit::Config);
    };
    refused(&PrepareOptions { min_chars: 4, ..opts.clone() }, "min_chars was 3, now 4");
    refused(&PrepareOptions { val: ValSplit::None, ..opts.clone() }, r#"val was {"fraction":0.1}, now "none""#);
    refused(&PrepareOptions { eot: Eot::After, ..opts.clone() }, r#"eot was "before", now "after""#);
    bench.write("c.txt", "more");
    refused(&opts, "there were 2 input files, now 3");
    fs::remove_file(bench.dir.path().join("in/c.txt")).unwrap();
    bench.run(&opts).unwrap();
    assert!(contents(&opts.out) == whole);
}

#[test]
fn a_file_that_changed_is_noticed_and_a_lost_one_is_an_error() {
    let (bench, opts) = bench();
    let (_, operations) = uninterrupted(&bench, &opts);
    let (died, _) = trace(Some((operations * 3 / 4, Mode::Dead)), || bench.run(&opts));
    died.unwrap_err();
    let part = contents(&opts.out).into_keys().find(|name| name.starts_with(".part-train")).unwrap();
    fs::remove_file(opts.out.join(part)).unwrap();
    assert_eq!(exit_of(bench.run(&opts)), Exit::Data);
    bench.corpus("a.jsonl", 22);
    let error = bench.run(&opts).unwrap_err();
    assert!(error.to_string().contains("a.jsonl has changed"), "{error}");
    // As its hint says.
    fs::remove_file(opts.out.join(journal::STATE_FILE)).unwrap();
    bench.run(&opts).unwrap();
    verify(&opts.out).unwrap();
}

/// What an interrupted run has left is checked before it is gone on with: a flipped bit must not become data.
#[test]
fn damage_to_an_unfinished_output_is_noticed_or_harmless() {
    let (bench, opts) = bench();
    let (whole, operations) = uninterrupted(&bench, &opts);
    let die = || {
        let _ = fs::remove_dir_all(&opts.out);
        let (died, _) = trace(Some((operations * 3 / 4, Mode::Dead)), || bench.run(&opts));
        died.unwrap_err();
        contents(&opts.out)
    };
    let files: Vec<String> =
        die().into_keys().filter(|name| name.contains("-0") || name == journal::STATE_FILE).collect();
    let mut noticed = 0;
    for name in &files {
        let mut bytes = die().remove(name).unwrap();
        // Behind the header of a shard.
        let at = if name.ends_with(".npy") { 130 } else { 0 }.min(bytes.len() - 1);
        bytes[at] ^= 1;
        fs::write(opts.out.join(name), bytes).unwrap();
        match bench.run(&opts) {
            // Cut off, because the journal does not count it.
            Ok(_) => assert!(contents(&opts.out) == whole, "{name}"),
            Err(error) => {
                assert_eq!(exit_of::<()>(Err(error)), Exit::Data, "{name}");
                noticed += 1;
            }
        }
    }
    assert!(noticed > 4 && noticed + 4 >= files.len(), "{noticed} of {files:?}");
}

#[test]
fn after_a_stop_one_repairs_the_input_or_allows_the_loss() {
    let (bench, opts) = bench();
    let (whole, _) = uninterrupted(&bench, &opts);
    let strict = PrepareOptions { allow_bad: false, ..opts.clone() };
    let error = bench.run(&strict).unwrap_err();
    assert!(error.to_string().starts_with("2 of 49 records cannot be used"), "{error}");
    assert_eq!(fs::read(opts.out.join(QUARANTINE_FILE)).unwrap(), whole[QUARANTINE_FILE]);
    assert_eq!(exit_of(bench.run(&strict)), Exit::Data, "it does not get better by itself");
    let summary = bench.run(&opts).unwrap();
    assert!(summary.notes[0].starts_with("resumed an interrupted run after 49 records"), "{:?}", summary.notes);
    assert!(contents(&opts.out) == whole);

    fs::remove_dir_all(&opts.out).unwrap();
    bench.run(&strict).unwrap_err();
    let repaired =
        fs::read_to_string(bench.dir.path().join("in/b.jsonl")).unwrap().replace("oops\n", "").replace("{\n", "");
    bench.write("b.jsonl", repaired);
    let summary = bench.run(&strict).unwrap();
    assert!(summary.notes[0].starts_with("started again: "), "{:?}", summary.notes);
    assert_eq!((summary.manifest.lines.used, summary.manifest.lines.bad()), (22, 0));
    assert!(!opts.out.join(QUARANTINE_FILE).exists());
}

#[test]
fn a_wrong_field_is_corrected_without_ado() {
    let bench = Bench::new();
    bench.corpus("a.jsonl", 30);
    let opts = bench.options("out");
    let read = ReadOptions { text_field: "body".into(), ..ReadOptions::default() };
    assert_eq!(exit_of(bench.run(&PrepareOptions { read, ..opts.clone() })), Exit::Data);
    assert_eq!(bench.run(&opts).unwrap().manifest.lines.used, 30);
}

/// Files that come from elsewhere: each is asked for before the one before it is done, and a failure is reported.
#[test]
fn inputs_are_fetched_one_ahead() {
    let bench = Bench::new();
    for i in 0..5 {
        bench.corpus(&format!("{i}.jsonl"), 20);
    }
    let mut inputs = bench.inputs();
    let (asked, local) = (std::sync::Arc::new(std::sync::Mutex::new(Vec::new())), inputs.fetch.clone());
    let log = asked.clone();
    inputs.fetch = std::sync::Arc::new(move |i| {
        log.lock().unwrap().push(i);
        if i == 4 { Err(fail(Exit::Io, "no network").into()) } else { local(i) }
    });
    let opts = PrepareOptions { val: ValSplit::None, ..bench.options("out") };
    let grain = Grain { batch_records: 10, journal: Duration::ZERO, ..Grain::default() };
    let opts = PrepareOptions { grain, ..opts };
    let documents = std::cell::Cell::new(0);
    let result = prepare(&opts, &inputs, &BYTES, &|progress| documents.set(progress.documents));
    assert_eq!(result.unwrap_err().to_string(), "no network");
    assert_eq!(*asked.lock().unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(documents.get(), 80);
    let summary = bench.run(&opts).unwrap();
    assert!(summary.notes[0].contains("after 80 records"), "{:?}", summary.notes);
    assert_eq!(summary.manifest.lines.used, 100);
}

/// Whoever deletes the lock lets a second process in: the first one must not finish over what that one writes.
#[test]
fn a_lock_that_was_deleted_stops_the_run() {
    let bench = Bench::new();
    for i in 0..5 {
        bench.corpus(&format!("{i}.jsonl"), 20);
    }
    let opts = PrepareOptions { val: ValSplit::None, ..bench.options("out") };
    let (mut inputs, lock) = (bench.inputs(), opts.out.join("prepare.lock"));
    let local = inputs.fetch.clone();
    inputs.fetch = std::sync::Arc::new(move |i| {
        if i == 3 {
            fs::remove_file(&lock)?;
        }
        local(i)
    });
    let error = prepare(&opts, &inputs, &BYTES, &|_| ()).unwrap_err();
    assert!(error.to_string().contains("prepare.lock was removed or replaced"), "{error}");
    assert!(exit_of::<()>(Err(error)) == Exit::Io && !opts.out.join(MANIFEST_FILE).exists());
    assert_eq!(bench.run(&opts).unwrap().manifest.lines.used, 100);
}
