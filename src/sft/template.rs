//! The built-in chat templates, as the models that made them known have them, and the choice of one.
//!
//! They are Jinja, as everywhere: a model's tokenizer_config.json holds the source that it was trained with, and any other
//! program that renders it makes the same text. An answer ends with the end of text: `eos_token`.

use crate::chat::{ChatTemplate, MAX_SOURCE};
use crate::config::{NameOrPath, SftConfig, TemplateName};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

const VICUNA: &str = include_str!("templates/vicuna.jinja");
const ALPACA: &str = include_str!("templates/alpaca.jinja");
const CHATML: &str = include_str!("templates/chatml.jinja");
const LLAMA2: &str = include_str!("templates/llama2.jinja");
const ZEPHYR: &str = include_str!("templates/zephyr.jinja");

/// ChatML's own end of a turn.
const IM_END: &str = "<|im_end|>";

/// The template that `config` names, for the model in `base`, and a note about it.
///
/// # Errors
/// [`Exit::Config`] if the model has none of its own, [`Exit::Data`] for a file that is no template.
pub fn choose(config: &SftConfig, base: &Path, tokenizer: &Tokenizer) -> Result<(ChatTemplate, Option<String>)> {
    let mut note = None;
    let name = match &config.template {
        NameOrPath::Name(name) => *name,
        NameOrPath::Path(path) => {
            let bytes = read_bounded(Path::new(path), MAX_SOURCE, true)?;
            return Ok((ChatTemplate::new(String::from_utf8_lossy(&bytes).into_owned(), tokenizer)?, None));
        }
    };
    let source = match name {
        TemplateName::Vicuna => VICUNA.trim_end().to_owned(),
        TemplateName::Alpaca => ALPACA.trim_end().to_owned(),
        TemplateName::ChatMl if tokenizer.id_of(IM_END).is_none() => {
            note = Some(format!("note: the tokenizer has no {IM_END}: turns end with its end of text instead"));
            CHATML.trim_end().replace(&format!("'{IM_END}\\n'"), "eos_token + '\\n'")
        }
        TemplateName::ChatMl => CHATML.trim_end().to_owned(),
        TemplateName::Llama2 => LLAMA2.trim_end().to_owned(),
        TemplateName::Zephyr => ZEPHYR.trim_end().to_owned(),
        TemplateName::Model => {
            let template = ChatTemplate::from_dir(base, tokenizer)?.ok_or_else(|| {
                fail(Exit::Config, format!("sft.template = \"model\": {} has no chat template", base.display()))
                    .hint("choose one that is built in, such as \"vicuna\"")
            })?;
            return Ok((template, None));
        }
    };
    Ok((ChatTemplate::new(source, tokenizer)?, note))
}
