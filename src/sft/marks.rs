//! Fields that mark which answers are trained: OpenAI's `weight`, `train`, `loss`, `mask` and similar ones.

use super::conversation::Problem;
use super::fields::set;
use crate::config::Meaning;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Whether the answers of the record or turn are trained.
    Train(bool),
    /// The field has the name of a mark, but says nothing about training.
    Nothing,
}

/// The mark in the field `name` of a record, or of a turn if `of_turn`. `role` gives the role that a name stands for, for
/// NeMo's `mask = "User"`.
///
/// # Errors
/// Values that are not supported.
pub(super) fn mark_of<'r>(
    name: &str,
    value: &Value,
    meaning: Meaning,
    of_turn: bool,
    role: impl Fn(&str) -> Option<&'r str>,
) -> Result<Mark, Problem> {
    let number = value.as_f64().filter(|number| *number == 0.0 || *number == 1.0);
    match (meaning, value) {
        (Meaning::Train, Value::Bool(train)) => Ok(Mark::Train(*train)),
        (Meaning::Mask, Value::Bool(masked)) => Ok(Mark::Train(!masked)),
        // The label of a record may be its class; only a truth value, as in preference data, says whether it is good.
        (Meaning::Train, _) if name == "label" && (number.is_none() || !of_turn) => Ok(Mark::Nothing),
        (Meaning::Train, Value::Number(_)) if number.is_some() => Ok(Mark::Train(number == Some(1.0))),
        // Questions are never trained; a mask over answers would leave nothing.
        (Meaning::Mask, Value::String(who)) if role(who).is_some_and(|role| role != "assistant") => Ok(Mark::Nothing),
        (Meaning::Mask, Value::Number(_)) => Err(Problem::hint(
            format!("{name} = {value} can be read both ways"),
            format!("write true or false; or, if 1 means trained: {}", set("fields", name, "train")),
        )),
        _ => Err(Problem::hint(
            format!("{name} = {value}: only 0 and 1 or false and true are supported"),
            format!("leave it out if that is meant: {}", set("fields", name, "ignore")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Choice as _, Role, usual_role};
    use serde_json::json;

    fn says(name: &str, value: Value) -> Result<Mark, String> {
        let meaning = Meaning::of_field(name).unwrap();
        mark_of(name, &value, meaning, false, |name| usual_role(name).map(Role::name)).map_err(|problem| problem.what)
    }

    #[test]
    fn marks_are_read_as_those_who_set_them_mean_them() {
        for (name, value, train) in [
            ("weight", json!(0), false),
            ("weight", json!(1.0), true),
            ("train", json!(false), false),
            ("loss", json!(0), false),
            ("loss", json!(true), true),
            ("label", json!(false), false),
            ("mask", json!(true), false),
            ("masked", json!(false), true),
        ] {
            assert_eq!(says(name, value.clone()), Ok(Mark::Train(train)), "{name} {value}");
        }
        assert_eq!(says("label", json!("sports")), Ok(Mark::Nothing));
        assert_eq!(says("label", json!(0)), Ok(Mark::Nothing));
        assert_eq!(says("mask", json!("User")), Ok(Mark::Nothing));
        for (name, value) in
            [("weight", json!(0.5)), ("mask", json!(1)), ("mask", json!("gpt")), ("train", json!("no"))]
        {
            assert!(says(name, value.clone()).is_err(), "{name} {value}");
        }
    }
}
