//! The benchmark tasks of the lm-evaluation-harness (0.4.13) that the program knows: where their data are, which split is evaluated,
//! where examples come from. What a row becomes is in `tasks/render.rs`.

mod render;
mod subjects;
#[cfg(test)]
mod tests;
mod text;

pub use render::{Document, Template};
pub use subjects::{GROUPS, subjects};

use crate::runtime::error::{Exit, fail};
use anyhow::Result;

/// Where the examples of a few-shot prompt come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shots {
    /// There are none, whatever is asked for.
    Never,
    Drawn(&'static str),
    /// Drawn from this split, one more than is needed, so that the document itself can be left out.
    DrawnWithout(&'static str),
    /// The first rows of this split.
    First(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// As the harness calls it.
    pub name: String,
    /// Its folder in a data directory.
    pub folder: String,
    /// Its data set on the Hub, `OWNER/NAME`.
    pub hub: &'static str,
    pub subset: Option<String>,
    pub split: &'static str,
    pub shots: Shots,
    /// How a row becomes prompts.
    pub template: Template,
}

/// Name, folder, data set, subset, split, shots, template.
type Row = (&'static str, &'static str, &'static str, Option<&'static str>, &'static str, Shots, Template);

const TASKS: [Row; 14] = [
    (
        "hellaswag",
        "hellaswag",
        "Rowan/hellaswag",
        None,
        "validation",
        Shots::DrawnWithout("train"),
        Template::Hellaswag,
    ),
    ("hellaswag_completion", "hellaswag", "Rowan/hellaswag", None, "validation", Shots::Never, Template::Completion),
    ("arc_easy", "arc_easy", "allenai/ai2_arc", Some("ARC-Easy"), "test", Shots::Drawn("train"), Template::Arc),
    (
        "arc_challenge",
        "arc_challenge",
        "allenai/ai2_arc",
        Some("ARC-Challenge"),
        "test",
        Shots::Drawn("train"),
        Template::Arc,
    ),
    ("piqa", "piqa", "baber/piqa", None, "validation", Shots::DrawnWithout("train"), Template::Piqa),
    (
        "winogrande",
        "winogrande",
        "allenai/winogrande",
        Some("winogrande_xl"),
        "validation",
        Shots::DrawnWithout("train"),
        Template::Winogrande,
    ),
    ("openbookqa", "openbookqa", "allenai/openbookqa", Some("main"), "test", Shots::Drawn("train"), Template::Openbook),
    ("boolq", "boolq", "aps/super_glue", Some("boolq"), "validation", Shots::DrawnWithout("train"), Template::Boolq),
    ("sciq", "sciq", "allenai/sciq", None, "test", Shots::Drawn("train"), Template::Sciq),
    (
        "lambada_openai",
        "lambada_openai",
        "EleutherAI/lambada_openai",
        None,
        "test",
        Shots::Drawn("test"),
        Template::Lambada,
    ),
    (
        "commonsense_qa",
        "commonsense_qa",
        "tau/commonsense_qa",
        None,
        "validation",
        Shots::DrawnWithout("train"),
        Template::Commonsense,
    ),
    (
        "truthfulqa_mc1",
        "truthfulqa",
        "truthfulqa/truthful_qa",
        Some("multiple_choice"),
        "validation",
        Shots::Never,
        Template::Truth1,
    ),
    (
        "truthfulqa_mc2",
        "truthfulqa",
        "truthfulqa/truthful_qa",
        Some("multiple_choice"),
        "validation",
        Shots::Never,
        Template::Truth2,
    ),
    (
        "wikitext",
        "wikitext",
        "EleutherAI/wikitext_document_level",
        Some("wikitext-2-raw-v1"),
        "test",
        Shots::Never,
        Template::Page,
    ),
];

/// Every name that can be asked for, groups included.
#[cfg(test)]
fn names() -> Vec<String> {
    let plain = TASKS.iter().map(|row| row.0.to_owned());
    let groups = std::iter::once("mmlu".to_owned()).chain(GROUPS.iter().map(|(name, _)| format!("mmlu_{name}")));
    plain.chain(groups).chain(subjects().map(|subject| format!("mmlu_{subject}"))).collect()
}

/// The tasks that `name` means: one, or those of a group.
///
/// # Errors
/// [`Exit::Config`] if there is none of that name.
pub fn find(name: &str) -> Result<Vec<Task>> {
    if let Some(&(name, folder, hub, subset, split, shots, template)) = TASKS.iter().find(|row| row.0 == name) {
        return Ok(vec![Task {
            name: name.to_owned(),
            folder: folder.to_owned(),
            hub,
            subset: subset.map(str::to_owned),
            split,
            shots,
            template,
        }]);
    }
    let members: Vec<&str> = match name.strip_prefix("mmlu") {
        Some("") => subjects().collect(),
        Some(rest) => {
            let rest = rest.trim_start_matches('_');
            let group = GROUPS.iter().find(|(group, _)| *group == rest);
            group.map_or_else(
                || subjects().filter(|subject| *subject == rest).collect(),
                |(_, members)| members.to_vec(),
            )
        }
        None => Vec::new(),
    };
    if members.is_empty() {
        let known: Vec<String> = TASKS.iter().map(|row| row.0.to_owned()).collect();
        return Err(fail(Exit::Config, format!("no task is called {name:?}"))
            .hint(format!("the tasks are {}, mmlu, mmlu_<group> and mmlu_<subject>", known.join(", ")))
            .into());
    }
    Ok(members.into_iter().map(mmlu).collect())
}

fn mmlu(subject: &'static str) -> Task {
    Task {
        name: format!("mmlu_{subject}"),
        folder: format!("mmlu/{subject}"),
        hub: "cais/mmlu",
        subset: Some(subject.to_owned()),
        split: "test",
        shots: Shots::First("dev"),
        template: Template::Mmlu(subject),
    }
}
