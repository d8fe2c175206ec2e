//! `sample --chat`: a conversation with a model that was fine-tuned for it.
//!
//! Ctrl-C stops an answer, Ctrl-D (or /quit) ends the conversation. When it grows beyond the model's context, the oldest exchange is
//! left out of what the model sees; the system message stays. A message that is too long by itself is refused.

use super::{SampleArgs, write_now};
use crate::chat::{ChatTemplate, EndOfTurn, Message};
use crate::commands::{self, Loaded, load};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::write_atomic;
use crate::runtime::home::expand_home;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{FinishReason, Generated, Interrupted, Limits, generate};
use anyhow::Result;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str =
    "/reset forgets the conversation · /system TEXT sets the instructions · /save FILE writes it as JSON · /quit";

struct Chat<'a> {
    args: &'a SampleArgs,
    loaded: Loaded,
    template: ChatTemplate,
    rule: SamplerConfig,
    seed: u64,
    messages: Vec<Message>,
    limits: Limits,
    interrupted: Arc<AtomicBool>,
    console: Console,
}

pub(super) fn run(args: &SampleArgs, rule: SamplerConfig, seed: u64, console: Console) -> Result<()> {
    let mut loaded = load(&args.ckpt, args.base.as_deref(), args.precision, console)?;
    let template = ChatTemplate::from_dir(loaded.source.tokenizer_dir(), &loaded.tokenizer)?.ok_or_else(|| {
        fail(
            Exit::Config,
            format!("{}: no chat template: the model was not fine-tuned on conversations", loaded.source.dir.display()),
        )
        .hint("continue a text instead with --prompt; or put a chat_template.jinja into its directory")
    })?;
    let template = template.today();
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted.clone())?;
    if !console.quiet {
        note(HELP);
    }
    let mut stop = args.stop.clone();
    match template.end_of_turn(&loaded.tokenizer) {
        EndOfTurn::Token(id) => loaded.tokenizer = loaded.tokenizer.for_chat(template.source(), Some(id)),
        EndOfTurn::Text(text) => stop.push(text),
        EndOfTurn::Unknown => {}
    }
    let limits = Limits { max_tokens: args.max_tokens, stop, logprobs: None, interrupt: Some(interrupted.clone()) };
    Chat { args, loaded, template, rule, seed, messages: Vec::new(), limits, interrupted, console }.talk()
}

fn terminal_failure(error: &ReadlineError) -> anyhow::Error {
    fail(Exit::Io, format!("cannot read from the terminal: {error}")).hint("use --prompt instead").into()
}

impl Chat<'_> {
    fn talk(&mut self) -> Result<()> {
        let mut editor = DefaultEditor::new().map_err(|e| terminal_failure(&e))?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(terminal_failure(&error)),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // A line that does not enter the history can still be answered.
            let _ = editor.add_history_entry(line);
            if line == "/quit" {
                return Ok(());
            }
            let done = if line.starts_with('/') { self.command(line) } else { self.answer(line) };
            if let Err(error) = done {
                commands::report(&error); // and the conversation goes on
            }
        }
    }

    fn command(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("/reset", _) => self.messages.retain(|message| message.role == "system"),
            ("/system", "") => self.messages.retain(|message| message.role != "system"),
            ("/system", text) => {
                self.messages.retain(|message| message.role != "system");
                self.messages.insert(0, Message::new("system", text));
            }
            ("/save", "") => note("give a file: /save FILE"),
            ("/save", file) => {
                let text = format!("{:#}\n", json!({"messages": self.messages}));
                write_atomic(&expand_home(Path::new(file)), text.as_bytes())?;
                note(&format!("saved {file}"));
            }
            _ => note(HELP),
        }
        Ok(())
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        self.messages.push(Message::new("user", line));
        let prompt = match self.prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        };
        let turn = self.messages.len() as u64;
        let mut sampler = Sampler::new(self.rule.clone(), self.loaded.tokenizer.vocab_size(), self.seed, turn)?;
        self.interrupted.store(false, Ordering::SeqCst);
        let mut answer = String::new();
        let made = generate(
            &self.loaded.model,
            &self.loaded.tokenizer,
            &prompt,
            std::slice::from_mut(&mut sampler),
            &self.limits,
            |_, piece| {
                // The space between the prompt and the answer is neither shown nor kept.
                let shown = if answer.is_empty() { piece.trim_start() } else { piece };
                answer.push_str(shown);
                write_now(shown)
            },
        );
        write_now("\n")?;
        match made {
            Err(error) if !error.is::<Interrupted>() => {
                self.messages.pop();
                return Err(error);
            }
            Err(_) if answer.trim().is_empty() => {
                self.messages.pop();
                note("note: interrupted before the answer started: the message is dropped");
            }
            made => {
                self.messages.push(Message::new("assistant", answer.trim()));
                self.note_cut_off(made.ok().as_deref());
            }
        }
        Ok(())
    }

    /// Says that an answer was cut off, and by which limit.
    fn note_cut_off(&self, made: Option<&[Generated]>) {
        let Some([made]) = made.filter(|_| !self.console.quiet) else { return };
        if made.finish_reason == FinishReason::Length {
            let tokens = made.token_ids.len();
            let limit = if tokens < self.args.max_tokens { "the model's context is full" } else { "--max-tokens" };
            note(&format!("note: the answer is cut off after {tokens} tokens: {limit}"));
        }
    }

    /// The ids of the conversation: as much of its end as leaves room for an answer, and the instructions.
    fn prompt(&self) -> Result<Vec<u32>> {
        let context = self.loaded.model.config.context_length();
        let room = context.saturating_sub(self.args.max_tokens.min(context / 2));
        let mut messages = self.messages.clone();
        let ids = loop {
            let text = self.template.render(&messages, true)?;
            // The template writes the special tokens itself, the beginning of the text among them.
            let ids = self.loaded.tokenizer.encode_rendered(&text)?;
            let oldest = messages.iter().position(|message| message.role != "system");
            let last = messages.len() - 1;
            match oldest {
                Some(oldest) if ids.len() > room && oldest < last => {
                    let exchange = 2.min(last - oldest);
                    messages.drain(oldest..oldest + exchange);
                }
                _ => break ids,
            }
        };
        if ids.len() > context {
            return Err(too_long(ids.len(), context, messages.len() > 1));
        }
        if messages.len() < self.messages.len() && !self.console.quiet {
            note("note: the conversation is longer than the model's context: its beginning is left out");
        }
        Ok(ids)
    }
}

fn too_long(tokens: usize, context: usize, with_instructions: bool) -> anyhow::Error {
    let (what, hint) = if with_instructions {
        ("the message and the instructions take", "shorten it, or the instructions with /system TEXT")
    } else {
        ("the message takes", "shorten it")
    };
    fail(Exit::Config, format!("{what} {tokens} tokens, but the model's context holds {context}")).hint(hint).into()
}
