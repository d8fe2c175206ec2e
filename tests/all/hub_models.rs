//! Models that are named on the Hub, wherever the program takes a model: a server on this machine is the Hub.

use crate::sft::Bench;
use crate::support::{arg, checkpoint, ok, program, stderr, stdout};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files by `OWNER/NAME` and path.
type Repositories = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// A Hub whose models all are at one commit; `owner/gated` wants a token.
#[derive(Clone)]
struct ModelHub {
    endpoint: String,
    repositories: Arc<Mutex<Repositories>>,
    /// Addresses that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl ModelHub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let hub = Self { endpoint, repositories: Arc::default(), asked: Arc::default() };
        let server = hub.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(connection));
            }
        });
        hub
    }

    /// Puts the files of the directory `dir` into the repository `name`.
    fn upload(&self, name: &str, dir: &Path) {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let files =
            files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()));
        self.repositories.lock().unwrap().insert(name.to_owned(), files.collect());
    }

    fn put(&self, name: &str, file: &str, content: &str) {
        self.repositories.lock().unwrap().entry(name.to_owned()).or_default().insert(file.to_owned(), content.into());
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn serve(&self, mut connection: TcpStream) {
        let mut lines = BufReader::new(connection.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let headers: HashMap<String, String> = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(':').map(|(k, v)| (k.to_lowercase(), v.trim().to_owned())))
            .collect();
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        self.asked.lock().unwrap().push(path.to_owned());
        let (status, code, body) = self.answer(path, headers.contains_key("authorization"));
        let etag = blake3::hash(&body).to_hex().to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\nx-error-code: {code}\r\netag: \"{}\"\r\ncontent-length: {}\r\n\r\n",
            &etag[..40],
            body.len()
        );
        let body = if method == "HEAD" { Vec::new() } else { body };
        let _ = connection.write_all(&[head.as_bytes(), &body].concat());
    }

    /// Status, the Hub's code of the error, and body.
    fn answer(&self, path: &str, has_token: bool) -> (u16, &'static str, Vec<u8>) {
        let path = path.split('?').next().unwrap();
        let parts: Vec<&str> = path.trim_start_matches("/api/models").split('/').skip(1).collect();
        let [owner, name, what, rest @ ..] = parts.as_slice() else { return (404, "RepoNotFound", Vec::new()) };
        if format!("{owner}/{name}") == "owner/gated" && !has_token {
            return (401, "GatedRepo", Vec::new());
        }
        let repositories = self.repositories.lock().unwrap();
        let Some(files) = repositories.get(&format!("{owner}/{name}")) else {
            return (404, "RepoNotFound", Vec::new());
        };
        match (*what, rest) {
            ("revision", ["main" | COMMIT]) => (200, "", json!({ "sha": COMMIT }).to_string().into()),
            ("tree", [COMMIT]) => {
                let items = files
                    .iter()
                    .map(|(path, content)| json!({"type": "file", "path": path, "size": content.len(), "oid": "0"}));
                (200, "", Value::Array(items.collect()).to_string().into())
            }
            ("resolve", [COMMIT, file]) => {
                files.get(*file).map_or((404, "EntryNotFound", Vec::new()), |content| (200, "", content.clone()))
            }
            _ => (404, "RevisionNotFound", Vec::new()),
        }
    }
}

/// A Hub, and where its files are kept.
struct Place {
    bench: Bench,
    hub: ModelHub,
}

impl Place {
    fn new() -> Self {
        let place = Self { bench: Bench::new(), hub: ModelHub::start() };
        let plain = place.bench.path("plain");
        ok(&["export", "--ckpt", arg(&place.bench.path("base")), "--out", arg(&plain), "--quiet"]);
        place.hub.upload("owner/name", &plain);
        place
    }

    fn snapshot(&self, folder: &str) -> PathBuf {
        self.bench.path("cache").join(folder).join("snapshots").join(COMMIT)
    }

    fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = program(args);
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HUB_CACHE", self.bench.path("cache"));
        // A machine of a developer may have a token and settings of its own.
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_OFFLINE",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.env("HF_TOKEN_PATH", self.bench.path("no-token")).envs(variables.iter().copied());
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> Output {
        let output = self.run_with(args, &[]);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        output
    }

    fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.run_with(args, &[]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains("hint:"), "{said}");
        said
    }
}

fn sample(ckpt: &str) -> Vec<&str> {
    vec!["sample", "--ckpt", ckpt, "--prompt", "One day", "--greedy", "--max-tokens", "8"]
}

#[test]
fn a_model_of_the_hub_is_downloaded_once_and_used_like_a_directory() {
    let place = Place::new();
    place.hub.put("owner/name", "README.md", "not needed");
    place.hub.put("owner/name", "pytorch_model.bin", "never fetched beside safetensors");
    let expected = stdout(&ok(&sample(arg(&place.bench.path("plain")))));
    let first = place.ok(&sample("hub:owner/name"));
    assert_eq!(stdout(&first), expected);
    assert!(stderr(&first).contains(&format!("getting hub:owner/name@{COMMIT}:")), "{}", stderr(&first));
    let asked = place.hub.asked();
    assert!(asked.iter().all(|path| !path.contains("README") && !path.contains("pytorch")), "{asked:?}");
    let snapshot = place.snapshot("models--owner--name");
    assert!(snapshot.join("model.safetensors").is_symlink() && snapshot.join("tokenizer.json").exists());
    // The branch is looked up again; nothing is downloaded twice.
    let second = place.ok(&sample("hub:owner/name@main"));
    assert!(stdout(&second) == expected && !stderr(&second).contains("getting"), "{}", stderr(&second));
    assert!(place.hub.asked().iter().all(|path| path.contains("/revision/main")));
    let offline = place.run_with(&sample("hub:owner/name"), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(stdout(&offline), expected);
    let out = place.bench.path("exported");
    place.ok(&["export", "--ckpt", "hub:owner/name", "--out", arg(&out), "--quiet"]);
    assert_eq!(
        std::fs::read(out.join("model.safetensors")).unwrap(),
        std::fs::read(snapshot.join("model.safetensors")).unwrap()
    );
}

#[test]
fn sharded_weights_are_fetched_by_their_index() {
    let place = Place::new();
    let plain = place.bench.path("plain");
    let tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(plain.join("model.safetensors"), &Device::Cpu).unwrap().into_iter().collect();
    let expected = stdout(&ok(&sample(arg(&plain))));
    let mut map = serde_json::Map::new();
    let names: Vec<&String> = tensors.keys().collect();
    for (n, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", n + 1);
        let shard: HashMap<String, Tensor> = half.iter().map(|&name| (name.clone(), tensors[name].clone())).collect();
        candle_core::safetensors::save(&shard, plain.join(&file)).unwrap();
        map.extend(half.iter().map(|&name| (name.clone(), Value::from(file.clone()))));
    }
    std::fs::remove_file(plain.join("model.safetensors")).unwrap();
    std::fs::write(plain.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    place.hub.upload("owner/sharded", &plain);
    assert_eq!(stdout(&place.ok(&sample("hub:owner/sharded"))), expected);
    std::fs::remove_file(plain.join("model-00002-of-00002.safetensors")).unwrap();
    place.hub.upload("owner/half", &plain);
    let said = place.refused(&sample("hub:owner/half"), 78);
    assert!(said.contains("has no model-00002-of-00002.safetensors") && said.contains("index.json names it"), "{said}");
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let place = Place::new();
    let config = std::fs::read_to_string(place.bench.path("plain/config.json")).unwrap();
    place.hub.put("owner/pickle", "config.json", &config);
    place.hub.put("owner/pickle", "pytorch_model.bin", "x");
    let said = place.refused(&sample("hub:owner/pickle"), 78);
    assert!(said.contains("pytorch_model.bin, a pickle") && said.contains("hub:owner/pickle@refs/pr/NUMBER"), "{said}");
    place.hub.put("owner/data", "train.parquet", "x");
    let said = place.refused(&sample("hub:owner/data"), 78);
    assert!(said.contains("has no config.json") && said.contains("`train.parquet`"), "{said}");
    let said = place.refused(&sample("hub:owner/none"), 78);
    assert!(said.contains("there is no model owner/none"), "{said}");
    let said = place.refused(&sample("hub:owner/gated"), 74);
    assert!(said.contains("restricted") && said.contains("/owner/gated, then set HF_TOKEN"), "{said}");
    let said = place.refused(&sample("hub:owner/name/model.safetensors"), 78);
    assert!(said.contains("hub:OWNER/NAME[@REVISION]"), "{said}");
    let away = place.run_with(&sample("hub:owner/other"), &[("HF_HUB_OFFLINE", "1")]);
    assert!(away.status.code() == Some(74) && stderr(&away).contains("HF_HUB_OFFLINE"), "{}", stderr(&away));
    place.hub.upload("owner/gated", &place.bench.path("plain"));
    let allowed = place.run_with(&sample("hub:owner/gated"), &[("HF_TOKEN", "hf_x")]);
    assert!(allowed.status.success(), "{}", stderr(&allowed));
}

#[test]
fn a_run_knows_the_commit_that_it_started_from() {
    let place = Place::new();
    let (tuned, config) = (place.bench.path("tuned"), place.bench.path("lora.toml"));
    let (records, out) = (place.bench.path("records.json"), arg(&tuned));
    place.ok(&[
        "sft",
        "--config",
        arg(&config),
        "--ckpt",
        "hub:owner/name",
        "--data",
        arg(&records),
        "--out",
        out,
        "--set",
        "train.steps=2",
        "--set",
        "schedule.decay_steps=20",
        "--quiet",
    ]);
    let stored = std::fs::read_to_string(tuned.join("config.toml")).unwrap();
    let snapshot = place.snapshot("models--owner--name");
    assert!(stored.contains(arg(&snapshot)), "{stored}");
    place.hub.asked();
    // No Hub is asked on the way on.
    place.ok(&["resume", "--ckpt", out, "--set", "train.steps=4", "--quiet"]);
    assert!(place.hub.asked().is_empty());
    // The model is gone from the cache: the hint says how to get the very same again.
    std::fs::rename(place.bench.path("cache"), place.bench.path("moved")).unwrap();
    let said = place.refused(&["sample", "--ckpt", out, "--prompt", "a"], 74);
    let name = format!("hub:owner/name@{COMMIT}");
    assert!(said.contains(&format!("--base {name}")), "{said}");
    place.ok(&["sample", "--ckpt", out, "--prompt", "a", "--base", &name, "--max-tokens", "2"]);
    place.ok(&["resume", "--ckpt", out, "--base", &name, "--set", "train.steps=6", "--quiet"]);
    // Adapters have a repository of their own.
    place.hub.upload("owner/adapter", &checkpoint(&tuned, 6));
    std::fs::remove_dir_all(place.bench.path("cache")).unwrap();
    place.ok(&[
        "export",
        "--ckpt",
        "hub:owner/adapter",
        "--base",
        &name,
        "--merge-lora",
        "--out",
        arg(&place.bench.path("merged")),
        "--quiet",
    ]);
    assert!(!place.snapshot("models--owner--adapter").join("optimizer.safetensors").exists());
}

#[test]
fn pretraining_starts_from_a_model_of_the_hub() {
    let place = Place::new();
    let (config, out) = (place.bench.path("base.toml"), place.bench.path("continued"));
    place.ok(&[
        "pretrain",
        "--config",
        arg(&config),
        "--init-from",
        "hub:owner/name",
        "--out",
        arg(&out),
        "--set",
        "train.steps=2",
        "--set",
        "model.max_position_embeddings=256",
        "--quiet",
    ]);
    let events = std::fs::read_to_string(out.join("events.jsonl")).unwrap();
    assert!(events.contains(arg(&place.snapshot("models--owner--name"))), "{events}");
}
