//! `report`: what a run's own files hold, as one page that needs no network, or in the terminal.
//!
//! | file | holds |
//! |---|---|
//! | `collect.rs` | a run directory as data: curves thinned, samples, events, configuration, machine |
//! | `page.rs` | the page: `page.css` and `page.js` with the data in it |
//! | `text.rs` | the terminal form |
//!
//! Everything is read from `metrics.jsonl`, `times.jsonl`, `samples.jsonl`, `events.jsonl` and `config.toml`; a run in progress is read like one that has
//! ended.

mod collect;
mod page;
mod text;

pub use collect::{ReportedRun, RunReport, collect};
pub use page::page;
pub use text::text;
