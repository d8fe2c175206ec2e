//! The target of a row of logits, and what evaluation asks of the row.

/// The target of a position that is not trained.
pub const IGNORE: u32 = u32::MAX;

/// What evaluation asks of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Negative log-probability of the target, in nats.
    pub loss: f32,
    /// Whether no other token is more probable.
    pub best: bool,
}
