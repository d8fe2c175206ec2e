//! The target of a row of logits, and how a row is scored.

/// The target of a position that is not trained.
pub const IGNORE: u32 = u32::MAX;

/// How well a row of logits predicts its target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Negative log-probability of the target, in nats.
    pub loss: f32,
    /// Whether no other token is more probable.
    pub best: bool,
}
