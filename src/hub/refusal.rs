//! Why a request failed, said so that the user knows what to do, and whether to try again.

use std::fmt;

use ureq::Body;
use ureq::http::Response;

use super::client::{Client, header, host};
use crate::runtime::error::{Exit, Failure, fail};

/// What a request is about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A branch, tag or commit of a data set.
    Revision {
        repo: &'a str,
        revision: &'a str,
    },
    /// The list of its files.
    Listing {
        repo: &'a str,
        commit: &'a str,
    },
    File {
        repo: &'a str,
        commit: &'a str,
        path: &'a str,
    },
}

impl Subject<'_> {
    fn repo(&self) -> &str {
        match self {
            Self::Revision { repo, .. } | Self::Listing { repo, .. } | Self::File { repo, .. } => repo,
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

#[derive(Debug)]
pub(super) enum Trouble {
    /// The next attempt would end alike.
    Final(anyhow::Error),
    /// It may pass; the failure is what is said when it does not.
    Passing {
        failure: Failure,
        /// Seconds that the server asks to wait.
        wait: Option<u64>,
    },
}

impl Trouble {
    pub(super) fn passing(failure: Failure) -> Self {
        Self::Passing { failure, wait: None }
    }
}

/// For an answer that is no success.
pub(super) fn refused(client: &Client, response: &Response<Body>, subject: &Subject, url: &str, own: bool) -> Trouble {
    let status = response.status().as_u16();
    let headers = response.headers();
    let code = header(headers, "x-error-code").unwrap_or_default();
    let wait = header(headers, "retry-after").and_then(|s| s.trim().parse().ok());
    let server = host(url);
    let says = |what: &str| format!("{subject}: {what} ({server} answers {status})");
    match status {
        429 => {
            let hint = if client.has_token() {
                "wait some minutes, then run the command again: it goes on where it stopped"
            } else {
                "wait some minutes and run the command again (it goes on where it stopped); with HF_TOKEN set, \
                 more requests are allowed"
            };
            Trouble::Passing { failure: fail(Exit::Io, says("too many requests")).hint(hint), wait }
        }
        408 | 500..=599 => {
            let hint = "run the command again later: it goes on where it stopped";
            Trouble::Passing { failure: fail(Exit::Io, says("the server is in trouble")).hint(hint), wait }
        }
        // Signed addresses of a storage expire; the Hub makes a new one at the next attempt.
        401 | 403 if !own => {
            let hint = "run the command again; if it persists, check the clock and the proxy of this machine";
            Trouble::passing(fail(Exit::Io, says("the storage refuses access")).hint(hint))
        }
        401 | 403 if code == "GatedRepo" => Trouble::Final(gated(client, subject, &says).into()),
        401 => Trouble::Final(unauthorized(client, subject, &says).into()),
        403 => Trouble::Final(gated(client, subject, &says).into()),
        404 => Trouble::Final(missing(client, subject, code, &says).into()),
        _ => {
            let hint = "check HF_ENDPOINT and the proxy, and whether the page opens in a browser";
            Trouble::Final(fail(Exit::Io, says("the request is refused")).hint(hint).into())
        }
    }
}

fn gated(client: &Client, subject: &Subject, says: &dyn Fn(&str) -> String) -> Failure {
    let endpoint = &client.endpoint;
    let repo = subject.repo();
    let hint = match client.has_token() {
        true => format!(
            "accept its terms at {endpoint}/datasets/{repo}; if that is done, check that the token in HF_TOKEN \
             may read it"
        ),
        false => format!(
            "accept its terms at {endpoint}/datasets/{repo}, then set HF_TOKEN to a token of that account \
             (made at {endpoint}/settings/tokens)"
        ),
    };
    fail(Exit::Io, says("access to this data set is restricted")).hint(hint)
}

fn unauthorized(client: &Client, subject: &Subject, says: &dyn Fn(&str) -> String) -> Failure {
    let endpoint = &client.endpoint;
    let repo = subject.repo();
    if client.has_token() {
        let hint = format!(
            "set HF_TOKEN to a valid token with read access ({endpoint}/settings/tokens), or unset it if \
             {repo} is public"
        );
        return fail(Exit::Io, says("the token is not accepted")).hint(hint);
    }
    // The Hub does not tell strangers whether a private data set exists.
    let hint = format!("check the name `{repo}`; if it is private or gated, set HF_TOKEN ({endpoint}/settings/tokens)");
    fail(Exit::Io, says("no such public data set, and no token was given")).hint(hint)
}

fn missing(client: &Client, subject: &Subject, code: &str, says: &dyn Fn(&str) -> String) -> Failure {
    let endpoint = &client.endpoint;
    let repo = subject.repo();
    let (what, hint) = match (code, subject) {
        ("RepoNotFound", _) | ("", Subject::Revision { revision: "main", .. }) => (
            format!("there is no data set {repo}"),
            format!("check OWNER/NAME at {endpoint}/datasets; a private one needs HF_TOKEN"),
        ),
        (_, Subject::File { .. }) if code != "RevisionNotFound" => (
            "there is no such file".to_owned(),
            format!("see the files at {endpoint}/datasets/{repo}/tree/main, or check HF_ENDPOINT if it is a mirror"),
        ),
        ("RevisionNotFound", _) => (
            "there is no such branch, tag or commit".to_owned(),
            format!("see the branches at {endpoint}/datasets/{repo}/tree/main"),
        ),
        _ => (
            "there is no such data set, or no such revision of it".to_owned(),
            format!("check the name and the revision at {endpoint}/datasets/{repo}"),
        ),
    };
    fail(Exit::Config, says(&what)).hint(hint)
}

/// For a request that got no answer, or half of one.
pub(super) fn network(subject: &Subject, url: &str, error: &ureq::Error) -> Trouble {
    use ureq::Error as E;
    let server = host(url);
    let says = |what: String| format!("{subject}: {what}");
    let tls = match error {
        E::Tls(_) | E::Rustls(_) | E::Pem(_) | E::TlsRequired => true,
        // The library hands the failures of a handshake on like this.
        E::Io(e) => e.kind() == std::io::ErrorKind::InvalidData && url.starts_with("https:"),
        _ => false,
    };
    if tls {
        let hint = "if a proxy of your network re-signs traffic, set SSL_CERT_FILE to its authority's PEM file; \
                    check the clock and HF_ENDPOINT";
        let message = says(format!("no secure connection to {server}: {error}"));
        return Trouble::Final(fail(Exit::Io, message).hint(hint).into());
    }
    let hint = "check the network and HTTPS_PROXY, then run the command again: it goes on where it stopped; \
                HF_HUB_OFFLINE=1 uses what is already in the cache";
    match error {
        E::Timeout(_) => Trouble::passing(fail(Exit::Io, says(format!("{server} does not answer in time"))).hint(hint)),
        E::Io(_)
        | E::HostNotFound
        | E::ConnectionFailed
        | E::Protocol(_)
        | E::ConnectProxyFailed(_)
        | E::BodyStalled => {
            Trouble::passing(fail(Exit::Io, says(format!("no answer from {server}: {error}"))).hint(hint))
        }
        _ => Trouble::Final(fail(Exit::Io, says(format!("no answer from {server}: {error}"))).hint(hint).into()),
    }
}
