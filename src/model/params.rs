//! All parameters in one flat f32 buffer, under Hugging Face's names.
//!
//! One buffer each for weights, gradients and each state of the optimizer makes the optimizer one pass, the global norm one reduction and a
//! checkpoint a walk over slices.

use crate::config::ModelConfig;
use crate::ops::adamw::Range;
use crate::ops::transfer::to_host;
use crate::ops::{cpu, large_pages};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

/// One named tensor inside the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    pub name: String,
    /// Its shape; linear weights are (out, in).
    pub shape: Vec<usize>,
    /// Where it begins in the flat buffer, in elements.
    pub start: usize,
    pub len: usize,
}

/// Where every tensor of a model lies in a flat buffer.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The tensors, in order and without gaps.
    pub specs: Vec<ParamSpec>,
    /// Elements of the buffer: the number of parameters.
    pub total: usize,
}

impl Layout {
    /// The layout of a model of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self::from_shapes(config.tensor_shapes())
    }

    /// The tensors of these names and shapes, one after the other.
    pub fn from_shapes(tensors: Vec<(String, Vec<usize>)>) -> Self {
        let mut total = 0;
        let specs = tensors
            .into_iter()
            .map(|(name, shape)| {
                let start = total;
                let len = shape.iter().product();
                total += len;
                ParamSpec { name, shape, start, len }
            })
            .collect();
        Self { specs, total }
    }

    pub fn zeros(&self, device: &Device) -> Result<Tensor> {
        if device.is_cpu() {
            return Tensor::from_vec(large_pages::filled(0f32, self.total), self.total, device);
        }
        Tensor::zeros(self.total, DType::F32, device)
    }

    /// The same in bf16, on the CPU: for weights that are only read.
    pub fn zeros_bf16(&self) -> Result<Tensor> {
        Tensor::from_vec(large_pages::filled(bf16::ZERO, self.total), self.total, &Device::Cpu)
    }

    /// The ranges of the optimizer: weight decay on tensors with two dimensions, none on norms and biases.
    pub fn decay_ranges(&self) -> Vec<Range> {
        self.specs.iter().map(|s| Range { start: s.start, len: s.len, decay: s.shape.len() >= 2 }).collect()
    }
}

/// Gives `f` the elements of flat buffers, without a copy where they are f32 on the CPU.
pub fn with_host_slices<R>(flats: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let host = flats.iter().map(|flat| to_host(flat)?.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let host: Vec<&Tensor> = host.iter().collect();
    cpu::read_all("with_host_slices", &host, |slices| Ok(f(slices)))
}

/// Takes views of a flat buffer in the order of its layout.
pub(super) struct Cursor<'a> {
    flat: &'a Tensor,
    specs: std::slice::Iter<'a, ParamSpec>,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `flat`, which must have `layout.total` elements.
    pub(super) fn new(flat: &'a Tensor, layout: &'a Layout) -> Result<Self> {
        if flat.dims() != [layout.total] {
            bail!("a flat buffer of {} elements is needed, not {:?}", layout.total, flat.shape());
        }
        Ok(Self { flat, specs: layout.specs.iter() })
    }

    /// The next `n` adjacent tensors as one view of as many rows as they have together.
    pub(super) fn take(&mut self, n: usize) -> Result<Tensor> {
        let group: Vec<&ParamSpec> = self.specs.by_ref().take(n).collect();
        let Some(first) = group.first() else { bail!("the layout has too few tensors") };
        let len = group.iter().map(|s| s.len).sum::<usize>();
        // Adjacent tensors of one width are one matrix: their rows follow each other in memory.
        let columns = first.shape.last().copied().unwrap_or(1);
        self.flat.narrow(0, first.start, len)?.reshape((len / columns, columns))
    }

    /// The next tensor, of one dimension.
    pub(super) fn take_vector(&mut self) -> Result<Tensor> {
        self.take_vectors(1)
    }

    /// The next `n` adjacent tensors, of one dimension each, as one.
    pub(super) fn take_vectors(&mut self, n: usize) -> Result<Tensor> {
        let group: Vec<&ParamSpec> = self.specs.by_ref().take(n).collect();
        let Some(first) = group.first() else { bail!("the layout has too few tensors") };
        self.flat.narrow(0, first.start, group.iter().map(|s| s.len).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny;

    #[test]
    fn norms_are_not_decayed() {
        let layout = Layout::new(&tiny(false));
        for (range, spec) in layout.decay_ranges().iter().zip(&layout.specs) {
            assert_eq!(range.decay, !spec.name.contains("norm"), "{}", spec.name);
        }
    }
}
