//! What only reads runs or foresees them: the plan of a run, its page, the documents of a step, and its steps taken again.

pub mod plan;
pub mod report;
pub mod verify;
pub mod why;
