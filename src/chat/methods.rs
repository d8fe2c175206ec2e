//! Python's methods of strings.

use super::MAX_OUTPUT;
use super::python::invalid;
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Largest width that a text is padded to.
pub(super) const MAX_WIDTH: usize = 1 << 10;

/// Calls a method that minijinja does not have.
///
/// # Errors
/// Those of the method, and for one that is not known.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    let arguments = Arguments { name, values: args };
    Ok(match name {
        "removeprefix" => text.strip_prefix(arguments.first_text()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(arguments.first_text()?).unwrap_or(text).into(),
        // From a character on, to another one.
        "startswith" | "endswith" if args.len() > 1 => {
            let end = arguments.size(2).unwrap_or(usize::MAX);
            let from = arguments.size(1).unwrap_or(0);
            let part: String = text.chars().take(end).skip(from).collect();
            return unknown_method_callback(state, &part.into(), name, &args[..1]);
        }
        "center" => arguments.pad(text, Side::Both)?,
        "ljust" => arguments.pad(text, Side::Right)?,
        "rjust" => arguments.pad(text, Side::Left)?,
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let width = arguments.size(0).unwrap_or(0).saturating_sub(sign.len());
            format!("{sign}{}", pad(digits, width, "0", Side::Left)?).into()
        }
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "swapcase" => text.chars().flat_map(swapped).collect::<String>().into(),
        "partition" => {
            let separator = arguments.first_text()?;
            parts(text.split_once(separator), separator, [text, "", ""])
        }
        "rpartition" => {
            let separator = arguments.first_text()?;
            parts(text.rsplit_once(separator), separator, ["", "", text])
        }
        "rsplit" if arguments.text(0).is_some() => {
            let limit = arguments.size(1).unwrap_or(usize::MAX - 1);
            let mut pieces: Vec<&str> = text.rsplitn(limit + 1, arguments.first_text()?).collect();
            pieces.reverse();
            pieces.into_iter().map(Value::from).collect()
        }
        "index" => {
            let at = text.find(arguments.first_text()?).ok_or_else(|| invalid("substring not found"))?;
            text[..at].chars().count().into()
        }
        "istitle" => (text.chars().any(char::is_alphabetic) && text == titled(text)).into(),
        "isidentifier" => is_identifier(text).into(),
        "expandtabs" => expand_tabs(text, arguments.size(0).unwrap_or(8))?.into(),
        _ => return unknown_method_callback(state, value, name, args),
    })
}

/// The arguments of the method `name`.
struct Arguments<'a> {
    name: &'a str,
    values: &'a [Value],
}

impl<'a> Arguments<'a> {
    fn text(&self, i: usize) -> Option<&'a str> {
        self.values.get(i).and_then(Value::as_str)
    }

    fn first_text(&self) -> Result<&'a str, Error> {
        self.text(0).ok_or_else(|| invalid(format!("{} takes a string", self.name)))
    }

    /// Argument `i`, if it is an integer and not negative.
    fn size(&self, i: usize) -> Option<usize> {
        let integer = i64::try_from(self.values.get(i)?.clone()).ok()?;
        usize::try_from(integer).ok()
    }

    /// Pads `text` to the width in the first argument with the character in the second.
    fn pad(&self, text: &str, side: Side) -> Result<Value, Error> {
        pad(text, self.size(0).unwrap_or(0), self.text(1).unwrap_or(" "), side).map(Value::from)
    }
}

#[derive(Clone, Copy)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// `text` padded to `width` characters.
///
/// # Errors
/// For a width above [`MAX_WIDTH`].
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
    let starts_well = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
    starts_well && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// # Errors
/// If `text` is longer than a template may write.
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
