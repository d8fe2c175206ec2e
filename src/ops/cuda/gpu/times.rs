//! The time of every launch on a GPU, measured if LLAMA_LITE_OP_TIMES names a file; or, with LLAMA_LITE_SYNC_LAUNCHES=1, only the wait for
//! every launch, so that an error is that of the launch it is reported for. Either makes a run slower.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
#[cfg(feature = "cuda")]
use {
    candle_core::Result,
    candle_core::cuda_backend::{CudaDevice, WrapErr, cudarc::driver::sys::CUevent_flags},
};

/// Seconds of each launch of one name, and the operations of one if it is a product.
#[derive(Default)]
struct Launches {
    seconds: Vec<f32>,
    flops: f64,
}

static FILE: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("LLAMA_LITE_OP_TIMES").filter(|path| !path.is_empty()).map(PathBuf::from));

#[cfg(feature = "cuda")]
static SYNC: LazyLock<bool> = LazyLock::new(|| {
    std::env::var_os("LLAMA_LITE_SYNC_LAUNCHES").is_some_and(|value| !value.is_empty() && value != "0")
});

static TIMES: Mutex<BTreeMap<String, Launches>> = Mutex::new(BTreeMap::new());

/// Whether launches are to be measured.
pub(super) fn are_wanted() -> bool {
    FILE.is_some()
}

/// The variable because of which the program waits for every launch, if one does.
#[cfg(feature = "cuda")]
pub(super) fn variable_that_waits() -> Option<&'static str> {
    let sync = SYNC.then_some("LLAMA_LITE_SYNC_LAUNCHES");
    are_wanted().then_some("LLAMA_LITE_OP_TIMES").or(sync)
}

/// Adds a launch of `name`, of so many operations.
pub(super) fn add(name: String, flops: f64, seconds: f32) {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let launches = times.entry(name).or_default();
    launches.seconds.push(seconds);
    launches.flops = flops;
}

/// Forgets what was measured until now.
#[cfg(feature = "cuda")]
pub(super) fn forget() {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Runs `work`, which queues launches on the device's stream, and measures their time. `what` returns a name and the number of operations.
#[cfg(feature = "cuda")]
pub(super) fn timed(
    device: &CudaDevice,
    what: impl FnOnce() -> (String, f64),
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stream = device.cuda_stream();
    if !are_wanted() {
        work()?;
        return if *SYNC { stream.synchronize().w() } else { Ok(()) };
    }
    let before = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()?;
    work()?;
    let after = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()?;
    after.synchronize().w()?;
    let (name, flops) = what();
    add(name, flops, before.elapsed_ms(&after).w()? / 1e3);
    Ok(())
}

/// The file to write, if measurements were asked for, and for each name the number of launches, seconds in all, the median, operations.
pub(in crate::ops) fn report() -> Option<(PathBuf, Value)> {
    let path = FILE.clone()?;
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let rows = times.iter_mut().map(|(name, launches)| {
        launches.seconds.sort_by(f32::total_cmp);
        let total: f64 = launches.seconds.iter().map(|&s| f64::from(s)).sum();
        let median = launches.seconds.get(launches.seconds.len() / 2).copied().unwrap_or(0.0);
        let flops = launches.flops;
        json!({"name": name, "launches": launches.seconds.len(), "seconds": total, "median": median, "flops": flops})
    });
    Some((path, rows.collect()))
}
