//! The download of a file into the cache.
//!
//! The first request asks what the content is (its ETag and length); the bytes then go to `<etag>.incomplete`, from where
//! the last process stopped. Files in the large storage have their SHA-256 as ETag: it is verified before the file gets its
//! name, so a resumed download is as good as a fresh one. The others (small by the Hub's rules) cannot be verified; they
//! are resumed within a process only.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use ring::digest::{Context, SHA256};

use super::address::encode;
use super::cache::{RepoCache, length};
use super::client::{Answer, Request};
use super::refusal::{AttemptError, Subject};
use super::{Hub, RemoteFile, is_sha256};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::{Growing, free_space, io_context, io_failure, open_input};

/// Bytes read from the network at a time.
const CHUNK: usize = 256 << 10;
/// New bytes after which all retries are allowed again. A server that sends a few bytes each time cannot prolong a download
/// for ever.
const PROGRESS: u64 = 1 << 20;
/// How often the content may change during the download.
const CHANGES: usize = 3;

/// What the Hub says about a file's content.
struct Content {
    /// The ETag without quotes and mark of weakness.
    etag: String,
    /// The ETag as the Hub sends it, if it is a strong one, which can guard a range.
    strong: Option<String>,
    size: u64,
}

/// How an attempt, or all of them, ended.
#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    /// The Hub serves another content now.
    Changed,
}

pub(super) fn fetch(hub: &Hub, file: &RemoteFile, progress: &(dyn Fn(u64) + Sync)) -> Result<PathBuf> {
    let repo = file.repository();
    let cache = RepoCache::new(&hub.settings.cache, repo)?;
    let pointer = cache.pointer(&file.commit, &file.path)?;
    // A link is made only to complete content, so its size is enough.
    if length(&pointer) == Some(file.size) {
        progress(file.size);
        return Ok(pointer);
    }
    let subject = Subject::File { repo, commit: &file.commit, path: &file.path };
    if hub.settings.offline {
        return Err(hub.offline(&subject.to_string()).into());
    }
    let url = format!("{}/resolve/{}/{}", repo.page(&hub.client.endpoint), file.commit, encode(&file.path, true));
    for _ in 0..CHANGES {
        let content = describe(hub, file, &subject, &url)?;
        let blob = cache.blob(&content.etag)?;
        cache.prepare(&pointer)?;
        let _lock = cache.lock(&content.etag, hub.settings.second.min(Duration::from_millis(200)))?;
        // Another process may have downloaded it before the lock was free.
        if length(&blob) != Some(file.size) {
            let download = Download::open(hub, &subject, &url, &content, &blob, progress)?;
            if download.run(&blob)? == Outcome::Changed {
                continue;
            }
        }
        cache.link_pointer(&content.etag, &file.path, &pointer)?;
        progress(file.size);
        return Ok(pointer);
    }
    let message = format!("{subject}: its content changes while it is fetched");
    Err(fail(Exit::Io, message).hint("check HF_ENDPOINT: a commit's files never change on the Hub").into())
}

/// Asks the Hub about the content of the file.
fn describe(hub: &Hub, file: &RemoteFile, subject: &Subject, url: &str) -> Result<Content> {
    let mut retries = hub.client.retries();
    let answer = loop {
        match hub.client.send(url, Request { head: true, ..Request::default() }, subject) {
            Ok(answer) => break answer,
            Err(error) => retries.wait_after(error)?,
        }
    };
    if answer.header("x-repo-commit").is_some_and(|commit| commit != file.commit) {
        return Err(not_a_hub(subject, "the server answers with another commit").into());
    }
    // For a large file this header has its SHA-256, while the ETag is that of the storage behind the Hub.
    let raw = answer.linked_etag.as_deref().or_else(|| answer.header("etag"));
    let Some(etag) = raw.map(bare_etag).filter(|etag| !etag.is_empty()) else {
        return Err(not_a_hub(subject, "the server does not say which content it is (no ETag)").into());
    };
    let mut size = answer.header("x-linked-size").and_then(|n| n.parse().ok());
    if size.is_none() && answer.response.status().is_success() {
        size = answer.length();
    }
    if let Some(size) = size.filter(|size| *size != file.size) {
        let what = format!("it is listed with {} bytes and served with {size}", file.size);
        return Err(not_a_hub(subject, &what).into());
    }
    // Another storage has ETags of its own, which cannot be compared with this one.
    let strong = raw.filter(|raw| answer.linked_etag.is_none() && raw.starts_with('"')).map(str::to_owned);
    Ok(Content { etag: etag.to_owned(), strong, size: file.size })
}

fn not_a_hub(subject: &Subject, what: &str) -> Failure {
    fail(Exit::Data, format!("{subject}: {what}")).hint("check HF_ENDPOINT: is it a Hub?")
}

/// An ETag without its quotes and its mark of weakness.
fn bare_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// A content that is being downloaded.
struct Download<'a> {
    hub: &'a Hub,
    subject: &'a Subject<'a>,
    url: &'a str,
    content: &'a Content,
    part: PathBuf,
    out: Growing,
    /// SHA-256 of all bytes so far.
    hash: Context,
    /// Bytes that another process had downloaded.
    inherited: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Download<'a> {
    /// Opens the unfinished download, or starts one.
    fn open(
        hub: &'a Hub,
        subject: &'a Subject<'a>,
        url: &'a str,
        content: &'a Content,
        blob: &Path,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        let part = blob.with_file_name(format!("{}.incomplete", content.etag));
        let verifiable = is_sha256(&content.etag);
        // Bytes of an earlier process are only used if the finished file can be checked against a SHA-256.
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
        // The hash must cover what is there already.
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
                // The old content is not needed any more; this frees its space.
                self.restart()?;
                return Ok(Outcome::Changed);
            }
            let found = std::mem::replace(&mut self.hash, Context::new(&SHA256)).finish();
            let found: String = found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            if !is_sha256(&self.content.etag) || found == self.content.etag {
                // Other programs look for this name: it stands for complete and, with a SHA-256, verified content.
                self.out.publish(blob)?;
                return Ok(Outcome::Done);
            }
            let inherited = self.inherited;
            self.restart()?;
            // Bytes of another process may be bad after a power failure; then everything is downloaded once more.
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
        let mut retries = self.hub.client.retries();
        let mut highest = self.out.len();
        while self.out.len() < self.content.size {
            let ended = self.attempt();
            // The next process can resume only from bytes that are in the file.
            self.out.flush().map_err(io_context("write", &self.part))?;
            match ended {
                Ok(Outcome::Changed) => return Ok(Outcome::Changed),
                Ok(Outcome::Done) => {}
                Err(error) => {
                    if self.out.len() >= highest + PROGRESS {
                        highest = self.out.len();
                        retries.reset();
                    }
                    retries.wait_after(error)?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// One request for all that is missing.
    fn attempt(&mut self) -> Result<Outcome, AttemptError> {
        let from = self.out.len();
        // If the content has changed, a server that is asked this way sends the new one whole (If-Range, RFC 9110).
        let request = Request { head: false, from, same: self.content.strong.as_deref() };
        let mut answer = self.hub.client.send(self.url, request, self.subject)?;
        if self.changed(&answer) {
            return Ok(Outcome::Changed);
        }
        match answer.response.status().as_u16() {
            206 => self.check_range(&answer, from)?,
            416 => {
                self.restart().map_err(AttemptError::Final)?;
                let what = "the server refuses to go on from a byte it has";
                return Err(AttemptError::transient(self.failure(Exit::Io, what)));
            }
            // The server ignores ranges and sends the whole file.
            _ if from > 0 => self.restart().map_err(AttemptError::Final)?,
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
        etag.is_some_and(|etag| bare_etag(etag) != self.content.etag)
    }

    /// A partial answer must begin at `from`, and be of a file of the right length.
    fn check_range(&self, answer: &Answer, from: u64) -> Result<(), AttemptError> {
        let range = answer.header("content-range").and_then(|range| {
            let (bounds, total) = range.strip_prefix("bytes ")?.split_once('/')?;
            let total = if total == "*" { self.content.size } else { total.parse().ok()? };
            Some((bounds.split_once('-')?.0.parse::<u64>().ok()?, total))
        });
        if range == Some((from, self.content.size)) {
            return Ok(());
        }
        let what = "the server sends another range than the one asked for";
        Err(AttemptError::Final(self.failure(Exit::Data, what).into()))
    }

    /// Writes the body, as far as it arrives.
    fn receive(&mut self, answer: &mut Answer) -> Result<(), AttemptError> {
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
                    return Err(AttemptError::transient(self.failure(Exit::Io, &what)));
                }
            };
            if self.out.len() + read as u64 > self.content.size {
                return Err(self.too_long());
            }
            self.hash.update(&buffer[..read]);
            let written = self.out.write_all(&buffer[..read]);
            written.map_err(io_context("write", &self.part)).map_err(AttemptError::Final)?;
            (self.progress)(self.out.len());
        }
        if self.out.len() < self.content.size {
            let what = format!("the answer ends after {} of {} bytes", self.out.len(), self.content.size);
            return Err(AttemptError::transient(self.failure(Exit::Io, &what)));
        }
        Ok(())
    }

    fn too_long(&mut self) -> AttemptError {
        let what = format!("the server sends more than the {} bytes of the file", self.content.size);
        // The bytes before are from the same answer and cannot be trusted either.
        let failure = self.failure(Exit::Data, &what);
        AttemptError::Final(self.restart().err().unwrap_or_else(|| failure.into()))
    }

    fn restart(&mut self) -> Result<()> {
        // The old handle must not write its buffer after the file is truncated.
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
