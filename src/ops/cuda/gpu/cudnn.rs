//! Attention by cuDNN, through `cudnn.cpp`: bf16, no documents. Our own kernels do what cuDNN cannot, and everything where
//! cuDNN is missing.
//!
//! The backward pass has a fixed order of sums, so the same bits come out twice; they are not those of our own kernels.

use super::times::timed;
use super::{address, empty};
use crate::ops::heads::{GPU_BF16_DIMS, Heads};
use crate::runtime::error::note;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

/// A plan whose workspace is larger than this is not used: with a fixed order of sums it grows with the square of the length.
const MOST_WORKSPACE: usize = 8 << 30;

/// The struct of this name in `cudnn.cpp`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: i64,
    length: i64,
    query_heads: i64,
    kv_heads: i64,
    head_dim: i64,
    scale: f32,
}

// Each returns null, or an error text that is valid until this thread's next call.
unsafe extern "C" {
    fn llama_lite_cudnn_version(version: *mut usize) -> *const c_char;
    fn llama_lite_cudnn_open(stream: *mut c_void, handle: *mut *mut c_void) -> *const c_char;
    fn llama_lite_cudnn_plan(
        handle: *mut c_void,
        shape: *const Shape,
        backward: c_int,
        plan: *mut *mut c_void,
        workspace: *mut usize,
    ) -> *const c_char;
    fn llama_lite_cudnn_forward(
        handle: *mut c_void,
        plan: *mut c_void,
        qkv: u64,
        out: u64,
        lse: u64,
        workspace: u64,
    ) -> *const c_char;
    fn llama_lite_cudnn_backward(
        handle: *mut c_void,
        plan: *mut c_void,
        qkv: u64,
        out: u64,
        lse: u64,
        dout: u64,
        dqkv: u64,
        workspace: u64,
    ) -> *const c_char;
}

/// Whether to use our own kernels instead; true from the start with LLAMA_LITE_ATTENTION=own.
static OFF: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(std::env::var_os("LLAMA_LITE_ATTENTION").is_some_and(|which| which == "own")));

/// Shapes and directions that cuDNN has no plan for.
static REFUSED: Mutex<BTreeSet<[usize; 6]>> = Mutex::new(BTreeSet::new());

fn checked(words: *const c_char) -> Result<(), String> {
    if words.is_null() {
        return Ok(());
    }
    // SAFETY: the text ends with a 0 and lives until this thread calls again.
    Err(unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned())
}

/// Calls of cuDNN so far.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// How often cuDNN has computed an attention or its gradient.
pub(in crate::ops::cuda) fn calls() -> usize {
    CALLS.load(Ordering::Relaxed)
}

/// The version of the cuDNN that works with `device`, or why none is used.
pub(in crate::ops) fn version(device: &CudaDevice) -> Result<String, String> {
    if OFF.load(Ordering::Relaxed) {
        return Err("LLAMA_LITE_ATTENTION=own".into());
    }
    device.cuda_stream().context().bind_to_thread().map_err(|e| e.to_string())?;
    handle(device)?;
    let mut version = 0;
    // SAFETY: it writes one number.
    checked(unsafe { llama_lite_cudnn_version(&mut version) })?;
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

/// Runs `work` with our own kernels alone.
pub(in crate::ops::cuda) fn without<R>(work: impl FnOnce() -> R) -> R {
    let before = OFF.swap(true, Ordering::Relaxed);
    let result = work();
    OFF.store(before, Ordering::Relaxed);
    result
}

/// The handle of the process's one device and stream; an address, because a pointer cannot be shared between threads.
fn handle(device: &CudaDevice) -> Result<usize, String> {
    static HANDLE: OnceLock<Result<usize, String>> = OnceLock::new();
    HANDLE.get_or_init(|| open(device)).clone()
}

fn open(device: &CudaDevice) -> Result<usize, String> {
    let mut handle = null_mut();
    let stream = device.cuda_stream().cu_stream().cast();
    // SAFETY: the device's context is current (its caller's part) and its stream lives as long as the process.
    checked(unsafe { llama_lite_cudnn_open(stream, &mut handle) })?;
    Ok(handle as usize)
}

/// What a call needs besides its tensors. The workspace returns to the pool when the stream has finished the work queued with it.
struct Prepared {
    handle: *mut c_void,
    plan: *mut c_void,
    workspace: Tensor,
}

/// The plan for a call; none if our own kernels must compute it.
fn prepared(qkv: &Tensor, heads: Heads, backward: bool) -> CandleResult<Option<Prepared>> {
    let (Device::Cuda(device), (b, t, _)) = (qkv.device(), qkv.dims3()?) else { return Ok(None) };
    let Heads { q, kv, dim } = heads;
    let able = qkv.dtype() == DType::BF16 && t > 1 && GPU_BF16_DIMS.contains(&dim);
    if !able || OFF.load(Ordering::Relaxed) {
        return Ok(None);
    }
    device.cuda_stream().context().bind_to_thread().w()?;
    let Ok(handle) = handle(device) else { return Ok(None) };
    let key = [b, t, q, kv, dim, usize::from(backward)];
    let mut refused = REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    if refused.contains(&key) {
        return Ok(None);
    }
    let [batch, length, query_heads, kv_heads, head_dim] = [b, t, q, kv, dim].map(|n| n as i64);
    let shape = Shape { batch, length, query_heads, kv_heads, head_dim, scale: heads.scale() };
    let mut plan = null_mut();
    let mut bytes = 0;
    // SAFETY: the handle is open, its context current; shape and results are those of the declaration.
    let made = unsafe {
        checked(llama_lite_cudnn_plan(handle as *mut c_void, &shape, c_int::from(backward), &mut plan, &mut bytes))
    };
    // If memory is short, our own kernels compute it: they need no workspace.
    let workspace = made.and_then(|()| match bytes {
        0..=MOST_WORKSPACE => empty(&[bytes.div_ceil(4).max(1)], DType::F32, qkv.device()).map_err(|e| e.to_string()),
        _ => Err(format!("a workspace of {:.1} GB is too much", bytes as f64 / 1e9)),
    });
    let workspace = match workspace {
        Ok(workspace) => workspace,
        Err(reason) => {
            let direction = if backward { "backward" } else { "forward" };
            let reason = reason.lines().next().unwrap_or_default();
            note(&format!("note: attention {direction} of {b} x {t} by our own kernels: {reason}"));
            // Remembered, so that no later call tries again or prints the note again.
            refused.insert(key);
            return Ok(None);
        }
    };
    Ok(Some(Prepared { handle: handle as *mut c_void, plan, workspace }))
}

/// Runs `work`, which queues a call.
fn queue(qkv: &Tensor, direction: &str, work: impl FnOnce() -> *const c_char) -> CandleResult<bool> {
    let Device::Cuda(device) = qkv.device() else { bail!("attention by cuDNN: no GPU") };
    timed(
        device,
        || (format!("attention {direction} by cuDNN"), 0.0),
        || checked(work()).map_err(candle_core::Error::Msg),
    )?;
    CALLS.fetch_add(1, Ordering::Relaxed);
    Ok(true)
}

/// Fills `out` and `lse`; false if our own kernels must compute it.
pub(in crate::ops::cuda) fn forward(qkv: &Tensor, heads: Heads, out: &Tensor, lse: &Tensor) -> CandleResult<bool> {
    let Some(Prepared { handle, plan, workspace }) = prepared(qkv, heads, false)? else { return Ok(false) };
    let [at_qkv, out, lse, workspace] = [address(qkv)?, address(out)?, address(lse)?, address(&workspace)?];
    // SAFETY: the tensors have the plan's shapes and live until the stream has passed this call.
    queue(qkv, "forward", || unsafe { llama_lite_cudnn_forward(handle, plan, at_qkv, out, lse, workspace) })
}

/// Fills `dqkv` from forward's input and results and the gradient `dout`; false if our own kernels must compute it.
pub(in crate::ops::cuda) fn backward(
    qkv: &Tensor,
    heads: Heads,
    (out, lse, dout): (&Tensor, &Tensor, &Tensor),
    dqkv: &Tensor,
) -> CandleResult<bool> {
    let Some(Prepared { handle, plan, workspace }) = prepared(qkv, heads, true)? else { return Ok(false) };
    let [at_qkv, out, lse, dout] = [address(qkv)?, address(out)?, address(lse)?, address(dout)?];
    let [dqkv, at_workspace] = [address(dqkv)?, address(&workspace)?];
    queue(qkv, "backward", || {
        // SAFETY: as above.
        unsafe { llama_lite_cudnn_backward(handle, plan, at_qkv, out, lse, dout, dqkv, at_workspace) }
    })
}
