//! A Hub on this machine: its addresses, redirects to a second origin, pages, ranges, and faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const REPO: &str = "owner/name";

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    headers: BTreeMap<String, String>,
    /// Whether it came to the storage and not to the Hub.
    pub(super) storage: bool,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    pub(super) cut: Option<usize>,
    /// Send no length: the end of the connection is the end of the body.
    pub(super) endless: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// Changes one answer: gets the request and what would be answered.
type Fault = Box<dyn Fn(&Asked, Reply) -> Reply + Send>;

/// Says which request it is about.
type Matches = fn(&Asked) -> bool;

/// A file of the repository.
struct Stored {
    content: Vec<u8>,
    /// Whether it lies in the storage, under its SHA-256.
    large: bool,
}

#[derive(Default)]
struct State {
    files: Vec<(String, Stored)>,
    /// The head of README.md as JSON; null if it has none that can be read.
    card: Value,
    asked: Vec<Asked>,
    /// In order; the first waits for the request that it is about.
    faults: VecDeque<(Matches, Fault)>,
    per_page: usize,
    addresses: [String; 2],
}

/// The fake Hub; its threads end with the test program.
#[derive(Clone)]
pub(super) struct FakeHub {
    state: Arc<Mutex<State>>,
    pub(super) endpoint: String,
}

impl FakeHub {
    pub(super) fn start() -> Self {
        let state = Arc::new(Mutex::new(State { per_page: 1000, ..State::default() }));
        let addresses = [false, true].map(|storage| listen(Arc::clone(&state), storage));
        state.lock().unwrap().addresses = addresses.clone();
        Self { state, endpoint: addresses[0].clone() }
    }

    pub(super) fn file(&self, path: &str, content: impl Into<Vec<u8>>, large: bool) -> &Self {
        let stored = Stored { content: content.into(), large };
        let mut state = self.state.lock().unwrap();
        state.files.retain(|(known, _)| known != path);
        state.files.push((path.to_owned(), stored));
        drop(state);
        self
    }

    pub(super) fn card(&self, card: Value) -> &Self {
        self.state.lock().unwrap().card = card;
        self
    }

    pub(super) fn pages_of(&self, per_page: usize) -> &Self {
        self.state.lock().unwrap().per_page = per_page;
        self
    }

    /// The next request that `matches` is answered with what `fault` makes of the answer.
    pub(super) fn fault(&self, matches: Matches, fault: impl Fn(&Asked, Reply) -> Reply + Send + 'static) {
        self.state.lock().unwrap().faults.push_back((matches, Box::new(fault)));
    }

    /// The requests since the last call.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    pub(super) fn storage(&self) -> String {
        self.state.lock().unwrap().addresses[1].clone()
    }
}

/// A GET of content, from wherever it lies.
pub(super) fn content(asked: &Asked) -> bool {
    asked.method == "GET" && (asked.storage || asked.path.contains("/resolve/") && !asked.path.contains("large"))
}

/// Any request to the Hub.
pub(super) fn any(_: &Asked) -> bool {
    true
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// An identity in the form of git's, for small files.
pub(super) fn git_like(bytes: &[u8]) -> String {
    sha256(bytes)[..40].to_owned()
}

fn listen(state: Arc<Mutex<State>>, storage: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(connection, &state, storage));
        }
    });
    address
}

/// One request, then the connection is closed.
fn serve(mut connection: TcpStream, state: &Mutex<State>, storage: bool) {
    let mut lines = BufReader::new(connection.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else {
        // No text: somebody tries TLS.
        let _ = connection.write_all(b"HTTP/1.1 400 X\r\n\r\n");
        return;
    };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| line.split_once(':').map(|(k, v)| (k.to_lowercase(), v.trim().to_owned())));
    let asked = Asked { method, path, headers: headers.collect(), storage };
    let reply = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let usual = answer(&state, &asked);
        match state.faults.front() {
            Some((matches, _)) if matches(&asked) => {
                let (_, fault) = state.faults.pop_front().unwrap();
                fault(&asked, usual)
            }
            _ => usual,
        }
    };
    if reply.status == 0 {
        // Silence, for longer than a test waits.
        std::thread::sleep(Duration::from_secs(5));
        return;
    }
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.endless && !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    let body = if asked.method == "HEAD" { &[] } else { &reply.body[..reply.cut.unwrap_or(reply.body.len())] };
    // The client may have hung up, which is its right.
    let _ = connection.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| connection.write_all(body));
}

/// What a Hub without faults answers.
fn answer(state: &State, asked: &Asked) -> Reply {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let absent = |code: &str| Reply::new(404).with("x-error-code", code);
    if asked.storage {
        let found = state.files.iter().find(|(_, file)| path[1..] == sha256(&file.content));
        return found.map_or(Reply::new(404), |(_, file)| ranged(&file.content, "\"the-storage's-own\"", asked));
    }
    // The same repository stands here as a data set and as a model.
    let path = match path.strip_prefix(&format!("/{REPO}/")) {
        Some(file) => format!("/datasets/{REPO}/{file}"),
        None => path.replacen("/api/models/", "/api/datasets/", 1),
    };
    let path = path.as_str();
    if let Some(revision) = path.strip_prefix(&format!("/api/datasets/{REPO}/revision/")) {
        return match revision {
            COMMIT if query == "expand=cardData" => Reply::new(200).body(json!({ "cardData": state.card }).to_string()),
            "main" | "refs%2Fpr%2F1" => Reply::new(200).body(json!({ "sha": COMMIT }).to_string()),
            _ => absent("RevisionNotFound"),
        };
    }
    if path == format!("/api/datasets/{REPO}/tree/{COMMIT}") {
        return page(state, query);
    }
    let Some(name) = path.strip_prefix(&format!("/datasets/{REPO}/resolve/{COMMIT}/")) else {
        return absent("RepoNotFound");
    };
    let Some((_, file)) = state.files.iter().find(|(known, _)| super::super::address::encode(known, true) == name)
    else {
        return absent("EntryNotFound");
    };
    if !file.large {
        let etag = format!("\"{}\"", git_like(&file.content));
        return ranged(&file.content, &etag, asked).with("x-repo-commit", COMMIT).with("etag", etag);
    }
    let hash = sha256(&file.content);
    Reply::new(302)
        .with("location", format!("{}/{hash}?signature=secret", state.addresses[1]))
        .with("x-repo-commit", COMMIT)
        .with("x-linked-etag", format!("\"{hash}\""))
        .with("x-linked-size", file.content.len())
}

fn page(state: &State, query: &str) -> Reply {
    let start: usize = query.split('&').find_map(|q| q.strip_prefix("cursor=")).map_or(0, |n| n.parse().unwrap());
    let item = |(path, file): &(String, Stored)| {
        let size = file.content.len();
        let mut item = json!({ "type": "file", "path": path, "size": size, "oid": git_like(&file.content) });
        if file.large {
            item["lfs"] = json!({ "oid": sha256(&file.content), "size": size, "pointerSize": 134 });
            item["xetHash"] = json!(sha256(b"xet"));
        }
        item
    };
    let mut items: Vec<_> = state.files.iter().skip(start).take(state.per_page).map(item).collect();
    items.push(json!({ "type": "directory", "path": "data", "size": 0, "oid": "0" }));
    let reply = Reply::new(200).body(serde_json::to_vec(&items).unwrap());
    let next = start + state.per_page;
    if next >= state.files.len() {
        return reply;
    }
    // As a mirror that passes on the official address.
    let url = format!("https://huggingface.co/api/datasets/{REPO}/tree/{COMMIT}?recursive=true&cursor={next}");
    reply.with("link", format!("<{url}>; rel=\"next\""))
}

fn ranged(content: &[u8], etag: &str, asked: &Asked) -> Reply {
    let current = asked.header("if-range").is_none_or(|wanted| wanted == etag);
    let range = asked.header("range").filter(|_| current).and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
    let Some(from) = range.map(|from| from.parse::<usize>().unwrap()) else { return Reply::new(200).body(content) };
    if from >= content.len() {
        return Reply::new(416);
    }
    let bounds = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
    Reply::new(206).body(&content[from..]).with("content-range", bounds)
}
