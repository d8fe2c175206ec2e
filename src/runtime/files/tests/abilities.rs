//! File systems that cannot do everything, and names that no longer stand for the file that was opened.

use super::*;
use crate::runtime::files::ability::Ability;
use rustix::io::Errno;

/// Every sync of a save that the file system does not know is passed over; one that fails is an error as ever.
#[test]
fn what_cannot_be_synced_is_written_all_the_same() {
    let write = |dir: &Path| -> Result<()> {
        write_atomic(&dir.join("file"), b"content")?;
        let txn = DirTxn::create(&dir.join("d"), "1")?;
        txn.write("a", b"content")?;
        txn.commit()?;
        append_log(&dir.join("log"))?.line("line")
    };
    let (_, log) = trace(None, || write(dir().path()));
    let unsupported = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL, Errno::BADF, Errno::IO];
    for (n, errno) in (0..log.len()).flat_map(|n| unsupported.map(|errno| (n, errno))) {
        let dir = dir();
        let (done, _) = trace(Some((n, Mode::Fails(errno))), || write(dir.path()));
        let passed_over = match log[n].0 {
            "fsync-dir" => errno != Errno::IO,
            "fsync" => ![Errno::IO, Errno::BADF].contains(&errno),
            _ => false,
        };
        assert_eq!(done.is_ok(), passed_over, "{:?} fails with {errno:?}", log[n]);
        assert!(done.is_err() || std::fs::read(dir.path().join("d/a")).unwrap() == b"content");
    }
}

#[test]
fn an_error_that_means_no_is_told_from_one_that_means_cannot() {
    let missing = |ability: Ability, errno: Errno| ability.is_missing(&errno.into());
    assert!([Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK].into_iter().all(|errno| missing(Ability::Locks, errno)));
    let refusals = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::ROFS, Errno::MFILE, Errno::STALE];
    let all = [Ability::Locks, Ability::SyncFiles, Ability::SyncDirectories, Ability::Exchange, Ability::FreeSpace];
    for (errno, ability) in refusals.into_iter().flat_map(|errno| all.map(|ability| (errno, ability))) {
        assert!(!missing(ability, errno), "{ability:?} {errno:?}");
    }
}

/// Two names trade places without the system's help, and keep their content if that fails half-way.
#[test]
fn names_are_exchanged_in_steps() {
    let dir = dir();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::create_dir(&b).unwrap();
    std::fs::write(b.join("old"), "").unwrap();
    crate::runtime::files::dir::exchange_in_steps(&a, &b).unwrap();
    assert!(a.join("old").exists() && b.exists() && names(dir.path()) == ["a", "b"]);
    assert!(crate::runtime::files::dir::exchange_in_steps(&dir.path().join("none"), &a).is_err());
    assert!(a.join("old").exists() && names(dir.path()) == ["a", "b"]);
}

/// A child that another thread is just starting holds copies of all descriptors until it executes its program.
#[test]
fn a_copy_of_the_descriptor_does_not_hold_the_lock() {
    let dir = dir();
    let path = dir.path().join("run.lock");
    let held = lock(&path).unwrap();
    let inherited = held.named.file.try_clone().unwrap();
    drop(held);
    lock(&path).unwrap();
    drop(inherited);
}

#[test]
fn files_that_lost_their_name_are_noticed() {
    let dir = dir();
    let (path, lock_path, moved) = (dir.path().join("log"), dir.path().join("run.lock"), dir.path().join("moved"));
    let (mut log, held) = (append_log(&path).unwrap(), lock(&lock_path).unwrap());
    log.line("one").unwrap();
    assert!(log.is_in_place() && held.is_in_place());
    std::fs::rename(&path, &moved).unwrap();
    assert!(!log.is_in_place() && held.is_in_place());
    std::fs::copy(&moved, &path).unwrap();
    assert!(!log.is_in_place(), "the same content in another file");
    std::fs::rename(&moved, &path).unwrap();
    assert!(log.is_in_place());
    std::fs::remove_file(&lock_path).unwrap();
    assert!(!held.is_in_place());
    // Who comes now gets a lock, and so must know that its own is the one that counts.
    assert!(lock(&lock_path).unwrap().is_in_place());
    std::fs::remove_file(&path).unwrap();
    log.line("two").unwrap();
    log.copy_to(&moved).unwrap();
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
}
