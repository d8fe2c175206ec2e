//! The text of a JSON record: the string of one field. All other values are skipped without being built.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;

use crate::corpus::source::{Content, Reason, bad, text_or_empty};
use crate::runtime::python_json::without_literals;

/// Fields named in a message, and characters of each.
const MAX_FIELDS: usize = 12;
const MAX_NAME: usize = 40;

/// Reads a line or an element; not `ended` is the last line of a file that stops without a newline.
pub(super) fn parse(bytes: Vec<u8>, ended: bool, field: &str) -> Content {
    let json = match std::str::from_utf8(&bytes) {
        Ok(json) => json,
        Err(e) => {
            // The last character lacks bytes and no newline follows: the file was cut off here.
            let cut = !ended && e.error_len().is_none();
            return bad(if cut { Reason::CutOff } else { Reason::Utf8 }, e.to_string(), bytes);
        }
    };
    // The first byte spares ordinary records the search for text in a blank one.
    if !json.starts_with('{') && json.trim().is_empty() {
        return Content::Empty;
    }
    let mut standard = Cow::Borrowed(json);
    let mut text = text_of(json, field);
    // Looked for only where the record is not JSON as it is.
    if text.as_ref().is_err_and(serde_json::Error::is_syntax) {
        standard = without_literals(json);
        if let Cow::Owned(json) = &standard {
            text = text_of(json, field);
        }
    }
    match text {
        Ok(Some(text)) => text_or_empty(text),
        Ok(None) => bad(Reason::Field, no_field(&standard, field), bytes),
        Err(e) => bad(reason(&e, ended), detail(&e, ended, field), bytes),
    }
}

fn reason(error: &serde_json::Error, ended: bool) -> Reason {
    match error.classify() {
        Category::Data => Reason::Field,
        Category::Eof if !ended => Reason::CutOff,
        _ => Reason::Json,
    }
}

fn detail(error: &serde_json::Error, ended: bool, field: &str) -> String {
    match error.classify() {
        Category::Data if error.to_string().contains("a string") => format!("the field {field:?}: {error}"),
        Category::Eof if ended => format!("{error}; a record must stand on one line"),
        _ => error.to_string(),
    }
}

/// Says that `field` is missing, and which fields there are.
fn no_field(json: &str, field: &str) -> String {
    match serde_json::from_str::<BTreeMap<String, IgnoredAny>>(json) {
        Ok(fields) if fields.is_empty() => format!("no field {field:?}; the record has no fields"),
        Ok(fields) => format!("no field {field:?}; there are: {}", field_names(fields.keys())),
        Err(_) => format!("no field {field:?}"),
    }
}

/// Names for a message: as many as are read at a glance, each of a bounded length.
fn field_names<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = if names.len() > MAX_FIELDS { ", ..." } else { "" };
    let shown = names.take(MAX_FIELDS).map(|name| name.escape_debug().take(MAX_NAME).collect::<String>());
    let shown: Vec<String> = shown.collect();
    format!("{}{more}", shown.join(", "))
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
