//! Requests to the Hub: redirects, tokens, retries.
//!
//! Redirects are followed here and not by the library, because two things hang on each hop: the token goes to the Hub's
//! own origin and nowhere else, and the first answer for a large file, itself a redirect to the storage, is the one
//! that says what the content is.

use std::io::Read;
use std::time::Duration;

use anyhow::Result;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::refusal::{Subject, Trouble, network, refused};
use super::settings::{Settings, Token};
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::read_bounded;

/// Attempts after the first one.
const RETRIES: u32 = 5;
/// Longest wait that a server may ask for, in seconds: the Hub counts requests over five minutes.
const LONGEST_WAIT: u64 = 300;
const REDIRECTS: usize = 8;
/// Largest answer of the programming interface; a page of a listing has some hundred KB.
const ANSWER: u64 = 64 << 20;

/// Header of the Hub: the identity of a file's content that lies in another storage.
const LINKED_ETAG: &str = "x-linked-etag";

/// The Hub as seen over the network.
pub(super) struct Client {
    agent: Agent,
    pub(super) endpoint: String,
    origin: String,
    token: Option<Token>,
    second: Duration,
}

/// What is asked of a server.
#[derive(Clone, Copy, Default)]
pub(super) struct Request<'a> {
    /// Only the headers are wanted; a redirect to another origin that describes the content is an answer then.
    pub(super) head: bool,
    /// First byte wanted.
    pub(super) from: u64,
    /// Content that the bytes must be of, where the Hub itself sends them: its quoted ETag.
    pub(super) same: Option<&'a str>,
}

/// The end of a chain of redirects.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Identity of a content in another storage, as the Hub named it first.
    pub(super) linked_etag: Option<String>,
    /// Whether the Hub's own origin answered.
    pub(super) own: bool,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }

    /// Bytes that the server says it sends.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length").and_then(|n| n.parse().ok())
    }
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.authorities {
            let pem = read_bounded(path, 16 << 20, true)?;
            let items = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            let certificates: Vec<_> = items.collect();
            if certificates.is_empty() {
                let message = format!("{} (SSL_CERT_FILE) holds no certificate", path.display());
                return Err(fail(Exit::Config, message).hint("give a PEM file of authorities, or unset it").into());
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .proxy(settings.proxy.clone())
            .user_agent(concat!("llama-lite/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(settings.silence))
            .timeout_connect(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .timeout_per_write(Some(settings.silence))
            .build()
            .new_agent();
        let Some(origin) = origin(&settings.endpoint) else {
            let message = format!("the Hub's address `{}` is none", settings.endpoint.escape_debug());
            return Err(fail(Exit::Config, message).hint("unset HF_ENDPOINT, or correct it").into());
        };
        let endpoint = settings.endpoint.clone();
        let token = settings.token.clone();
        Ok(Self { agent, endpoint, origin: origin.to_owned(), token, second: settings.second })
    }

    /// Whether requests carry a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A JSON document of the programming interface and the address of the page after it.
    pub(super) fn json<T: DeserializeOwned>(&self, url: &str, subject: &Subject) -> Result<(T, Option<String>)> {
        let mut patience = self.patience();
        loop {
            match self.json_once(url, subject) {
                Err(trouble) => patience.pause(trouble)?,
                Ok((bytes, next)) => {
                    let parsed = serde_json::from_slice(&bytes).map_err(|e| {
                        fail(
                            Exit::Io,
                            format!("{subject}: {} answers something else than its list: {e}", self.endpoint),
                        )
                        .hint("check HF_ENDPOINT, and that no proxy puts its own pages in between")
                    })?;
                    return Ok((parsed, next));
                }
            }
        }
    }

    fn json_once(&self, url: &str, subject: &Subject) -> Result<(Vec<u8>, Option<String>), Trouble> {
        let mut answer = self.send(url, Request::default(), subject)?;
        let next = answer.header("link").and_then(next_page).map(|next| self.own_address(next));
        let promised = answer.length();
        let mut bytes = Vec::new();
        let read = answer.response.body_mut().with_config().limit(ANSWER).reader().read_to_end(&mut bytes);
        let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let whole = read.and_then(|n| if promised.is_some_and(|p| p != n as u64) { Err(cut()) } else { Ok(()) });
        whole.map_err(|e| network(subject, url, &e.into()))?;
        Ok((bytes, next))
    }

    /// One attempt: sends the request, follows redirects, and turns refusals into errors. Answers are 2xx, and 416.
    pub(super) fn send(&self, url: &str, request: Request, subject: &Subject) -> Result<Answer, Trouble> {
        let mut url = url.to_owned();
        let mut linked_etag = None;
        for _ in 0..=REDIRECTS {
            let own = origin(&url) == Some(&self.origin);
            let response = self.hop(&url, request, own).map_err(|e| network(subject, &url, &e))?;
            let status = response.status().as_u16();
            linked_etag = linked_etag.or_else(|| header(response.headers(), LINKED_ETAG).map(str::to_owned));
            let location = header(response.headers(), "location");
            let (300..=399, Some(location)) = (status, location) else {
                return match status {
                    200..=299 | 416 => Ok(Answer { response, linked_etag, own }),
                    _ => Err(refused(self, &response, subject, &url, own)),
                };
            };
            let Some(next) = join(&url, location).filter(|next| url.starts_with("http:") || next.starts_with("https:"))
            else {
                let message = format!("{subject}: {} redirects to no usable address", host(&url));
                return Err(Trouble::Final(fail(Exit::Io, message).hint("check HF_ENDPOINT").into()));
            };
            if request.head && linked_etag.is_some() && origin(&next) != Some(&self.origin) {
                return Ok(Answer { response, linked_etag, own });
            }
            url = next;
        }
        let message = format!("{subject}: {} redirects without end", self.endpoint);
        Err(Trouble::Final(fail(Exit::Io, message).hint("check HF_ENDPOINT").into()))
    }

    fn hop(&self, url: &str, request: Request, own: bool) -> Result<Response<Body>, ureq::Error> {
        let mut builder = if request.head { self.agent.head(url) } else { self.agent.get(url) };
        // Lengths and ranges must count the bytes of the file itself.
        builder = builder.header("accept-encoding", "identity");
        if request.from > 0 {
            builder = builder.header("range", format!("bytes={}-", request.from));
        }
        if own {
            if let Some(Token(token)) = &self.token {
                builder = builder.header("authorization", format!("Bearer {token}"));
            }
            // Other storages have ETags of their own.
            if let (true, Some(etag)) = (request.from > 0, request.same) {
                builder = builder.header("if-range", etag);
            }
        }
        builder.call()
    }

    /// The address of a next page, on the Hub that we talk to: a mirror may pass on the official one's.
    fn own_address(&self, next: &str) -> String {
        match (next.starts_with(&format!("{}/", self.endpoint)), next.find("/api/")) {
            (false, Some(at)) => format!("{}{}", self.endpoint, &next[at..]),
            _ => next.to_owned(),
        }
    }

    /// For a row of attempts.
    pub(super) fn patience(&self) -> Patience<'_> {
        Patience { client: self, spent: 0 }
    }
}

/// How often something may still be tried again.
pub(super) struct Patience<'a> {
    client: &'a Client,
    spent: u32,
}

impl Patience<'_> {
    /// Waits before the next attempt: 1, 2, 4… seconds, or what the server asks for. A trouble that does not pass, or
    /// one too many, is returned.
    pub(super) fn pause(&mut self, trouble: Trouble) -> Result<()> {
        let (failure, asked) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Passing { failure, .. } if self.spent == RETRIES => return Err(failure.into()),
            Trouble::Passing { failure, wait } => (failure, wait),
        };
        let seconds = asked.map_or(1 << self.spent, |asked| asked.min(LONGEST_WAIT));
        self.spent += 1;
        let wait = self.client.second * seconds as u32;
        if wait >= Duration::from_secs(4) {
            note(&format!("{failure}; trying again in {seconds} s"));
        }
        std::thread::sleep(wait);
        Ok(())
    }

    /// After progress, the count begins anew.
    pub(super) fn renew(&mut self) {
        self.spent = 0;
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `scheme://host:port` of an address.
pub(super) fn origin(url: &str) -> Option<&str> {
    let after = url.find("://")? + 3;
    let end = url[after..].find(['/', '?', '#']).map_or(url.len(), |at| after + at);
    (end > after && url.is_ascii()).then(|| &url[..end])
}

/// What may be shown of an address: no path or query, which can hold signatures.
pub(super) fn host(url: &str) -> &str {
    origin(url).map_or("the server", |o| o.rsplit(['/', '@']).next().unwrap_or(o))
}

/// The address that `location`, found at `url`, means.
fn join(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return origin(location).map(|_| location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}//{rest}", url.split_once("//")?.0));
    }
    location.starts_with('/').then(|| origin(url).map(|o| format!("{o}{location}"))).flatten()
}

/// The address of the next page in a `Link` header.
fn next_page(link: &str) -> Option<&str> {
    let entry = link.split(",").find(|entry| entry.contains("rel=\"next\"") || entry.contains("rel=next"))?;
    Some(entry.split_once('<')?.1.split_once('>')?.0)
}

/// A path or revision as part of an address; with `slashes`, they stay.
pub(super) fn encode(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b'/' if slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_put_together() {
        assert_eq!(origin("https://a.b:8/c?d"), Some("https://a.b:8"));
        assert_eq!(origin("https://a.b"), Some("https://a.b"));
        assert!(origin("https:///x").is_none() && origin("/x").is_none());
        assert_eq!(host("https://user:secret@a.b/c?signature=1"), "a.b");
        let at = "https://a.b/c/d";
        assert_eq!(join(at, "/e?f").as_deref(), Some("https://a.b/e?f"));
        assert_eq!(join(at, "http://x/e").as_deref(), Some("http://x/e"));
        assert_eq!(join(at, "//x/e").as_deref(), Some("https://x/e"));
        assert!(join(at, "file:///etc/passwd").is_none());
        assert_eq!(encode("a b/é#?%", true), "a%20b/%C3%A9%23%3F%25");
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        let link = "<https://h/api/x?cursor=a>; rel=\"prev\", <https://h/api/x?cursor=b>; rel=\"next\"";
        assert_eq!(next_page(link), Some("https://h/api/x?cursor=b"));
        assert!(next_page("<https://h/>; rel=\"last\"").is_none());
    }
}
