//! Which algorithm computes a product: the one that was chosen for it, or, for all others, cuBLAS's own choice.
//!
//! Algorithms are chosen in one place alone, while [`choose_algorithms`] does a pass of a training step: each is measured on the stream, with the
//! operands of the product itself. What is computed later is looked up and never measured, so that bits do not depend on when a product is met.

use super::cublaslt::{self, Accepted, MOST_WORKSPACE, Problem, Workspace};
use super::device::{default_product, describe};
use super::times::{self, timed};
use super::{Matrix, Product, address, empty};
use crate::ops::product_algorithms::{ProductAlgorithms, ProductChoice, ProductKey, ProductTiming, fastest, median};
use crate::runtime::error::note;
use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Error, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};

/// Measured runs of each algorithm, in turns, after one that loads its kernel.
const RUNS: usize = 5;

/// A product's algorithm; none where cuBLAS decides.
type Choice = Option<(Problem, Accepted)>;

/// The choices of this process, which has one GPU.
#[derive(Default)]
struct State {
    choices: BTreeMap<ProductKey, Choice>,
    /// The passes whose products were looked at; empty if none was.
    passes: Vec<String>,
    /// Whether a product that has no choice gets one.
    choosing: bool,
    timings: Vec<ProductTiming>,
    /// Memory for algorithms, once one has needed it.
    workspace: Option<Tensor>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn product(device: &CudaDevice, product: &Product) -> Result<()> {
    device.cuda_stream().context().bind_to_thread().w()?;
    let (rows, inner) = product.a.size();
    let (_, columns) = product.b.size();
    let sums = if product.accumulate { " added" } else { "" };
    timed(
        device,
        || {
            let name = format!("product {rows} x {inner} x {columns}{sums}");
            (name, 2.0 * rows as f64 * inner as f64 * columns as f64)
        },
        || queue(device, product),
    )
}

/// The same without measuring it.
fn queue(device: &CudaDevice, product: &Product) -> Result<()> {
    let mut state = state();
    if state.choices.is_empty() && !state.choosing {
        return default_product(device, product);
    }
    let key = cublaslt::key(product)?;
    if state.choosing && !state.choices.contains_key(&key) && !is_capturing(device)? {
        let choice = state.choose(device, product, &key).unwrap_or_else(|error| {
            note_default(&error);
            None
        });
        state.choices.insert(key, choice);
    }
    let workspace = state.workspace()?;
    match state.choices.get(&key) {
        Some(Some((problem, accepted))) => by_algorithm(device, problem, accepted, product, workspace),
        _ => default_product(device, product),
    }
}

fn by_algorithm(
    device: &CudaDevice,
    problem: &Problem,
    accepted: &Accepted,
    product: &Product,
    workspace: Workspace,
) -> Result<()> {
    let stream = device.cuda_stream().cu_stream().cast();
    // SAFETY: the matrices lie within their tensors, which live until the stream has passed this call. The workspace stays, and the device has
    // one stream.
    let queued = unsafe { problem.queue(accepted, product, workspace, stream) };
    queued.map_err(|error| Error::Msg(format!("by algorithm {:?}: {error}", accepted.attributes)))
}

/// Whether the stream is being recorded: then nothing can be measured or waited for.
fn is_capturing(device: &CudaDevice) -> Result<bool> {
    let status = device.cuda_stream().capture_status().w()?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Why a product is left to cuBLAS: once, however many there are.
fn note_default(error: &Error) {
    static ONCE: Once = Once::new();
    let reason = error.to_string();
    let reason = reason.lines().next().unwrap_or_default();
    ONCE.call_once(|| note(&format!("note: cuBLAS chooses the algorithms of some products itself: {reason}")));
}

impl State {
    fn workspace(&self) -> Result<Workspace> {
        let Some(memory) = &self.workspace else { return Ok(Workspace::default()) };
        Ok(Workspace { at: address(memory)?, bytes: MOST_WORKSPACE })
    }

    /// Whether there is memory for what `accepted` needs.
    fn has_workspace_for(&mut self, accepted: &Accepted, device: &CudaDevice) -> bool {
        if accepted.workspace > 0 && self.workspace.is_none() {
            // One that cannot be had is no error: other algorithms need none.
            self.workspace = empty(&[MOST_WORKSPACE], DType::U8, &Device::Cuda(device.clone())).ok();
        }
        accepted.workspace == 0 || self.workspace.is_some()
    }

    /// The fastest algorithm for `product`, by measuring.
    fn choose(&mut self, device: &CudaDevice, product: &Product, key: &ProductKey) -> Result<Choice> {
        let problem = Problem::new(key).map_err(library_error)?;
        let mut candidates = problem.candidates().map_err(library_error)?;
        candidates.retain(|candidate| self.has_workspace_for(candidate, device));
        // A product that adds would add several times: it is measured on memory of its own. Others are computed again at the end anyway.
        let scratch = product.accumulate.then(|| scratch(device, product.out)).transpose()?;
        let at = scratch.as_ref().map_or(Ok(product.out.at), address)?;
        let trial = Trial {
            device,
            problem: &problem,
            product: Product { out: Matrix { at, ..product.out }, ..*product },
            workspace: self.workspace()?,
        };
        // One that cannot run here is none. The first run of each loads its kernel.
        candidates.retain(|candidate| trial.run(Some(candidate)).is_ok());
        trial.run(None)?;
        let ways: Vec<Option<Accepted>> = std::iter::once(None).chain(candidates.into_iter().map(Some)).collect();
        let times = trial.measure(&ways)?;
        let best = fastest(&times);
        self.timings.push(ProductTiming {
            product: describe_product(key),
            tried: ways.len() - 1,
            microseconds: 1e3 * f64::from(median(&times[best])),
            default_microseconds: 1e3 * f64::from(median(&times[0])),
        });
        Ok(ways[best].map(|accepted| (problem, accepted)))
    }

    fn table(&self, device: &CudaDevice) -> ProductAlgorithms {
        let choices = self.choices.iter();
        let products = choices.map(|(key, choice)| ProductChoice {
            key: *key,
            algorithm: choice.as_ref().map(|(_, accepted)| accepted.attributes),
        });
        ProductAlgorithms {
            gpu: describe(device).0,
            library: cublaslt::version(),
            passes: self.passes.clone(),
            products: products.collect(),
        }
    }
}

fn library_error(error: impl std::fmt::Display) -> Error {
    Error::Msg(format!("cuBLASLt: {error}"))
}

/// Memory like that of `out`.
fn scratch(device: &CudaDevice, out: Matrix) -> Result<Tensor> {
    empty(&[out.rows * out.stride], out.dtype, &Device::Cuda(device.clone()))
}

/// A product that is measured.
struct Trial<'a> {
    device: &'a CudaDevice,
    problem: &'a Problem,
    product: Product,
    workspace: Workspace,
}

impl Trial<'_> {
    /// By an algorithm, or by cuBLAS's choice.
    fn run(&self, way: Option<&Accepted>) -> Result<()> {
        match way {
            Some(accepted) => by_algorithm(self.device, self.problem, accepted, &self.product, self.workspace),
            None => default_product(self.device, &self.product),
        }
    }

    /// Milliseconds of [`RUNS`] runs of each of `ways`.
    fn measure(&self, ways: &[Option<Accepted>]) -> Result<Vec<Vec<f32>>> {
        let stream = self.device.cuda_stream();
        let mut events = Vec::new();
        // In turns: what slows the card down for a moment slows down all of them.
        for _ in 0..RUNS {
            for (i, way) in ways.iter().enumerate() {
                let before = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()?;
                self.run(way.as_ref())?;
                events.push((i, before, stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()?));
            }
        }
        stream.synchronize().w()?;
        let mut times = vec![Vec::new(); ways.len()];
        for (i, before, after) in events {
            times[i].push(before.elapsed_ms(&after).w()?);
        }
        Ok(times)
    }
}

fn describe_product(key: &ProductKey) -> String {
    let ProductKey { rows, inner, columns, accumulate, .. } = key;
    let sums = if *accumulate { " added" } else { "" };
    let transposed = match (key.a.transposed, key.b.transposed) {
        (false, false) => "",
        (true, false) => ", a transposed",
        (false, true) => ", b transposed",
        (true, true) => ", both transposed",
    };
    format!("{rows} x {inner} x {columns}{sums}{transposed}, {:?}", key.elements).to_lowercase()
}

/// See [`choose_algorithms`](crate::ops::products::choose_algorithms).
pub(in crate::ops) fn choose_algorithms<T>(
    device: &CudaDevice,
    pass: &str,
    work: impl FnOnce() -> T,
) -> (T, Vec<ProductTiming>) {
    state().choosing = true;
    let result = work();
    let mut state = state();
    state.choosing = false;
    // Even if `work` has failed: it must not be done again by a resume, which would find other times.
    state.passes.push(pass.to_owned());
    let timings = std::mem::take(&mut state.timings);
    drop(state);
    // Launches of this pass are none of a step's.
    times::forget();
    let _ = device.cuda_stream().synchronize();
    (result, timings)
}

/// See [`use_algorithms`](crate::ops::products::use_algorithms).
pub(in crate::ops) fn use_algorithms(
    device: &CudaDevice,
    table: &ProductAlgorithms,
) -> std::result::Result<Vec<String>, String> {
    table.check_place(&describe(device).0, &cublaslt::version())?;
    device.cuda_stream().context().bind_to_thread().map_err(|error| error.to_string())?;
    let mut state = state();
    let mut refused = Vec::new();
    state.choices.clear();
    state.passes.clone_from(&table.passes);
    for ProductChoice { key, algorithm } in &table.products {
        let choice = match algorithm {
            None => None,
            Some(wanted) => match Problem::new(key).and_then(|problem| Ok((problem.accept(wanted)?, problem))) {
                Ok((accepted, problem)) if state.has_workspace_for(&accepted, device) => Some((problem, accepted)),
                Ok(_) => {
                    refused.push(format!("{}: there is no memory for its algorithm", describe_product(key)));
                    None
                }
                Err(error) => {
                    refused.push(format!("{}: this card has no such algorithm ({error})", describe_product(key)));
                    None
                }
            },
        };
        state.choices.insert(*key, choice);
    }
    Ok(refused)
}

/// See [`algorithms_in_use`](crate::ops::products::algorithms_in_use).
pub(in crate::ops) fn algorithms_in_use(device: &CudaDevice) -> Option<ProductAlgorithms> {
    let state = state();
    (!state.passes.is_empty() || !state.choices.is_empty()).then(|| state.table(device))
}

/// See [`forget_algorithms`](crate::ops::products::forget_algorithms).
pub(in crate::ops) fn forget_algorithms() {
    let mut state = state();
    state.choices.clear();
    state.passes.clear();
}
