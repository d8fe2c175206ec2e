//! Random numbers that are pure functions of a key and a position: LoRA's dropout, NEFTune's noise on the embeddings.
//!
//! Backward needs no saved mask, a resumed run repeats every draw, and neither the micro-batch nor the number of threads changes one.

use super::{cpu, on_gpu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Pseudo-random bits of position `i` under `key` (the finaliser of SplitMix64, Steele et al. 2014, over a Weyl sequence).
pub fn draw(key: u64, i: u64) -> u64 {
    // From 1: the finaliser maps 0 to 0, which position 0 under key 0 would be.
    let mut z = key.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which elements of an input are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of the elements, in [0, 1).
    pub p: f32,
    /// Derived from the step and the layer.
    pub key: u64,
    /// Position of the first element among those of the whole step.
    pub first: u64,
}

impl Dropout {
    /// An element whose draw is below this is dropped.
    pub(super) fn limit(&self) -> u64 {
        (f64::from(self.p) * 2f64.powi(64)) as u64
    }

    /// The factor on the elements that are kept.
    pub(super) fn keep(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// `x` with dropped elements 0 and the others larger by 1 / (1 - p).
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = cpu::output(x.len());
        let limit = self.limit();
        let keep = self.keep();
        let pieces = out.par_chunks_mut(cpu::PIECE).zip(x.par_chunks(cpu::PIECE)).enumerate();
        pieces.for_each(|(piece, (out, x))| {
            // Positions are those of the whole step, so that the size of the micro-batch changes no draw.
            let first = self.first + (piece * cpu::PIECE) as u64;
            for ((i, out), x) in (first..).zip(out).zip(x) {
                *out = if draw(self.key, i) < limit { 0.0 } else { x * keep };
            }
        });
        out
    }

    pub(super) fn applied(dropout: Option<&Self>, x: &Tensor) -> Result<Tensor> {
        let Some(dropout) = dropout else { return Ok(x.clone()) };
        cpu::tensor(cpu::read("dropout", [x], |[x]| Ok(dropout.apply(x)))?, x.dims())
    }
}

/// Adds uniform noise to rows `x` (…, c), in place: within ±`most` of each row, drawn under `key` for the positions from `first` on.
pub fn add_noise(x: &Tensor, most: &[f32], key: u64, first: u64) -> Result<()> {
    let c = x.dims().last().copied().unwrap_or(1);
    if x.elem_count() != most.len() * c {
        bail!("add_noise: {} rows of noise for {:?}", most.len(), x.shape());
    }
    on_gpu!(x, super::cuda::add_noise(x, most, key, first));
    cpu::update("add_noise", x, |x| {
        x.par_chunks_mut(c).zip(most).enumerate().for_each(|(row, (x, most))| {
            for (i, x) in (first + (row * c) as u64..).zip(x) {
                // 24 bits are exact in f32, so the values are evenly spaced.
                let unit = (draw(key, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                *x += unit * most;
            }
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_places_alone() {
        let (x, all) = (vec![1f32; 100_000], Dropout { p: 0.25, key: 7, first: 0 });
        let dropped = all.apply(&x);
        let share = dropped.iter().filter(|&&x| x == 0.0).count() as f64 / 1e5;
        assert!((share - 0.25).abs() < 0.005, "{share}");
        assert!(dropped.iter().all(|&x| x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
        let second = Dropout { first: 40_000, ..all }.apply(&x[..60_000]);
        assert_eq!(second, dropped[40_000..]);
        assert_ne!(Dropout { key: 8, ..all }.apply(&x), dropped);
    }
}
