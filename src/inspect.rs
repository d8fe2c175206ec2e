//! What only reads runs or foresees them: the plan of a run, its page, the card of an exported model, the documents of a step, and its steps taken again.

pub mod card;
pub mod plan;
pub mod report;
pub mod verify;
pub mod why;
