//! What the comparison of one op has found.

use candle_core::Result;

/// Largest accepted difference, relative to the largest element of the reference (f32, sums of up to a few thousand terms).
pub const TOLERANCE: f64 = 2e-5;

/// The outcome of one op: its name and the largest relative difference of value and gradients over all shapes tried.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The op's name: the name of its module.
    pub op: &'static str,
    pub difference: f64,
    /// Why the comparison ended before its time.
    pub error: Option<String>,
}

impl Outcome {
    pub(super) fn new(op: &'static str, found: Result<f64>) -> Self {
        match found {
            Ok(difference) => Self { op, difference, error: None },
            Err(error) => {
                Self { op, difference: f64::INFINITY, error: error.to_string().lines().next().map(str::to_owned) }
            }
        }
    }

    /// Whether the op agrees with the reference.
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.difference <= TOLERANCE
    }
}

/// As a line of `llama-lite doctor`.
impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        match &self.error {
            Some(error) => write!(f, "  {:<14} {verdict}: {error}", self.op),
            None => write!(f, "  {:<14} {:.1e}  {verdict}", self.op, self.difference),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_a_difference_fail() {
        let error = candle_core::Error::Msg("unexpected dtype\nbacktrace".into());
        let outcome = Outcome::new("rope", Err(error));
        assert!(!outcome.passed());
        assert_eq!(outcome.to_string(), "  rope           FAILED: unexpected dtype");
        assert!(!Outcome::new("rope", Ok(1e-3)).passed() && Outcome::new("rope", Ok(1e-6)).passed());
        assert_eq!(Outcome::new("rope", Ok(1e-6)).to_string(), "  rope           1.0e-6  ok");
    }
}
