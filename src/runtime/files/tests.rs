//! What the file layer promises, each promise broken on purpose.

mod abilities;
pub(crate) mod fault_injection;
pub(crate) mod power_loss;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use fault_injection::{Mode, trace};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Names in `dir`, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn exit_of(error: &anyhow::Error) -> Exit {
    let failure = error.downcast_ref::<Failure>().unwrap_or_else(|| panic!("not a Failure: {error:?}"));
    assert!(failure.hint.is_some(), "no hint: {failure}");
    failure.exit
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn atomic_write_replaces_and_leaves_nothing_else() {
    let dir = dir();
    let path = dir.path().join("a.json");
    write_atomic(&path, b"one").unwrap();
    write_atomic(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["a.json"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o133, 0, "at most 0644");
    let missing = write_atomic(&dir.path().join("no/such"), b"").unwrap_err();
    assert_eq!(exit_of(&missing), Exit::Io);
    assert!(missing.to_string().contains("no/such"), "{missing}");
}

#[test]
fn uncommitted_file_never_shows() {
    let dir = dir();
    let path = dir.path().join("a");
    write_atomic(&path, b"old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    drop(file);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn atomic_write_syncs_in_order_and_survives_every_failure() {
    let dir = dir();
    let path = dir.path().join("a");
    write_atomic(&path, b"old").unwrap();
    let (done, log) = trace(None, || write_atomic(&path, b"new"));
    done.unwrap();
    assert_eq!(log.iter().map(|(op, _)| *op).collect::<Vec<_>>(), ["create", "write", "fsync", "rename", "fsync-dir"]);
    for n in 0..log.len() {
        for mode in [Mode::DiskFull, Mode::Dead] {
            write_atomic(&path, b"old").unwrap();
            let (done, _) = trace(Some((n, mode)), || write_atomic(&path, b"new"));
            assert_eq!(exit_of(&done.unwrap_err()), Exit::Io);
            let expected: &[u8] = if n < 4 { b"old" } else { b"new" };
            assert_eq!(std::fs::read(&path).unwrap(), expected, "failure at {n}");
            let left = names(dir.path()).into_iter().filter(|name| name != "a").collect::<Vec<_>>();
            assert!(left.is_empty() || mode == Mode::Dead, "failure at {n} leaves {left:?}");
            left.iter().for_each(|name| std::fs::remove_file(dir.path().join(name)).unwrap());
        }
    }
}

#[test]
fn outputs_replace_regular_files_only() {
    let dir = dir();
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious\n").unwrap();
    symlink(&victim, dir.path().join("link")).unwrap();
    symlink(dir.path().join("nowhere"), dir.path().join("dangling")).unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    mkfifo(&dir.path().join("fifo"));
    for name in ["link", "dangling", "folder", "fifo"] {
        let path = dir.path().join(name);
        for error in [write_atomic(&path, b"x").unwrap_err(), append_log(&path).map(drop).unwrap_err()] {
            assert_eq!(exit_of(&error), Exit::Io, "{name}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
    assert!(lock(&dir.path().join("link")).is_err());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious\n");
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn inputs_are_regular_bounded_and_never_block() {
    let dir = dir();
    let (file, link, fifo) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("fifo"));
    std::fs::write(&file, "12345").unwrap();
    symlink(&file, &link).unwrap();
    mkfifo(&fifo);
    assert_eq!(read_bounded(&file, 5, false).unwrap(), b"12345");
    assert_eq!(exit_of(&read_bounded(&file, 4, false).unwrap_err()), Exit::Data);
    assert_eq!(read_bounded(&link, 5, true).unwrap(), b"12345");
    assert_eq!(exit_of(&read_bounded(&link, 5, false).unwrap_err()), Exit::Io);
    assert_eq!(exit_of(&open_input(&fifo, true).unwrap_err()), Exit::Io);
    assert!(read_bounded(Path::new("/dev/zero"), 5, true).is_err());
}

#[test]
fn log_grows_by_whole_lines() {
    let dir = dir();
    let path = dir.path().join("log");
    let mut log = append_log(&path).unwrap();
    log.line("{\"a\":1}").unwrap();
    let mark = log.len().unwrap();
    log.line("").unwrap();
    log.sync().unwrap();
    assert_eq!(exit_of_internal(&log.line("a\nb").unwrap_err()), Exit::Internal);
    assert_eq!((mark, std::fs::read_to_string(&path).unwrap().as_str()), (8, "{\"a\":1}\n\n"));
    let (failed, _) = trace(Some((0, Mode::DiskFull)), || log.line("lost"));
    assert_eq!(exit_of(&failed.unwrap_err()), Exit::Io);
    log.line("kept").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n\nkept\n");
}

fn exit_of_internal(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Failure>().unwrap().exit
}

#[test]
fn torn_last_line_is_removed_on_opening() {
    let dir = dir();
    let path = dir.path().join("log");
    let long = "x".repeat(10_000);
    for (before, after) in [
        ("a\nb\ntor", "a\nb\n"),
        ("torn", ""),
        ("", ""),
        ("a\n", "a\n"),
        (&format!("a\n{long}"), "a\n"),
        (&format!("{long}\n{long}"), &format!("{long}\n")),
        (&long, ""),
    ] {
        std::fs::write(&path, before).unwrap();
        append_log(&path).unwrap().line("next").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{after}next\n"));
    }
}

#[test]
fn directory_appears_whole_or_not_at_all() {
    let dir = dir();
    let target = dir.path().join("d");
    let write = |content: &[u8]| -> Result<Digest> {
        let txn = DirTxn::create(&target, "1")?;
        let digest = txn.write("a", content)?;
        txn.commit()?;
        Ok(digest)
    };
    let (digest, log) = trace(None, || write(b"new").unwrap());
    assert_eq!(digest, hash_file(&target.join("a")).unwrap());
    assert_eq!(
        log.iter().map(|(op, _)| *op).collect::<Vec<_>>(),
        ["mkdir", "create", "write", "fsync", "fsync-dir", "rename", "fsync-dir"]
    );
    for n in 0..log.len() {
        for mode in [Mode::DiskFull, Mode::Dead] {
            std::fs::remove_dir_all(&target).unwrap();
            let (done, _) = trace(Some((n, mode)), || write(b"new").map(drop));
            assert_eq!(exit_of(&done.unwrap_err()), Exit::Io);
            assert_eq!(target.exists(), n == 6, "failure at {n}");
            if mode == Mode::DiskFull {
                assert!(
                    names(dir.path()).iter().all(|name| name == "d"),
                    "failure at {n} leaves a temporary directory"
                );
            }
            // What a dead process left does not stop the next one.
            write(b"next").unwrap();
            assert_eq!(std::fs::read(target.join("a")).unwrap(), b"next");
        }
    }
    let unfinished = DirTxn::create(&dir.path().join("e"), "2").unwrap();
    unfinished.write("a", b"").unwrap();
    assert_eq!(names(dir.path()), [".tmp-e-2", "d"]);
    drop(unfinished);
    assert_eq!(names(dir.path()), ["d"]);
}

#[test]
fn taken_names_are_kept_by_renames_and_removals_do_not_follow_links() {
    let dir = dir();
    let (a, b, outside) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("outside"));
    for d in [&a, &b, &outside] {
        std::fs::create_dir(d).unwrap();
    }
    std::fs::write(b.join("file"), "kept").unwrap();
    std::fs::write(outside.join("file"), "kept").unwrap();
    assert_eq!(exit_of(&rename_durable(&a, &b).unwrap_err()), Exit::Io);
    assert!(a.exists() && b.join("file").exists());
    symlink(&outside, a.join("link")).unwrap();
    remove_tree(&a).unwrap();
    assert!(!a.exists() && outside.join("file").exists());
    assert_eq!(names(dir.path()), ["b", "outside"]);
}

#[test]
fn new_directories_are_durable_in_their_parents() {
    let dir = dir();
    let path = dir.path().join("x/y/z");
    let (done, log) = trace(None, || create_dirs(&path));
    done.unwrap();
    assert!(path.is_dir());
    let synced: Vec<_> = log.iter().filter(|(op, _)| *op == "fsync-dir").map(|(_, p)| p.clone()).collect();
    assert_eq!(synced, [dir.path().to_owned(), dir.path().join("x"), dir.path().join("x/y")]);
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert_eq!(exit_of(&create_dirs(&dir.path().join("file/sub")).unwrap_err()), Exit::Io);
    create_dirs(&path).unwrap();
}

#[test]
fn lock_is_exclusive_names_its_holder_and_dies_with_it() {
    let dir = dir();
    let path = dir.path().join("run.lock");
    let held = lock(&path).unwrap();
    let busy = lock(&path).unwrap_err();
    assert_eq!(exit_of(&busy), Exit::Busy);
    assert!(busy.to_string().contains(&format!("process {} on host", std::process::id())), "{busy}");
    drop(held);
    // This test program again, as another process that takes the lock and waits to be killed.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "runtime::files::tests::lock_holder_process", "--nocapture", "--test-threads=1"])
        .env("LOCK_HOLDER_PATH", &path)
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("lock taken")), "the child did not take the lock");
    let busy = lock(&path).unwrap_err();
    assert!(busy.to_string().contains(&format!("process {}", child.id())), "{busy}");
    child.kill().unwrap();
    child.wait().unwrap();
    lock(&path).unwrap();
}

#[test]
fn lock_holder_process() {
    // Does something only as the child of the test above.
    let Some(path) = std::env::var_os("LOCK_HOLDER_PATH") else { return };
    let _held = lock(Path::new(&path)).unwrap();
    println!("lock taken");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn hash_is_blake3_of_the_content() {
    let dir = dir();
    let path = dir.path().join("empty");
    std::fs::write(&path, "").unwrap();
    let expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    assert_eq!(hash_file(&path).unwrap(), Digest { size: 0, blake3: expected.to_owned() });
    let long = vec![3_u8; (2 << 20) + 5];
    std::fs::write(&path, &long).unwrap();
    assert_eq!(hash_file(&path).unwrap().blake3, blake3::hash(&long).to_hex().as_str());
}

#[test]
fn free_space_of_a_place_yet_to_be_made() {
    let dir = dir();
    let here = free_space(dir.path()).unwrap().unwrap();
    let there = free_space(&dir.path().join("not/yet")).unwrap().unwrap();
    assert!(here > 0 && there > 0);
    assert!(free_space(Path::new("relative-and-missing")).unwrap() > Some(0));
}

#[test]
fn failures_keep_path_system_error_and_remedy() {
    let full = io_failure("write", Path::new("/runs/a"), &rustix::io::Errno::NOSPC.into());
    assert_eq!(full.exit, Exit::Io);
    assert!(full.message.contains("/runs/a") && full.message.contains("os error 28"), "{full}");
    assert!(full.hint.unwrap().contains("free space"));
    let hints = [
        (rustix::io::Errno::IO, "dmesg"),
        (rustix::io::Errno::MFILE, "ulimit"),
        (rustix::io::Errno::ROFS, "read-only"),
    ];
    for (errno, word) in hints {
        assert!(io_failure("write", Path::new("x"), &errno.into()).hint.unwrap().contains(word), "{errno}");
    }
    // Through `Write`, whose errors are plain `io::Error`s, nothing is lost.
    let dir = dir();
    let mut file = AtomicFile::create(&dir.path().join("target")).unwrap();
    let (failed, _) =
        trace(Some((0, Mode::DiskFull)), || file.write_all(b"x").map_err(io_context("copy", Path::new("source"))));
    let error = failed.unwrap_err();
    assert!(error.to_string().contains("target"), "{error}");
    assert_eq!(exit_of(&error), Exit::Io);
}
