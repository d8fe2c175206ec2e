//! What is random about a training step: LoRA's dropout, and NEFTune's noise on the embeddings (Jain et al. 2023).
//!
//! Every draw is a pure function of the seed, the step and the token's place among all tokens of the step: a resumed run repeats it, and
//! neither the micro-batch nor the number of threads changes it.

use crate::ops::noise::{Dropout, add_noise, draw};
use crate::ops::positions::DocumentStarts;
use candle_core::{Result, Tensor};

/// The noise of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Derived from the run's seed and the step: [`Noise::key`].
    pub key: u64,
    /// LoRA's dropout, in [0, 1).
    pub dropout: f64,
    /// NEFTune's alpha; 0 = none.
    pub neftune: f64,
    /// Number of tokens of the step in the micro-batches before this one.
    pub first_token: u64,
}

impl Noise {
    /// The key of step `step` of the run of `seed`.
    pub fn key(seed: u64, step: u64) -> u64 {
        // "lite": a constant of its own keeps these draws apart from other uses of the seed.
        draw(draw(0x6c69_7465, seed), step)
    }

    /// Dropout of the input `x` (b, t, in) of a product of block `block`; none if its rate is 0.
    pub(super) fn dropout(&self, block: usize, product: usize, x: &Tensor) -> Option<Dropout> {
        let width = x.dims().last().copied().unwrap_or(1) as u64;
        // A block has four products: each gets a stream of its own.
        let key = draw(self.key, 1 + 4 * block as u64 + product as u64);
        (self.dropout > 0.0).then(|| Dropout { p: self.dropout as f32, key, first: self.first_token * width })
    }

    /// Adds noise to the embeddings `x` (b, t, c), uniform within alpha / sqrt(L c), where L is the length of a token's document.
    pub(super) fn on_embeddings(&self, x: &Tensor, documents: Option<&DocumentStarts>) -> Result<()> {
        if self.neftune == 0.0 {
            return Ok(());
        }
        let (b, t, c) = x.dims3()?;
        let lengths = document_lengths(b, t, documents);
        let most: Vec<f32> =
            lengths.iter().map(|length| (self.neftune / ((length * c) as f64).sqrt()) as f32).collect();
        add_noise(x, &most, self.key, self.first_token * c as u64)
    }
}

/// The length of every token's document.
fn document_lengths(b: usize, t: usize, documents: Option<&DocumentStarts>) -> Vec<usize> {
    let Some(documents) = documents else { return vec![t; b * t] };
    let mut lengths = Vec::with_capacity(b * t);
    for row in (0..b).map(|i| documents.row(i)) {
        for document in row.chunk_by(|a, b| a == b) {
            lengths.extend(std::iter::repeat_n(document.len(), document.len()));
        }
    }
    lengths
}
