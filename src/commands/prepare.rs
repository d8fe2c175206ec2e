//! `data prepare`: inputs on this machine and on the Hub, a tokenizer, and a progress bar around the job.

use crate::cli::{EotPlace, Prepare};
use crate::corpus::shards::manifest::{Eot, ValSplit};
use crate::corpus::source::ReadOptions;
use crate::corpus::{Encode, InputFile, Inputs, PrepareOptions, PrepareProgress, Summary, left_out, prepare};
use crate::data::dataset::{named_tokenizer, separator};
use crate::hub::{Hub, HubName, RemoteFile};
use crate::metrics::{self, Console};
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::home::expand_home;
use crate::runtime::thread::spawn;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

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

pub(super) fn run(args: Prepare, console: Console) -> Result<()> {
    let tokenizer = named_tokenizer(&args.tokenizer.as_str().into())?;
    let encoder = Encoder { separator: separator(&tokenizer)?, fingerprint: tokenizer.fingerprint(), tokenizer };
    let options = options(&args);
    refuse_own_input(&args)?;
    announce_interruption(console)?;
    let bars = Bars::new(console);
    let inputs = inputs(&args.input, &bars)?;
    // Before the work, which may fail for what these would have given.
    left_out::note(&inputs.left_out).iter().for_each(|line| note(line));
    let begun = Instant::now();
    let summary = prepare(&options, &inputs, &encoder, &|p| bars.show(p, begun))?;
    bars.all.clear()?;
    if !console.quiet {
        report(&summary, &options, begun);
    }
    Ok(())
}

/// Text and shards in one directory would make the second run refuse what the first has begun.
fn refuse_own_input(args: &Prepare) -> Result<()> {
    let Ok(out) = expand_home(&args.out).canonicalize() else { return Ok(()) };
    for input in &args.input {
        if expand_home(Path::new(input)).canonicalize().is_ok_and(|input| input == out) {
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
                note("\ninterrupted: the same command goes on from here");
            }
            let _ = emulate_default_handler(signal);
        }
    })
}

fn options(args: &Prepare) -> PrepareOptions {
    let val = match (args.val_tokens, args.val_first_shard) {
        (Some(tokens), _) => ValSplit::Tokens(tokens.get()),
        (None, true) => ValSplit::FirstShard,
        (None, false) if args.val_fraction == 0.0 => ValSplit::None,
        (None, false) => ValSplit::Fraction(args.val_fraction),
    };
    let eot = match args.eot {
        EotPlace::Before => Eot::Before,
        EotPlace::After => Eot::After,
    };
    PrepareOptions {
        read: ReadOptions {
            text_field: args.text_field.clone(),
            text_separator: args.text_separator.clone(),
            field_option: Some("--text-field NAME"),
        },
        val,
        shard_tokens: args.shard_tokens.get(),
        eot,
        min_chars: args.min_chars,
        dedup: args.dedup,
        allow_bad: args.allow_bad,
        ..PrepareOptions::new(expand_home(&args.out))
    }
}

/// An input file, here or on the Hub.
enum Place {
    Local(PathBuf),
    Remote(Arc<Hub>, RemoteFile),
}

/// Local files in the order of their paths, then the files of the Hub in the order given.
fn inputs(patterns: &[String], bars: &Bars) -> Result<Inputs> {
    let (remote, local): (Vec<String>, Vec<String>) = patterns.iter().cloned().partition(|p| HubName::is_hub(p));
    let (mut list, mut places, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
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
    let fetch = move |i: usize| -> Result<PathBuf> {
        match &places[i] {
            Place::Local(path) => Ok(path.clone()),
            Place::Remote(hub, file) => {
                bar.set_message(file.path.clone());
                bar.set_length(file.size);
                let path = hub.fetch(file, &|bytes| bar.set_position(bytes))?;
                bar.set_message("");
                Ok(path)
            }
        }
    };
    Ok(Inputs { list: list.into(), left_out, fetch: Arc::new(fetch) })
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
        let styled = |bar: ProgressBar, template: &str| {
            ProgressStyle::with_template(template)
                .map(|style| bar.with_style(style))
                .unwrap_or_else(|_| ProgressBar::new(0))
        };
        let job = styled(ProgressBar::new(0), "{bar:30} {bytes}/{total_bytes} read  {msg}  {eta} left");
        let download = styled(ProgressBar::new(0), "download {bytes}/{total_bytes}  {binary_bytes_per_sec}  {msg}");
        Self { job: all.add(job), download: all.add(download), all }
    }

    fn show(&self, p: PrepareProgress, begun: Instant) {
        self.job.set_length(p.bytes_total);
        self.job.set_position(p.bytes_read);
        let seconds = begun.elapsed().as_secs_f64();
        self.job.set_message(format!(
            "{} documents, {} tokens  {:.1} MB/s of text",
            metrics::thousands(p.documents),
            metrics::thousands(p.tokens),
            p.text_bytes as f64 / 1e6 / seconds,
        ));
    }
}

fn report(summary: &Summary, options: &PrepareOptions, begun: Instant) {
    for line in &summary.notes {
        note(line);
    }
    let m = &summary.manifest;
    let (train, val) = (metrics::thousands(m.train.tokens), metrics::thousands(m.val.tokens));
    let (shards, out) = (m.shards.len(), options.out.display());
    let seconds = begun.elapsed().as_secs_f64();
    note(&format!("{train} training and {val} validation tokens in {shards} shards, {seconds:.1} s: {out}"));
}
