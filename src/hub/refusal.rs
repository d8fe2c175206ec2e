//! Why a request failed, in words that say what the user can do, and whether to try again.

use std::fmt;

use ureq::Body;
use ureq::http::Response;

use super::address::{header, host};
use super::name::Repo;
use crate::runtime::error::{Exit, Failure, fail};

/// What a request is about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A branch, tag or commit of a repository.
    Revision {
        repo: Repo<'a>,
        revision: &'a str,
    },
    /// The list of its files.
    Listing {
        repo: Repo<'a>,
        commit: &'a str,
    },
    File {
        repo: Repo<'a>,
        commit: &'a str,
        path: &'a str,
    },
}

impl Subject<'_> {
    fn repo(&self) -> Repo<'_> {
        match self {
            Self::Revision { repo, .. } | Self::Listing { repo, .. } | Self::File { repo, .. } => *repo,
        }
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision { repo, revision } => write!(f, "{repo}@{revision}"),
            Self::Listing { repo, commit } => write!(f, "list of files of {repo}@{commit:.8}"),
            Self::File { repo, commit, path } => write!(f, "{} of {repo}@{commit:.8}", path.escape_debug()),
        }
    }
}

/// Why one attempt at a request failed.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// The next attempt would fail as well.
    Final(anyhow::Error),
    /// The next attempt may succeed; `failure` is reported if none does.
    Transient {
        failure: Failure,
        /// Seconds that the server asks to wait.
        wait: Option<u64>,
    },
}

impl AttemptError {
    pub(super) fn transient(failure: Failure) -> Self {
        Self::Transient { failure, wait: None }
    }
}

/// What a hint depends on: the Hub that was asked, and whether a token was sent.
#[derive(Clone, Copy)]
pub(super) struct Requester<'a> {
    pub(super) endpoint: &'a str,
    pub(super) has_token: bool,
}

/// A request that a server has answered with an error.
struct Refusal<'a> {
    requester: Requester<'a>,
    subject: &'a Subject<'a>,
    server: &'a str,
    status: u16,
}

/// The error for an answer of `url` that is no success; `own`: the Hub's own origin answered.
pub(super) fn refused(
    requester: Requester,
    response: &Response<Body>,
    subject: &Subject,
    url: &str,
    own: bool,
) -> AttemptError {
    let status = response.status().as_u16();
    let headers = response.headers();
    let code = header(headers, "x-error-code").unwrap_or_default();
    let wait = header(headers, "retry-after").and_then(|s| s.trim().parse().ok());
    let refusal = Refusal { requester, subject, server: host(url), status };
    match status {
        429 => {
            let hint = if requester.has_token {
                "wait some minutes, then run the command again: it goes on where it stopped"
            } else {
                "wait some minutes and run the command again (it goes on where it stopped); with HF_TOKEN set, \
                 more requests are allowed"
            };
            AttemptError::Transient { failure: refusal.failure(Exit::Io, "too many requests", hint), wait }
        }
        408 | 500..=599 => {
            let hint = "run the command again later: it goes on where it stopped";
            AttemptError::Transient { failure: refusal.failure(Exit::Io, "the server has a problem", hint), wait }
        }
        // Signed addresses of a storage expire; the Hub makes a new one at the next attempt.
        401 | 403 if !own => {
            let hint = "run the command again; if it persists, check the clock and the proxy of this machine";
            AttemptError::transient(refusal.failure(Exit::Io, "the storage refuses access", hint))
        }
        // A 401 may also mean that there is no valid token: the Hub's own code tells the two apart.
        401 | 403 if code == "GatedRepo" => AttemptError::Final(refusal.gated().into()),
        401 => AttemptError::Final(refusal.unauthorized().into()),
        403 => AttemptError::Final(refusal.gated().into()),
        404 => AttemptError::Final(refusal.missing(code).into()),
        _ => {
            let hint = "check HF_ENDPOINT and the proxy, and whether the page opens in a browser";
            AttemptError::Final(refusal.failure(Exit::Io, "the request is refused", hint).into())
        }
    }
}

impl Refusal<'_> {
    fn failure(&self, exit: Exit, what: &str, hint: impl Into<String>) -> Failure {
        fail(exit, format!("{}: {what} ({} answers {})", self.subject, self.server, self.status)).hint(hint)
    }

    fn gated(&self) -> Failure {
        let endpoint = self.requester.endpoint;
        let repo = self.subject.repo();
        let page = repo.page(endpoint);
        let hint = match self.requester.has_token {
            true => format!(
                "accept its terms at {page}; if that is done, check that the token in HF_TOKEN \
                 may read it"
            ),
            false => format!(
                "accept its terms at {page}, then set HF_TOKEN to a token of that account \
                 (made at {endpoint}/settings/tokens)"
            ),
        };
        self.failure(Exit::Io, &format!("access to this {} is restricted", repo.kind.noun()), hint)
    }

    fn unauthorized(&self) -> Failure {
        let endpoint = self.requester.endpoint;
        let repo = self.subject.repo();
        if self.requester.has_token {
            let hint = format!(
                "set HF_TOKEN to a valid token with read access ({endpoint}/settings/tokens), or unset it if \
                 {repo} is public"
            );
            return self.failure(Exit::Io, "the token is not accepted", hint);
        }
        // Without a token the Hub does not say whether a private repository exists.
        let hint =
            format!("check the name `{repo}`; if it is private or gated, set HF_TOKEN ({endpoint}/settings/tokens)");
        self.failure(Exit::Io, &format!("no such public {}, and no token was given", repo.kind.noun()), hint)
    }

    /// `code` is the Hub's own code of the error.
    fn missing(&self, code: &str) -> Failure {
        let endpoint = self.requester.endpoint;
        let repo = self.subject.repo();
        let noun = repo.kind.noun();
        let page = repo.page(endpoint);
        let (what, hint) = match (code, self.subject) {
            ("RepoNotFound", _) | ("", Subject::Revision { revision: "main", .. }) => (
                format!("there is no {noun} {repo}"),
                format!("check OWNER/NAME at {endpoint}/{}; a private one needs HF_TOKEN", repo.kind.plural()),
            ),
            (_, Subject::File { .. }) if code != "RevisionNotFound" => (
                "there is no such file".to_owned(),
                format!("see the files at {page}/tree/main, or check HF_ENDPOINT if it is a mirror"),
            ),
            ("RevisionNotFound", _) => {
                ("there is no such branch, tag or commit".to_owned(), format!("see the branches at {page}/tree/main"))
            }
            _ => (
                format!("there is no such {noun}, or no such revision of it"),
                format!("check the name and the revision at {page}"),
            ),
        };
        self.failure(Exit::Config, &what, hint)
    }
}

/// The error for a request that got no answer, or half of one.
pub(super) fn network(subject: &Subject, url: &str, error: &ureq::Error) -> AttemptError {
    use ureq::Error as E;
    let server = host(url);
    let tls = match error {
        E::Tls(_) | E::Rustls(_) | E::Pem(_) | E::TlsRequired => true,
        // The form in which the library reports a failed handshake.
        E::Io(e) => e.kind() == std::io::ErrorKind::InvalidData && url.starts_with("https:"),
        _ => false,
    };
    if tls {
        let hint = "if a proxy of your network re-signs traffic, set SSL_CERT_FILE to its authority's PEM file; \
                    check the clock and HF_ENDPOINT";
        let message = format!("{subject}: no secure connection to {server}: {error}");
        return AttemptError::Final(fail(Exit::Io, message).hint(hint).into());
    }
    let hint = "check the network and HTTPS_PROXY, then run the command again: it goes on where it stopped; \
                HF_HUB_OFFLINE=1 uses what is already in the cache";
    let message = match error {
        E::Timeout(_) => format!("{subject}: {server} does not answer in time"),
        _ => format!("{subject}: no answer from {server}: {error}"),
    };
    let failure = fail(Exit::Io, message).hint(hint);
    match error {
        E::Timeout(_)
        | E::Io(_)
        | E::HostNotFound
        | E::ConnectionFailed
        | E::Protocol(_)
        | E::ConnectProxyFailed(_)
        | E::BodyStalled => AttemptError::transient(failure),
        _ => AttemptError::Final(failure.into()),
    }
}
