//! The subsets in a data set's card: `configs` in the YAML at the head of README.md, which the Hub gives as JSON.
//!
//! The forms are those of Hugging Face's `datasets`.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A subset of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subset {
    pub(super) name: String,
    /// Whether it is marked as the default one, or has that name.
    pub(super) default: bool,
    /// Directory that its patterns start from.
    pub(super) directory: Option<String>,
    /// Splits and their patterns; empty if the names of the files decide.
    pub(super) splits: Vec<(String, Vec<String>)>,
}

/// The subsets in the field `configs` of a card; none if it is null. `Err` says what is wrong with it.
pub(super) fn subsets(configs: Value) -> Result<Vec<Subset>, String> {
    let configs: Option<Vec<Config>> = serde_json::from_value(configs).map_err(|e| e.to_string())?;
    Ok(configs.unwrap_or_default().into_iter().map(Config::into_subset).collect())
}

/// Whether the YAML at the head of a README.md has the field `configs`.
pub(super) fn has_configs(readme: &str) -> bool {
    front_matter(readme).is_some_and(|yaml| yaml.lines().any(|line| line.starts_with("configs:")))
}

/// The YAML between the first two lines `---`.
fn front_matter(text: &str) -> Option<&str> {
    // Some editors put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.split_inclusive('\n');
    let first = lines.next().filter(|line| line.trim_end() == "---")?;
    let mut end = first.len();
    for line in lines {
        if line.trim_end() == "---" {
            return Some(&text[first.len()..end]);
        }
        end += line.len();
    }
    None
}

#[derive(Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "name")]
    config_name: Option<String>,
    data_files: Option<Files>,
    data_dir: Option<String>,
    default: Option<bool>,
}

/// A name. YAML reads one like `2024` as a number if it has no quotes.
fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(name) => Ok(Some(name)),
        number @ Value::Number(_) => Ok(Some(number.to_string())),
        other => Err(serde::de::Error::custom(format!("`config_name` is {other}"))),
    }
}

/// `data_files` in all its forms.
#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Many(Vec<Item>),
    BySplit(std::collections::BTreeMap<String, Patterns>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Pattern(String),
    Split { split: String, path: Patterns },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Many(Vec<String>),
}

impl Patterns {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(pattern) => vec![pattern],
            Self::Many(patterns) => patterns,
        }
    }
}

impl Config {
    fn into_subset(self) -> Subset {
        let name = self.config_name.unwrap_or_else(|| "default".to_owned());
        let splits = match self.data_files {
            None => Vec::new(),
            Some(Files::One(pattern)) => vec![(super::TRAIN.to_owned(), vec![pattern])],
            Some(Files::BySplit(splits)) => splits.into_iter().map(|(split, p)| (split, p.list())).collect(),
            Some(Files::Many(items)) => in_order(items),
        };
        let directory =
            self.data_dir.map(|dir| dir.trim_matches('/').to_owned()).filter(|dir| !matches!(&**dir, "" | "."));
        Subset { default: self.default == Some(true) || name == "default", name, directory, splits }
    }
}

/// Splits in the order of the card; patterns without a split are of `train`.
fn in_order(items: Vec<Item>) -> Vec<(String, Vec<String>)> {
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    for item in items {
        let (split, patterns) = match item {
            Item::Pattern(pattern) => (super::TRAIN.to_owned(), vec![pattern]),
            Item::Split { split, path } => (split, path.list()),
        };
        match splits.iter_mut().find(|(name, _)| *name == split) {
            Some((_, known)) => known.extend(patterns),
            None => splits.push((split, patterns)),
        }
    }
    splits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subset(name: &str, default: bool, splits: &[(&str, &[&str])]) -> Subset {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let splits = splits.iter().map(|(split, patterns)| ((*split).to_owned(), owned(patterns))).collect();
        Subset { name: name.to_owned(), default, directory: None, splits }
    }

    #[test]
    fn every_form_of_data_files_is_read() {
        let configs = json!([
            { "config_name": "default", "default": true, "features": [{ "name": "text" }],
              "data_files": [{ "split": "train", "path": "data/*/*" }] },
            { "config_name": "sample-10BT",
              "data_files": [{ "split": "train", "path": ["sample/10BT/*", "more/*"] }] },
            { "config_name": 2024, "data_files": "all.jsonl" },
            { "config_name": "listed", "data_files": ["a.txt", "b.txt"] },
            { "config_name": "mapped", "data_files": { "validation": "v.txt", "train": ["t1.txt", "t2.txt"] } },
            { "config_name": "inferred", "data_dir": "./x/" },
        ]);
        let mut inferred = subset("inferred", false, &[]);
        inferred.directory = Some("./x".to_owned());
        let expected = vec![
            subset("default", true, &[("train", &["data/*/*"])]),
            subset("sample-10BT", false, &[("train", &["sample/10BT/*", "more/*"])]),
            subset("2024", false, &[("train", &["all.jsonl"])]),
            subset("listed", false, &[("train", &["a.txt", "b.txt"])]),
            subset("mapped", false, &[("train", &["t1.txt", "t2.txt"]), ("validation", &["v.txt"])]),
            inferred,
        ];
        assert_eq!(subsets(configs).unwrap(), expected);
    }

    #[test]
    fn cards_without_subsets_have_none_and_broken_ones_say_so() {
        for configs in [Value::Null, json!([])] {
            assert_eq!(subsets(configs).unwrap(), []);
        }
        for configs in [json!(3), json!([{ "data_files": { "a": { "b": "c" } } }]), json!([{ "config_name": [] }])] {
            let problem = subsets(configs).unwrap_err();
            assert!(!problem.is_empty() && !problem.contains('\n'), "{problem:?}");
        }
    }

    #[test]
    fn configs_count_only_at_the_head_of_a_readme() {
        for readme in ["---\nconfigs:\n- data_files: x\n---\n", "\u{feff}---\r\nlicense: mit\r\nconfigs: [\r\n---\r\n"]
        {
            assert!(has_configs(readme), "{readme:?}");
        }
        for readme in ["", "# Title\nconfigs:\n", "---\nlicense: mit\n---\nconfigs:\n---\n", "---\nconfigs: []\n"] {
            assert!(!has_configs(readme), "{readme:?}");
        }
    }
}
