//! What a data set's card says about its subsets: `configs` in the YAML at the head of README.md.
//!
//! The forms are those of Hugging Face's `datasets`. YAML itself is left to a crate: cards are written by hand, with
//! quotes, flow lists, comments, and anchors.

use serde::Deserialize;

/// A subset of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subset {
    pub(super) name: String,
    /// Marked as the default one, or called so.
    pub(super) default: bool,
    /// Directory that its patterns start from.
    pub(super) directory: Option<String>,
    /// Splits and their patterns; empty where the names of the files say the split.
    pub(super) splits: Vec<(String, Vec<String>)>,
}

/// The subsets in the card `text`; none if it names none. `Err` says what is wrong with it.
pub(super) fn subsets(text: &str) -> Result<Vec<Subset>, String> {
    let Some(yaml) = front_matter(text) else { return Ok(Vec::new()) };
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
    };
    let parsed: Result<Option<Card>, _> = serde_saphyr::from_str_with_options(yaml, options);
    let card = parsed.map_err(|e| e.to_string().lines().next().unwrap_or("unreadable").trim().to_owned())?;
    let configs = card.and_then(|card| card.configs).unwrap_or_default();
    Ok(configs.into_iter().map(Config::into_subset).collect())
}

/// The YAML between the first two lines `---`.
fn front_matter(text: &str) -> Option<&str> {
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
struct Card {
    configs: Option<Vec<Config>>,
}

#[derive(Deserialize)]
struct Config {
    config_name: Option<String>,
    data_files: Option<Files>,
    data_dir: Option<String>,
    default: Option<bool>,
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
    use super::*;

    fn subset(name: &str, default: bool, splits: &[(&str, &[&str])]) -> Subset {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let splits = splits.iter().map(|(split, patterns)| ((*split).to_owned(), owned(patterns))).collect();
        Subset { name: name.to_owned(), default, directory: None, splits }
    }

    #[test]
    fn every_form_of_data_files_is_read() {
        let card = "---\r\nlicense: odc-by\nconfigs:\n\
            - config_name: default\n  default: true\n  data_files:\n  - split: train\n    path: data/*/*\n\
            \x20 features:\n  - name: text\n\
            - config_name: sample-10BT\n  data_files:\n    - split: train\n      path: [\"sample/10BT/*\", 'more/*']\n\
            - config_name: 2024\n  data_files: all.jsonl   # a comment\n\
            - config_name: listed\n  data_files: [a.txt, b.txt]\n\
            - config_name: mapped\n  data_files:\n    validation: v.txt\n    train:\n    - t1.txt\n    - t2.txt\n\
            - config_name: inferred\n  data_dir: ./x/\n\
            dataset_info:\n- features:\n  - name: x\n---\nconfigs: no\n---\n";
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
        assert_eq!(subsets(card).unwrap(), expected);
    }

    #[test]
    fn cards_without_subsets_have_none_and_broken_ones_say_so() {
        for card in
            ["", "# Title", "---\nlicense: mit\n---\n", "---\nconfigs:\n---", "---\n---\n", "---\nconfigs: []\n"]
        {
            assert_eq!(subsets(card).unwrap(), [], "{card:?}");
        }
        for card in
            ["---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs:\n- data_files: {a: {b: c}}\n---\n"]
        {
            let problem = subsets(card).unwrap_err();
            assert!(!problem.is_empty() && !problem.contains('\n'), "{problem:?}");
        }
        // An alias bomb is refused, not expanded.
        let mut bomb = "---\na: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (from, to) in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().zip(["b", "c", "d", "e", "f", "g", "h", "i"])
        {
            bomb.push_str(&format!("{to}: &{to} [*{from},*{from},*{from},*{from},*{from},*{from},*{from},*{from}]\n"));
        }
        bomb.push_str("configs: *i\n---\n");
        assert!(subsets(&bomb).is_err());
    }
}
