//! RoPE's frequencies, one for each pair of a head's channels, and how they are changed for texts longer than those of the first training.
//!
//! The formulas are those of transformers (`modeling_rope_utils.py`), step by step in the same precision, so that both see the same rounded
//! frequencies. `θᵢ = theta^(-2i/d)` throughout.

use std::f64::consts::{PI, TAU};

/// The frequencies of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Frequencies {
    /// The same for every text; cosines and sines are multiplied by `attention_factor`.
    Fixed { frequencies: Vec<f32>, attention_factor: f32 },
    /// They depend on the length of the longest context of a pass, if it is beyond `original` positions.
    Dynamic { head_dim: usize, theta: f64, factor: f64, original: usize },
}

impl Frequencies {
    /// The frequencies `θᵢ` as they are, without scaling.
    pub fn plain(head_dim: usize, theta: f64) -> Self {
        Self::fixed(powers(head_dim, theta as f32))
    }

    /// `θᵢ / factor`, as if positions were that much closer together (Chen et al. 2023).
    pub fn linear(head_dim: usize, theta: f64, factor: f64) -> Self {
        Self::fixed(powers(head_dim, theta as f32).into_iter().map(|frequency| frequency / factor as f32).collect())
    }

    /// Llama 3.1's: waves longer than `original / low` are divided by `factor`, those shorter than `original / high` stay, and between them
    /// one goes over into the other.
    pub fn llama3(head_dim: usize, theta: f64, factor: f64, [low, high]: [f64; 2], original: usize) -> Self {
        let original = original as f64;
        let frequencies = powers(head_dim, theta as f32).into_iter().map(|frequency| {
            let wave = TAU as f32 / frequency;
            if wave < (original / high) as f32 {
                return frequency;
            }
            let scaled = frequency / factor as f32;
            if wave > (original / low) as f32 {
                return scaled;
            }
            let smooth = (original as f32 / wave - low as f32) / (high - low) as f32;
            (1.0 - smooth) * scaled + smooth * frequency
        });
        Self::fixed(frequencies.collect())
    }

    fn fixed(frequencies: Vec<f32>) -> Self {
        Self::Fixed { frequencies, attention_factor: 1.0 }
    }

    /// Number of frequencies: half the width of a head.
    pub fn len(&self) -> usize {
        match self {
            Self::Fixed { frequencies, .. } => frequencies.len(),
            Self::Dynamic { head_dim, .. } => head_dim / 2,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length that decides the frequencies of contexts of up to `length` positions; none where it does not matter.
    pub fn deciding_length(&self, length: usize) -> Option<usize> {
        match self {
            Self::Dynamic { original, .. } if length > *original => Some(length),
            Self::Dynamic { .. } | Self::Fixed { .. } => None,
        }
    }

    /// The longest context whose length does not matter.
    pub fn longest_undecided(&self) -> usize {
        match self {
            Self::Dynamic { original, .. } => *original,
            Self::Fixed { .. } => usize::MAX,
        }
    }

    /// The frequencies of contexts of up to `length` positions.
    pub fn at(&self, length: usize) -> Vec<f32> {
        match self {
            Self::Fixed { frequencies, .. } => frequencies.clone(),
            Self::Dynamic { head_dim, theta, factor, original } => {
                let d = *head_dim as f64;
                let ratio = (factor * length.max(*original) as f64 / *original as f64) as f32 - (factor - 1.0) as f32;
                // "NTK-aware": theta grows so that the lowest frequency is stretched and the highest stays.
                powers(*head_dim, *theta as f32 * ratio.powf((d / (d - 2.0)) as f32))
            }
        }
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match self {
            Self::Fixed { attention_factor, .. } => *attention_factor,
            Self::Dynamic { .. } => 1.0,
        }
    }
}

fn powers(head_dim: usize, theta: f32) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect()
}

/// The settings of YaRN (Peng et al. 2023), under Hugging Face's names.
#[derive(Clone, Copy, Debug)]
pub struct Yarn {
    pub factor: f64,
    pub original: usize,
    pub attention_factor: Option<f64>,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub truncate: bool,
}

impl Yarn {
    /// Channels that turn more than `beta_fast` times over the original context keep their frequency, those that turn less than
    /// `beta_slow` times have it divided by `factor`, and a ramp joins them.
    pub fn frequencies(&self, head_dim: usize, theta: f64) -> Frequencies {
        let [low, high] = self.ramp(head_dim as f64, theta);
        let frequencies = (0..head_dim / 2).map(|i| {
            let wave = (theta as f32).powf((2 * i) as f32 / head_dim as f32);
            let kept = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / (self.factor as f32 * wave) * (1.0 - kept) + 1.0 / wave * kept
        });
        Frequencies::Fixed { frequencies: frequencies.collect(), attention_factor: self.attention() as f32 }
    }

    /// The channels between which the ramp lies.
    fn ramp(&self, d: f64, theta: f64) -> [f32; 2] {
        let channel = |turns: f64| d * (self.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let mut low = channel(self.beta_fast);
        let mut high = channel(self.beta_slow);
        if self.truncate {
            low = low.floor();
            high = high.ceil();
        }
        low = low.max(0.0);
        high = high.min(d - 1.0);
        if low == high {
            // No ramp at all would divide by zero.
            high += 0.001;
        }
        [low as f32, high as f32]
    }

    fn attention(&self) -> f64 {
        let mscale = |factor: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * factor * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), ..) => given,
            (None, Some(numerator), Some(denominator)) => mscale(numerator) / mscale(denominator),
            _ => mscale(1.0),
        }
    }
}
