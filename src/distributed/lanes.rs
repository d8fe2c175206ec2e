//! The lanes of one rank: consecutive equal parts of a step's sequences, whose gradients are joined in the lower levels of the tree.

use crate::ops::adamw::add_assign;
use crate::ops::transfer::copy_flat;
use candle_core::{Result, Tensor};

/// Partial sums of the lanes that this rank has finished, one for each level of the tree.
#[derive(Debug, Default)]
pub struct Lanes {
    /// At place `n`, memory for a sum of 2ⁿ lanes.
    sums: Vec<Tensor>,
}

impl Lanes {
    /// Memory for `lanes` lanes of one rank (a power of two) beside `grad`: one buffer less than the tree has levels.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(lanes: usize, grad: &Tensor) -> Result<Self> {
        let levels = lanes.trailing_zeros() as usize;
        let sums = (0..levels).map(|_| grad.zeros_like()).collect::<Result<_>>()?;
        Ok(Self { sums })
    }

    /// Takes the gradient of lane number `lane` (from 0, of this rank) in `grad`, and joins it with the finished sums that make a
    /// whole subtree with it. After the last lane, `grad` holds the sum of all.
    ///
    /// # Errors
    /// Those of the device.
    pub fn finish(&self, lane: usize, grad: &Tensor) -> Result<()> {
        // As in binary counting: every trailing one is a subtree of that size which waits for this one.
        let waiting = lane.trailing_ones() as usize;
        for sum in &self.sums[..waiting] {
            add_assign(grad, sum)?;
        }
        match self.sums.get(waiting) {
            Some(sum) => copy_flat(grad, sum),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn lane(number: usize) -> Vec<f32> {
        (0..1000).map(|i| ((i * 7 + number * 131) as f32 * 0.37).sin() * 10f32.powi((i % 9) as i32)).collect()
    }

    fn tree(lanes: std::ops::Range<usize>) -> Vec<f32> {
        if lanes.len() == 1 {
            return lane(lanes.start);
        }
        let middle = lanes.start + lanes.len() / 2;
        let halves = [tree(lanes.start..middle), tree(middle..lanes.end)];
        halves[0].iter().zip(&halves[1]).map(|(a, b)| a + b).collect()
    }

    #[test]
    fn lanes_are_joined_pairwise() {
        for count in [1, 2, 4, 8, 16] {
            let grad = Tensor::zeros(1000, candle_core::DType::F32, &Device::Cpu).unwrap();
            let lanes = Lanes::new(count, &grad).unwrap();
            for number in 0..count {
                grad.slice_set(&Tensor::from_vec(lane(number), 1000, &Device::Cpu).unwrap(), 0, 0).unwrap();
                lanes.finish(number, &grad).unwrap();
            }
            assert_eq!(grad.to_vec1::<f32>().unwrap(), tree(0..count), "{count} lanes");
        }
    }
}
