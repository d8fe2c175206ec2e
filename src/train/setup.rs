//! A run that is ready to train but has no directory yet.

use super::checks::check_same_model;
use super::desync::Beginning;
use super::model_state::ModelState;
use super::run_data::RunData;
use super::session::Session;
use crate::checkpoint::Opened;
use crate::config::{Config, NameOrPath, TokenizerName};
use crate::data::dataset::named_tokenizer;
use crate::data::loader::Loader;
use crate::eval::benchmark::{Extent, Prepared};
use crate::eval::dataset::Library;
use crate::eval::tasks::{self, Task};
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Everything that training needs, read and allocated. `config` is final: what is made of it has copied its seeds and rules.
pub struct RunSetup {
    pub config: Config,
    /// Device, console and processes.
    pub session: Session,
    pub data: RunData,
    /// The order of its training sequences.
    pub loader: Loader,
    pub state: ModelState,
    /// Identifies the training and validation tokens. Computed once, because it may read all shards.
    pub data_fingerprint: String,
    /// Benchmark tasks that are run along the way.
    pub benchmarks: Vec<Prepared>,
}

impl RunSetup {
    /// A run at step 0, and the checkpoint or model that its weights come from if they are not new.
    ///
    /// # Errors
    /// Those of the data, of the weights and of memory.
    pub fn initial(mut config: Config, init_from: Option<&Path>, session: &Session) -> Result<(Self, Option<Opened>)> {
        let source = init_from.map(Opened::open).transpose()?;
        if let Some(source) = &source {
            check_same_model(&config, source)?;
        }
        session.note("preparing the data ...");
        let tokenizer = match &source {
            // Fine-tuning takes its model's tokenizer in any case.
            Some(source) if !config.is_sft() => model_tokenizer(&config, source)?,
            _ => None,
        };
        // One rank after the other: what the first one caches or downloads, the others find.
        let data = session.group.first_then_others("the data", || RunData::open(&config, tokenizer))?;
        config.data.stories = data.dataset.stories.or(config.data.stories);
        Ok((Self::with_data(config, data, source.as_ref(), session)?, source))
    }

    /// What all ranks of the run in `run_dir` must begin with.
    pub fn beginning<'a>(&'a self, run_dir: &'a Path, config: &'a str, build: &'a Value) -> Beginning<'a> {
        Beginning { run_dir, config, data_fingerprint: &self.data_fingerprint, build, state: &self.state }
    }

    /// A run at step 0 whose data are open.
    ///
    /// # Errors
    /// Those of the data, of the weights and of memory.
    pub fn with_data(config: Config, data: RunData, source: Option<&Opened>, session: &Session) -> Result<Self> {
        let loader = data.dataset.loader(&config)?;
        let benchmarks = prepare_benchmarks(&config, &data.dataset.tokenizer)?;
        let state = ModelState::initial(&config, source, &session.device, &session.group)?;
        let data_fingerprint = data.dataset.fingerprint()?;
        Ok(Self { config, session: session.clone(), data, loader, state, data_fingerprint, benchmarks })
    }
}

/// The tokenizer of the weights in `source`, which must be the one that `data.tokenizer` names; none if it comes without.
fn model_tokenizer(config: &Config, source: &Opened) -> Result<Option<Tokenizer>> {
    let choice = &config.data.tokenizer;
    let dir = source.tokenizer_dir();
    if *choice == NameOrPath::Name(TokenizerName::Train) {
        return Ok(Some(Tokenizer::from_dir(dir)?));
    }
    let named = named_tokenizer(choice)?;
    if !dir.join("tokenizer.json").exists() {
        return Ok(Some(named));
    }
    let own = Tokenizer::from_dir(dir)?;
    if named.is_same_as(&own) {
        return Ok(Some(named));
    }
    let message = format!(
        "data.tokenizer = {:?} ({} ids) is not the tokenizer that the weights in {} were trained with ({} ids)",
        choice.as_str(),
        named.vocab_size(),
        source.dir.display(),
        own.vocab_size()
    );
    Err(fail(Exit::Config, message)
        .hint("leave data.tokenizer out: the default is the tokenizer of the model that --init-from names")
        .into())
}

/// The benchmark tasks of `config.eval`, read and encoded, so that what is wrong with them is found before the run starts.
///
/// # Errors
/// Those of the tasks' files.
pub fn prepare_benchmarks(config: &Config, tokenizer: &Tokenizer) -> Result<Vec<Prepared>> {
    let eval = &config.eval;
    let library = Library { dir: eval.data_dir.as_ref().map(PathBuf::from), hub: None };
    let extent = Extent { num_fewshot: eval.num_fewshot, limit: eval.limit.map(|n| n as f64) };
    let context = config.model.max_position_embeddings;
    let tasks: Vec<Vec<Task>> = eval.tasks.iter().map(|name| tasks::find(name)).collect::<Result<_>>()?;
    tasks.into_iter().flatten().map(|task| Prepared::new(task, extent, &library, tokenizer, context)).collect()
}
