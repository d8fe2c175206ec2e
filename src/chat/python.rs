//! Values as Python writes them: `json.dumps`, `str` and `repr`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as JsonValue;

/// The filter that stands for Python's `%` on a string.
pub(super) const PERCENT: &str = "percent_format";

/// Lists within lists, at most.
const MAX_DEPTH: usize = 64;

/// Values within a value that is written, at most.
const MAX_VALUES: usize = 1 << 16;

pub(super) fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// `value` as templates get it.
pub(super) fn from_json(value: &JsonValue) -> Value {
    match value {
        JsonValue::Null => Value::from(()),
        JsonValue::Bool(truth) => Value::from(*truth),
        JsonValue::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (_, Some(integer)) => Value::from(integer),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        JsonValue::String(text) => Value::from(text.as_str()),
        JsonValue::Array(items) => items.iter().map(from_json).collect(),
        JsonValue::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), from_json(value))))
        }
    }
}

/// How `json.dumps` is called.
#[derive(Clone, Debug)]
pub(super) struct Json {
    /// Indentation of one level; none if all is written in one line.
    pub(super) indent: Option<String>,
    /// Between items, and between key and value.
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
    pub(super) ensure_ascii: bool,
}

impl Json {
    /// `value` as JSON.
    ///
    /// # Errors
    /// For values that JSON has no form for.
    pub(super) fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, 0, &mut 0, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, seen: &mut usize, out: &mut String) -> Result<(), Error> {
        bounded(depth, seen)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.write_items(['[', ']'], items, depth, seen, out)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(key), item));
                }
                if self.sort_keys {
                    items.sort_by_key(|(key, _)| key.as_ref().map(ToString::to_string));
                }
                self.write_items(['{', '}'], items, depth, seen, out)?;
            }
            other => {
                let message = format!("a value of the kind {other} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        [open, close]: [char; 2],
        items: Vec<(Option<Value>, Value)>,
        depth: usize,
        seen: &mut usize,
        out: &mut String,
    ) -> Result<(), Error> {
        out.push(open);
        let empty = items.is_empty();
        for (i, (key, item)) in items.into_iter().enumerate() {
            out.push_str(if i == 0 { "" } else { &self.separators.0 });
            self.break_line(depth + 1, out);
            if let Some(key) = key {
                match key.kind() {
                    ValueKind::String => self.write_string(key.as_str().unwrap_or_default(), out),
                    _ => {
                        let mut text = String::new();
                        self.write(&key, depth, seen, &mut text)?;
                        self.write_string(&text, out);
                    }
                }
                out.push_str(&self.separators.1);
            }
            self.write(&item, depth + 1, seen, out)?;
        }
        if !empty {
            self.break_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    /// Starts a line that is indented by `depth` levels, if values are indented.
    fn break_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `str(value)`.
pub(super) fn string(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Number => Ok(number(value)),
        ValueKind::Seq | ValueKind::Map => repr(value),
        _ => Ok(value.to_string()),
    }
}

/// `repr(value)`. Only floats differ from what minijinja writes.
fn repr(value: &Value) -> Result<String, Error> {
    if !holds_float(value, 0, &mut 0)? {
        return Ok(format!("{value:?}"));
    }
    match value.kind() {
        ValueKind::Number => Ok(number(value)),
        ValueKind::Seq => {
            let items = value.try_iter()?.map(|item| repr(&item)).collect::<Result<Vec<_>, _>>()?;
            // minijinja has one kind for lists and tuples; only their text differs.
            let shown = value.to_string();
            let [open, close] = if shown.starts_with('(') { ["(", ")"] } else { ["[", "]"] };
            let one = if open == "(" && items.len() == 1 { "," } else { "" };
            Ok(format!("{open}{}{one}{close}", items.join(", ")))
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                items.push(format!("{}: {}", repr(&key)?, repr(&value.get_item(&key)?)?));
            }
            Ok(format!("{{{}}}", items.join(", ")))
        }
        _ => Ok(format!("{value:?}")),
    }
}

/// Whether there is a float in `value`. Bounded, because a template can build values that repeat a part many times over.
fn holds_float(value: &Value, depth: usize, seen: &mut usize) -> Result<bool, Error> {
    bounded(depth, seen)?;
    let mut found = false;
    match value.kind() {
        ValueKind::Number => found = !value.is_integer(),
        ValueKind::Seq => {
            for item in value.try_iter()? {
                found |= holds_float(&item, depth + 1, seen)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                found |= holds_float(&value.get_item(&key)?, depth + 1, seen)?;
            }
        }
        _ => {}
    }
    Ok(found)
}

/// Counts one more value, at `depth`.
///
/// # Errors
/// If there are too many values, or too many levels of them.
fn bounded(depth: usize, seen: &mut usize) -> Result<(), Error> {
    *seen += 1;
    if depth > MAX_DEPTH || *seen > MAX_VALUES {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is too large to be written"));
    }
    Ok(())
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_text(float),
        _ => value.to_string(),
    }
}

/// The shortest digits that read back to the same float, as Python places point and exponent.
fn float_text(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() { "nan".into() } else { format!("{float}") };
    }
    let digits = format!("{float:e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{float:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (float, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9999999999999998.0, "9999999999999998.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float_text(float), text);
        }
    }
}
