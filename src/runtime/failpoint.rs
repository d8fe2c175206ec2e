//! Faults planted by tests at named places of the training loop: a loss that is not finite, a thread that panics, a device out of
//! memory. In the program itself there is no such thing: outside test builds [`failpoint`] is a constant.
//!
//! Tests that use it run this test program again as a child with `LLAMA_LITE_FAULTS` set, because a planted fault may end the process
//! and because tests of one process run beside each other.

/// The value planted at the place `name` for the occasion `n` (a step, a size), if any.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn failpoint(_name: &'static str, _n: u64) -> Option<f64> {
    None
}

#[cfg(test)]
pub(crate) use super::tests::planted_faults::failpoint;
