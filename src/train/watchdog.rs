//! The watchdog: a run that makes no progress ends with a report (exit 70), so that a supervisor can restart it, instead of occupying
//! its machine for ever. It also ends a process in which a thread has died.

use crate::metrics::Events;
use crate::runtime::error::{Exit, alarm};
use crate::runtime::shell::quoted;
use crate::runtime::{machine, thread};
use anyhow::Result;
use serde_json::json;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(200);

/// Number of recent steps; the median of their durations is the usual one.
const REMEMBERED: usize = 31;

/// Timed steps before the usual duration is known.
const ENOUGH: usize = 3;

/// Until then, the limit as a multiple of the configured one.
const PATIENCE: u32 = 30;

/// A dead thread's failure normally ends the loop at the next step; after this long the watchdog ends the process.
const HALF_DEAD: Duration = Duration::from_secs(4);

/// Watches one run until it is dropped.
pub struct Watchdog {
    shared: Arc<Shared>,
    least: Duration,
    steps: VecDeque<Duration>,
}

struct Shared {
    started: Instant,
    /// When the loop last did something, in milliseconds since `started`.
    alive: AtomicU64,
    /// Milliseconds without a sign of life that are too many.
    limit: AtomicU64,
    phase: Mutex<String>,
    over: AtomicBool,
    run_dir: PathBuf,
    /// Whether it writes an event into the run's directory; with several ranks, one does.
    writes: bool,
}

impl Watchdog {
    /// Watches the run in `run_dir`, which counts as stuck after ten usual steps without progress, and never before `least`; while the
    /// usual duration is unknown, after [`PATIENCE`] times `least`.
    ///
    /// # Errors
    /// [`Exit::Io`] if the system gives no thread.
    pub fn start(run_dir: &Path, writes: bool, least: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            alive: AtomicU64::new(0),
            limit: AtomicU64::new(milliseconds(least.saturating_mul(PATIENCE))),
            phase: Mutex::new("starting".into()),
            over: AtomicBool::new(false),
            run_dir: run_dir.to_path_buf(),
            writes,
        });
        let watched = shared.clone();
        thread::spawn("watchdog", move || watched.watch())?;
        Ok(Self { shared, least, steps: VecDeque::new() })
    }

    /// The loop starts to do something else, which a report names.
    pub fn start_phase(&self, phase: String) {
        *self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.alive();
    }

    /// Notes that the loop makes progress.
    pub fn alive(&self) {
        self.shared.alive();
    }

    /// [`alive`](Self::alive), for code that does not know the watchdog.
    pub fn heartbeat(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.alive()
    }

    /// How long the loop may show no sign of life at present.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.shared.limit.load(Ordering::Relaxed))
    }

    /// Adjusts the limit to the duration of a step.
    pub fn record_step(&mut self, took: Duration) {
        if self.steps.len() == REMEMBERED {
            self.steps.pop_front();
        }
        self.steps.push_back(took);
        if self.steps.len() >= ENOUGH {
            let mut sorted: Vec<_> = self.steps.iter().collect();
            sorted.sort();
            // The median: one slow step among many does not stretch the limit.
            let limit = sorted[sorted.len() / 2].saturating_mul(10).max(self.least);
            self.shared.limit.store(milliseconds(limit), Ordering::Relaxed);
        }
        self.alive();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Shared {
    fn alive(&self) {
        self.alive.store(milliseconds(self.started.elapsed()), Ordering::Relaxed);
    }

    fn watch(&self) {
        let mut dead_since = None;
        while !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            if let Some(failure) = thread::dead() {
                let since = dead_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= HALF_DEAD {
                    self.end(&failure.message, &[]);
                }
            }
            let still = milliseconds(self.started.elapsed()).saturating_sub(self.alive.load(Ordering::Relaxed));
            if still > self.limit.load(Ordering::Relaxed) {
                let phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone();
                self.end(&format!("no progress for {} s: {phase}", still / 1000), &machine::threads());
            }
        }
    }

    /// Ends the process unless the run has ended by itself.
    fn end(&self, what: &str, threads: &[String]) {
        // Once more: the run may have ended while the report was gathered.
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let lines: String = threads.iter().map(|line| format!("\n  thread {line}")).collect();
        alarm(&format!("error: {what}{lines}"));
        alarm(&format!("hint: resume it: llama-lite resume --ckpt {}", quoted(&self.run_dir)));
        // The thread that is stuck may hold the events; this is another handle on the same file, and its lines are whole.
        let event = json!({"what": what, "threads": threads});
        if self.writes {
            let _ = Events::open(&self.run_dir).and_then(|mut events| events.append("hang", event));
        }
        // `exit` does not unwind: nothing waits for the thread that is stuck.
        std::process::exit(Exit::Internal as i32);
    }
}
