//! The shapes of fine-tuning records, the names of their fields and of the roles: the one table of them.
//!
//! `llama-lite sft --help` prints it, `sft::records` reads by it, and `sft.roles` and `sft.fields` add to it.

use std::fmt::Write;

use serde::{Serialize, Serializer};

use super::choices::{Choice, Role};

/// What a field of a record or of a turn stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meaning {
    Messages,
    /// Who speaks in a turn.
    Role,
    /// The text of a turn.
    Content,
    Instruction,
    /// What the instruction is about.
    Input,
    /// The answer to the instruction.
    Output,
    /// A text, or the first turns.
    Prompt,
    /// How the text continues, or the turns that are trained.
    Completion,
    System,
    /// Earlier pairs of question and answer.
    History,
    /// Given to the template under its own name.
    Template,
    Train,
    /// The reverse of `Train`: whether answers are not trained.
    Mask,
    #[default]
    Ignore,
    /// Something that no text can stand for.
    Unsupported,
}

/// What `sft.fields.NAME` can say, and the field's meaning then.
const MEANINGS: [(&str, Meaning); 13] = [
    ("messages", Meaning::Messages),
    ("role", Meaning::Role),
    ("content", Meaning::Content),
    ("instruction", Meaning::Instruction),
    ("input", Meaning::Input),
    ("output", Meaning::Output),
    ("prompt", Meaning::Prompt),
    ("completion", Meaning::Completion),
    ("system", Meaning::System),
    ("history", Meaning::History),
    ("train", Meaning::Train),
    ("mask", Meaning::Mask),
    ("ignore", Meaning::Ignore),
];

/// The names in [`MEANINGS`].
const MEANING_NAMES: [&str; MEANINGS.len()] = {
    let mut names = [""; MEANINGS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = MEANINGS[i].0;
        i += 1;
    }
    names
};

/// Meaning, the names that fields of it have, and what is read.
const FIELDS: [(Meaning, &[&str], &str); 14] = [
    (Meaning::Messages, &["messages", "conversations", "conversation"], "list of turns"),
    (Meaning::Role, &["role", "from"], "of a turn: who speaks"),
    (Meaning::Content, &["content", "value"], "of a turn: its text, or a list of parts of type text"),
    (Meaning::Instruction, &["instruction", "question", "query"], "what is asked"),
    (Meaning::Input, &["input", "context"], "what it is about, if there is any; alone: what is asked"),
    (Meaning::Output, &["output", "response", "answer"], "the answer"),
    (Meaning::Prompt, &["prompt"], "a text that is continued without a template; or a list of turns"),
    (Meaning::Completion, &["completion"], "how it continues (response is read, too); or the turns that are trained"),
    (Meaning::System, &["system", "system_prompt"], "the system message of any of these"),
    (Meaning::History, &["history"], "list of [question, answer] that come before"),
    (
        Meaning::Template,
        &[
            "tools",
            "documents",
            "chat_template_kwargs",
            "tool_calls",
            "function_call",
            "reasoning_content",
            "reasoning",
            "thinking",
        ],
        "of a record or a turn: given to the template, which must write them",
    ),
    (
        Meaning::Train,
        &["train", "loss", "weight", "label", "trainable", "loss_mask"],
        "of a turn or a record: 0 or false = its answers are not trained",
    ),
    (Meaning::Mask, &["mask", "masked"], "of a turn or a record: true = its answers are not trained"),
    (
        Meaning::Unsupported,
        &["images", "image", "videos", "video", "audios", "audio", "functions", "train_detail", "training_detail"],
        "refused where it holds anything",
    ),
];

/// Role, and what data sets call it.
const ROLES: [(Role, &[&str]); 4] = [
    (Role::User, &["user", "human", "prompter"]),
    (Role::Assistant, &["assistant", "gpt", "chatgpt", "bot", "model", "ai", "bing", "bard"]),
    (Role::System, &["system", "developer"]),
    (
        Role::Tool,
        &[
            "tool",
            "function",
            "function_call",
            "function_response",
            "observation",
            "ipython",
            "tool_call",
            "tool_response",
        ],
    ),
];

/// Which fields make up a record: format, fields, what becomes of them.
const SHAPES: [(&str, &str, &str); 4] = [
    ("sharegpt", "conversations of from and value", "turns"),
    ("messages", "messages of role and content", "turns"),
    (
        "alpaca",
        "instruction, input, output; Dolly's instruction, context, response; question and answer; input and output",
        "a question and its answer",
    ),
    ("prompt", "prompt and completion", "a text and its continuation, without a template; lists of messages are turns"),
];

impl Meaning {
    /// The meaning of a field called `field` in most data sets.
    pub fn of_field(field: &str) -> Option<Self> {
        FIELDS.iter().find(|(_, names, _)| names.contains(&field)).map(|(meaning, ..)| *meaning)
    }
}

impl Choice for Meaning {
    const NAMES: &'static [&'static str] = &MEANING_NAMES;

    fn from_name(name: &str) -> Option<Self> {
        MEANINGS.iter().find(|(word, _)| *word == name).map(|(_, meaning)| *meaning)
    }

    /// Empty for meanings that no configuration can give a field.
    fn name(self) -> &'static str {
        MEANINGS.iter().find(|(_, meaning)| *meaning == self).map_or("", |(word, _)| word)
    }
}

impl Serialize for Meaning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The role that most data sets call `name`, whatever its case and the spaces around it.
pub fn usual_role(name: &str) -> Option<Role> {
    let name = plain_role(name);
    ROLES.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(role, _)| *role)
}

/// A role's name without what does not tell roles apart.
pub fn plain_role(name: &str) -> String {
    name.trim().to_lowercase()
}

/// The tables above as text for `sft --help`.
pub fn record_shapes_text() -> String {
    let mut out = String::from("Records; the fields of each one decide its shape:\n");
    for (format, fields, read) in SHAPES {
        let _ = writeln!(out, "  {format:<9} {fields}: {read}");
    }
    out.push_str("\nFields (any of the names; null and empty ones do not count):\n");
    for (_, names, read) in FIELDS {
        let _ = writeln!(out, "  {}: {read}", names.join(", "));
    }
    out.push_str("\nRoles (case and spaces around them do not matter):\n");
    for (role, names) in ROLES {
        let note = if role == Role::Tool { ": context, never trained" } else { "" };
        let _ = writeln!(out, "  {:<9} {}{note}", role.name(), names.join(", "));
    }
    let _ = write!(
        out,
        "\nOther names: --set sft.roles.NAME={} and --set sft.fields.NAME={}.\n\
         Other fields of a turn are given to the template; what is not used is counted and named.",
        Role::NAMES.join("|"),
        Meaning::NAMES.join("|")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_means_two_things() {
        let mut names: Vec<&str> = FIELDS.iter().flat_map(|(_, names, _)| names.iter().copied()).collect();
        let mut roles: Vec<&str> = ROLES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        for list in [&mut names, &mut roles] {
            let count = list.len();
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len(), count);
        }
        assert_eq!(ROLES.map(|(role, _)| role.name()), Role::NAMES);
    }

    #[test]
    fn roles_are_told_by_their_letters() {
        for (name, role) in
            [("Human", Role::User), ("user ", Role::User), (" GPT", Role::Assistant), ("Observation", Role::Tool)]
        {
            assert_eq!(usual_role(name), Some(role));
        }
        assert_eq!(usual_role("narrator"), None);
    }

    #[test]
    fn the_table_names_every_role_and_field() {
        let text = record_shapes_text();
        for name in ["bing", "function_call", "developer", "system_prompt", "history", "weight", "sft.roles.NAME=user|"]
        {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}
