//! `model.rope_scaling`: the settings of each type of RoPE, under the names of Hugging Face's `rope_scaling`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::choices::{Choice, RopeType};
use super::field::{Field, SETTINGS};
use super::nearest::nearest;
use super::source::Raw;

/// How RoPE's frequencies are changed for texts longer than those of the first training. Formulas: `ops/rope/frequencies.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    Linear { factor: f64 },
    Dynamic { factor: f64 },
    Llama3(Llama3Scaling),
    Yarn(YarnScaling),
}

/// Llama 3.1's: low frequencies are divided by `factor`, high ones stay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

/// YaRN (Peng et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct YarnScaling {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    /// Factor on cosines and sines; none: it follows from `factor`, `mscale` and `mscale_all_dim`.
    pub attention_factor: Option<f64>,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    /// Whether the bounds of the ramp are rounded to whole channels.
    pub truncate: bool,
}

pub(super) const MOST_POSITIONS: usize = 1_073_741_823;

const FACTOR: &str = "factor";
const ORIGINAL: &str = "original_max_position_embeddings";

/// The settings of each type besides `rope_type`.
fn names(rope_type: RopeType) -> &'static [&'static str] {
    match rope_type {
        RopeType::Default => &[],
        RopeType::Linear | RopeType::Dynamic => &[FACTOR],
        RopeType::Llama3 => &[FACTOR, "low_freq_factor", "high_freq_factor", ORIGINAL],
        RopeType::Yarn => {
            &[FACTOR, ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"]
        }
    }
}

/// What is wrong with settings, and what to do about it.
type SettingsProblem = (String, String);

impl RopeScaling {
    /// The scaling that `settings` describe; none for `rope_type` "default". Null counts as absent.
    ///
    /// # Errors
    /// A setting that the type does not have, one that is missing, or a value out of its range.
    pub fn from_settings(settings: &BTreeMap<String, Value>) -> Result<Option<Self>, (String, String)> {
        let settings = Settings { settings };
        let rope_type = settings.rope_type()?;
        settings.refuse_others(rope_type)?;
        match rope_type {
            RopeType::Default => Ok(None),
            RopeType::Linear => Ok(Some(Self::Linear { factor: settings.factor()? })),
            RopeType::Dynamic => Ok(Some(Self::Dynamic { factor: settings.factor()? })),
            RopeType::Llama3 => settings.llama3().map(Some),
            RopeType::Yarn => settings.yarn().map(Some),
        }
    }

    pub fn rope_type(&self) -> RopeType {
        match self {
            Self::Linear { .. } => RopeType::Linear,
            Self::Dynamic { .. } => RopeType::Dynamic,
            Self::Llama3(_) => RopeType::Llama3,
            Self::Yarn(_) => RopeType::Yarn,
        }
    }

    /// Every setting with its value, `rope_type` first; those that are none are left out.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        let mut settings = vec![("rope_type", Value::from(self.rope_type().name()))];
        match *self {
            Self::Linear { factor } | Self::Dynamic { factor } => settings.push((FACTOR, factor.into())),
            Self::Llama3(llama3) => settings.extend([
                (FACTOR, llama3.factor.into()),
                ("low_freq_factor", llama3.low_freq_factor.into()),
                ("high_freq_factor", llama3.high_freq_factor.into()),
                (ORIGINAL, llama3.original_max_position_embeddings.into()),
            ]),
            Self::Yarn(yarn) => settings.extend([
                (FACTOR, yarn.factor.into()),
                (ORIGINAL, yarn.original_max_position_embeddings.into()),
                ("attention_factor", yarn.attention_factor.into()),
                ("beta_fast", yarn.beta_fast.into()),
                ("beta_slow", yarn.beta_slow.into()),
                ("mscale", yarn.mscale.into()),
                ("mscale_all_dim", yarn.mscale_all_dim.into()),
                ("truncate", yarn.truncate.into()),
            ]),
        }
        settings.retain(|(_, value)| !value.is_null());
        settings
    }
}

struct Settings<'a> {
    settings: &'a BTreeMap<String, Value>,
}

impl Settings<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.settings.get(name).filter(|value| !value.is_null())
    }

    fn rope_type(&self) -> Result<RopeType, SettingsProblem> {
        let known = RopeType::NAMES.join(", ");
        let Some(value) = self.get("rope_type") else {
            return Err(("rope_type is missing".into(), format!("choose one of {known}")));
        };
        value.as_str().and_then(RopeType::from_name).ok_or_else(|| {
            let near = value.as_str().and_then(|name| nearest(name, RopeType::NAMES));
            let hint = near.map_or(format!("choose one of {known}"), |near| format!("did you mean {near:?}?"));
            (format!("rope_type = {value} is not one of {known}"), hint)
        })
    }

    fn refuse_others(&self, rope_type: RopeType) -> Result<(), SettingsProblem> {
        let known = names(rope_type);
        let present = self.settings.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str());
        let Some(name) = present.filter(|name| *name != "rope_type").find(|name| !known.contains(name)) else {
            return Ok(());
        };
        let hint = match nearest(name, known) {
            Some(near) => format!("did you mean {near}?"),
            None if known.is_empty() => "remove it, or choose another rope_type".into(),
            None => format!("its settings are {}", known.join(", ")),
        };
        Err((format!("rope_type {:?} has no setting {name}", rope_type.name()), hint))
    }

    /// A number of at least `least`, if it is given.
    fn number(&self, name: &str, least: f64) -> Result<Option<f64>, SettingsProblem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite() && *number >= least) {
            Some(number) => Ok(Some(number)),
            None => Err((format!("{name} = {value} is no number of at least {least}"), format!("write {name} = 4.0"))),
        }
    }

    fn required(&self, name: &str, number: Option<f64>) -> Result<f64, SettingsProblem> {
        number.ok_or_else(|| (format!("{name} is missing"), format!("write {name} = 4.0")))
    }

    fn factor(&self) -> Result<f64, SettingsProblem> {
        self.required(FACTOR, self.number(FACTOR, 1.0)?)
    }

    /// A number above 0, if it is given.
    fn positive(&self, name: &str) -> Result<Option<f64>, SettingsProblem> {
        self.number(name, f64::MIN_POSITIVE)
    }

    fn original_positions(&self) -> Result<usize, SettingsProblem> {
        let hint = "it is the max_position_embeddings of the first training, such as 8192";
        let Some(value) = self.get(ORIGINAL) else { return Err((format!("{ORIGINAL} is missing"), hint.into())) };
        let positions = value.as_u64().and_then(|n| usize::try_from(n).ok());
        positions
            .filter(|n| (1..=MOST_POSITIONS).contains(n))
            .ok_or_else(|| (format!("{ORIGINAL} = {value} is no number of positions"), hint.into()))
    }

    fn llama3(&self) -> Result<RopeScaling, SettingsProblem> {
        let low_freq_factor = self.required("low_freq_factor", self.positive("low_freq_factor")?)?;
        let high_freq_factor = self.required("high_freq_factor", self.positive("high_freq_factor")?)?;
        if high_freq_factor <= low_freq_factor {
            let what =
                format!("high_freq_factor = {high_freq_factor} is not above low_freq_factor = {low_freq_factor}");
            return Err((what, "Llama 3.1 has 4.0 and 1.0".into()));
        }
        let factor = self.factor()?;
        let original_max_position_embeddings = self.original_positions()?;
        Ok(RopeScaling::Llama3(Llama3Scaling {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }))
    }

    fn yarn(&self) -> Result<RopeScaling, SettingsProblem> {
        let truncate = match self.get("truncate") {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(other) => return Err((format!("truncate = {other} is not true or false"), "write true".into())),
        };
        Ok(RopeScaling::Yarn(YarnScaling {
            factor: self.factor()?,
            original_max_position_embeddings: self.original_positions()?,
            attention_factor: self.positive("attention_factor")?,
            beta_fast: self.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("beta_slow")?.unwrap_or(1.0),
            mscale: self.positive("mscale")?,
            mscale_all_dim: self.positive("mscale_all_dim")?,
            truncate,
        }))
    }
}

/// The settings of a configuration file as those of a `config.json`.
fn settings_of_table(value: &Raw) -> Option<Result<Option<RopeScaling>, SettingsProblem>> {
    let Raw::Table(entries) = value else { return None };
    let mut settings = BTreeMap::new();
    for (name, _, value) in entries {
        let value = match value {
            Raw::Bool(truth) => Value::from(*truth),
            Raw::Integer(integer) => Value::from(*integer),
            Raw::Float(number) => Value::from(*number),
            Raw::String(text) => Value::from(text.as_str()),
            other => return Some(Err((format!("{name} is {other}"), "write a number, a name or true".into()))),
        };
        settings.insert(name.clone(), value);
    }
    Some(RopeScaling::from_settings(&settings))
}

impl Field for Option<RopeScaling> {
    const TYPE: &'static str = SETTINGS;

    fn read(value: &Raw) -> Option<Self> {
        settings_of_table(value)?.ok()
    }

    fn problem(value: &Raw) -> Option<(String, String)> {
        settings_of_table(value)?.err()
    }

    fn write(&self) -> Option<String> {
        let settings = self.as_ref()?.settings().into_iter().map(|(name, value)| match value {
            // TOML tells integers from numbers, and so does the reader.
            Value::Number(number) if number.is_f64() => format!("{name} = {:?}", number.as_f64().unwrap_or_default()),
            other => format!("{name} = {other}"),
        });
        Some(format!("{{ {} }}", settings.collect::<Vec<_>>().join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<RopeScaling>, SettingsProblem> {
        settings_of_table(&Raw::from_text(text)).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "{ rope_type = \"linear\", factor = 2 }",
            "{ rope_type = \"dynamic\", factor = 2.5 }",
            "{ rope_type = \"llama3\", factor = 8.0, low_freq_factor = 1, high_freq_factor = 4, original_max_position_embeddings = 8192 }",
            "{ rope_type = \"yarn\", factor = 4.0, original_max_position_embeddings = 32768 }",
            "{ rope_type = \"yarn\", factor = 4.0, original_max_position_embeddings = 64, attention_factor = 1.25, beta_fast = 16.0, \
             beta_slow = 2.0, mscale = 0.5, mscale_all_dim = 0.75, truncate = false }",
        ] {
            let scaling = read(text).unwrap();
            assert!(scaling.is_some());
            assert_eq!(read(&scaling.write().unwrap()), Ok(scaling), "{text}");
        }
        assert_eq!(read("{ rope_type = \"default\" }"), Ok(None));
        let yarn = read("{ rope_type = \"yarn\", factor = 4, original_max_position_embeddings = 64 }").unwrap();
        let Some(RopeScaling::Yarn(yarn)) = yarn else { panic!("{yarn:?}") };
        assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.truncate), (32.0, 1.0, true));
    }

    #[test]
    fn wrong_settings_are_named() {
        for (text, what, hint) in [
            ("{ factor = 2.0 }", "rope_type is missing", "default, linear, dynamic, llama3, yarn"),
            ("{ rope_type = \"yran\" }", "\"yran\" is not one of", "did you mean \"yarn\"?"),
            ("{ rope_type = 3 }", "rope_type = 3", "choose one of"),
            ("{ rope_type = \"linear\" }", "factor is missing", "factor = 4.0"),
            ("{ rope_type = \"linear\", factor = 0.5 }", "factor = 0.5", "factor = 4.0"),
            ("{ rope_type = \"linear\", factr = 2 }", "no setting factr", "did you mean factor?"),
            ("{ rope_type = \"default\", factor = 2 }", "no setting factor", "remove it"),
            ("{ rope_type = \"yarn\", factor = 4.0 }", "original_max_position_embeddings is missing", "8192"),
            ("{ rope_type = \"yarn\", factor = [4.0] }", "factor is a list", "number"),
            (
                "{ rope_type = \"llama3\", factor = 8, low_freq_factor = 4, high_freq_factor = 4, original_max_position_embeddings = 8 }",
                "is not above",
                "4.0 and 1.0",
            ),
        ] {
            let (found, advice) = read(text).unwrap_err();
            assert!(found.contains(what), "{text}: {found}");
            assert!(advice.contains(hint), "{text}: {advice}");
        }
    }
}
