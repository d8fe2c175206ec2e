//! `sft`: fine-tuning on conversations, on this machine or from the Hub.

use super::arguments::{path, path_or_name, run_dir};
use super::ranks::RanksArgs;
use super::{model_dir, print, session};
use crate::hub::{Hub, HubName};
use crate::metrics::Console;
use crate::runtime::error::note;
use crate::train::sft::{SftRequest, SftRun};
use anyhow::Result;
use clap::Args;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  llama-lite sft --config configs/sft-alpaca.toml --ckpt runs/quickstart --data alpaca.json
  llama-lite sft --config configs/sft-alpaca.toml --ckpt llama-hf --data hub:yahma/alpaca-cleaned --out runs/tuned
  llama-lite sft --config configs/sft-alpaca.toml --ckpt llama-hf --data chats.jsonl --show-data 3

Without a [lora] section all weights are trained.";

/// Stands for the list of shapes that only the long help has.
const RECORDS: &str = "\
Records: conversations or messages, prompt and completion, instruction and output or response, question and answer: see
--help.";

#[derive(Args, Clone, Debug)]
#[command(after_help = format!("{EXAMPLES}\n\n{RECORDS}"))]
#[command(after_long_help = format!("{EXAMPLES}\n\n{}\n\n{}", crate::config::record_shapes_text(), crate::config::reference_text()))]
pub struct SftArgs {
    /// Configuration, TOML or JSON
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub config: PathBuf,
    /// Model: checkpoint, run directory (its newest valid checkpoint), Hugging Face model directory, or hub:OWNER/NAME[@REVISION]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub ckpt: PathBuf,
    /// Records: .json, .jsonl or .parquet files, globs, directories, or hub:OWNER/NAME
    #[arg(long, value_name = "FILE", num_args = 1.., required = true, value_parser = path_or_name())]
    pub data: Vec<String>,
    /// Set one configuration key, such as lora.rank=8; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Directory of the run [default: runs/ and the configuration's name]
    #[arg(long, value_name = "RUN_DIR", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Print what would be trained of the first N conversations, and the counts, and stop
    #[arg(long, value_name = "N")]
    pub show_data: Option<NonZeroUsize>,
    #[command(flatten)]
    pub ranks: RanksArgs,
}

impl SftArgs {
    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(self.out.as_ref(), &self.config)
    }
}

/// Records that are left out and listed by --show-data.
const LISTED: usize = 20;

pub(crate) fn run(args: &SftArgs, console: Console) -> Result<()> {
    let ckpt = model_dir(&args.ckpt, console)?;
    let data = local(&args.data, console)?;
    let request = SftRequest { config: &args.config, sets: &args.set, ckpt: &ckpt, data: &data };
    let Some(n) = args.show_data else {
        return SftRun::open(&request, &session(console))?.train(&args.run_dir());
    };
    // What is shown goes to stdout, which may be a file.
    let color = console.color && std::io::stdout().is_terminal();
    let run = SftRun::open(&request, &session(Console { color, ..console }))?;
    for (i, text) in run.show(n.get(), usize::MAX)?.iter().enumerate() {
        print(&format!("--- {} ---\n{text}\n", i + 1))?;
    }
    print(&run.counts().join("\n"))?;
    if let Some(warning) = run.warning() {
        print(&format!("{warning}\nthe records that would be left out:\n{}", run.bad(LISTED).join("\n")))?;
    }
    run.check()
}

/// Paths as they are; data sets of the Hub as the files of its cache.
fn local(data: &[String], console: Console) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for name in data {
        if !HubName::is_hub(name) {
            paths.push(name.clone());
            continue;
        }
        let hub = Hub::from_env()?;
        for file in hub.resolve(&name.parse()?)? {
            if !console.quiet {
                note(&format!("getting {} ({:.1} MB) ...", file.path, file.size as f64 / 1e6));
            }
            paths.push(hub.fetch(&file, &|_| ())?.to_string_lossy().into_owned());
        }
    }
    Ok(paths)
}
