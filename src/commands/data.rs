//! `data verify`, `data inspect`; `data prepare` is next door.

use super::{prepare, print};
use crate::cli::{Data, Inspect, SplitName};
use crate::corpus::shards::manifest::{MANIFEST_FILE, Split};
use crate::corpus::shards::verify::{tokenizer_beside, verify};
use crate::data::dataset::named_tokenizer;
use crate::data::excerpt::{ExcerptStart, excerpt};
use crate::data::inspect::inspect;
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail};
use crate::runtime::format::escape_control;
use crate::runtime::home::expand_home;
use crate::tokenizer::Tokenizer;
use anyhow::Result;

pub(super) fn run(command: Data, console: Console) -> Result<()> {
    match command {
        Data::Prepare(args) => prepare::run(args, console),
        Data::Verify(args) => {
            let dir = expand_home(&args.dir);
            if dir.join(MANIFEST_FILE).exists() {
                tokenizer_beside(&dir)?;
            }
            print(&verify(&dir)?.to_string())
        }
        Data::Inspect(args) => run_inspect(&Inspect { dir: expand_home(&args.dir), ..args }),
    }
}

fn run_inspect(args: &Inspect) -> Result<()> {
    let Some(place) = place(args) else { return print(&escape_control(&inspect(&args.dir)?)) };
    let split = match args.split {
        SplitName::Train => Split::Train,
        SplitName::Val => Split::Val,
    };
    let tokenizer = inspect_tokenizer(args)?;
    let excerpt = excerpt(&args.dir, split, place, args.max_tokens.get())?;
    let before: Vec<u32> = excerpt.before.into_iter().collect();
    let text = escape_control(&tokenizer.decode_after(&before, &excerpt.ids, false)?);
    print(&format!("{}\n\n{text}\n\n{} tokens: {:?}", excerpt.title, excerpt.ids.len(), excerpt.ids))
}

fn place(args: &Inspect) -> Option<ExcerptStart> {
    let sequence = |index| ExcerptStart::Sequence {
        index,
        length: args.sequence_length.get(),
        seed: (!args.no_shuffle).then_some(args.seed),
    };
    args.token.map(ExcerptStart::Token).or(args.document.map(ExcerptStart::Document)).or(args.sequence.map(sequence))
}

fn inspect_tokenizer(args: &Inspect) -> Result<Tokenizer> {
    match &args.tokenizer {
        Some(name) => named_tokenizer(&name.as_str().into()),
        None if args.dir.join("tokenizer.json").exists() => tokenizer_beside(&args.dir),
        None => Err(fail(Exit::Config, format!("{}: holds no tokenizer.json to decode with", args.dir.display()))
            .hint("name the tokenizer that made the shards: --tokenizer gpt2 or --tokenizer FILE")
            .into()),
    }
}
