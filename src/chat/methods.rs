//! Python's methods of strings.

use super::MAX_OUTPUT;
use super::python::invalid;
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Widest text that is padded to a width.
pub(super) const MAX_WIDTH: usize = 1 << 10;

/// Calls a method that minijinja does not have.
///
/// # Errors
/// Those of the method, and for one that is not known.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (Some(text), argument) = (value.as_str(), |i: usize| args.get(i).and_then(Value::as_str)) else {
        return unknown_method_callback(state, value, name, args);
    };
    let count = |i: usize| args.get(i).and_then(|value| i64::try_from(value.clone()).ok());
    let width = || count(0).and_then(|width| usize::try_from(width).ok());
    let one = || argument(0).ok_or_else(|| invalid(format!("{name} takes a string")));
    let padded = |side| pad(text, width().unwrap_or(0), argument(1).unwrap_or(" "), side).map(Value::from);
    Ok(match name {
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        // From a character on, to another one.
        "startswith" | "endswith" if args.len() > 1 => {
            let end = count(2).and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX);
            let from = count(1).and_then(|from| usize::try_from(from).ok()).unwrap_or(0);
            let part: String = text.chars().take(end).skip(from).collect();
            return unknown_method_callback(state, &part.into(), name, &args[..1]);
        }
        "center" => return padded(Side::Both),
        "ljust" => return padded(Side::Right),
        "rjust" => return padded(Side::Left),
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let width = width().unwrap_or(0).saturating_sub(sign.len());
            format!("{sign}{}", pad(digits, width, "0", Side::Left)?).into()
        }
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "swapcase" => text.chars().flat_map(swapped).collect::<String>().into(),
        "partition" => parts(text.split_once(one()?), one()?, [text, "", ""]),
        "rpartition" => parts(text.rsplit_once(one()?), one()?, ["", "", text]),
        "rsplit" if argument(0).is_some() => {
            let limit = count(1).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX - 1);
            let mut pieces: Vec<&str> = text.rsplitn(limit + 1, one()?).collect();
            pieces.reverse();
            pieces.into_iter().map(Value::from).collect()
        }
        "index" => {
            let at = text.find(one()?).ok_or_else(|| invalid("substring not found"))?;
            text[..at].chars().count().into()
        }
        "istitle" => (text.chars().any(char::is_alphabetic) && text == titled(text)).into(),
        "isidentifier" => is_identifier(text).into(),
        "expandtabs" => expand_tabs(text, width().unwrap_or(8))?.into(),
        _ => return unknown_method_callback(state, value, name, args),
    })
}

#[derive(Clone, Copy)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// `text` as wide as `width`.
///
/// # Errors
/// For a width that no text has.
pub(super) fn pad(text: &str, width: usize, fill: &str, side: Side) -> Result<String, Error> {
    if width > MAX_WIDTH {
        return Err(invalid(format!("a text cannot be padded to {width} characters")));
    }
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // As CPython rounds it.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}

fn parts(found: Option<(&str, &str)>, separator: &str, missing: [&str; 3]) -> Value {
    let [a, b, c] = found.map_or(missing, |(before, after)| [before, separator, after]);
    Value::from(minijinja::value::Tuple::from(vec![a.into(), b.into(), c.into()]))
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

fn is_identifier(text: &str) -> bool {
    let first = |c: char| c.is_alphabetic() || c == '_';
    text.starts_with(first) && text.chars().all(|c| first(c) || c.is_numeric())
}

/// Refuses a text that has grown beyond what a template may write.
///
/// # Errors
/// If it has.
pub(super) fn bounded(text: &str) -> Result<(), Error> {
    if text.len() > MAX_OUTPUT { Err(invalid("a text is too long to be written")) } else { Ok(()) }
}

fn expand_tabs(text: &str, size: usize) -> Result<String, Error> {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        if c != '\t' {
            out.push(c);
            column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            continue;
        }
        let spaces = if size == 0 { 0 } else { size - column % size };
        out.push_str(&pad("", spaces, " ", Side::Right)?);
        column += spaces;
        bounded(&out)?;
    }
    Ok(out)
}
