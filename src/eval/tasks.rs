//! The benchmark tasks of the lm-evaluation-harness (0.4.13) that the program knows: where their data are, which split is evaluated,
//! where examples come from. What a row becomes is in `tasks/render.rs`.

mod render;
mod subjects;
#[cfg(test)]
mod tests;
mod text;

pub use render::{Document, TaskForm};
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
    pub form: TaskForm,
}

/// A task of the table below; the fields are those of [`Task`].
struct KnownTask {
    name: &'static str,
    folder: &'static str,
    hub: &'static str,
    subset: Option<&'static str>,
    split: &'static str,
    shots: Shots,
    form: TaskForm,
}

const TASKS: [KnownTask; 14] = [
    KnownTask {
        name: "hellaswag",
        folder: "hellaswag",
        hub: "Rowan/hellaswag",
        subset: None,
        split: "validation",
        shots: Shots::DrawnWithout("train"),
        form: TaskForm::Hellaswag,
    },
    KnownTask {
        name: "hellaswag_completion",
        folder: "hellaswag",
        hub: "Rowan/hellaswag",
        subset: None,
        split: "validation",
        shots: Shots::Never,
        form: TaskForm::Completion,
    },
    KnownTask {
        name: "arc_easy",
        folder: "arc_easy",
        hub: "allenai/ai2_arc",
        subset: Some("ARC-Easy"),
        split: "test",
        shots: Shots::Drawn("train"),
        form: TaskForm::Arc,
    },
    KnownTask {
        name: "arc_challenge",
        folder: "arc_challenge",
        hub: "allenai/ai2_arc",
        subset: Some("ARC-Challenge"),
        split: "test",
        shots: Shots::Drawn("train"),
        form: TaskForm::Arc,
    },
    KnownTask {
        name: "piqa",
        folder: "piqa",
        hub: "baber/piqa",
        subset: None,
        split: "validation",
        shots: Shots::DrawnWithout("train"),
        form: TaskForm::Piqa,
    },
    KnownTask {
        name: "winogrande",
        folder: "winogrande",
        hub: "allenai/winogrande",
        subset: Some("winogrande_xl"),
        split: "validation",
        shots: Shots::DrawnWithout("train"),
        form: TaskForm::Winogrande,
    },
    KnownTask {
        name: "openbookqa",
        folder: "openbookqa",
        hub: "allenai/openbookqa",
        subset: Some("main"),
        split: "test",
        shots: Shots::Drawn("train"),
        form: TaskForm::Openbook,
    },
    KnownTask {
        name: "boolq",
        folder: "boolq",
        hub: "aps/super_glue",
        subset: Some("boolq"),
        split: "validation",
        shots: Shots::DrawnWithout("train"),
        form: TaskForm::Boolq,
    },
    KnownTask {
        name: "sciq",
        folder: "sciq",
        hub: "allenai/sciq",
        subset: None,
        split: "test",
        shots: Shots::Drawn("train"),
        form: TaskForm::Sciq,
    },
    KnownTask {
        name: "lambada_openai",
        folder: "lambada_openai",
        hub: "EleutherAI/lambada_openai",
        subset: None,
        split: "test",
        shots: Shots::Drawn("test"),
        form: TaskForm::Lambada,
    },
    KnownTask {
        name: "commonsense_qa",
        folder: "commonsense_qa",
        hub: "tau/commonsense_qa",
        subset: None,
        split: "validation",
        shots: Shots::DrawnWithout("train"),
        form: TaskForm::Commonsense,
    },
    KnownTask {
        name: "truthfulqa_mc1",
        folder: "truthfulqa",
        hub: "truthfulqa/truthful_qa",
        subset: Some("multiple_choice"),
        split: "validation",
        shots: Shots::Never,
        form: TaskForm::Truth1,
    },
    KnownTask {
        name: "truthfulqa_mc2",
        folder: "truthfulqa",
        hub: "truthfulqa/truthful_qa",
        subset: Some("multiple_choice"),
        split: "validation",
        shots: Shots::Never,
        form: TaskForm::Truth2,
    },
    KnownTask {
        name: "wikitext",
        folder: "wikitext",
        hub: "EleutherAI/wikitext_document_level",
        subset: Some("wikitext-2-raw-v1"),
        split: "test",
        shots: Shots::Never,
        form: TaskForm::Page,
    },
];

/// Every name that can be asked for, groups included.
#[cfg(test)]
fn names() -> Vec<String> {
    let plain = TASKS.iter().map(|task| task.name.to_owned());
    let groups = std::iter::once("mmlu".to_owned()).chain(GROUPS.iter().map(|(name, _)| format!("mmlu_{name}")));
    plain.chain(groups).chain(subjects().map(|subject| format!("mmlu_{subject}"))).collect()
}

/// The tasks that `name` means: one, or those of a group.
///
/// # Errors
/// [`Exit::Config`] if there is none of that name.
pub fn find(name: &str) -> Result<Vec<Task>> {
    if let Some(task) = TASKS.iter().find(|task| task.name == name) {
        return Ok(vec![Task {
            name: task.name.to_owned(),
            folder: task.folder.to_owned(),
            hub: task.hub,
            subset: task.subset.map(str::to_owned),
            split: task.split,
            shots: task.shots,
            form: task.form,
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
        let known: Vec<String> = TASKS.iter().map(|task| task.name.to_owned()).collect();
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
        form: TaskForm::Mmlu(subject),
    }
}
