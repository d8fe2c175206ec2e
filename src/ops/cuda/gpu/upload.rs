//! Copies lists to a GPU through page-locked memory: a copy of more than 64 KB from other memory would wait until the stream has finished
//! everything before it, and then the GPU would wait for its next work.

use super::{address, empty};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, DriverError, result};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Result, Tensor, WithDType};
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// The smallest piece of page-locked memory that is asked for, in bytes.
const LEAST: usize = 64 << 10;

/// A piece of page-locked memory, which is free once the stream has finished the copy from it. It is kept until the process ends.
struct Staging {
    at: *mut c_void,
    bytes: usize,
    copied: Option<CudaEvent>,
}

// SAFETY: the memory has one owner at a time.
unsafe impl Send for Staging {}

impl Staging {
    fn is_free(&self) -> bool {
        self.copied.as_ref().is_none_or(CudaEvent::is_complete)
    }
}

static POOL: Mutex<Vec<Staging>> = Mutex::new(Vec::new());

/// A piece of at least `bytes` that is not in use.
fn staging(bytes: usize) -> std::result::Result<Staging, DriverError> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(i) = pool.iter().position(|staging| staging.bytes >= bytes && staging.is_free()) {
        return Ok(pool.swap_remove(i));
    }
    let bytes = bytes.next_power_of_two().max(LEAST);
    // SAFETY: a context is current; the memory is never freed.
    let at = unsafe { result::malloc_host(bytes, 0) }?;
    Ok(Staging { at, bytes, copied: None })
}

/// `list` as a tensor on the GPU.
pub(super) fn upload<T: WithDType>(list: &[T], cuda: &CudaDevice, device: &Device) -> Result<Tensor> {
    let tensor = empty(&[list.len()], T::DTYPE, device)?;
    let bytes = size_of_val(list);
    let stream = cuda.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let mut staging = staging(bytes).w()?;
    // SAFETY: the staging memory holds that many bytes, and no other copy uses it until the event below.
    unsafe {
        std::ptr::copy_nonoverlapping(list.as_ptr().cast::<u8>(), staging.at.cast::<u8>(), bytes);
        let from = std::slice::from_raw_parts(staging.at.cast::<u8>(), bytes);
        result::memcpy_htod_async(address(&tensor)?, from, stream.cu_stream()).w()?;
    }
    // Nothing waits for the copy: the event shows later when the memory is free again.
    staging.copied = Some(stream.record_event(None).w()?);
    POOL.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
    Ok(tensor)
}
