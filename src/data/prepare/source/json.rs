//! What a JSON record holds: the string of one field, everything else passed over without building it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;

use crate::data::prepare::source::{Content, Reason, bad, text_or_empty};

/// Reads a line or an element; not `ended` is the last line of a file that stops without a newline.
pub(super) fn parse(bytes: Vec<u8>, ended: bool, field: &str) -> Content {
    let json = match std::str::from_utf8(&bytes) {
        Ok(json) => json,
        Err(e) => {
            let cut = !ended && e.error_len().is_none();
            return bad(if cut { Reason::CutOff } else { Reason::Utf8 }, e.to_string(), bytes);
        }
    };
    // The first byte spares ordinary records the search for text in a blank one.
    if !json.starts_with('{') && json.trim().is_empty() {
        return Content::Empty;
    }
    match text_of(json, field) {
        Ok(Some(text)) => text_or_empty(text),
        Ok(None) => bad(Reason::Field, format!("no field {field:?}"), bytes),
        Err(e) => {
            let reason = match e.classify() {
                Category::Data => Reason::Field,
                Category::Eof if !ended => Reason::CutOff,
                _ => Reason::Json,
            };
            bad(reason, e.to_string(), bytes)
        }
    }
}

/// The string in `field` of the JSON object `json`; `None` if there is no such field.
fn text_of(json: &str, field: &str) -> serde_json::Result<Option<String>> {
    let mut json = serde_json::Deserializer::from_str(json);
    let text = json.deserialize_map(Pick(field))?;
    json.end()?;
    Ok(text)
}

/// Picks one field of an object.
struct Pick<'f>(&'f str);

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_field) = map.next_key_seed(IsKey(self.0))? {
            if !is_field {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_none() {
                found = Some(map.next_value::<String>()?);
            } else {
                return Err(A::Error::custom(format_args!("the field {:?} occurs twice", self.0)));
            }
        }
        Ok(found)
    }
}

/// Compares a key without keeping it.
struct IsKey<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for IsKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}
