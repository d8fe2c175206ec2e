//! URLs and headers of answers.

use ureq::http::HeaderMap;

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
pub(super) fn join(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return origin(location).map(|_| location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}//{rest}", url.split_once("//")?.0));
    }
    location.starts_with('/').then(|| origin(url).map(|o| format!("{o}{location}"))).flatten()
}

/// The address of the next page in a `Link` header.
pub(super) fn next_page(link: &str) -> Option<&str> {
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
