//! `pretrain`: starts a run from a configuration.

use super::arguments::{path, run_dir};
use super::ranks::RanksArgs;
use super::{optional_model_dir, print, session};
use crate::checkpoint;
use crate::config::{Config, print_config};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail};
use crate::train::pretrain::pretrain;
use crate::train::schedule::{check_new_run, remark};
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  llama-lite pretrain --config configs/quickstart.toml
  llama-lite pretrain --config configs/llama-124m.toml --set 'data.train=[\"shards\"]'
  llama-lite pretrain --config configs/llama-1.7b.toml --print-config

--help (not -h) lists every configuration key.";

#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
#[command(after_long_help = format!("{EXAMPLES}\n\n{}", crate::config::reference_text()))]
pub struct PretrainArgs {
    /// Configuration, TOML or JSON
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub config: PathBuf,
    /// Set one configuration key, such as train.steps=100; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Directory of the run [default: runs/ and the configuration's name]
    #[arg(long, value_name = "RUN_DIR", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Start from the weights of a checkpoint, a Hugging Face model directory, or hub:OWNER/NAME[@REVISION]
    #[arg(long, value_name = "HF_DIR", value_parser = path())]
    pub init_from: Option<PathBuf>,
    /// Print the resolved configuration, parameter count and FLOPs per token, and stop
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub ranks: RanksArgs,
}

impl PretrainArgs {
    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(self.out.as_ref(), &self.config)
    }
}

pub(crate) fn run(args: &PretrainArgs, console: Console) -> Result<()> {
    let init_from = optional_model_dir(args.init_from.as_deref(), console)?;
    let config = match &init_from {
        Some(model) => config_for_model(args, model)?,
        None => Config::load(&args.config, &args.set)?,
    };
    if args.print_config {
        check_new_run(&config)?;
        let remark = remark(&config, 0)?.map_or_else(String::new, |remark| format!("# {}\n", remark.text));
        return print(&(print_config(&config) + &remark));
    }
    pretrain(config, &args.run_dir(), init_from.as_deref(), &session(console))
}

/// The configuration of a run that starts from the weights of `model`, and from its tokenizer unless another is named.
fn config_for_model(args: &PretrainArgs, model: &Path) -> Result<Config> {
    let dir = std::path::absolute(tokenizer_dir(model))?;
    let config = Config::load_for_model(&args.config, &args.set, &dir)?;
    if Path::new(config.data.tokenizer.as_str()) == dir && !has_tokenizer(&dir) {
        return Err(fail(Exit::Config, format!("{}: the model has no tokenizer.json", dir.display()))
            .hint("name its tokenizer: --set data.tokenizer=gpt2, or --set data.tokenizer=DIR/tokenizer.json")
            .into());
    }
    Ok(config)
}

/// The directory of `model` that holds its tokenizer. The checkpoints of a run have one tokenizer, so that any of them will do:
/// their weights are verified later.
fn tokenizer_dir(model: &Path) -> PathBuf {
    if has_tokenizer(model) {
        return model.to_owned();
    }
    let newest = checkpoint::list_valid(model).ok().and_then(|valid| valid.into_iter().next());
    newest.map_or_else(|| model.to_owned(), |valid| valid.dir)
}

fn has_tokenizer(dir: &Path) -> bool {
    dir.join("tokenizer.json").exists()
}
