//! All that a run reads.

use super::session::Session;
use crate::checkpoint::Opened;
use crate::config::Config;
use crate::data::dataset::Dataset;
use crate::runtime::thread::on_temporary_pool;
use crate::sft::{self, SftData};
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// The data of a run, and what a fine-tuning run has beyond them.
pub struct RunData {
    pub dataset: Dataset,
    pub sft: Option<SftData>,
}

impl RunData {
    /// Opens the data of `config`. `tokenizer` is the checkpoint's on resume; otherwise `data.tokenizer` decides.
    ///
    /// # Errors
    /// Those of [`Dataset::open`] and [`sft::dataset::open`].
    pub fn open(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Self> {
        // What texts and tokenizer took meanwhile would otherwise stay beside the run's memory (17 % of a small run's).
        on_temporary_pool(|| Self::open_here(config, tokenizer))
    }

    fn open_here(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Self> {
        if config.is_sft() {
            let (dataset, sft) = sft::dataset::open(config, tokenizer)?;
            return Ok(Self { dataset, sft: Some(sft) });
        }
        Ok(Self { dataset: Dataset::open(config, tokenizer)?, sft: None })
    }

    /// Opens them with the tokenizer of a checkpoint; also returns their fingerprint.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_for_checkpoint(config: &Config, source: &Opened, session: &Session) -> Result<(Self, String)> {
        session.note("preparing the data ...");
        let tokenizer = Tokenizer::from_dir(&source.dir)?;
        let data = session.group.first_then_others("the data", || Self::open(config, Some(tokenizer)))?;
        let fingerprint = data.dataset.fingerprint()?;
        Ok((data, fingerprint))
    }
}
