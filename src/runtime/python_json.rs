//! JSON as Python's `json` and pandas write it: with `NaN`, `Infinity` and `-Infinity`, which are not JSON.

use std::borrow::Cow;

use serde_json::Value;

/// The literals that are not JSON.
const LITERALS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The value that `json` holds; numbers that are not finite become null.
///
/// # Errors
/// As [`serde_json::from_str`].
pub fn value(json: &str) -> serde_json::Result<Value> {
    serde_json::from_str(json).or_else(|error| match without_literals(json) {
        Cow::Owned(standard) => serde_json::from_str(&standard),
        Cow::Borrowed(_) => Err(error),
    })
}

/// `json` with null in place of every literal that is not JSON; borrowed if there is none.
pub fn without_literals(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut standard = String::new();
    let mut copied = 0;
    let mut at = 0;
    let mut in_string = false;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'-' | b'I' | b'N' if !in_string => {
                if let Some(literal) = LITERALS.iter().find(|literal| is_value(bytes, at, literal)) {
                    standard += &json[copied..at];
                    standard += "null";
                    at += literal.len() - 1;
                    copied = at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    Cow::Owned(standard + &json[copied..])
}

/// Whether `literal` stands at `at` as a whole value.
fn is_value(json: &[u8], at: usize, literal: &str) -> bool {
    let behind = json.get(at + literal.len());
    let before = json[..at].iter().rev().find(|b| !b.is_ascii_whitespace());
    json[at..].starts_with(literal.as_bytes())
        && before.is_none_or(|b| b":[,".contains(b))
        && behind.is_none_or(|b| b",]} \t\r\n".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_of_python_are_null() {
        for (text, expected) in [
            (r#"{"a": NaN, "b": [Infinity, -Infinity,NaN]}"#, json!({"a": null, "b": [null, null, null]})),
            (r#"{"a\" NaN": "NaN, \\", "b": NaN}"#, json!({"a\" NaN": "NaN, \\", "b": null})),
            ("NaN", json!(null)),
            ("[1, 2]", json!([1, 2])),
        ] {
            assert_eq!(value(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn nothing_else_becomes_json() {
        for text in ["{NaN: 1}", "[NaNs]", "[--Infinity]", "[None]", "[nan]", "{\"a\": \"NaN", "[NaN"] {
            assert!(value(text).is_err(), "{text}");
        }
    }
}
