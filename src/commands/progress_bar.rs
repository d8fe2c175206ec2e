//! Progress of commands that read or download, on a terminal.

use crate::metrics::Console;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar for `length` of what `template` shows, in the language of indicatif; hidden where nobody would look.
pub(super) fn progress_bar(length: u64, template: &str, console: Console) -> ProgressBar {
    if !console.terminal || console.quiet {
        return ProgressBar::hidden();
    }
    styled_bar(length, template)
}

/// The same wherever it is written.
pub(super) fn styled_bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
