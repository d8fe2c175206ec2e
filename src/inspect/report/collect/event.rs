//! Events of a run as a report shows them.

use super::tokens_at;
use crate::metrics::Train;
use serde::Serialize;
use serde_json::{Map, Value};

/// Events that change what the curves mean.
const MARKED: [&str; 11] = [
    "resume",
    "hardware",
    "lanes",
    "skip",
    "spike",
    "rollback",
    "out_of_memory",
    "replay_mismatch",
    "diverged",
    "quarantine",
    "finish",
];

#[derive(Debug, Serialize)]
pub struct Event {
    pub time: String,
    /// The last step before it.
    pub step: u64,
    /// Tokens trained on up to that step.
    pub tokens: u64,
    pub kind: String,
    pub text: String,
    /// Whether the curves show it.
    pub marked: bool,
}

impl Event {
    pub(super) fn new(event: &Value, train: &[Train]) -> Self {
        let kind = event["kind"].as_str().unwrap_or_default().to_owned();
        let step = event["step"].as_u64().or_else(|| event["to_step"].as_u64()).unwrap_or(0);
        let mut rest = event.as_object().cloned().unwrap_or_default();
        for key in ["time", "kind", "step", "build"] {
            rest.shift_remove(key);
        }
        Self {
            time: event["time"]
                .as_str()
                .map_or_else(String::new, |time| time.split('.').next().unwrap_or(time).replace('T', " ")),
            tokens: tokens_at(train, step),
            text: details(&kind, rest),
            marked: MARKED.contains(&kind.as_str()),
            step,
            kind,
        }
    }
}

/// The fields of an event of this kind as text.
fn details(kind: &str, mut fields: Map<String, Value>) -> String {
    match kind {
        "ranks" => rewrite_ranks(&mut fields),
        "hardware" => rewrite_hardware(&mut fields),
        "products" => rewrite_products(&mut fields),
        _ => {}
    }
    let shown = fields.iter().filter(|(_, value)| !value.is_null() && **value != Value::Array(Vec::new()));
    shown.map(|(key, value)| format!("{key} {}", shown_value(value))).collect::<Vec<_>>().join(", ")
}

/// Every host once, with its ranks and what they compute on, in place of a line for each rank.
fn rewrite_ranks(fields: &mut Map<String, Value>) {
    let members = fields.shift_remove("members").unwrap_or_default();
    let mut hosts: Vec<(String, usize, Vec<String>)> = Vec::new();
    for member in members.as_array().into_iter().flatten() {
        let host = shown_value(&member["host"]);
        let device = shown_value(&member["device"]);
        match hosts.iter_mut().find(|(known, ..)| *known == host) {
            Some((_, count, devices)) => {
                *count += 1;
                if !devices.contains(&device) {
                    devices.push(device);
                }
            }
            None => hosts.push((host, 1, vec![device])),
        }
    }
    let hosts = hosts.iter().map(|(host, count, devices)| format!("{host} ({count} x {})", devices.join(", ")));
    fields.insert("hosts".into(), hosts.collect::<Vec<_>>().join("; ").into());
}

/// A change of speed alone says so, and nothing of arithmetic, which it leaves alone.
fn rewrite_hardware(fields: &mut Map<String, Value>) {
    if fields.get("affects").and_then(Value::as_str) == Some("speed") {
        fields.retain(|key, _| key == "changes");
        fields.insert("affects".into(), "the speed alone, no bits".into());
    }
}

/// How many products are computed by another algorithm than cuBLAS's choice, in place of a line for each.
fn rewrite_products(fields: &mut Map<String, Value>) {
    let chosen = fields.shift_remove("chosen").unwrap_or_default();
    let all = chosen.as_array().map_or(&[][..], Vec::as_slice);
    let others = all.iter().filter(|timing| timing["microseconds"] != timing["default_microseconds"]).count();
    fields.insert("chosen".into(), format!("{others} of {} otherwise than by cuBLAS", all.len()).into());
}

/// A value as text: changes with arrows, strings without quotes.
fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(shown_value).collect::<Vec<_>>().join("; "),
        Value::Object(of) if of.contains_key("key") => {
            format!("{} {} → {}", shown_value(&value["key"]), shown_value(&value["old"]), shown_value(&value["new"]))
        }
        Value::Object(of) => {
            of.iter().map(|(key, value)| format!("{key} {}", shown_value(value))).collect::<Vec<_>>().join(" ")
        }
        _ => short(value),
    }
}

/// Numbers with four digits: more of them say nothing to a reader.
pub(super) fn short(value: &Value) -> String {
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(x) if x.abs() >= 1e4 => format!("{x:.0}"),
        Some(x) if (1e-3..1e4).contains(&x.abs()) => {
            let digits = (3 - x.abs().log10().floor() as i32).clamp(0, 9) as usize;
            let text = format!("{x:.digits$}");
            let trimmed = text.trim_end_matches('0').trim_end_matches('.');
            if text.contains('.') { trimmed.to_owned() } else { text }
        }
        Some(x) if x != 0.0 => format!("{x:.3e}"),
        Some(_) if value.is_f64() => "0.0".into(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn choices_of_algorithms_are_counted() {
        let timing =
            |by: f64| json!({"product": "1 x 2 x 3", "tried": 8, "microseconds": by, "default_microseconds": 2.0});
        let event = json!({"time": "t", "kind": "products", "step": 4, "pass": "bf16, 16 x 1024", "seconds": 1.25,
            "chosen": [timing(2.0), timing(1.5), timing(1.75)]});
        let shown = Event::new(&event, &[]);
        assert_eq!(shown.text, "pass bf16, 16 x 1024, seconds 1.25, chosen 2 of 3 otherwise than by cuBLAS");
        assert_eq!((shown.step, shown.marked), (4, false));
    }
}
