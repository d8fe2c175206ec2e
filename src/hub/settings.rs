//! Where the Hub and its cache are: the environment variables of Hugging Face's own programs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::runtime::error::{Exit, Failure, fail};

/// The environment of a [`Hub`](super::Hub).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of the Hub, without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint alone.
    pub token: Option<Token>,
    /// Directory of the cache, shared with other programs.
    pub cache: PathBuf,
    /// Take what the cache holds and never use the network.
    pub offline: bool,
    /// Proxy for the endpoint and what it redirects to.
    pub proxy: Option<ureq::Proxy>,
    /// PEM file of the authorities to trust instead of the built-in ones.
    pub authorities: Option<PathBuf>,
    /// Unit of the waits between two attempts: a second, less in tests.
    pub second: Duration,
    /// How long to wait for a server that sends nothing.
    pub silence: Duration,
}

/// A token, which no message may show.
#[derive(Clone)]
pub struct Token(pub(super) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Settings {
    /// The Hub at `endpoint` with the cache `cache`, without token and proxy.
    pub fn new(endpoint: &str, cache: PathBuf) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: None,
            cache,
            offline: false,
            proxy: None,
            authorities: None,
            second: Duration::from_secs(1),
            silence: Duration::from_secs(60),
        }
    }

    /// From HF_ENDPOINT, HF_TOKEN (or the file that `hf auth login` writes), HF_HUB_CACHE, HF_HOME, HF_HUB_OFFLINE,
    /// SSL_CERT_FILE, and the proxy variables that the HTTP library knows.
    ///
    /// # Errors
    /// [`Exit::Config`]: a variable makes no sense.
    pub fn from_env() -> Result<Self, Failure> {
        let mut settings = Self::from_variables(|key| std::env::var(key).ok())?;
        settings.proxy = ureq::Proxy::try_from_env();
        Ok(settings)
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let variables = Variables(variable);
        let hf_home = match (variables.path("HF_HOME")?, variables.path("XDG_CACHE_HOME")?) {
            (Some(dir), _) => dir,
            (None, Some(cache)) => cache.join("huggingface"),
            (None, None) => variables.home()?.join(".cache/huggingface"),
        };
        let cache = match variables.path("HF_HUB_CACHE")? {
            Some(cache) => cache,
            None => variables.path("HUGGINGFACE_HUB_CACHE")?.unwrap_or_else(|| hf_home.join("hub")),
        };
        let endpoint = variables.get("HF_ENDPOINT").unwrap_or_else(|| super::OFFICIAL.to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let message = format!("HF_ENDPOINT is `{}`, which is no address", endpoint.escape_debug());
            return Err(fail(Exit::Config, message).hint(format!("unset it, or write it like {}", super::OFFICIAL)));
        }
        let token_file = variables.path("HF_TOKEN_PATH")?.unwrap_or_else(|| hf_home.join("token"));
        let token = variables.get("HF_TOKEN").or_else(|| variables.get("HUGGING_FACE_HUB_TOKEN"));
        let token = match token.or_else(|| Some(std::fs::read_to_string(&token_file).ok()?.trim().to_owned())) {
            None => None,
            Some(token) if token.is_empty() => None,
            // It becomes part of a header, where a line break would begin another one.
            Some(token) if token.bytes().all(|b| b.is_ascii_graphic()) => Some(Token(token)),
            Some(_) => {
                let message = "the Hub's token (HF_TOKEN or the token file) holds characters that no token has";
                return Err(
                    fail(Exit::Config, message).hint("copy it again: letters, digits and underscores, one line")
                );
            }
        };
        let offline = variables.get("HF_HUB_OFFLINE").map(|value| value.to_lowercase());
        let offline = offline.is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.as_str()));
        let authorities = variables.path("SSL_CERT_FILE")?;
        Ok(Self { token, offline, authorities, ..Self::new(&endpoint, cache) })
    }
}

/// Environment variables; blank ones count as unset.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    fn get(&self, key: &str) -> Option<String> {
        (self.0)(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn home(&self) -> Result<PathBuf, Failure> {
        match self.get("HOME") {
            Some(home) => Ok(PathBuf::from(home)),
            None => Err(fail(Exit::Config, "no place for the cache of the Hub: HOME is not set")
                .hint("set HF_HOME to a directory")),
        }
    }

    /// The path in `key`, in which `~/` is the home directory.
    fn path(&self, key: &str) -> Result<Option<PathBuf>, Failure> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.strip_prefix("~/") {
            Some(rest) => Ok(Some(self.home()?.join(rest))),
            None => Ok(Some(PathBuf::from(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        let pick = |key: &str| variables.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        Settings::from_variables(pick)
    }

    #[test]
    fn variables_mean_what_they_mean_to_hugging_face() {
        let plain = read(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let set = [("HOME", "/h"), ("HF_HOME", "~/hf"), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "YES")];
        let set = read(&set).unwrap();
        assert_eq!((set.endpoint.as_str(), set.cache.as_path()), ("http://mirror", Path::new("/h/hf/hub")));
        assert!(set.offline);
        let cache = [("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")];
        assert_eq!(read(&cache).unwrap().cache, Path::new("/c"));
        assert_eq!(read(&cache[1..]).unwrap().cache, Path::new("/old"));
        assert_eq!(read(&[("XDG_CACHE_HOME", "/x")]).unwrap().cache, Path::new("/x/huggingface/hub"));
    }

    #[test]
    fn token_comes_from_the_variable_then_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let from_file = read(&[("HF_HOME", home)]).unwrap();
        assert_eq!(from_file.token.as_ref().unwrap().0, "hf_file");
        let from_variable = read(&[("HF_HOME", home), ("HF_TOKEN", " hf_secret ")]).unwrap();
        assert_eq!(from_variable.token.as_ref().unwrap().0, "hf_secret");
        assert!(!format!("{from_variable:?}").contains("secret"));
        let bad = read(&[("HF_HOME", home), ("HF_TOKEN", "hf_secr\u{e9}t")]).unwrap_err();
        assert_eq!(bad.exit, Exit::Config);
        assert!(!format!("{bad:?}").contains("secr"), "{bad}");
    }

    #[test]
    fn senseless_variables_are_refused() {
        for variables in [&[][..], &[("HOME", "/h"), ("HF_ENDPOINT", "huggingface.co")], &[("HF_HOME", "~/x")]] {
            let failure = read(variables).unwrap_err();
            assert!(failure.exit == Exit::Config && failure.hint.is_some(), "{variables:?}");
        }
    }
}
