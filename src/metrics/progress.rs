//! The progress of a run on the terminal: one line that is redrawn, and above it what is worth keeping.
//!
//! On a terminal the line is redrawn in place a few times a second. Elsewhere (a log file, a CI page) plain lines are
//! written, ever more rarely the longer the run lasts: a day's log stays readable and a short run still shows its
//! shape. `--quiet` silences everything here; errors do not pass through this module. All of it goes to stderr: stdout
//! is for data.

use crate::metrics::{Pace, Train, Val, duration, fixed, rate, thousands};
use crate::runtime::format::escape_control;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::time::{Duration, Instant};

/// Redraws a second: enough to look alive, too few to flicker or to cost anything.
const REDRAWS: u8 = 4;

const BAR: u64 = 20;

/// When to colour messages: `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What stderr is and what the user wants to see on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    pub quiet: bool,
    /// Someone is watching: the line can be redrawn in place.
    pub terminal: bool,
    pub color: bool,
}

impl Console {
    pub fn stderr(quiet: bool, color: Color) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self::new(quiet, color, stderr().is_terminal() && !is_dumb, no_color)
    }

    fn new(quiet: bool, color: Color, terminal: bool, no_color: bool) -> Self {
        let color = match color {
            Color::Auto => terminal && !no_color,
            Color::Always => true,
            Color::Never => false,
        };
        Self { quiet, terminal, color }
    }
}

enum Sink {
    Silent,
    /// A line redrawn in place.
    Live(ProgressBar),
    /// Lines, for a file or a pipe.
    Plain(Box<dyn Write + Send>),
}

/// Shows one run, from its first step of this attempt to its last.
pub struct Progress {
    sink: Sink,
    color: bool,
    pace: Pace,
    total: u64,
    log_every: u64,
    throttle: Throttle,
    line: String,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("pace", &self.pace).finish_non_exhaustive()
    }
}

impl Progress {
    /// For a run that has taken `step` of its `total` steps. Plain lines come only at multiples of `log_every`.
    pub fn new(console: Console, step: u64, total: u64, log_every: u64) -> Self {
        let sink = match console {
            Console { quiet: true, .. } => Sink::Silent,
            Console { terminal: true, .. } => Sink::Live(live_line()),
            Console { .. } => Sink::Plain(Box::new(stderr())),
        };
        Self::with_sink(sink, console.color, step, total, log_every)
    }

    fn with_sink(sink: Sink, color: bool, step: u64, total: u64, log_every: u64) -> Self {
        let throttle = Throttle { start: Instant::now(), last: None };
        let pace = Pace::new(step, total);
        Self { sink, color, pace, total, log_every: log_every.max(1), throttle, line: String::new() }
    }

    /// A step is done. `training` is its own time, without evaluation and saving.
    pub fn step(&mut self, record: &Train, training: Duration) {
        self.pace.step(record.step, record.tokens_per_second * training.as_secs_f64(), training);
        match &mut self.sink {
            Sink::Silent => {}
            Sink::Live(live) => {
                let bar = bar(record.step, self.total, self.color);
                self.line = format!("{bar} {}", status(record, &self.pace, self.total, ""));
                live.set_message(self.line.clone());
            }
            Sink::Plain(out) => {
                let last = record.step == self.total;
                let logged = record.step.is_multiple_of(self.log_every);
                if last || (logged && self.throttle.due(Instant::now())) {
                    // There is nowhere to report a stderr that fails, and a run must not end because of it.
                    let lr = format!("  lr {:.2e}", record.lr);
                    let _ = writeln!(out, "step {}", status(record, &self.pace, self.total, &lr));
                }
            }
        }
    }

    /// Shows `what` ("validating") in the line until the next step, while training pauses for it.
    pub fn doing(&mut self, what: &str) {
        if let Sink::Live(live) = &self.sink {
            live.set_message(format!("{}  {}", self.line, self.dim(what)).trim_start().to_owned());
            live.force_draw(); // no later redraw would show it: nothing moves until training goes on
        }
    }

    /// Training was interrupted for `time` by `name`, as it is every `every` steps and at the end (0: only at the
    /// end). Counts in the time left, never in the speed.
    pub fn interruption(&mut self, name: &'static str, every: u64, time: Duration) {
        self.pace.interruption(name, every, time);
    }

    /// A validation loss, with the floor beside it where the text has one.
    pub fn val(&mut self, val: &Val) {
        let mut line = format!("{}  val loss {}", self.at_step(val.step), fixed(val.loss, 4));
        if val.bits_per_byte.is_finite() {
            line += &format!("  {} bits/byte", fixed(val.bits_per_byte, 4));
        }
        if let Some(floor) = val.floor_bits_per_byte {
            let above = 100.0 * (val.bits_per_byte / floor - 1.0);
            line += &self.dim(&format!("  floor {floor:.4} ({above:+.1} %)"));
        }
        self.print(&line);
    }

    /// The results of a benchmark task: (metric, value).
    pub fn task(&mut self, step: u64, task: &str, metrics: &[(&str, f64)]) {
        let values: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {}", fixed(*value, 4))).collect();
        self.print(&format!("{}  {task}  {}", self.at_step(step), values.join("  ")));
    }

    /// A generated text. The prompt is set apart by colour; characters that could control the terminal are escaped.
    pub fn sample(&mut self, step: u64, prompt: &str, text: &str) {
        let shown = format!("{}{}", self.dim(&printable(prompt)), printable(text));
        self.print(&format!("{}  sample\n  {}", self.at_step(step), shown.replace('\n', "\n  ")));
    }

    pub fn saved(&mut self, step: u64, path: &Path, time: Duration) {
        let path = printable(&path.display().to_string());
        self.print(&format!("{}  saved {path} {}", self.at_step(step), self.dim(&format!("in {}", duration(time)))));
    }

    /// Something the user should know although the run goes on.
    pub fn warn(&mut self, text: &str) {
        let label = if self.color { "\x1b[33mwarning:\x1b[0m" } else { "warning:" };
        self.print(&format!("{label} {text}"));
    }

    /// Prints `text` above the line: it stays when the line moves on.
    pub fn print(&mut self, text: &str) {
        match &mut self.sink {
            Sink::Silent => {}
            Sink::Live(live) => live.println(text),
            Sink::Plain(out) => {
                let _ = writeln!(out, "{}", text.trim_end_matches('\n'));
            }
        }
    }

    /// Takes the line away; also when dropped.
    pub fn finish(self) {
        drop(self);
    }

    fn at_step(&self, step: u64) -> String {
        if self.color { format!("\x1b[1mstep {}\x1b[0m", thousands(step)) } else { format!("step {}", thousands(step)) }
    }

    fn dim(&self, text: &str) -> String {
        if self.color { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Sink::Live(live) = &self.sink {
            live.finish_and_clear();
        }
    }
}

/// `text` without control characters, and with spaces for tabs, whose width differs from terminal to terminal.
fn printable(text: &str) -> String {
    escape_control(&text.replace('\t', " "))
}

fn live_line() -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(REDRAWS);
    // A line longer than the terminal is cut, not wrapped: a wrapped line cannot be redrawn in place.
    let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, target).with_style(style).with_finish(ProgressFinish::AndClear)
}

/// `1,200/5,000  loss 2.3456  12.3k tok/s  3m 05s left`, with `detail` after the loss.
fn status(record: &Train, pace: &Pace, total: u64, detail: &str) -> String {
    let loss = if record.skipped { "skipped".into() } else { fixed(record.loss, 4) };
    let left = pace.time_left().map_or_else(|| "-".into(), duration);
    let step = thousands(record.step);
    let total = thousands(total);
    let speed = rate(pace.tokens_per_second());
    format!("{step}/{total}  loss {loss}{detail}  {speed} tok/s  {left} left")
}

fn bar(step: u64, total: u64, color: bool) -> String {
    let full = (u128::from(BAR) * u128::from(step.min(total)) / u128::from(total.max(1))) as usize;
    let done = "━".repeat(full);
    let rest = "─".repeat(BAR as usize - full);
    if color { format!("\x1b[36m{done}\x1b[0;2m{rest}\x1b[0m") } else { format!("{done}{rest}") }
}

/// Lets lines through at intervals that grow with the time passed: a sixtieth of it, between 2 and 60 seconds.
struct Throttle {
    start: Instant,
    last: Option<Instant>,
}

impl Throttle {
    fn due(&mut self, now: Instant) -> bool {
        let interval = ((now - self.start) / 60).clamp(Duration::from_secs(2), Duration::from_secs(60));
        let due = self.last.is_none_or(|last| now - last >= interval);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{train, val};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn plain(color: bool, total: u64, log_every: u64) -> (Progress, Buffer) {
        let buffer = Buffer::default();
        (Progress::with_sink(Sink::Plain(Box::new(buffer.clone())), color, 0, total, log_every), buffer)
    }

    #[test]
    fn plain_lines_keep_to_the_log_interval_and_always_show_the_last_step() {
        let (mut progress, out) = plain(false, 7, 3);
        for step in 1..=7 {
            progress.step(&Train { tokens_per_second: 2048.0, ..train(step) }, Duration::from_millis(250));
        }
        let want = "step 3/7  loss 2.5000  lr 6.00e-4  2.05k tok/s  1.0s left\n\
                    step 7/7  loss 2.5000  lr 6.00e-4  2.05k tok/s  0.0s left\n";
        assert_eq!(out.text(), want, "step 6 comes within two seconds of step 3");
    }

    #[test]
    fn a_skipped_step_has_no_loss_and_spoils_no_average() {
        let (mut progress, out) = plain(false, 1, 1);
        let skipped = Train { loss: f64::NAN, skipped: true, tokens_per_second: f64::NAN, ..train(1) };
        progress.step(&skipped, Duration::from_secs(1));
        assert_eq!(out.text(), "step 1/1  loss skipped  lr 6.00e-4  0 tok/s  0.0s left\n");
    }

    #[test]
    fn messages_say_what_happened_and_cannot_drive_the_terminal() {
        let (mut progress, out) = plain(false, 10, 1);
        progress.val(&val(0));
        progress.val(&Val { bits_per_byte: 1.1, floor_bits_per_byte: Some(1.0), ..val(1500) });
        progress.val(&Val { bits_per_byte: f64::NAN, ..val(2) });
        progress.sample(3, "Once\tupon", " a \x1b[2J\r\u{9b}time\nend");
        progress.saved(4, Path::new("runs/\x1b]0;x"), Duration::from_millis(340));
        progress.warn("careful");
        progress.doing("shown only in the live line");
        let want = "step 0  val loss 1.0000  0.2000 bits/byte\n\
                    step 1,500  val loss 1.0000  1.1000 bits/byte  floor 1.0000 (+10.0 %)\n\
                    step 2  val loss 1.0000\n\
                    step 3  sample\n  Once upon a \\u{1b}[2J\\u{d}\\u{9b}time\n  end\n\
                    step 4  saved runs/\\u{1b}]0;x in 0.3s\n\
                    warning: careful\n";
        assert_eq!(out.text(), want);
    }

    #[test]
    fn colour_is_used_only_when_asked_for() {
        for color in [false, true] {
            let (mut progress, out) = plain(color, 10, 1);
            progress.val(&Val { floor_bits_per_byte: Some(0.1), ..val(1) });
            progress.sample(1, "a", "b");
            progress.warn("c");
            assert_eq!(out.text().contains('\x1b'), color);
        }
        assert_eq!(bar(3, 4, false), "━━━━━━━━━━━━━━━─────");
        assert_eq!(bar(9, 4, false), "━".repeat(20));
        assert_eq!(bar(0, 0, false), "─".repeat(20));
    }

    #[test]
    fn the_console_follows_the_flags_and_the_environment() {
        let color = |color, terminal, no_color| Console::new(false, color, terminal, no_color).color;
        assert!(color(Color::Auto, true, false));
        assert!(!color(Color::Auto, true, true) && !color(Color::Auto, false, false));
        assert!(color(Color::Always, false, true) && !color(Color::Never, true, false));
        let mut quiet = Progress::new(Console::new(true, Color::Always, true, false), 0, 1, 1);
        assert!(matches!(quiet.sink, Sink::Silent));
        quiet.step(&train(1), Duration::from_secs(1));
        assert!(matches!(Progress::new(Console::new(false, Color::Auto, false, false), 0, 1, 1).sink, Sink::Plain(_)));
    }

    #[test]
    fn lines_grow_rarer_as_time_passes() {
        let start = Instant::now();
        let mut throttle = Throttle { start, last: None };
        let mut lines_by = |from: u64, to: u64| {
            (from * 10..to * 10).filter(|tenth| throttle.due(start + Duration::from_millis(100 * tenth))).count()
        };
        assert_eq!(lines_by(0, 60), 30, "every two seconds in the first minute");
        let hour = lines_by(60, 3600);
        assert!((180..300).contains(&hour), "{hour} lines in the rest of the first hour");
        assert_eq!(lines_by(3600, 7200), 60, "one a minute from then on");
    }
}
