//! Rotary position embedding (Su et al. 2021) in the half-split ("rotate_half") layout of Hugging Face, in place on packed QKV.
//!
//! For every query and key head and `i < d/2`, with the angle `θᵢ = position · base^(-2i/d)`:
//! `x'ᵢ = xᵢ cos θᵢ - xᵢ₊d/₂ sin θᵢ`, `x'ᵢ₊d/₂ = xᵢ₊d/₂ cos θᵢ + xᵢ sin θᵢ`. A rotation's backward is the rotation by `-θ`.
//! Packed rows are (h query heads ‖ k key heads ‖ k value heads), each d wide; the value heads stay as they are.

use super::segments::Places;
use super::{cpu, on_gpu};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

/// Cosines and sines of all angles, (positions, d/2) each, in f32.
#[derive(Clone, Debug)]
pub struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// The same two (positions, d/2) where the model is, if that is a GPU.
    device_tables: Option<(Tensor, Tensor)>,
}

impl Rope {
    /// Tables for `positions` positions. The angles are computed in f32 step by step as transformers does, so that both see the
    /// same rounded frequencies.
    pub fn new(head_dim: usize, theta: f64, positions: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { cos, sin, half, device_tables: None }
    }

    /// The same tables, also on `device`.
    pub fn on(mut self, device: &Device) -> Result<Self> {
        let (cos, sin) = self.tensors()?;
        if super::is_on_gpu(&cos) || !device.is_cpu() {
            self.device_tables = Some((cos.to_device(device)?, sin.to_device(device)?));
        }
        Ok(self)
    }

    /// The tables on the GPU.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn on_gpu(&self) -> Result<(&Tensor, &Tensor)> {
        let Some((cos, sin)) = &self.device_tables else { bail!("rope: the tables are not on the GPU") };
        Ok((cos, sin))
    }

    /// How many positions the tables cover.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// The tables as (positions, d/2) tensors, for the reference.
    pub fn tensors(&self) -> Result<(Tensor, Tensor)> {
        let shape = (self.positions(), self.half);
        Ok((cpu::tensor(self.cos.clone(), shape)?, cpu::tensor(self.sin.clone(), shape)?))
    }
}

/// The same in candle's differentiable primitives, for packed (b, t, (h + 2k)·d).
pub fn reference(qkv: &Tensor, rope: &Rope, rotated_heads: usize, places: Places) -> Result<Tensor> {
    let (b, t, width) = qkv.dims3()?;
    let (half, d) = (rope.half, 2 * rope.half);
    let heads = qkv.reshape((b, t, width / d, d))?;
    let (cos, sin) = rope.tensors()?;
    let positions: Vec<u32> = (0..b * t).map(|place| position(places, place, t) as u32).collect();
    let positions = Tensor::from_vec(positions, b * t, qkv.device())?;
    let cos = cos.index_select(&positions, 0)?.reshape((b, t, 1, half))?;
    let sin = sin.index_select(&positions, 0)?.reshape((b, t, 1, half))?;
    let turned = heads.narrow(2, 0, rotated_heads)?;
    let (x, y) = (turned.narrow(3, 0, half)?, turned.narrow(3, half, half)?);
    let a = (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?;
    let c = (y.broadcast_mul(&cos)? + x.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[a, c], 3)?;
    let rest = heads.narrow(2, rotated_heads, width / d - rotated_heads)?;
    Tensor::cat(&[turned, rest], 2)?.reshape((b, t, width))
}

/// Where place `place` of a batch of rows of `t` stands.
#[inline(always)]
fn position(places: Places, place: usize, t: usize) -> usize {
    match places {
        Places::From(start) => start + place % t,
        Places::Within(segments) => segments.position(place),
        Places::In(forest) => forest.position(place),
    }
}

#[cfg(any(test, feature = "cuda"))]
fn turn_on_gpu(qkv: &Tensor, rope: &Rope, heads: usize, places: Places, sign: f32) -> Result<()> {
    use super::cuda::Positions;
    let tables = rope.on_gpu()?;
    let (b, t, _) = qkv.dims3()?;
    let positions = match places {
        Places::From(start) => Positions::From(start),
        _ => Positions::Each((0..b * t).map(|place| position(places, place, t) as u32).collect()),
    };
    super::cuda::rope(qkv, tables, positions, heads, sign)
}

/// Rotates the first `rotated_heads` heads of packed `qkv` (b, t, (h + 2k)·d) in place, each row as `places` says.
pub fn rope(qkv: &Tensor, rope: &Rope, rotated_heads: usize, places: Places) -> Result<()> {
    turn("rope", qkv, rope, rotated_heads, places, 1.0)
}

/// Turns the gradient of packed `qkv` back, in place.
pub fn rope_backward(dqkv: &Tensor, rope: &Rope, rotated_heads: usize, places: Places) -> Result<()> {
    turn("rope_backward", dqkv, rope, rotated_heads, places, -1.0)
}

fn turn(op: &'static str, qkv: &Tensor, rope: &Rope, rotated_heads: usize, places: Places, sign: f32) -> Result<()> {
    let (b, t, width) = qkv.dims3()?;
    let (half, d) = (rope.half, 2 * rope.half);
    if rotated_heads * d > width {
        bail!("{op}: {rotated_heads} heads of {d} do not fit rows of {width}");
    }
    let last = match places {
        Places::From(start) => start + t - 1,
        Places::Within(segments) if segments.fits(b, t) => segments.longest(),
        Places::In(forest) if b == 1 && forest.len() == t => forest.longest(),
        Places::Within(_) | Places::In(_) => bail!("{op}: documents of another batch than ({b}, {t})"),
    };
    if last >= rope.positions() {
        bail!("{op}: position {last} is beyond the {} of the tables", rope.positions());
    }
    on_gpu!(qkv, turn_on_gpu(qkv, rope, rotated_heads, places, sign));
    cpu::update(op, qkv, |qkv| {
        let rows = cpu::rows_per_piece(width);
        qkv.par_chunks_mut(rows * width).enumerate().for_each(|(piece, chunk)| {
            cpu::simd!({
                for (r, row) in chunk.chunks_exact_mut(width).enumerate() {
                    let place = piece * rows + r;
                    let position = position(places, place, t);
                    let cos = &rope.cos[position * half..][..half];
                    let sin = &rope.sin[position * half..][..half];
                    for head in row.chunks_exact_mut(d).take(rotated_heads) {
                        let (x, y) = head.split_at_mut(half);
                        for i in 0..half {
                            let (a, b, s) = (x[i], y[i], sign * sin[i]);
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
