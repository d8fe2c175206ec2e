//! The report in a terminal.

use super::RunReport;
use super::page::state;
use crate::metrics::{ascii_plot, fixed};

/// Size of a plot, in characters.
const PLOT: (usize, usize) = (72, 14);

/// Events shown of each run: the last ones.
const EVENTS: usize = 12;

/// For every run: its state, its curve, where its time went, its last scores and events. Then how the configurations differ.
pub fn text(report: &RunReport) -> String {
    let mut out = String::new();
    for run in &report.runs {
        out.push_str(&format!("{}\n\n", state(run)));
        let bits = run.val.iter().any(|v| v.record.bits_per_byte.is_finite());
        let (title, curve): (_, Vec<(f64, f64)>) = match run.val.len() {
            0 | 1 => (
                "training loss, smoothed",
                run.train.step.iter().map(|&s| s as f64).zip(run.train.smooth.iter().copied()).collect(),
            ),
            _ if bits => (
                "validation loss, bits per byte",
                run.val.iter().map(|v| (v.record.step as f64, v.record.bits_per_byte)).collect(),
            ),
            _ => ("validation loss", run.val.iter().map(|v| (v.record.step as f64, v.record.loss)).collect()),
        };
        let floor = run.val.iter().find_map(|v| v.record.floor_bits_per_byte).filter(|_| bits);
        out.push_str(&ascii_plot(&curve, PLOT.0, PLOT.1, floor, title));
        let all: f64 = run.spent.values().sum();
        if all > 0.0 {
            let mut spent: Vec<(&String, &f64)> = run.spent.iter().collect();
            spent.sort_by(|a, b| b.1.total_cmp(a.1));
            let shares: Vec<String> =
                spent.iter().map(|(what, seconds)| format!("{what} {:.1} %", 100.0 * **seconds / all)).collect();
            out.push_str(&format!("\ntime  {all:.0} s: {}\n", shares.join(", ")));
        }
        if let Some(last) = run.evals.last() {
            out.push_str("\nscores\n");
            for e in run.evals.iter().filter(|e| e.record.step == last.record.step) {
                let r = &e.record;
                let error = if r.stderr.is_finite() { format!(" ± {:.4}", r.stderr) } else { String::new() };
                out.push_str(&format!("  step {}  {}  {} {}{error}\n", r.step, r.task, r.metric, fixed(r.value, 4)));
            }
        }
        out.push_str("\nevents\n");
        for event in run.events.iter().skip(run.events.len().saturating_sub(EVENTS)) {
            out.push_str(&format!("  {}  step {}  {}  {}\n", event.time, event.step, event.kind, event.text));
        }
        out.push('\n');
    }
    if report.runs.len() > 1 {
        out.push_str("differences in configuration\n");
        for d in &report.differences {
            let values: Vec<&str> = d.values.iter().map(|v| v.as_deref().unwrap_or("none")).collect();
            out.push_str(&format!("  {}: {}\n", d.key, values.join(" | ")));
        }
    }
    out
}
