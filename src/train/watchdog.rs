//! The watchdog: a run that makes no progress ends with a report (exit 70), so that a supervisor can start it again, instead of holding
//! its machine for ever. It also sees to it that no thread's death leaves the process half alive.

use crate::metrics::Events;
use crate::runtime::error::{Exit, note};
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

/// Steps that the usual one is the median of.
const REMEMBERED: usize = 31;

/// Until so many steps have been seen, nobody knows how long one takes here ...
const ENOUGH: usize = 3;

/// ... and the limit is so many times the configured one.
const PATIENCE: u32 = 30;

/// A dead thread's failure normally ends the loop at the next step; after this long the watchdog ends the process.
const HALF_DEAD: Duration = Duration::from_secs(4);

/// Watches one run. Dropped, it ends.
pub struct Watchdog {
    shared: Arc<Shared>,
    least: Duration,
    steps: VecDeque<Duration>,
}

struct Shared {
    begun: Instant,
    /// When the loop last did something, in milliseconds since `begun`.
    alive: AtomicU64,
    /// Milliseconds without a sign of life that are too many.
    limit: AtomicU64,
    doing: Mutex<String>,
    over: AtomicBool,
    run_dir: PathBuf,
}

impl Watchdog {
    /// Watches the run in `run_dir`, which is stuck after ten usual steps without progress, `least` at least.
    ///
    /// # Errors
    /// [`Exit::Io`] if the system gives no thread.
    pub fn start(run_dir: &Path, least: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            alive: AtomicU64::new(0),
            limit: AtomicU64::new(milliseconds(least.saturating_mul(PATIENCE))),
            doing: Mutex::new("starting".into()),
            over: AtomicBool::new(false),
            run_dir: run_dir.to_path_buf(),
        });
        let watched = shared.clone();
        thread::spawn("watchdog", move || watched.watch())?;
        Ok(Self { shared, least, steps: VecDeque::new() })
    }

    /// The loop begins something else.
    pub fn begins(&self, what: String) {
        *self.shared.doing.lock().unwrap_or_else(PoisonError::into_inner) = what;
        self.alive();
    }

    /// The loop is getting on.
    pub fn alive(&self) {
        self.shared.alive.store(milliseconds(self.shared.begun.elapsed()), Ordering::Relaxed);
    }

    /// A step has taken so long.
    pub fn step(&mut self, took: Duration) {
        if self.steps.len() == REMEMBERED {
            self.steps.pop_front();
        }
        self.steps.push_back(took);
        if self.steps.len() >= ENOUGH {
            let mut sorted: Vec<_> = self.steps.iter().collect();
            sorted.sort();
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
            let (now, alive) = (milliseconds(self.begun.elapsed()), self.alive.load(Ordering::Relaxed));
            let still = now.saturating_sub(alive);
            if still > self.limit.load(Ordering::Relaxed) {
                let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone();
                self.end(&format!("no progress for {} s: {doing}", still / 1000), &machine::threads());
            }
        }
    }

    /// Ends the process unless the run has ended by itself.
    fn end(&self, what: &str, threads: &[String]) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let lines: String = threads.iter().map(|line| format!("\n  thread {line}")).collect();
        note(&format!("error: {what}{lines}"));
        note(&format!("hint: resume it: llama-lite resume --ckpt {}", quoted(&self.run_dir)));
        // Whoever is stuck may hold the events; this is another handle on the same file, and its lines are whole.
        let event = json!({"what": what, "threads": threads});
        let _ = Events::open(&self.run_dir).and_then(|mut events| events.append("hang", event));
        std::process::exit(Exit::Internal as i32);
    }
}
