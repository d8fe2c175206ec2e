//! How fast this machine computes our own matrix products in each precision: those of a linear layer, forward and backward, packing
//! included, with the threads in use.
//!
//! Measured in turns and in about a tenth of a second, so that a command can say it in passing. A measurement says something to the user and
//! decides nothing: bits must not depend on how busy a machine was.

use super::linear::{linear_backward_input, linear_backward_weight, linear_saved};
use super::precision::Precision;
use candle_core::{DType, Device, Result, Tensor};
use std::fmt;
use std::time::Instant;

/// Sizes of a linear layer and of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl ProductShape {
    /// As large as it takes for packing to be as small a part of a product as in the training of a model of some size.
    pub const LARGE: Self = Self { rows: 1024, inputs: 768, outputs: 1024 };

    /// The part of it that is no larger than [`LARGE`](Self::LARGE).
    fn bounded(self) -> Self {
        Self {
            rows: self.rows.clamp(1, Self::LARGE.rows),
            inputs: self.inputs.clamp(1, Self::LARGE.inputs),
            outputs: self.outputs.clamp(1, Self::LARGE.outputs),
        }
    }

    /// With so few rows that a round of all products takes [`BUDGET`] at most, if a product of [`GAUGE_ROWS`] rows takes `gauge` seconds, both
    /// precisions together.
    fn within_budget(self, gauge: f64) -> Self {
        let rows = GAUGE_ROWS as f64 * BUDGET / (PRODUCTS.len() as f64 * gauge.max(f64::MIN_POSITIVE));
        Self { rows: self.rows.min((rows as usize).max(GAUGE_ROWS)), ..self }
    }

    /// Of one of its products.
    fn flops(self) -> f64 {
        2.0 * self.rows as f64 * self.inputs as f64 * self.outputs as f64
    }
}

/// The rates of this machine's products, in FLOP/s; a multiply-add is two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductRates {
    pub f32: f64,
    pub bf16: f64,
}

impl ProductRates {
    /// Measures products like those of `shape`, or of a part of it if it is large.
    ///
    /// # Errors
    /// Those of the operations.
    pub fn measure(shape: ProductShape) -> Result<Self> {
        let shape = shape.bounded();
        let gauge = Operands::new(ProductShape { rows: shape.rows.min(GAUGE_ROWS), ..shape })?;
        let mut seconds = 0.0;
        for precision in PRECISIONS {
            // The first one wakes the threads up and allocates.
            gauge.seconds(Product::Forward, precision)?;
            seconds += gauge.seconds(Product::Forward, precision)?;
        }
        let shape = shape.within_budget(seconds);
        let operands = Operands::new(shape)?;
        let times = best_times(|product, precision| operands.seconds(product, precision))?;
        let [f32, bf16] = times.map(|seconds| PRODUCTS.len() as f64 * shape.flops() / seconds);
        Ok(Self { f32, bf16 })
    }

    /// How many times as fast bf16 is.
    pub fn speedup(&self) -> f64 {
        self.bf16 / self.f32
    }
}

impl fmt::Display for ProductRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [f32, bf16] = [self.f32, self.bf16].map(|rate| {
            let decimals = if rate < 9.95e9 { 1 } else { 0 };
            format!("{:.decimals$} GFLOP/s", rate / 1e9)
        });
        write!(f, "f32 {f32}, bf16 {bf16} ({:.1} times as fast)", self.speedup())
    }
}

/// Seconds that a measurement takes, about; a busy machine may take longer.
const BUDGET: f64 = 0.12;

/// Rows of the product that says how many are affordable.
const GAUGE_ROWS: usize = 64;

/// The products of a linear layer in a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Product {
    Forward,
    InputGradient,
    WeightGradient,
}

const PRODUCTS: [Product; 3] = [Product::Forward, Product::InputGradient, Product::WeightGradient];

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Seconds of all products in each of [`PRECISIONS`], each product's being the least that `seconds` says of it in several rounds. Precisions take
/// turns, so that what disturbs the machine meets both.
fn best_times(mut seconds: impl FnMut(Product, Precision) -> Result<f64>) -> Result<[f64; 2]> {
    let mut best = [[f64::INFINITY; PRODUCTS.len()]; PRECISIONS.len()];
    let mut spent = 0.0;
    loop {
        let before = spent;
        for (i, product) in PRODUCTS.into_iter().enumerate() {
            for (times, precision) in best.iter_mut().zip(PRECISIONS) {
                let took = seconds(product, precision)?;
                spent += took;
                times[i] = took.min(times[i]);
            }
        }
        let round = spent - before;
        if spent + round > BUDGET {
            return Ok(best.map(|times| times.iter().sum()));
        }
    }
}

/// What products read, and the weight gradient that they add to.
struct Operands {
    exact: Activations,
    /// Those of bf16 products, which lie in memory as a training step keeps them.
    rounded: Activations,
    w: Tensor,
    dw: Tensor,
}

/// The input of a layer and the gradient of its output.
struct Activations {
    x: Tensor,
    dy: Tensor,
}

impl Operands {
    fn new(ProductShape { rows, inputs, outputs }: ProductShape) -> Result<Self> {
        let exact = Activations { x: numbers(rows, inputs)?, dy: numbers(rows, outputs)? };
        let rounded = Activations { x: exact.x.to_dtype(DType::BF16)?, dy: exact.dy.to_dtype(DType::BF16)? };
        Ok(Self { exact, rounded, w: numbers(outputs, inputs)?, dw: numbers(outputs, inputs)? })
    }

    /// Seconds that one product takes now.
    fn seconds(&self, product: Product, precision: Precision) -> Result<f64> {
        let Self { w, dw, .. } = self;
        let Activations { x, dy } = match precision {
            Precision::F32 => &self.exact,
            Precision::Bf16 => &self.rounded,
        };
        let started = Instant::now();
        match product {
            Product::Forward => drop(linear_saved(x, w, precision)?),
            Product::InputGradient => drop(linear_backward_input(dy, w, precision)?),
            Product::WeightGradient => linear_backward_weight(dy, x, dw, precision)?,
        }
        Ok(started.elapsed().as_secs_f64())
    }
}

/// A matrix of various numbers in [-1, 1): products of zeros and of denormals take another time on some processors.
fn numbers(rows: usize, cols: usize) -> Result<Tensor> {
    let number = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec((0..(rows * cols) as u32).map(number).collect(), (rows, cols), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each product takes the least time of its rounds, and rounds end before they would take longer than they may.
    #[test]
    fn the_best_of_some_rounds_counts() {
        let mut calls = Vec::new();
        let times = best_times(|product, precision| {
            let round = calls.len() / 6;
            calls.push((product, precision));
            let slow = if round == 0 { 2.0 } else { 1.0 };
            Ok(slow * if precision == Precision::F32 { 0.005 } else { 0.002 })
        });
        let [f32, bf16] = times.unwrap();
        assert!((f32 - 0.015).abs() < 1e-12 && (bf16 - 0.006).abs() < 1e-12, "{f32} {bf16}");
        // 0.042, then 0.021 each: the fifth would end at 0.126.
        assert_eq!(calls.len(), 6 * 4);
        assert_eq!(
            calls[..3],
            [
                (Product::Forward, PRECISIONS[0]),
                (Product::Forward, PRECISIONS[1]),
                (Product::InputGradient, PRECISIONS[0])
            ]
        );
        // A round that takes longer than all may is the only one.
        let mut calls = 0;
        let times = best_times(|_, _| {
            calls += 1;
            Ok(1.0)
        });
        assert_eq!((times.unwrap(), calls), ([3.0, 3.0], 6));
    }

    #[test]
    fn slow_machines_multiply_fewer_rows() {
        let large = ProductShape::LARGE;
        let rows = |gauge: f64| large.within_budget(gauge).rows;
        // Three products in both precisions: 0.12 s are enough for 1,280 rows, for 128, and for fewer than the gauge has.
        assert_eq!([0.002, 0.02, 2.0, 0.0].map(rows), [1024, 128, GAUGE_ROWS, 1024]);
        assert_eq!(ProductShape { rows: 8, ..large }.within_budget(0.002).rows, 8);
        let huge = ProductShape { rows: 1 << 20, inputs: 2, outputs: 10_240 };
        assert_eq!(huge.bounded(), ProductShape { rows: 1024, inputs: 2, outputs: 1024 });
        assert_eq!(ProductShape { rows: 2, inputs: 3, outputs: 5 }.flops(), 60.0);
    }

    #[test]
    fn rates_are_those_of_products_that_were_computed() {
        let shape = ProductShape { rows: 40, inputs: 33, outputs: 50 };
        let rates = ProductRates::measure(shape).unwrap();
        // Faster than any processor would mean that nothing was computed.
        assert!([rates.f32, rates.bf16].iter().all(|rate| (1e3..1e15).contains(rate)), "{rates:?}");
        let operands = Operands::new(shape).unwrap();
        operands.seconds(Product::WeightGradient, Precision::F32).unwrap();
        let Activations { x, dy } = &operands.exact;
        let expected = (numbers(50, 33).unwrap() + dy.t().unwrap().matmul(x).unwrap()).unwrap();
        let off = (&operands.dw - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off < 1e-4, "{off}");
    }

    #[test]
    fn rates_read_as_a_line() {
        let rates = ProductRates { f32: 189.6e9, bf16: 379.2e9 };
        assert_eq!(rates.to_string(), "f32 190 GFLOP/s, bf16 379 GFLOP/s (2.0 times as fast)");
        let slow = ProductRates { f32: 9.94e9, bf16: 4.97e9 };
        assert_eq!(slow.to_string(), "f32 9.9 GFLOP/s, bf16 5.0 GFLOP/s (0.5 times as fast)");
    }
}
