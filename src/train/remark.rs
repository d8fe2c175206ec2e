//! What a user should know of a run before it starts.

/// A line about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub text: String,
    /// Whether the run is probably a mistake.
    pub warning: bool,
}
