//! The real client against a Hub on this machine: what names mean, and how refusals are told.

mod fetch;
mod models;
mod server;

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::runtime::error::Failure;
use server::{COMMIT, FakeHub, REPO, Reply, any, git_like};

/// A client of `fake` whose seconds last a millisecond.
fn client(fake: &FakeHub, cache: &Path) -> Hub {
    with(fake, cache, |_| {})
}

fn with(fake: &FakeHub, cache: &Path, change: impl FnOnce(&mut Settings)) -> Hub {
    let mut settings = Settings::new(&fake.endpoint, cache.to_owned());
    settings.second = Duration::from_millis(1);
    settings.silence = Duration::from_secs(20);
    change(&mut settings);
    Hub::new(settings).unwrap()
}

fn token(settings: &mut Settings) {
    settings.token = Some(Token("hf_secret".to_owned()));
}

fn offline(settings: &mut Settings) {
    settings.offline = true;
}

/// The failure, which has a hint, one line, and no secret in it.
fn failure<T>(result: Result<T>) -> Failure {
    let Err(error) = result else { panic!("no error") };
    let failure = error.downcast::<Failure>().unwrap();
    let all = format!("{failure:?}");
    assert!(failure.hint.is_some() && !failure.message.contains('\n'), "{all}");
    assert!(!all.contains("secret") && !all.contains("signature"), "{all}");
    failure
}

fn paths(hub: &Hub, name: &str) -> Result<Vec<String>> {
    let files = hub.resolve(&name.parse()?)?;
    assert!(files.iter().all(|file| file.repo == REPO && file.commit == COMMIT));
    Ok(files.into_iter().map(|file| file.path).collect())
}

/// The card of [`fineweb`] as JSON.
fn fineweb_card() -> serde_json::Value {
    let subset =
        |name: &str, path: &str| json!({ "config_name": name, "data_files": [{ "split": "train", "path": path }] });
    json!({ "license": "odc-by", "configs": [subset("default", "data/*/*"), subset("sample-10BT", "sample/10BT/*")] })
}

fn fineweb() -> FakeHub {
    let fake = FakeHub::start();
    for i in [2, 0, 1] {
        fake.file(&format!("data/CC-MAIN-2024-10/00{i}.parquet"), "abc", true);
    }
    fake.file("sample/10BT/000.parquet", "sample", true)
        .file(".gitattributes", "x", false)
        .file(CARD, "---\nconfigs: []\n---\n# FineWeb\n", false)
        .card(fineweb_card());
    fake
}

#[test]
fn subsets_come_from_the_card_and_lists_page_by_page() {
    let (fake, dir) = (fineweb(), tempfile::tempdir().unwrap());
    fake.pages_of(2);
    let hub = with(&fake, dir.path(), token);
    let train: Vec<String> = (0..3).map(|i| format!("data/CC-MAIN-2024-10/00{i}.parquet")).collect();
    assert_eq!(paths(&hub, "hub:owner/name").unwrap(), train);
    let asked = fake.asked();
    assert_eq!(asked.iter().filter(|a| a.path.contains("/tree/")).count(), 3, "three pages");
    assert!(asked.iter().all(|a| a.header("authorization") == Some("Bearer hf_secret") && !a.storage));
    let sample = hub.resolve(&"hub:owner/name:sample-10BT".parse().unwrap()).unwrap();
    let expected = RemoteFile {
        kind: RepoKind::Dataset,
        repo: REPO.into(),
        commit: COMMIT.into(),
        path: "sample/10BT/000.parquet".into(),
        size: 6,
    };
    assert_eq!(sample, [expected]);
    assert_eq!(paths(&hub, "hub:owner/name/data/*/002.parquet").unwrap(), train[2..]);
    assert!(failure(paths(&hub, "hub:owner/name:other")).hint.unwrap().contains("`default`, `sample-10BT`"));
    let asked = fake.asked();
    assert!(asked.iter().all(|a| a.path.contains("/revision/main")), "lists and cards are kept: {asked:?}");
    assert_eq!(paths(&hub, "hub:owner/name@refs/pr/1").unwrap(), train);
    fake.asked();
    assert_eq!(paths(&hub, &format!("hub:owner/name@{COMMIT}")).unwrap(), train);
    assert!(fake.asked().is_empty(), "a commit needs no question");
}

#[test]
fn offline_names_mean_what_they_last_meant() {
    let (fake, dir) = (fineweb(), tempfile::tempdir().unwrap());
    let away = with(&fake, dir.path(), offline);
    assert_eq!(failure(paths(&away, "hub:owner/name")).exit, Exit::Io);
    let seen = paths(&client(&fake, dir.path()), "hub:owner/name:sample-10BT").unwrap();
    fake.asked();
    assert_eq!(paths(&away, "hub:owner/name:sample-10BT").unwrap(), seen);
    let file = away.resolve(&"hub:owner/name:sample-10BT".parse().unwrap()).unwrap().remove(0);
    assert!(failure(away.fetch(&file, &|_| {})).message.contains("HF_HUB_OFFLINE"));
    assert!(failure(paths(&away, "hub:owner/name@other")).message.contains("owner/name@other"));
    assert!(fake.asked().is_empty());
}

#[test]
fn names_without_a_card_go_by_the_files() {
    let (fake, dir) = (FakeHub::start(), tempfile::tempdir().unwrap());
    fake.file("data/train-00000-of-00001.parquet", "x", true).file("data/test-00000-of-00001.parquet", "x", true);
    let hub = client(&fake, dir.path());
    assert_eq!(paths(&hub, "hub:owner/name").unwrap(), ["data/train-00000-of-00001.parquet"]);
    assert_eq!(paths(&hub, "hub:owner/name::test").unwrap(), ["data/test-00000-of-00001.parquet"]);
    assert!(failure(paths(&hub, "hub:owner/name::dev")).hint.unwrap().contains("`test`, `train`"));
}

#[test]
fn a_broken_card_says_how_to_do_without() {
    let (fake, dir) = (FakeHub::start(), tempfile::tempdir().unwrap());
    fake.file(CARD, "---\nconfigs: [\n---\n", false).file("a.txt", "x", false);
    let hub = client(&fake, dir.path());
    // The Hub cannot read the first, we not the second.
    for card in [serde_json::Value::Null, json!({ "configs": 3 })] {
        fake.card(card);
        let broken = failure(paths(&hub, "hub:owner/name"));
        assert!(broken.exit == Exit::Data && broken.message.contains("README.md"), "{}", broken.message);
        assert!(broken.hint.unwrap().contains("hub:owner/name/PATH"));
    }
    assert_eq!(paths(&hub, "hub:owner/name/a.txt").unwrap(), ["a.txt"]);
}

/// Python keeps README.md in the same cache, but no JSON of its head.
#[test]
fn offline_a_readme_in_the_cache_serves_if_it_names_no_subsets() {
    for (readme, served) in [("# Title\n", true), ("---\nconfigs:\n- data_files: a.txt\n---\n", false)] {
        let (fake, dir) = (FakeHub::start(), tempfile::tempdir().unwrap());
        fake.file(CARD, readme, false).file("a.txt", "x", false);
        let hub = client(&fake, dir.path());
        assert_eq!(paths(&hub, "hub:owner/name").is_ok(), served);
        let offline = paths(&with(&fake, dir.path(), offline), "hub:owner/name");
        match served {
            true => assert_eq!(offline.unwrap(), ["a.txt"]),
            false => assert!(failure(offline).message.contains("its list of subsets is not in the cache")),
        }
    }
}

#[test]
fn each_refusal_has_its_own_words() {
    let (fake, dir) = (fineweb(), tempfile::tempdir().unwrap());
    type Case = (u16, &'static str, fn(&mut Settings), Exit, &'static str, &'static str);
    let cases: [Case; 9] = [
        (401, "RepoNotFound", |_| {}, Exit::Io, "no token was given", "check the name `owner/name`"),
        (401, "", token, Exit::Io, "token is not accepted", "HF_TOKEN"),
        (401, "GatedRepo", |_| {}, Exit::Io, "restricted", "/datasets/owner/name, then set HF_TOKEN"),
        (403, "GatedRepo", token, Exit::Io, "restricted", "accept its terms at http://"),
        (403, "", token, Exit::Io, "answers 403", "accept its terms"),
        (404, "RepoNotFound", |_| {}, Exit::Config, "no data set owner/name", "check OWNER/NAME"),
        (404, "RevisionNotFound", |_| {}, Exit::Config, "no such branch", "/tree/main"),
        (404, "", |_| {}, Exit::Config, "no data set", "check OWNER/NAME"),
        (451, "", |_| {}, Exit::Io, "answers 451", "HF_ENDPOINT"),
    ];
    for (status, code, change, exit, message, hint) in cases {
        fake.fault(any, move |_, _| Reply::new(status).with("x-error-code", code));
        fake.asked();
        let told = failure(paths(&with(&fake, dir.path(), change), "hub:owner/name"));
        assert_eq!((told.exit, fake.asked().len()), (exit, 1), "{status} {code}: not tried again");
        assert!(told.message.contains(message), "{status} {code}: {}", told.message);
        assert!(told.hint.as_ref().unwrap().contains(hint), "{status} {code}: {:?}", told.hint);
    }
    let hub = client(&fake, dir.path());
    assert!(failure(paths(&hub, "hub:owner/name@gone")).message.contains("owner/name@gone"));
    let mut gone = hub.resolve(&"hub:owner/name".parse().unwrap()).unwrap().remove(0);
    gone.path = "data/gone.parquet".to_owned();
    let told = failure(hub.fetch(&gone, &|_| {}));
    assert!(told.exit == Exit::Config && told.message.contains("data/gone.parquet"), "{}", told.message);
}

#[test]
fn transient_errors_are_tried_again_and_final_ones_reported() {
    let (fake, dir) = (fineweb(), tempfile::tempdir().unwrap());
    let hub = client(&fake, dir.path());
    fake.fault(any, |_, _| Reply::new(429).with("retry-after", "2"));
    fake.fault(any, |_, _| Reply::new(500));
    fake.fault(any, |_, _| Reply::new(408));
    fake.fault(any, |_, reply| Reply { cut: Some(10), ..reply });
    fake.fault(any, |_, _| Reply { endless: true, ..Reply::new(503) });
    assert_eq!(paths(&hub, "hub:owner/name").unwrap().len(), 3);
    let revisions = fake.asked().iter().filter(|a| a.path.contains("/revision/main")).count();
    assert_eq!(revisions, 6, "five retries");
    for (status, words) in [(500, "has a problem"), (429, "too many requests")] {
        (0..6).for_each(|_| fake.fault(any, move |_, _| Reply::new(status)));
        let told = failure(paths(&hub, "hub:owner/name"));
        assert!(told.exit == Exit::Io && told.message.contains(words), "{}", told.message);
        assert_eq!(fake.asked().len(), 6, "one attempt and five retries");
    }
    let mut silent = client(&fake, dir.path());
    silent = Hub::new(Settings { silence: Duration::from_millis(50), ..silent.settings }).unwrap();
    (0..6).for_each(|_| fake.fault(any, |_, _| Reply::new(0)));
    assert!(failure(paths(&silent, "hub:owner/name")).message.contains("does not answer in time"));
}

#[test]
fn without_network_or_tls_the_hint_says_so() {
    let (fake, dir) = (fineweb(), tempfile::tempdir().unwrap());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = with(&fake, dir.path(), |s| s.endpoint = format!("http://{closed}"));
    let told = failure(paths(&nobody, "hub:owner/name"));
    assert!(told.message.contains("no answer from 127.0.0.1") && told.hint.unwrap().contains("HF_HUB_OFFLINE=1"));
    // A server that speaks no TLS.
    fake.asked();
    let plain = with(&fake, dir.path(), |s| s.endpoint = fake.endpoint.replace("http:", "https:"));
    let told = failure(paths(&plain, "hub:owner/name"));
    assert!(told.message.contains("no secure connection"), "{}", told.message);
    assert!(told.hint.unwrap().contains("SSL_CERT_FILE"));
    let pem = dir.path().join("empty.pem");
    std::fs::write(&pem, "").unwrap();
    let mut settings = Settings::new(&fake.endpoint, dir.path().to_owned());
    settings.authorities = Some(pem);
    assert!(failure(Hub::new(settings)).message.contains("empty.pem"));
}

#[test]
fn one_odd_name_does_not_refuse_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeHub::start();
    fake.file("a.jsonl", "{}", false).file("bell\u{7}.jsonl", "{}", false).file("b\\c.jsonl", "{}", false);
    let hub = client(&fake, dir.path());
    // From the server, then from the cache.
    for _ in 0..2 {
        assert_eq!(paths(&hub, "hub:owner/name").unwrap(), ["a.jsonl"]);
    }
    let file = RemoteFile {
        kind: RepoKind::Dataset,
        repo: REPO.into(),
        commit: COMMIT.into(),
        path: "bell\u{7}.jsonl".into(),
        size: 2,
    };
    assert_eq!(failure(hub.fetch(&file, &|_| {})).exit, Exit::Data);
}

#[test]
fn what_a_server_says_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    for hostile in ["../../evil.txt", "/etc/evil.txt", "a//evil.txt", "a\\..\\evil.txt", "./evil.txt"] {
        let fake = FakeHub::start();
        fake.file(hostile, "evil", false);
        let cache = dir.path().join(git_like(hostile.as_bytes()));
        let hub = client(&fake, &cache);
        let told = failure(hub.resolve(&"hub:owner/name/**".parse().unwrap()));
        assert!(told.exit == Exit::Data && told.message.contains("refused"), "{hostile}: {}", told.message);
        let file = RemoteFile {
            kind: RepoKind::Dataset,
            repo: REPO.into(),
            commit: COMMIT.into(),
            path: hostile.into(),
            size: 4,
        };
        assert_eq!(failure(hub.fetch(&file, &|_| {})).exit, Exit::Data, "{hostile}");
    }
    let fake = fineweb();
    let hub = client(&fake, dir.path());
    let good = hub.resolve(&"hub:owner/name".parse().unwrap()).unwrap().remove(0);
    for (repo, commit) in [("../x", COMMIT), ("a/../x", COMMIT), (REPO, "main"), (REPO, "..")] {
        let file = RemoteFile { repo: repo.into(), commit: commit.into(), ..good.clone() };
        assert_eq!(failure(hub.fetch(&file, &|_| {})).exit, Exit::Data);
    }
    for sha in ["../../x", "", "main"] {
        fake.fault(any, move |_, reply| reply.body(json!({ "sha": sha }).to_string()));
        assert_eq!(failure(paths(&hub, "hub:owner/name")).exit, Exit::Data);
    }
    for (header, etag) in [("x-linked-etag", "../../../x"), ("x-linked-etag", ".hidden"), ("x-linked-etag", "")] {
        fake.fault(any, move |_, _| Reply::new(200).with(header, etag));
        assert_eq!(failure(hub.fetch(&good, &|_| {})).exit, Exit::Data, "{etag}");
    }
    fake.fault(any, |_, reply| reply.body("<html>sign in</html>"));
    assert!(failure(paths(&hub, "hub:owner/name")).hint.unwrap().contains("HF_ENDPOINT"));
    for location in ["file:///etc/passwd", "x", "http://"] {
        fake.fault(any, move |_, _| Reply::new(302).with("location", location));
        assert!(failure(paths(&hub, "hub:owner/name")).message.contains("redirects"), "{location}");
    }
    (0..9).for_each(|_| fake.fault(any, |asked, _| Reply::new(302).with("location", &asked.path)));
    assert!(failure(paths(&hub, "hub:owner/name")).message.contains("without end"));
}
