//! What is random about a training step: LoRA's dropout, and NEFTune's noise on the embeddings (Jain et al. 2023).
//!
//! Every draw is a pure function of seed, step and place among the tokens of the whole step: a resume repeats it, and neither the
//! micro-batch nor the number of threads changes it.

use crate::ops::lora::{Dropout, draw};
use crate::ops::segments::Places;
use candle_core::{Result, Tensor};

/// The noise of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Of the run and the step.
    pub key: u64,
    /// LoRA's dropout, in [0, 1).
    pub dropout: f64,
    /// NEFTune's alpha; 0 = none.
    pub neftune: f64,
    /// Tokens of the step in the micro-batches before this one.
    pub first_token: u64,
}

impl Noise {
    /// The key of step `step` of the run of `seed`.
    pub fn key(seed: u64, step: u64) -> u64 {
        draw(draw(0x6c69_7465, seed), step)
    }

    /// Of the input `x` (b, t, in) of a product of block `block`.
    pub(super) fn dropout(&self, block: usize, product: usize, x: &Tensor) -> Option<Dropout> {
        let width = x.dims().last().copied().unwrap_or(1) as u64;
        let key = draw(self.key, 1 + 4 * block as u64 + product as u64);
        (self.dropout > 0.0).then(|| Dropout { p: self.dropout as f32, key, first: self.first_token * width })
    }

    /// The embeddings `x` (b, t, c) plus noise, uniform within alpha / sqrt(L c), where L is the length of a token's document.
    pub(super) fn on_embeddings(&self, x: Tensor, places: Places) -> Result<Tensor> {
        if self.neftune == 0.0 {
            return Ok(x);
        }
        let (b, t, c) = x.dims3()?;
        let mut values = x.flatten_all()?.to_vec1::<f32>()?;
        let lengths = lengths(b, t, places);
        for (i, (row, length)) in values.chunks_exact_mut(c).zip(lengths).enumerate() {
            let most = (self.neftune / ((length * c) as f64).sqrt()) as f32;
            let first = (self.first_token + i as u64) * c as u64;
            for (place, value) in (first..).zip(row) {
                let unit = (draw(self.key, place) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                *value += unit * most;
            }
        }
        Tensor::from_vec(values, (b, t, c), x.device())
    }
}

/// The length of every token's document.
fn lengths(b: usize, t: usize, places: Places) -> Vec<usize> {
    let Some(segments) = places.segments() else { return vec![t; b * t] };
    let mut lengths = Vec::with_capacity(b * t);
    for row in (0..b).map(|i| segments.row(i)) {
        for document in row.chunk_by(|a, b| a == b) {
            lengths.extend(std::iter::repeat_n(document.len(), document.len()));
        }
    }
    lengths
}
