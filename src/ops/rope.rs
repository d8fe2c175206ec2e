//! Rotary position embedding (Su et al. 2021) in the half-split ("rotate_half") layout of Hugging Face, in place on packed QKV.
//!
//! For every query and key head and `i < d/2`, with the angle `θᵢ = position · base^(-2i/d)`:
//! `x'ᵢ = xᵢ cos θᵢ - xᵢ₊d/₂ sin θᵢ`, `x'ᵢ₊d/₂ = xᵢ₊d/₂ cos θᵢ + xᵢ sin θᵢ`. A rotation's backward is the rotation by `-θ`.
//! `base^(-2i/d)` is the plain frequency; [`Frequencies`] has the others, and a factor on cosines and sines.
//! Packed rows are (h query heads ‖ k key heads ‖ k value heads), each d wide; the value heads stay as they are.

mod frequencies;

use super::{cpu, on_gpu};
use crate::ops::positions::Positions;
use candle_core::{Device, Result, Tensor, bail};
pub use frequencies::{Frequencies, Yarn};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// The angles of a model's positions, as cosines and sines in f32 of those that have been used so far.
///
/// Tables grow with use: a `config.json` may declare a billion positions, which must not decide how much memory is taken.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Frequencies,
    positions: usize,
    device: Device,
    tables: Arc<Mutex<Arc<Tables>>>,
}

/// Cosines and sines of the angles of the first positions, (positions, d/2) each.
#[derive(Debug)]
pub struct Tables {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Both as tensors on the model's device, if that is a GPU.
    on_device: Option<(Tensor, Tensor)>,
    /// The length that decided the frequencies, if one did.
    deciding_length: Option<usize>,
}

impl Tables {
    /// The angles are computed in f32 step by step as transformers does, so that both see the same rounded frequencies.
    fn new(frequencies: &Frequencies, positions: usize, device: &Device) -> Result<Self> {
        let deciding_length = frequencies.deciding_length(positions);
        let factor = frequencies.attention_factor();
        let frequencies = frequencies.at(positions);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let scaled = angles.map(|angle| {
            let (sin, cos) = angle.sin_cos();
            (sin * factor, cos * factor)
        });
        let (sin, cos) = scaled.unzip();
        let mut tables = Self { cos, sin, on_device: None, deciding_length };
        let (cos, sin) = tables.tensors(frequencies.len())?;
        if super::is_on_gpu(&cos) || !device.is_cpu() {
            tables.on_device = Some((cos.to_device(device)?, sin.to_device(device)?));
        }
        Ok(tables)
    }

    /// The tables as (positions, d/2) tensors.
    fn tensors(&self, half: usize) -> Result<(Tensor, Tensor)> {
        let shape = (self.cos.len() / half, half);
        Ok((cpu::tensor(self.cos.clone(), shape)?, cpu::tensor(self.sin.clone(), shape)?))
    }

    /// The tables on the GPU.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn on_gpu(&self) -> Result<(&Tensor, &Tensor)> {
        let Some((cos, sin)) = &self.on_device else { bail!("rope: the tables are not on the GPU") };
        Ok((cos, sin))
    }
}

impl Rope {
    /// Plain RoPE for a model of `positions` positions.
    pub fn new(head_dim: usize, theta: f64, positions: usize) -> Self {
        Self::with_frequencies(Frequencies::plain(head_dim, theta), positions)
    }

    /// For a model of `positions` positions.
    pub fn with_frequencies(frequencies: Frequencies, positions: usize) -> Self {
        let none = Tables { cos: Vec::new(), sin: Vec::new(), on_device: None, deciding_length: None };
        Self { frequencies, positions, device: Device::Cpu, tables: Arc::new(Mutex::new(Arc::new(none))) }
    }

    /// The same for a model on `device`.
    pub fn on(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }

    /// Whether tables of other lengths have the same angles.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn is_fixed(&self) -> bool {
        matches!(self.frequencies, Frequencies::Fixed { .. })
    }

    /// Number of positions that the model declares.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The tables of all positions as (positions, d/2) tensors: for tests.
    pub fn tensors(&self) -> Result<(Tensor, Tensor)> {
        self.tables(self.positions)?.tensors(self.frequencies.len())
    }

    /// Tables of at least the first `n` positions, for contexts of which the longest has `n`.
    pub(crate) fn tables(&self, n: usize) -> Result<Arc<Tables>> {
        if n > self.positions {
            bail!("position {} is beyond the model's {}", n - 1, self.positions);
        }
        let half = self.frequencies.len();
        // A poisoned lock is harmless: tables are replaced whole, so a panic elsewhere leaves no half of one.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let deciding_length = self.frequencies.deciding_length(n);
        if tables.cos.len() < n * half || tables.deciding_length != deciding_length {
            // At least twice as many each time, so that the work stays proportional to the length of a text that grows token by token.
            let longer = n.next_power_of_two().min(self.positions).min(self.frequencies.longest_undecided());
            let positions = deciding_length.unwrap_or(longer);
            *tables = Arc::new(Tables::new(&self.frequencies, positions, &self.device)?);
        }
        Ok(tables.clone())
    }
}

/// The same in candle's differentiable primitives, for packed (b, t, (h + 2k)·d).
pub fn reference(qkv: &Tensor, rope: &Rope, rotated_heads: usize, positions: Positions) -> Result<Tensor> {
    let (b, t, width) = qkv.dims3()?;
    let half = rope.frequencies.len();
    let d = 2 * half;
    let heads = qkv.reshape((b, t, width / d, d))?;
    let positions: Vec<u32> = (0..b * t).map(|place| positions.position(place, t) as u32).collect();
    let longest = positions.iter().max().map_or(0, |&last| last as usize + 1);
    let (cos, sin) = rope.tables(longest)?.tensors(half)?;
    let positions = Tensor::from_vec(positions, b * t, qkv.device())?;
    let cos = cos.index_select(&positions, 0)?.reshape((b, t, 1, half))?;
    let sin = sin.index_select(&positions, 0)?.reshape((b, t, 1, half))?;
    let turned = heads.narrow(2, 0, rotated_heads)?;
    let x = turned.narrow(3, 0, half)?;
    let y = turned.narrow(3, half, half)?;
    let a = (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?;
    let c = (y.broadcast_mul(&cos)? + x.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[a, c], 3)?;
    let rest = heads.narrow(2, rotated_heads, width / d - rotated_heads)?;
    Tensor::cat(&[turned, rest], 2)?.reshape((b, t, width))
}

/// Rotates the first `rotated_heads` heads of packed `qkv` (b, t, (h + 2k)·d) in place, each row as `positions` says.
pub fn rope(qkv: &Tensor, rope: &Rope, rotated_heads: usize, positions: Positions) -> Result<()> {
    turn("rope", qkv, rope, rotated_heads, positions, 1.0)
}

/// Turns the gradient of packed `qkv` back, in place.
pub fn rope_backward(dqkv: &Tensor, rope: &Rope, rotated_heads: usize, positions: Positions) -> Result<()> {
    turn("rope_backward", dqkv, rope, rotated_heads, positions, -1.0)
}

fn turn(
    op: &'static str,
    qkv: &Tensor,
    rope: &Rope,
    rotated_heads: usize,
    positions: Positions,
    sign: f32,
) -> Result<()> {
    let (b, t, width) = qkv.dims3()?;
    let half = rope.frequencies.len();
    let d = 2 * half;
    if rotated_heads * d > width {
        bail!("{op}: {rotated_heads} heads of {d} do not fit rows of {width}");
    }
    let last = positions.last(op, b, t)?;
    if last >= rope.positions() {
        bail!("{op}: position {last} is beyond the {} of the model", rope.positions());
    }
    let tables = rope.tables(last + 1)?;
    on_gpu!(qkv, super::cuda::rope(qkv, tables.on_gpu()?, positions, rotated_heads, sign));
    cpu::update(op, qkv, |qkv| {
        let rows = cpu::rows_per_piece(width);
        qkv.par_chunks_mut(rows * width).enumerate().for_each(|(piece, chunk)| {
            cpu::simd!({
                for (r, row) in chunk.chunks_exact_mut(width).enumerate() {
                    let place = piece * rows + r;
                    let position = positions.position(place, t);
                    let cos = &tables.cos[position * half..][..half];
                    let sin = &tables.sin[position * half..][..half];
                    for head in row.chunks_exact_mut(d).take(rotated_heads) {
                        let (x, y) = head.split_at_mut(half);
                        for i in 0..half {
                            // Both old values first: the pair is turned in place.
                            let a = x[i];
                            let b = y[i];
                            // Turning back is turning by -θ, which only changes the sign of the sine.
                            let s = sign * sin[i];
                            x[i] = a * cos[i] - b * s;
                            y[i] = b * cos[i] + a * s;
                        }
                    }
                }
            })
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_with_the_positions_that_are_used() {
        let (heads, dim) = (1, 4);
        // A table of all these positions would take 16 GB.
        let (declared, small) = (Rope::new(dim, 100.0, 1 << 30), Rope::new(dim, 100.0, 40));
        for start in [0, 3, 37, 5] {
            let row = Tensor::arange(0f32, 8.0, &Device::Cpu).unwrap().reshape((1, 2, 4)).unwrap();
            let (got, want) = (row.copy().unwrap(), row.copy().unwrap());
            rope(&got, &declared, heads, Positions::From(start)).unwrap();
            rope(&want, &small, heads, Positions::From(start)).unwrap();
            assert_eq!(got.to_vec3::<f32>().unwrap(), want.to_vec3::<f32>().unwrap(), "from {start}");
        }
        assert_eq!(declared.tables(1).unwrap().cos.len(), 64 * dim / 2);
        let row = Tensor::zeros((1, 2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(rope(&row, &small, heads, Positions::From(39)).is_err(), "beyond the model's positions");
    }

    #[test]
    fn dynamic_frequencies_are_those_of_the_longest_context_of_the_pass() {
        let dynamic = Frequencies::Dynamic { head_dim: 8, theta: 100.0, factor: 2.0, original: 16 };
        let of_length = |length: usize| {
            Rope::with_frequencies(
                Frequencies::Fixed { frequencies: dynamic.at(length), attention_factor: 1.0 },
                length,
            )
        };
        let rotated = |tables: &Rope, start: usize| {
            let row = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((1, 2, 8)).unwrap();
            rope(&row, tables, 1, Positions::From(start)).unwrap();
            row.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let declared = Rope::with_frequencies(dynamic.clone(), 32);
        // Back and forth over the original length: what an earlier pass has left must not matter.
        for start in [0, 20, 14, 15, 9, 30, 20, 0] {
            let length = (start + 2).max(16);
            assert_eq!(rotated(&declared, start), rotated(&of_length(length), start), "from {start}");
        }
        assert_ne!(dynamic.at(17), dynamic.at(16));
        assert_eq!(dynamic.at(3), Frequencies::plain(8, 100.0).at(0));
        assert!(!declared.is_fixed() && of_length(16).is_fixed());
    }

    #[test]
    fn cosines_and_sines_are_multiplied_by_the_attention_factor() {
        let yarn = Yarn {
            factor: 4.0,
            original: 16,
            attention_factor: Some(0.5),
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        };
        let tables = Rope::with_frequencies(yarn.frequencies(8, 100.0), 64);
        let row = Tensor::ones((1, 1, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        rope(&row, &tables, 1, Positions::From(0)).unwrap();
        // Position 0 is not turned at all.
        assert_eq!(row.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.5; 8]);
    }
}
