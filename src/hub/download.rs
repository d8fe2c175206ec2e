//! How a file comes into the cache.
//!
//! The Hub is first asked what the content is (its ETag and length); the bytes then go to `<etag>.incomplete`, from
//! where the last process stopped. Files in the large storage have their SHA-256 as ETag: it is verified before the
//! file gets its name, so that a resumed download is as good as a fresh one. The others (small by the Hub's rules)
//! cannot be verified; they are continued within a process only.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use ring::digest::{Context, SHA256};

use super::cache::{Store, length};
use super::client::{Answer, Request, encode};
use super::refusal::{Subject, Trouble};
use super::{Hub, RemoteFile, is_sha256};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::{Growing, free_space, io_context, io_failure, open_input};

/// Bytes asked of the network at a time.
const CHUNK: usize = 256 << 10;
/// New bytes after which attempts are counted anew: a server that sends a few each time does not keep us for ever.
const PROGRESS: u64 = 1 << 20;
/// How often a content may change while it is fetched.
const CHANGES: usize = 3;

/// What the Hub says of a file's content.
struct Content {
    /// Name of the content, without quotes.
    etag: String,
    /// The ETag as the Hub sends it, if that can guard a range.
    strong: Option<String>,
    size: u64,
}

/// How an attempt, or all of them, ended.
#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    /// The Hub now serves another content.
    Changed,
}

pub(super) fn fetch(hub: &Hub, file: &RemoteFile, progress: &(dyn Fn(u64) + Sync)) -> Result<PathBuf> {
    let store = Store::new(&hub.settings.cache, &file.repo)?;
    let pointer = store.pointer(&file.commit, &file.path)?;
    let present = |path: &Path| length(path) == Some(file.size);
    if present(&pointer) {
        progress(file.size);
        return Ok(pointer);
    }
    let subject = Subject::File { repo: &file.repo, commit: &file.commit, path: &file.path };
    if hub.settings.offline {
        return Err(hub.offline(&subject.to_string()).into());
    }
    let url =
        format!("{}/datasets/{}/resolve/{}/{}", hub.client.endpoint, file.repo, file.commit, encode(&file.path, true));
    for _ in 0..CHANGES {
        let content = describe(hub, file, &subject, &url)?;
        let blob = store.blob(&content.etag)?;
        store.prepare(&pointer)?;
        let _lock = store.lock(&content.etag, hub.settings.second.min(Duration::from_millis(200)))?;
        if !present(&blob) {
            let download = Download::begin(hub, &subject, &url, &content, &blob, progress)?;
            if download.run(&blob)? == Outcome::Changed {
                continue;
            }
        }
        store.show(&content.etag, &file.path, &pointer)?;
        progress(file.size);
        return Ok(pointer);
    }
    let message = format!("{subject}: its content changes while it is fetched");
    Err(fail(Exit::Io, message).hint("check HF_ENDPOINT: a commit's files never change on the Hub").into())
}

/// Asks the Hub what the file holds.
fn describe(hub: &Hub, file: &RemoteFile, subject: &Subject, url: &str) -> Result<Content> {
    let mut patience = hub.client.patience();
    let answer = loop {
        match hub.client.send(url, Request { head: true, ..Request::default() }, subject) {
            Ok(answer) => break answer,
            Err(trouble) => patience.pause(trouble)?,
        }
    };
    let wrong = |what: &str| fail(Exit::Data, format!("{subject}: {what}")).hint("check HF_ENDPOINT: is it a Hub?");
    if answer.header("x-repo-commit").is_some_and(|commit| commit != file.commit) {
        return Err(wrong("the server answers with another commit").into());
    }
    let raw = answer.linked_etag.as_deref().or_else(|| answer.header("etag"));
    let etag = raw.map(normal).filter(|etag| !etag.is_empty());
    let Some(etag) = etag else { return Err(wrong("the server does not say which content it is (no ETag)").into()) };
    let own_length = || answer.response.status().is_success().then(|| answer.length()).flatten();
    let size = answer.header("x-linked-size").and_then(|n| n.parse().ok()).or_else(own_length);
    if let Some(size) = size.filter(|size| *size != file.size) {
        return Err(wrong(&format!("it is listed with {} bytes and served with {size}", file.size)).into());
    }
    let strong = raw.filter(|raw| answer.linked_etag.is_none() && raw.starts_with('"')).map(str::to_owned);
    Ok(Content { etag: etag.to_owned(), strong, size: file.size })
}

/// An ETag without its quotes and its mark of weakness.
fn normal(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// A content on its way into the cache.
struct Download<'a> {
    hub: &'a Hub,
    subject: &'a Subject<'a>,
    url: &'a str,
    content: &'a Content,
    part: PathBuf,
    out: Growing,
    /// Of all bytes so far.
    hash: Context,
    /// Bytes that another process left.
    inherited: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Download<'a> {
    /// Opens the unfinished download, or begins one.
    fn begin(
        hub: &'a Hub,
        subject: &'a Subject<'a>,
        url: &'a str,
        content: &'a Content,
        blob: &Path,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        let part = blob.with_file_name(format!("{}.incomplete", content.etag));
        let verifiable = is_sha256(&content.etag);
        let inherited = length(&part).filter(|kept| verifiable && *kept <= content.size).unwrap_or(0);
        let room = free_space(&part)?.unwrap_or(u64::MAX);
        if room < content.size - inherited {
            let need = (content.size - inherited).div_ceil(1 << 20);
            let message = format!("{subject}: needs {need} MiB, {} has {} MiB free", part.display(), room >> 20);
            let hint = "free disk space, or set HF_HUB_CACHE to a directory on a larger disk";
            return Err(fail(Exit::Io, message).hint(hint).into());
        }
        let out = Growing::open(&part, inherited)?;
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; CHUNK];
        let mut kept = open_input(&part, false)?.0;
        loop {
            match kept.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hash.update(&buffer[..read]),
                Err(e) => return Err(io_failure("read", &part, &e).into()),
            }
        }
        progress(inherited);
        Ok(Self { hub, subject, url, content, part, out, hash, inherited, progress })
    }

    /// Fetches what is missing, verifies the content, and gives it its name.
    fn run(mut self, blob: &Path) -> Result<Outcome> {
        loop {
            if self.complete()? == Outcome::Changed {
                // Nobody will ask for this content again.
                self.restart()?;
                return Ok(Outcome::Changed);
            }
            let found = std::mem::replace(&mut self.hash, Context::new(&SHA256)).finish();
            let found: String = found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            if !is_sha256(&self.content.etag) || found == self.content.etag {
                self.out.publish(blob)?;
                return Ok(Outcome::Done);
            }
            let inherited = self.inherited;
            self.restart()?;
            // What a loss of power left may have been bad, once.
            if inherited == 0 {
                let message = format!("{}: its content does not have the SHA-256 that the Hub names", self.subject);
                let hint =
                    "run the command again; if it persists, a proxy or mirror alters the data: check HF_ENDPOINT";
                return Err(fail(Exit::Data, message).hint(hint).into());
            }
        }
    }

    /// Makes attempts until all bytes are there.
    fn complete(&mut self) -> Result<Outcome> {
        let mut patience = self.hub.client.patience();
        let mut highest = self.out.len();
        while self.out.len() < self.content.size {
            let ended = self.attempt();
            // Bytes in memory would not be there for the next process.
            self.out.flush().map_err(io_context("write", &self.part))?;
            match ended {
                Ok(Outcome::Changed) => return Ok(Outcome::Changed),
                Ok(Outcome::Done) => {}
                Err(trouble) => {
                    if self.out.len() >= highest + PROGRESS {
                        highest = self.out.len();
                        patience.renew();
                    }
                    patience.pause(trouble)?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// One request for all that is missing.
    fn attempt(&mut self) -> Result<Outcome, Trouble> {
        let from = self.out.len();
        let request = Request { head: false, from, same: self.content.strong.as_deref() };
        let mut answer = self.hub.client.send(self.url, request, self.subject)?;
        if self.changed(&answer) {
            return Ok(Outcome::Changed);
        }
        match answer.response.status().as_u16() {
            206 => self.check_range(&answer, from)?,
            416 => {
                self.restart().map_err(Trouble::Final)?;
                return Err(Trouble::passing(self.failure(Exit::Io, "the server refuses to go on from a byte it has")));
            }
            // It ignores ranges.
            _ if from > 0 => self.restart().map_err(Trouble::Final)?,
            _ => {}
        }
        let missing = self.content.size - self.out.len();
        if answer.length().is_some_and(|length| length > missing) {
            return Err(self.too_long());
        }
        self.receive(&mut answer)?;
        Ok(Outcome::Done)
    }

    /// Whether the Hub has named another content than before. Another storage's ETags are its own.
    fn changed(&self, answer: &Answer) -> bool {
        let etag = match &answer.linked_etag {
            Some(etag) => Some(etag.as_str()),
            None if answer.own => answer.header("etag"),
            None => None,
        };
        etag.is_some_and(|etag| normal(etag) != self.content.etag)
    }

    /// A partial answer must begin where we stopped, and be of a file of the right length.
    fn check_range(&self, answer: &Answer, from: u64) -> Result<(), Trouble> {
        let range = answer.header("content-range").and_then(|range| {
            let (bounds, total) = range.strip_prefix("bytes ")?.split_once('/')?;
            let total = if total == "*" { self.content.size } else { total.parse().ok()? };
            Some((bounds.split_once('-')?.0.parse::<u64>().ok()?, total))
        });
        if range == Some((from, self.content.size)) {
            return Ok(());
        }
        let what = "the server sends another range than the one asked for";
        Err(Trouble::Final(self.failure(Exit::Data, what).into()))
    }

    /// Takes the body as far as it comes.
    fn receive(&mut self, answer: &mut Answer) -> Result<(), Trouble> {
        let mut body = answer.response.body_mut().as_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let what =
                        format!("the connection broke after {} of {} bytes: {e}", self.out.len(), self.content.size);
                    return Err(Trouble::passing(self.failure(Exit::Io, &what)));
                }
            };
            if self.out.len() + read as u64 > self.content.size {
                return Err(self.too_long());
            }
            self.hash.update(&buffer[..read]);
            let written = self.out.write_all(&buffer[..read]);
            written.map_err(io_context("write", &self.part)).map_err(Trouble::Final)?;
            (self.progress)(self.out.len());
        }
        if self.out.len() < self.content.size {
            let what = format!("the answer ends after {} of {} bytes", self.out.len(), self.content.size);
            return Err(Trouble::passing(self.failure(Exit::Io, &what)));
        }
        Ok(())
    }

    fn too_long(&mut self) -> Trouble {
        let what = format!("the server sends more than the {} bytes of the file", self.content.size);
        // What came before is of the same doubtful answer.
        let failure = self.failure(Exit::Data, &what);
        Trouble::Final(self.restart().err().unwrap_or_else(|| failure.into()))
    }

    fn restart(&mut self) -> Result<()> {
        // The old handle's bytes go to disk before they are cut, not after.
        self.out.flush().map_err(io_context("write", &self.part))?;
        self.out = Growing::open(&self.part, 0)?;
        self.hash = Context::new(&SHA256);
        self.inherited = 0;
        (self.progress)(0);
        Ok(())
    }

    fn failure(&self, exit: Exit, what: &str) -> Failure {
        let hint =
            "run the command again: it goes on where it stopped; if it persists, check HF_ENDPOINT and the proxy";
        fail(exit, format!("{}: {what}", self.subject)).hint(hint)
    }
}
