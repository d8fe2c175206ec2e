//! A state as a checkpoint: the live buffers themselves, or a copy of them that training cannot change any more.

use super::model_state::ModelState;
use super::trainer_state::TrainerStateFile;
use crate::checkpoint::{Contents, TensorRef};
use crate::config::{LoraConfig, ModelConfig};
use crate::model::params::{Layout, with_host_slices};
use crate::ops::transfer::to_host;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// Elements copied by one task.
const PIECE: usize = 1 << 18;

/// Elements that come from a GPU at a time.
const FROM_GPU: usize = 1 << 25;

/// Copies of the weights and of each state tensor of the optimizer, in its order.
pub type Flats = Vec<Vec<f32>>;

/// A checkpoint without its tensors' values.
#[derive(Debug)]
struct Frame {
    layout: Layout,
    /// Name and layout of each state tensor of the optimizer.
    optimizer_state: Vec<(&'static str, Layout)>,
    model: ModelConfig,
    step: u64,
    tokens: u64,
    tokenizer_files: Vec<(&'static str, Vec<u8>)>,
    bos: Option<u32>,
    eos: Vec<u32>,
    adapter: Option<(LoraConfig, String)>,
    trainer_state: serde_json::Value,
}

#[derive(Debug)]
pub struct Snapshot {
    frame: Frame,
    flats: Flats,
}

/// Gives `write` the contents of a checkpoint of `state`: slices of the live buffers, no copy.
///
/// # Errors
/// Those of `write`.
pub fn with_contents<R>(
    state: &ModelState,
    file: &TrainerStateFile,
    base_dir: &str,
    tokenizer: &Tokenizer,
    write: impl FnOnce(&Contents) -> Result<R>,
) -> Result<R> {
    let frame = Frame::new(state, file, base_dir, tokenizer)?;
    with_host_slices(&live_flats(state), |slices| write(&frame.contents(slices)))?
}

/// What a rank other than the first does while that takes a [`Snapshot`]: it sends its shards of the optimizer's state.
///
/// # Errors
/// Those of the exchange.
pub fn send_shards(state: &ModelState) -> Result<()> {
    state.optimizer.state.iter().try_for_each(|own| state.sharding.gather_on_first(&own.flat, None))
}

impl Snapshot {
    /// Copies `state` into `flats`, whose memory is used again. Where several ranks keep the optimizer's state, the others do
    /// [`send_shards`] meanwhile.
    ///
    /// # Errors
    /// Those of reading the tokenizer's files.
    pub fn take(
        state: &ModelState,
        file: &TrainerStateFile,
        base_dir: &str,
        tokenizer: &Tokenizer,
        mut flats: Flats,
    ) -> Result<Self> {
        let frame = Frame::new(state, file, base_dir, tokenizer)?;
        let live_flats = live_flats(state);
        flats.resize_with(live_flats.len(), Vec::new);
        let lengths = frame.lengths();
        let is_sharded = state.sharding.group.ranks() > 1;
        for (i, (copy, live)) in flats.iter_mut().zip(live_flats).enumerate() {
            // After the first snapshot the memory has this size: nothing is asked for or cleared.
            copy.resize(lengths[i], 0.0);
            // The weights come first, and every rank has all of them.
            if i > 0 && is_sharded {
                state.sharding.gather_on_first(live, Some(copy))?;
            } else {
                copy_flat(live, copy)?;
            }
        }
        Ok(Self { frame, flats })
    }

    /// The last step it contains.
    pub fn step(&self) -> u64 {
        self.frame.step
    }

    /// As a checkpoint is written.
    pub fn contents(&self) -> Contents<'_> {
        let slices: Vec<&[f32]> = self.flats.iter().map(Vec::as_slice).collect();
        self.frame.contents(&slices)
    }

    /// Its memory, for the next one.
    pub fn into_flats(self) -> Flats {
        self.flats
    }
}

/// Piece by piece where it comes from a GPU: there is no second copy of a buffer on the way.
fn copy_flat(flat: &Tensor, to: &mut [f32]) -> Result<()> {
    if flat.device().is_cpu() && flat.dtype() == DType::F32 {
        with_host_slices(&[flat], |live| {
            let pieces = to.par_chunks_mut(PIECE).zip(live[0].par_chunks(PIECE));
            // On all threads, because training stands still meanwhile.
            pieces.for_each(|(copy, live)| copy.copy_from_slice(live));
        })?;
        return Ok(());
    }
    for (i, to) in to.chunks_mut(FROM_GPU).enumerate() {
        // In memory of its own: what crosses to the host is always the whole of it.
        let piece = flat.narrow(0, i * FROM_GPU, to.len())?.force_contiguous()?;
        to.copy_from_slice(&to_host(&piece)?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    Ok(())
}

/// The buffers that a checkpoint holds, in the order of [`Flats`].
fn live_flats(state: &ModelState) -> Vec<&Tensor> {
    let weights = state.model.trained().1;
    std::iter::once(weights).chain(state.optimizer.state.iter().map(|state| &state.flat)).collect()
}

impl Frame {
    fn new(state: &ModelState, file: &TrainerStateFile, base_dir: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let model = state.model.config.clone();
        let adapters = state.model.adapters.as_ref();
        let adapter = adapters.map(|adapters| (adapters.config.clone(), base_dir.to_owned()));
        Ok(Self {
            layout: state.model.trained().0.clone(),
            optimizer_state: state.optimizer.state.iter().map(|state| (state.name, state.layout.clone())).collect(),
            tokenizer_files: tokenizer.files(model.max_position_embeddings)?,
            model,
            step: state.run.step,
            tokens: state.run.tokens,
            bos: tokenizer.bos_id(),
            eos: tokenizer.stop_ids().to_vec(),
            adapter,
            trainer_state: file.to_checked_json()?,
        })
    }

    /// Elements of each buffer, in the order of [`Flats`].
    fn lengths(&self) -> Vec<usize> {
        let state = self.optimizer_state.iter().map(|(_, layout)| layout.total);
        std::iter::once(self.layout.total).chain(state).collect()
    }

    /// The contents of a checkpoint whose values are `slices`, in the order of [`Flats`].
    fn contents<'a>(&'a self, slices: &[&'a [f32]]) -> Contents<'a> {
        let mut slices = slices.iter();
        let weights = slices.next().map(|data| named_tensors(&self.layout, data, "")).unwrap_or_default();
        let mut optimizer_state = Vec::new();
        for ((name, layout), data) in self.optimizer_state.iter().zip(slices) {
            optimizer_state.extend(named_tensors(layout, data, &format!(".{name}")));
        }
        Contents {
            step: self.step,
            tokens: self.tokens,
            weights,
            optimizer_state,
            model: &self.model,
            tokenizer_files: self.tokenizer_files.clone(),
            bos: self.bos,
            eos: self.eos.clone(),
            adapter: self.adapter.as_ref().map(|(config, base)| (config, base.as_str())),
            trainer_state: self.trainer_state.clone(),
        }
    }
}

/// The tensors of a flat buffer under their names plus `suffix`.
fn named_tensors<'a>(layout: &Layout, data: &'a [f32], suffix: &str) -> Vec<TensorRef<'a>> {
    let tensors = layout.specs.iter().map(|spec| TensorRef {
        name: format!("{}{suffix}", spec.name),
        shape: spec.shape.clone(),
        data: &data[spec.start..spec.start + spec.len],
    });
    tensors.collect()
}
