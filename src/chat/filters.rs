//! Jinja's filters and tests that minijinja lacks or defines in another way.

use super::methods::{MAX_WIDTH, Side, bounded, pad};
use super::python::Json;
use super::python::invalid;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};
use minijinja_contrib::filters::{filesizeformat, striptags};
use minijinja_contrib::globals::{cycler, joiner};

pub(super) fn add(environment: &mut Environment) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("wordcount", words);
    environment
        .add_filter("center", |text: &str, width: Option<usize>| pad(text, width.unwrap_or(80), " ", Side::Both));
    environment.add_filter("truncate", truncate);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("urlencode", url_encoded);
    environment.add_filter("striptags", striptags);
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter(super::python::PERCENT, percent);
    environment.add_test("callable", is_callable);
    environment
        .add_test("sequence", |value: &Value| is_kind(value, &[ValueKind::String, ValueKind::Seq, ValueKind::Map]));
    environment.add_function("cycler", |items: Rest<Value>| cycler(items.0));
    environment.add_function("joiner", joiner);
}

/// Python also calls what is undefined callable, because calling it is what fails.
fn is_callable(value: &Value) -> bool {
    is_kind(value, &[ValueKind::Undefined, ValueKind::Plain])
}

fn is_kind(value: &Value, kinds: &[ValueKind]) -> bool {
    kinds.contains(&value.kind())
}

/// transformers' own: `json.dumps` without escaping for HTML.
fn tojson(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let mut values = Vec::with_capacity(4);
    for (i, name) in ["ensure_ascii", "indent", "separators", "sort_keys"].into_iter().enumerate() {
        let value = argument(&args, &named, i, name)?;
        values.push(value.filter(|value| !value.is_none() && !value.is_undefined()));
    }
    let [ensure_ascii, indent, separators, sort_keys] = values.try_into().unwrap_or_default();
    let ensure_ascii = ensure_ascii.is_some_and(|value: Value| value.is_true());
    let sort_keys = sort_keys.is_some_and(|value: Value| value.is_true());
    let indent = indent.map(|indent: Value| match usize::try_from(indent.clone()) {
        Ok(width) if width <= MAX_WIDTH => Ok(" ".repeat(width)),
        Ok(_) => Err(invalid("tojson: too wide an indent")),
        Err(_) => Ok(indent.to_string()),
    });
    let indent = indent.transpose()?;
    let separators = match separators {
        Some(pair) => {
            let pair: Value = pair;
            let pair: Vec<String> = pair.try_iter()?.map(|part| part.to_string()).collect();
            <[String; 2]>::try_from(pair).map_err(|_| invalid("tojson: separators are two strings"))?.into()
        }
        None => ((if indent.is_some() { "," } else { ", " }).into(), ": ".into()),
    };
    named.assert_all_used()?;
    Json { indent, separators, sort_keys, ensure_ascii }.dump(value)
}

/// `format % arguments` of Python: a tuple holds the arguments one by one.
fn percent(state: &mut State, format: &Value, arguments: &Value) -> Result<Value, Error> {
    let is_tuple = arguments.kind() == ValueKind::Seq && arguments.to_string().starts_with('(');
    let arguments: Vec<Value> = if is_tuple { arguments.try_iter()?.collect() } else { vec![arguments.clone()] };
    let all: Vec<Value> = std::iter::once(format.clone()).chain(arguments).collect();
    state.apply_filter("format", &all)
}

/// `value` as an integer, or `default` (0) if it is none.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Value {
    integer(value, base.unwrap_or(10)).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0)))
}

fn integer(value: &Value, base: u32) -> Option<Value> {
    let Some(text) = value.as_str() else {
        return match value.kind() {
            ValueKind::Number if value.is_integer() => Some(value.clone()),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(|float| Value::from(float as i64)),
            ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
            _ => None,
        };
    };
    let text = text.trim().to_lowercase();
    let prefix =
        [(16, "0x"), (8, "0o"), (2, "0b")].into_iter().find(|(of, _)| *of == base).map_or("", |(_, prefix)| prefix);
    let digits = text.strip_prefix(prefix).unwrap_or(&text).replace('_', "");
    let parsed = (2..=36).contains(&base).then(|| i64::from_str_radix(&digits, base).ok()).flatten();
    parsed.map(Value::from).or_else(|| Some(Value::from(text.parse::<f64>().ok()? as i64)))
}

/// Argument `i` of a filter, given in order or as `name`.
fn argument(args: &[Value], named: &Kwargs, i: usize, name: &str) -> Result<Option<Value>, Error> {
    match args.get(i) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    }
}

/// The same for a truth value, false if it is absent.
fn flag(args: &[Value], named: &Kwargs, i: usize, name: &str) -> Result<bool, Error> {
    Ok(argument(args, named, i, name)?.is_some_and(|value| value.is_true()))
}

/// The same for a number.
fn size(args: &[Value], named: &Kwargs, i: usize, name: &str, default: usize) -> Result<usize, Error> {
    argument(args, named, i, name)?.map_or(Ok(default), usize::try_from)
}

fn float(value: &Value, default: Option<Value>) -> Value {
    let parsed = value.as_str().map_or_else(|| f64::try_from(value.clone()).ok(), |text| text.trim().parse().ok());
    parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

/// Jinja's `indent`, whose width may be a text.
fn indent(text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let width = match argument(&args, &named, 0, "width")? {
        None => " ".repeat(4),
        Some(width) if width.as_str().is_some() => width.to_string(),
        Some(width) => pad("", usize::try_from(width)?, " ", Side::Right)?,
    };
    let first = flag(&args, &named, 1, "first")?;
    let blank = flag(&args, &named, 2, "blank")?;
    named.assert_all_used()?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&width);
        }
        out.push_str(line);
        bounded(&out)?;
    }
    Ok(out)
}

fn url_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn words(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// Jinja's `truncate`, whose arguments may be given in order.
fn truncate(text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let length = size(&args, &named, 0, "length", 255)?;
    let kill_words = flag(&args, &named, 1, "killwords")?;
    let end = argument(&args, &named, 2, "end")?.map_or_else(|| "...".to_owned(), |end| end.to_string());
    let leeway = size(&args, &named, 3, "leeway", 5)?;
    named.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let room = length.checked_sub(end.chars().count()).ok_or_else(|| invalid("truncate: the length is too small"))?;
    let cut: String = text.chars().take(room).collect();
    let words = cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words);
    Ok(format!("{}{end}", if kill_words { &cut } else { words }))
}
