//! The chat templates that are built in, as the models that made them known have them, and the choice of one.
//!
//! They are Jinja like everybody's: what is written into a model's tokenizer_config.json is the source that was trained with, and any
//! other program that renders it makes the same text. An answer ends with the end of text: `eos_token`.

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

/// The template that `config` names, for the model in `base`, and what should be said about it.
///
/// # Errors
/// [`Exit::Config`] if the model has none of its own, [`Exit::Data`] for a file that is no template.
pub fn choose(config: &SftConfig, base: &Path, tokenizer: &Tokenizer) -> Result<(ChatTemplate, Option<String>)> {
    let own = |source: &str| ChatTemplate::new(source.trim_end().to_owned(), tokenizer);
    let name = match &config.template {
        NameOrPath::Name(name) => *name,
        NameOrPath::Path(path) => {
            let bytes = read_bounded(Path::new(path), MAX_SOURCE, true)?;
            return Ok((ChatTemplate::new(String::from_utf8_lossy(&bytes).into_owned(), tokenizer)?, None));
        }
    };
    let template = match name {
        TemplateName::Vicuna => own(VICUNA)?,
        TemplateName::Alpaca => own(ALPACA)?,
        TemplateName::ChatMl if tokenizer.id_of(IM_END).is_none() => {
            let said = format!("note: the tokenizer has no {IM_END}: turns end with its end of text instead");
            return Ok((own(&CHATML.replace(&format!("'{IM_END}\\n'"), "eos_token + '\\n'"))?, Some(said)));
        }
        TemplateName::ChatMl => own(CHATML)?,
        TemplateName::Llama2 => own(LLAMA2)?,
        TemplateName::Zephyr => own(ZEPHYR)?,
        TemplateName::Model => ChatTemplate::from_dir(base, tokenizer)?.ok_or_else(|| {
            fail(Exit::Config, format!("sft.template = \"model\": {} has no chat template", base.display()))
                .hint("choose one that is built in, such as \"vicuna\"")
        })?,
    };
    Ok((template, None))
}
