//! Requests to the Hub: redirects, tokens, retries.
//!
//! Redirects are followed here and not by the library, for two reasons: the token must be sent only to the Hub's own origin,
//! and the first answer for a large file, which is a redirect to the storage, is the one that says what the content is.

use std::io::Read;
use std::time::Duration;

use anyhow::Result;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{header, host, join, next_page, origin};
use super::refusal::{AttemptError, Requester, Subject, network, refused};
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

/// The connection to the Hub.
pub(super) struct Client {
    agent: Agent,
    pub(super) endpoint: String,
    origin: String,
    token: Option<Token>,
    second: Duration,
}

/// A request for a file.
#[derive(Clone, Copy, Default)]
pub(super) struct Request<'a> {
    /// Ask for the headers only. A redirect to another origin that describes the content is then an answer.
    pub(super) head: bool,
    /// Ask for the bytes from this one on.
    pub(super) from: u64,
    /// The quoted ETag that the content must still have, where the Hub itself sends it.
    pub(super) same: Option<&'a str>,
}

/// The end of a chain of redirects.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// ETag of a content in another storage, as the Hub named it first.
    pub(super) linked_etag: Option<String>,
    /// Whether the Hub's own origin answered.
    pub(super) own: bool,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }

    /// The `content-length`, in bytes.
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
            // `send` follows them itself: the token must not travel to another origin.
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

    /// A JSON document of the programming interface and the address of the page after it.
    pub(super) fn json<T: DeserializeOwned>(&self, url: &str, subject: &Subject) -> Result<(T, Option<String>)> {
        let mut retries = self.retries();
        loop {
            match self.json_once(url, subject) {
                Err(error) => retries.wait_after(error)?,
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

    fn json_once(&self, url: &str, subject: &Subject) -> Result<(Vec<u8>, Option<String>), AttemptError> {
        let mut answer = self.send(url, Request::default(), subject)?;
        let next = answer.header("link").and_then(next_page).map(|next| self.own_address(next));
        // A connection that is cut off looks like the end of the answer, if its length is not compared.
        let promised = answer.length();
        let mut bytes = Vec::new();
        let read = answer.response.body_mut().with_config().limit(ANSWER).reader().read_to_end(&mut bytes);
        let whole = read.and_then(|n| match promised {
            Some(promised) if promised != n as u64 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        });
        whole.map_err(|e| network(subject, url, &e.into()))?;
        Ok((bytes, next))
    }

    /// One attempt: sends the request, follows redirects, and turns refusals into errors. Answers are 2xx, and 416.
    pub(super) fn send(&self, url: &str, request: Request, subject: &Subject) -> Result<Answer, AttemptError> {
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
                    _ => {
                        let requester = Requester { endpoint: &self.endpoint, has_token: self.token.is_some() };
                        Err(refused(requester, &response, subject, &url, own))
                    }
                };
            };
            // Never from https back to http.
            let Some(next) = join(&url, location).filter(|next| url.starts_with("http:") || next.starts_with("https:"))
            else {
                let message = format!("{subject}: {} redirects to no usable address", host(&url));
                return Err(AttemptError::Final(fail(Exit::Io, message).hint("check HF_ENDPOINT").into()));
            };
            // Only headers were asked for, and the Hub has given those that count: the storage need not be asked.
            if request.head && linked_etag.is_some() && origin(&next) != Some(&self.origin) {
                return Ok(Answer { response, linked_etag, own });
            }
            url = next;
        }
        let message = format!("{subject}: {} redirects without end", self.endpoint);
        Err(AttemptError::Final(fail(Exit::Io, message).hint("check HF_ENDPOINT").into()))
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

    /// The address of the next page on this endpoint: a mirror may give that of the official Hub.
    fn own_address(&self, next: &str) -> String {
        match (next.starts_with(&format!("{}/", self.endpoint)), next.find("/api/")) {
            (false, Some(at)) => format!("{}{}", self.endpoint, &next[at..]),
            _ => next.to_owned(),
        }
    }

    pub(super) fn retries(&self) -> Retries<'_> {
        Retries { client: self, used: 0 }
    }
}

/// The retries of one request.
pub(super) struct Retries<'a> {
    client: &'a Client,
    used: u32,
}

impl Retries<'_> {
    /// Waits before the next attempt: 1, 2, 4… seconds, or as long as the server asks for. Returns an error that is final, and
    /// any error once all retries are used.
    pub(super) fn wait_after(&mut self, error: AttemptError) -> Result<()> {
        let (failure, asked) = match error {
            AttemptError::Final(error) => return Err(error),
            AttemptError::Transient { failure, .. } if self.used == RETRIES => return Err(failure.into()),
            AttemptError::Transient { failure, wait } => (failure, wait),
        };
        let seconds = asked.map_or(1 << self.used, |asked| asked.min(LONGEST_WAIT));
        self.used += 1;
        let wait = self.client.second * seconds as u32;
        if wait >= Duration::from_secs(4) {
            note(&format!("{failure}; trying again in {seconds} s"));
        }
        std::thread::sleep(wait);
        Ok(())
    }

    /// Allows all retries again, after progress.
    pub(super) fn reset(&mut self) {
        self.used = 0;
    }
}
