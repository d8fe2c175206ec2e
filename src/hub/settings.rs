//! Where the Hub and its cache are: the environment variables of Hugging Face's own programs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::runtime::error::{Exit, Failure, fail};

/// What a [`Hub`](super::Hub) needs to know of its surroundings.
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
    /// How long a second of waiting between two attempts is; shorter in tests.
    pub second: Duration,
    /// How long a silent server is waited for.
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
    /// For the Hub at `endpoint` and the cache `cache`: no token, no proxy.
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
        let get = |key: &str| variable(key).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let home = || match get("HOME") {
            Some(home) => Ok(PathBuf::from(home)),
            None => Err(fail(Exit::Config, "no place for the cache of the Hub: HOME is not set")
                .hint("set HF_HOME to a directory")),
        };
        let path = |key: &str| match get(key) {
            Some(text) => match text.strip_prefix("~/") {
                Some(rest) => Ok(Some(home()?.join(rest))),
                None => Ok(Some(PathBuf::from(text))),
            },
            None => Ok(None),
        };
        let hf_home = match (path("HF_HOME")?, path("XDG_CACHE_HOME")?) {
            (Some(dir), _) => dir,
            (None, Some(cache)) => cache.join("huggingface"),
            (None, None) => home()?.join(".cache/huggingface"),
        };
        let cache = match path("HF_HUB_CACHE")? {
            Some(cache) => cache,
            None => path("HUGGINGFACE_HUB_CACHE")?.unwrap_or_else(|| hf_home.join("hub")),
        };
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| super::OFFICIAL.to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let message = format!("HF_ENDPOINT is `{}`, which is no address", endpoint.escape_debug());
            return Err(fail(Exit::Config, message).hint(format!("unset it, or write it like {}", super::OFFICIAL)));
        }
        let token_file = path("HF_TOKEN_PATH")?.unwrap_or_else(|| hf_home.join("token"));
        let kept = || std::fs::read_to_string(&token_file).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        let token = match get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")).or_else(kept) {
            Some(token) if token.bytes().all(|b| b.is_ascii_graphic()) => Some(Token(token)),
            Some(_) => {
                let message = "the Hub's token (HF_TOKEN or the token file) holds characters that no token has";
                return Err(
                    fail(Exit::Config, message).hint("copy it again: letters, digits and underscores, one line")
                );
            }
            None => None,
        };
        let yes = |key| get(key).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str()));
        let authorities = path("SSL_CERT_FILE")?;
        Ok(Self { token, offline: yes("HF_HUB_OFFLINE"), authorities, ..Self::new(&endpoint, cache) })
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
