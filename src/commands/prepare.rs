//! `data prepare`: inputs on this machine and on the Hub, a tokenizer, and a progress bar around the job.

use super::arguments::{fraction, path, path_or_name};
use super::progress_bar::styled_bar;
use crate::corpus::shards::manifest::{Eot, ValSplit};
use crate::corpus::source::ReadOptions;
use crate::corpus::{Encode, InputFile, Inputs, PrepareOptions, PrepareProgress, Summary, left_out, prepare};
use crate::data::dataset::{named_tokenizer, separator};
use crate::hub::{Hub, HubName, RemoteFile};
use crate::metrics::{self, Console};
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::thread::spawn;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite data prepare --input books/*.txt notes.jsonl.gz --tokenizer gpt2 --out data/books
  llama-lite data prepare --input hub:HuggingFaceFW/fineweb-edu:sample-10BT --tokenizer gpt2 --out data/edu

If it is interrupted, the same command continues where it stopped.")]
pub struct PrepareArgs {
    /// Text: .txt, .jsonl and .json files, each plain, .gz or .zst, and .parquet files; directories or globs of them; data sets of the Hub as
    /// hub:OWNER/NAME[@REVISION][:SUBSET[:SPLIT]] or hub:OWNER/NAME[@REVISION]/PATH
    #[arg(long, value_name = "PATH", num_args = 1.., required = true, value_parser = path_or_name())]
    pub input: Vec<String>,
    /// gpt2 (built in) or the path of a tokenizer.json
    #[arg(long, value_name = "gpt2|FILE", value_parser = path_or_name())]
    pub tokenizer: String,
    /// Directory for the shards; it must not hold finished ones
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: PathBuf,
    /// Field of a record, or column of a .parquet file, that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// What separates documents in a .txt file [default: a file is one document]
    #[arg(long, value_name = "TEXT")]
    pub text_separator: Option<String>,
    /// Share of the documents held out for validation, chosen by hash; 0 = none
    #[arg(long, value_name = "X", default_value_t = 0.005, value_parser = fraction, allow_negative_numbers = true)]
    pub val_fraction: f64,
    /// Hold out about this many tokens instead
    #[arg(long, value_name = "N", group = "val", conflicts_with = "val_fraction")]
    pub val_tokens: Option<NonZeroU64>,
    /// Hold out the first shard of the corpus instead
    #[arg(long, group = "val", conflicts_with = "val_fraction")]
    pub val_first_shard: bool,
    /// Tokens in one shard
    #[arg(long, value_name = "N", default_value = "100000000")]
    pub shard_tokens: NonZeroUsize,
    /// Where the end-of-text token goes
    #[arg(long, value_name = "PLACE", default_value = "before")]
    pub eot: Eot,
    /// Leave out documents of fewer characters
    #[arg(long, value_name = "N", default_value = "0")]
    pub min_chars: u64,
    /// Leave out documents that repeat an earlier one exactly
    #[arg(long)]
    pub dedup: bool,
    /// Continue although more than 0.1 % of the records are unusable
    #[arg(long)]
    pub allow_bad: bool,
}

struct Encoder {
    tokenizer: Tokenizer,
    separator: u32,
    fingerprint: String,
}

impl Encode for Encoder {
    fn encode_ordinary_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| self.tokenizer.encode_document(text)).collect()
    }

    fn separator(&self) -> u32 {
        self.separator
    }

    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        self.tokenizer.files(usize::MAX)
    }
}

pub(crate) fn run(args: PrepareArgs, console: Console) -> Result<()> {
    let tokenizer = named_tokenizer(&args.tokenizer.as_str().into())?;
    let encoder = Encoder { separator: separator(&tokenizer)?, fingerprint: tokenizer.fingerprint(), tokenizer };
    let options = options(&args);
    refuse_own_input(&args)?;
    announce_interruption(console)?;
    let bars = Bars::new(console);
    let inputs = inputs(&args.input, &bars)?;
    // Noted before the work, which may fail for want of these files.
    left_out::note(&inputs.left_out).iter().for_each(|line| note(line));
    let start = Instant::now();
    let summary = prepare(&options, &inputs, &encoder, &|p| bars.show(p, start))?;
    bars.all.clear()?;
    if !console.quiet {
        report(&summary, &options, start);
    }
    Ok(())
}

/// Text and shards in one directory would make the second run refuse what the first has written.
fn refuse_own_input(args: &PrepareArgs) -> Result<()> {
    let Ok(out) = args.out.canonicalize() else { return Ok(()) };
    for input in &args.input {
        if Path::new(input).canonicalize().is_ok_and(|input| input == out) {
            return Err(fail(Exit::Config, format!("{input} is both --input and --out"))
                .hint("give the shards a directory of their own")
                .into());
        }
    }
    Ok(())
}

/// An interruption loses nothing; the user should know.
fn announce_interruption(console: Console) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    spawn("signals", move || {
        if let Some(signal) = signals.forever().next() {
            if !console.quiet {
                note("\ninterrupted: run the same command again to continue");
            }
            let _ = emulate_default_handler(signal);
        }
    })
}

fn options(args: &PrepareArgs) -> PrepareOptions {
    let val = match (args.val_tokens, args.val_first_shard) {
        (Some(tokens), _) => ValSplit::Tokens(tokens.get()),
        (None, true) => ValSplit::FirstShard,
        (None, false) if args.val_fraction == 0.0 => ValSplit::None,
        (None, false) => ValSplit::Fraction(args.val_fraction),
    };
    PrepareOptions {
        read: ReadOptions {
            text_field: args.text_field.clone(),
            text_separator: args.text_separator.clone(),
            field_option: Some("--text-field NAME"),
        },
        val,
        shard_tokens: args.shard_tokens.get(),
        eot: args.eot,
        min_chars: args.min_chars,
        dedup: args.dedup,
        allow_bad: args.allow_bad,
        ..PrepareOptions::new(args.out.clone())
    }
}

/// An input file, here or on the Hub.
enum Place {
    Local(PathBuf),
    Remote(Arc<Hub>, RemoteFile),
}

impl Place {
    /// The path of the file, which is downloaded first if it is on the Hub.
    fn fetch(&self, bar: &ProgressBar) -> Result<PathBuf> {
        match self {
            Place::Local(path) => Ok(path.clone()),
            Place::Remote(hub, file) => {
                bar.set_message(file.path.clone());
                bar.set_length(file.size);
                let path = hub.fetch(file, &|bytes| bar.set_position(bytes))?;
                bar.set_message("");
                Ok(path)
            }
        }
    }
}

/// Local files in the order of their paths, then the files of the Hub in the order given.
fn inputs(patterns: &[String], bars: &Bars) -> Result<Inputs> {
    let (remote, local): (Vec<String>, Vec<String>) = patterns.iter().cloned().partition(|p| HubName::is_hub(p));
    let mut list = Vec::new();
    let mut places = Vec::new();
    let mut left_out = Vec::new();
    if !local.is_empty() {
        let found = Inputs::local(&local)?;
        left_out = found.left_out;
        for (i, input) in found.list.iter().enumerate() {
            places.push(Place::Local((found.fetch)(i)?));
            list.push(input.clone());
        }
    }
    let hub = if remote.is_empty() { None } else { Some(Arc::new(Hub::from_env()?)) };
    for (hub, name) in hub.iter().flat_map(|hub| remote.iter().map(move |name| (hub, name))) {
        for file in hub.resolve(&name.parse()?)? {
            list.push(InputFile {
                name: format!("hub:{}/{}", file.repo, file.path),
                bytes: file.size,
                version: file.commit.clone(),
            });
            places.push(Place::Remote(hub.clone(), file));
        }
    }
    let bar = bars.download.clone();
    Ok(Inputs { list: list.into(), left_out, fetch: Arc::new(move |i| places[i].fetch(&bar)) })
}

/// A line for the job and one for the download beside it.
struct Bars {
    all: MultiProgress,
    job: ProgressBar,
    download: ProgressBar,
}

impl Bars {
    fn new(console: Console) -> Self {
        let visible = console.terminal && !console.quiet;
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let job = styled_bar(0, "{bar:30} {bytes}/{total_bytes} read  {msg}  {eta} left");
        let download = styled_bar(0, "download {bytes}/{total_bytes}  {binary_bytes_per_sec}  {msg}");
        Self { job: all.add(job), download: all.add(download), all }
    }

    fn show(&self, p: PrepareProgress, start: Instant) {
        self.job.set_length(p.bytes_total);
        self.job.set_position(p.bytes_read);
        let seconds = start.elapsed().as_secs_f64();
        self.job.set_message(format!(
            "{} documents, {} tokens  {:.1} MB/s of text",
            metrics::thousands(p.documents),
            metrics::thousands(p.tokens),
            p.text_bytes as f64 / 1e6 / seconds,
        ));
    }
}

fn report(summary: &Summary, options: &PrepareOptions, start: Instant) {
    for line in &summary.notes {
        note(line);
    }
    let m = &summary.manifest;
    let train = metrics::thousands(m.train.tokens);
    let val = metrics::thousands(m.val.tokens);
    let shards = m.shards.len();
    let out = options.out.display();
    let seconds = start.elapsed().as_secs_f64();
    note(&format!("{train} training and {val} validation tokens in {shards} shards, {seconds:.1} s: {out}"));
}
