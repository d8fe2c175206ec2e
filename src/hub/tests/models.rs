//! Models: the same client and cache, other addresses and words.

use super::*;

fn model() -> FakeHub {
    let fake = FakeHub::start();
    fake.file("config.json", "{}", false).file("model.safetensors", "weights", true).file("onnx/model.onnx", "x", true);
    fake
}

fn found(hub: &Hub, name: &str) -> Result<ModelRepo> {
    hub.model(&name.parse()?)
}

#[test]
fn a_model_has_a_folder_of_its_own_in_the_cache() {
    let (fake, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = with(&fake, dir.path(), token);
    let repo = found(&hub, "hub:owner/name").unwrap();
    assert_eq!(repo.paths().collect::<Vec<_>>(), ["config.json", "model.safetensors", "onnx/model.onnx"]);
    assert_eq!(repo.dir, dir.path().join("models--owner--name/snapshots").join(COMMIT));
    assert_eq!((repo.to_string(), repo.is_listed), (format!("hub:owner/name@{COMMIT}"), true));
    let weights = repo.file("model.safetensors").unwrap();
    assert!(!hub.has(weights));
    assert_eq!(hub.fetch(weights, &|_| {}).unwrap(), repo.dir.join("model.safetensors"));
    assert_eq!(std::fs::read(repo.dir.join("model.safetensors")).unwrap(), b"weights");
    assert!(hub.has(weights) && !hub.has(repo.file("config.json").unwrap()));
    let paths: Vec<String> = fake.asked().into_iter().filter(|a| !a.storage).map(|a| a.path).collect();
    assert_eq!(paths[0], "/api/models/owner/name/revision/main?expand=sha");
    assert!(paths.iter().any(|path| *path == format!("/owner/name/resolve/{COMMIT}/model.safetensors")), "{paths:?}");
    assert!(paths.iter().all(|path| !path.contains("datasets")), "{paths:?}");
    // By its commit nothing need be asked, nor without a network.
    assert_eq!(found(&hub, &repo.to_string()).unwrap().dir, repo.dir);
    let away = found(&with(&fake, dir.path(), offline), "hub:owner/name").unwrap();
    assert_eq!((away.dir, away.is_listed), (repo.dir, true));
    assert!(fake.asked().is_empty());
}

/// Python's library keeps no list of files in older versions.
#[test]
fn offline_a_snapshot_without_a_list_is_what_it_holds() {
    let (fake, dir) = (model(), tempfile::tempdir().unwrap());
    let snapshot = dir.path().join("models--owner--name/snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    let hub = with(&fake, dir.path(), offline);
    let repo = found(&hub, &format!("hub:owner/name@{COMMIT}")).unwrap();
    assert_eq!((repo.paths().collect::<Vec<_>>(), repo.is_listed), (vec!["config.json"], false));
    assert!(hub.incomplete(&repo).message.contains("HF_HUB_OFFLINE"));
    assert!(failure(found(&hub, "hub:owner/name")).message.contains("owner/name@main"));
}

#[test]
fn refusals_speak_of_models() {
    let (fake, dir) = (model(), tempfile::tempdir().unwrap());
    type Case = (u16, &'static str, fn(&mut Settings), Exit, &'static str, &'static str);
    let cases: [Case; 5] = [
        (401, "RepoNotFound", |_| {}, Exit::Io, "no such public model", "check the name `owner/name`"),
        (401, "GatedRepo", |_| {}, Exit::Io, "access to this model is restricted", "/owner/name, then set HF_TOKEN"),
        (403, "GatedRepo", token, Exit::Io, "access to this model is restricted", "accept its terms at http://"),
        (404, "RepoNotFound", |_| {}, Exit::Config, "there is no model owner/name", "/models; a private one"),
        (404, "RevisionNotFound", |_| {}, Exit::Config, "no such branch", "/owner/name/tree/main"),
    ];
    for (status, code, change, exit, message, hint) in cases {
        fake.fault(any, move |_, _| Reply::new(status).with("x-error-code", code));
        let told = failure(found(&with(&fake, dir.path(), change), "hub:owner/name"));
        assert_eq!(told.exit, exit, "{status} {code}");
        assert!(told.message.contains(message), "{status} {code}: {}", told.message);
        let given = told.hint.unwrap();
        assert!(given.contains(hint) && !given.contains("datasets"), "{status} {code}: {given}");
    }
}
