//! Downloads, interrupted in every way.

use std::sync::Mutex;

use super::server::{content, sha256};
use super::*;

const LARGE: &str = "data/large.parquet";

fn bytes() -> Vec<u8> {
    (0..100_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect()
}

fn one_file(large: bool) -> (FakeHub, RemoteFile) {
    let fake = FakeHub::start();
    let path = if large { LARGE } else { "data/small.txt" };
    fake.file(path, bytes(), large);
    let file = RemoteFile {
        kind: RepoKind::Dataset,
        repo: REPO.into(),
        commit: COMMIT.into(),
        path: path.into(),
        size: bytes().len() as u64,
    };
    (fake, file)
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("datasets--owner--name")
}

fn part(cache: &Path) -> PathBuf {
    folder(cache).join(format!("blobs/{}.incomplete", sha256(&bytes())))
}

/// First bytes that were asked for in the GETs of content.
fn starts(fake: &FakeHub) -> Vec<Option<String>> {
    fake.asked().iter().filter(|a| content(a)).map(|a| a.header("range").map(str::to_owned)).collect()
}

#[test]
fn files_lie_in_the_cache_as_python_puts_them() {
    let dir = tempfile::tempdir().unwrap();
    for large in [true, false] {
        let (fake, file) = one_file(large);
        let hub = with(&fake, dir.path(), token);
        let told = Mutex::new(Vec::new());
        let path = hub.fetch(&file, &|n| told.lock().unwrap().push(n)).unwrap();
        assert_eq!(path, folder(dir.path()).join("snapshots").join(COMMIT).join(&file.path));
        let etag = if large { sha256(&bytes()) } else { git_like(&bytes()) };
        assert_eq!(std::fs::read_link(&path).unwrap(), Path::new(&format!("../../../blobs/{etag}")));
        assert_eq!(std::fs::read(&path).unwrap(), bytes());
        assert!(folder(dir.path()).join("blobs").join(&etag).symlink_metadata().unwrap().is_file());
        assert!(dir.path().join(format!(".locks/datasets--owner--name/{etag}.lock")).exists());
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted() && told.last() == Some(&file.size), "{told:?}");
        let asked = fake.asked();
        for a in &asked {
            let expected = (!a.storage).then_some("Bearer hf_secret");
            assert_eq!(a.header("authorization"), expected, "the token is for the Hub alone: {a:?}");
            assert_eq!(a.header("accept-encoding"), Some("identity"));
        }
        assert_eq!(asked.iter().any(|a| a.storage), large);
        // A second time, another process, and without network: nothing is asked.
        assert_eq!(with(&fake, dir.path(), offline).fetch(&file, &|_| {}).unwrap(), path);
        assert_eq!(client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap(), path);
        assert!(fake.asked().is_empty());
    }
    let left = std::fs::read_dir(folder(dir.path()).join("blobs")).unwrap().count();
    assert_eq!(left, 2, "no unfinished download is left");
}

#[test]
fn the_same_content_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(true);
    fake.file("copy large.parquet", bytes(), true);
    let hub = client(&fake, dir.path());
    hub.fetch(&file, &|_| {}).unwrap();
    fake.asked();
    let copy = RemoteFile { path: "copy large.parquet".into(), ..file };
    let path = hub.fetch(&copy, &|_| {}).unwrap();
    assert_eq!(std::fs::read_link(path).unwrap(), Path::new(&format!("../../blobs/{}", sha256(&bytes()))));
    assert_eq!(fake.asked().len(), 1, "only what it is was asked");
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() {
    for large in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (fake, file) = one_file(large);
        for _ in 0..2 {
            fake.fault(content, |_, reply| Reply { cut: Some(100_000), ..reply });
        }
        // Without a promised length, the end of the connection alone says nothing.
        fake.fault(content, |_, reply| Reply { cut: Some(50_000), endless: true, ..reply });
        fake.fault(content, |_, _| Reply::new(502));
        let path = client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes());
        let asked = fake.asked();
        let guards: Vec<_> = asked.iter().filter(|a| content(a)).map(|a| a.header("if-range")).collect();
        let guard = format!("\"{}\"", git_like(&bytes()));
        let expected = if large { None } else { Some(&*guard) };
        assert_eq!(guards, [None, expected, expected, expected, expected], "large: {large}");
        let ranges: Vec<_> = asked.iter().filter(|a| content(a)).map(|a| a.header("range").unwrap_or("all")).collect();
        assert_eq!(ranges, ["all", "bytes=100000-", "bytes=200000-", "bytes=250000-", "bytes=250000-"]);
    }
}

#[test]
fn the_next_process_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(true);
    fake.fault(content, |_, reply| Reply { cut: Some(123_456), ..reply });
    (0..5).for_each(|_| fake.fault(content, |_, _| Reply::new(500)));
    assert_eq!(failure(client(&fake, dir.path()).fetch(&file, &|_| {})).exit, Exit::Io);
    assert_eq!(part(dir.path()).metadata().unwrap().len(), 123_456);
    fake.asked();
    let told = Mutex::new(Vec::new());
    let path = client(&fake, dir.path()).fetch(&file, &|n| told.lock().unwrap().push(n)).unwrap();
    assert_eq!(told.into_inner().unwrap()[0], 123_456);
    assert_eq!(std::fs::read(path).unwrap(), bytes());
    assert_eq!(starts(&fake), [Some("bytes=123456-".to_owned())]);
    assert!(!part(dir.path()).exists());
}

#[test]
fn what_a_dead_process_left_is_verified() {
    // Zeros where a loss of power took the data; more than the file; all of it.
    for (left, expected) in [
        (vec![0; 5000], vec![Some("bytes=5000-".to_owned()), None]),
        (vec![7; bytes().len() + 1], vec![None]),
        (bytes(), vec![]),
        (vec![7; bytes().len()], vec![None]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (fake, file) = one_file(true);
        std::fs::create_dir_all(folder(dir.path()).join("blobs")).unwrap();
        std::fs::write(part(dir.path()), left).unwrap();
        let path = client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes());
        assert_eq!(starts(&fake), expected);
    }
    // What cannot be verified is begun anew.
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(false);
    std::fs::create_dir_all(folder(dir.path()).join("blobs")).unwrap();
    let part = folder(dir.path()).join(format!("blobs/{}.incomplete", git_like(&bytes())));
    std::fs::write(part, vec![0; 5000]).unwrap();
    let path = client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap();
    assert_eq!((std::fs::read(path).unwrap(), starts(&fake)), (bytes(), vec![None]));
}

#[test]
fn a_server_that_ignores_ranges_is_heard_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(true);
    fake.fault(content, |_, reply| Reply { cut: Some(100_000), ..reply });
    fake.fault(content, |_, _| Reply::new(200).body(bytes()));
    let told = Mutex::new(Vec::new());
    let path = client(&fake, dir.path()).fetch(&file, &|n| told.lock().unwrap().push(n)).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes());
    let told = told.into_inner().unwrap();
    assert!(told.iter().skip_while(|n| **n != 100_000).any(|n| *n == 0), "progress falls back: {told:?}");
    // One that refuses the range.
    let (fake, dir) = (one_file(true).0, tempfile::tempdir().unwrap());
    fake.fault(content, |_, reply| Reply { cut: Some(100_000), ..reply });
    fake.fault(content, |_, _| Reply::new(416));
    client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap();
    assert_eq!(starts(&fake), [None, Some("bytes=100000-".to_owned()), None]);
}

#[test]
fn a_changed_content_starts_over() {
    for large in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (fake, file) = one_file(large);
        let mut other = bytes();
        other[300_000] ^= 1;
        let changed = (fake.clone(), file.path.clone(), other.clone());
        fake.fault(content, |_, reply| Reply { cut: Some(100_000), ..reply });
        let hub = client(&fake, dir.path());
        let once = std::sync::Once::new();
        // Between the cut and the next attempt, the Hub gets another content.
        let path = hub.fetch(&file, &|n| {
            if n >= 100_000 {
                once.call_once(|| {
                    changed.0.file(&changed.1, changed.2.clone(), large);
                });
            }
        });
        assert_eq!(std::fs::read(path.unwrap()).unwrap(), other, "large: {large}");
        let blobs = std::fs::read_dir(folder(dir.path()).join("blobs")).unwrap().map(|e| e.unwrap());
        let left: Vec<_> = blobs.filter(|e| e.metadata().unwrap().len() > 0).collect();
        assert_eq!(left.len(), 1, "nothing of the old content is left: {left:?}");
    }
}

#[test]
fn wrong_lengths_ranges_and_contents_are_refused() {
    type Change = fn(Reply) -> Reply;
    let cases: [(Change, &str); 4] = [
        (|reply| Reply { body: [reply.body, vec![0]].concat(), ..Reply::new(200) }, "more than the 400000 bytes"),
        (
            |r| Reply { body: [r.body, vec![0]].concat(), endless: true, ..Reply::new(200) },
            "more than the 400000 bytes",
        ),
        (|r| Reply { body: r.body.iter().map(|b| b ^ 1).collect(), ..Reply::new(200) }, "SHA-256"),
        (|reply| Reply::new(200).body(reply.body).with("x-linked-etag", "\"x\""), "changes while it is fetched"),
    ];
    for (change, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (fake, file) = one_file(true);
        for _ in 0..if words.contains("changes") { 3 } else { 1 } {
            fake.fault(if words.contains("changes") { |a| a.method == "GET" } else { content }, move |_, r| change(r));
        }
        let told = failure(client(&fake, dir.path()).fetch(&file, &|_| {}));
        assert!(told.message.contains(words) && told.message.contains(LARGE), "{}", told.message);
        assert!(!folder(dir.path()).join("snapshots").join(COMMIT).join(LARGE).exists());
        assert_eq!(part(dir.path()).metadata().unwrap().len(), 0, "doubtful bytes are forgotten");
        client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap();
    }
    for range in ["bytes 0-399999/400000", "bytes 100000-399999/400001", "lines 1-2/3"] {
        let dir = tempfile::tempdir().unwrap();
        let (fake, file) = one_file(true);
        fake.fault(content, |_, reply| Reply { cut: Some(100_000), ..reply });
        fake.fault(content, move |_, r| Reply::new(206).body(r.body).with("content-range", range));
        assert!(failure(client(&fake, dir.path()).fetch(&file, &|_| {})).message.contains("another range"), "{range}");
    }
    let (fake, file) = one_file(true);
    let dir = tempfile::tempdir().unwrap();
    let told = failure(client(&fake, dir.path()).fetch(&RemoteFile { size: 5, ..file.clone() }, &|_| {}));
    assert!(told.exit == Exit::Data && told.message.contains("listed with 5 bytes"), "{}", told.message);
    fake.fault(any, |_, _| Reply::new(200).with("x-repo-commit", "f".repeat(40)).with("etag", "\"x\""));
    assert!(failure(client(&fake, dir.path()).fetch(&file, &|_| {})).message.contains("commit"));
    let huge = RemoteFile { size: 1 << 60, ..file };
    fake.fault(any, |_, _| Reply::new(200).with("etag", "\"x\"").with("x-linked-size", 1_u64 << 60));
    assert!(failure(client(&fake, dir.path()).fetch(&huge, &|_| {})).hint.unwrap().contains("HF_HUB_CACHE"));
}

#[test]
fn damaged_files_in_the_cache_are_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(true);
    let hub = client(&fake, dir.path());
    let path = hub.fetch(&file, &|_| {}).unwrap();
    let blob = path.canonicalize().unwrap();
    std::fs::write(&blob, "short").unwrap();
    assert_eq!(std::fs::read(hub.fetch(&file, &|_| {}).unwrap()).unwrap(), bytes());
    std::fs::remove_file(&blob).unwrap();
    assert_eq!(std::fs::read(hub.fetch(&file, &|_| {}).unwrap()).unwrap(), bytes());
}

#[test]
fn expired_signatures_are_renewed_and_stranger_storages_trusted_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(true);
    fake.fault(content, |_, _| Reply::new(403));
    with(&fake, dir.path(), token).fetch(&file, &|_| {}).unwrap();
    let asked = fake.asked();
    assert_eq!(asked.iter().filter(|a| a.storage).count(), 2, "a new address was made: {asked:?}");
    // A small file whose Hub sends us elsewhere, by any status: the token stays at home.
    for status in [301, 302, 303, 307, 308] {
        let dir = tempfile::tempdir().unwrap();
        let (fake, file) = one_file(false);
        let elsewhere = format!("{}/{}", fake.storage(), sha256(&bytes()));
        for _ in 0..2 {
            let location = elsewhere.clone();
            fake.fault(any, move |_, _| Reply::new(status).with("location", &location));
            fake.fault(any, |_, reply| reply.with("etag", "\"abc\""));
        }
        with(&fake, dir.path(), token).fetch(&file, &|_| {}).unwrap();
        let asked = fake.asked();
        assert!(asked.iter().any(|a| a.storage));
        assert!(asked.iter().all(|a| a.storage != a.header("authorization").is_some()), "{asked:?}");
    }
}

#[test]
fn two_fetches_at_once_make_one_download() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, file) = one_file(true);
    let fetched: Vec<_> = std::thread::scope(|scope| {
        let one = || client(&fake, dir.path()).fetch(&file, &|_| {}).unwrap();
        let both = [scope.spawn(one), scope.spawn(one)];
        both.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(fetched[0], fetched[1]);
    assert_eq!(std::fs::read(&fetched[0]).unwrap(), bytes());
    assert_eq!(starts(&fake).len(), 1);
}
