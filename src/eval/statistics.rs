//! Means, standard errors and their kin, as the harness computes them.

use super::python::Random;
use rayon::prelude::*;

/// Arithmetic mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// Standard error of the mean: sample deviation over √n; none of fewer than two values.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    (values.len() > 1).then(|| deviation(values) / (values.len() as f64).sqrt())
}

/// Resamples in a chunk with one seed, and chunks.
const RESAMPLES: usize = 1000;
const CHUNKS: u32 = 100;

/// Standard error of exp(-mean): the deviation over 100,000 bootstrap resamples, drawn from Python's random numbers with the seeds 0, 1, 2...
pub fn perplexity_error(log_likelihoods: &[f64]) -> Option<f64> {
    bootstrap(log_likelihoods, CHUNKS)
}

fn bootstrap(values: &[f64], chunks: u32) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let all: Vec<f64> = (0..chunks).into_par_iter().flat_map_iter(|seed| resample(values, seed)).collect();
    Some(deviation(&all))
}

/// exp(-mean) of the resamples of one chunk.
fn resample(values: &[f64], seed: u32) -> Vec<f64> {
    let n = values.len();
    let mut random = Random::new(seed);
    let mut perplexities = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let sum: f64 = (0..n).map(|_| values[(random.random() * n as f64) as usize]).sum();
        perplexities.push((-sum / n as f64).exp());
    }
    perplexities
}

/// The standard error of a group's micro average, from (error, documents) of its tasks.
pub fn pooled_error(parts: &[(f64, usize)]) -> f64 {
    let total: f64 = parts.iter().map(|(_, n)| *n as f64).sum();
    let squares: f64 = parts.iter().map(|(e, n)| (*n as f64 - 1.0) * e * e * *n as f64).sum();
    (squares / (total - parts.len() as f64) / total).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
    }

    /// Values printed by the harness's own functions.
    #[test]
    fn errors_are_the_harnesss() {
        near(standard_error(&[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]).unwrap(), 0.182_981_263_677_849_95);
        near(pooled_error(&[(0.1, 10), (0.2, 30)]), 0.153_254_174_837_957_22);
        let lls = [-1.0, -2.5, -0.25, -3.0, -7.5, -0.5, -4.0, -1.75];
        near((-mean(&lls)).exp(), 12.968_197_316_969_134);
        near(bootstrap(&lls, 2).unwrap(), 20.933_151_588_697_132);
        assert_eq!((standard_error(&[1.0]), bootstrap(&[1.0], 1)), (None, None));
    }
}
