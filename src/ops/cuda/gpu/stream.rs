//! A GPU's stream for libraries that queue work on it by themselves.

use super::{address, empty, list};
use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ffi::c_void;

/// The one stream of a GPU.
#[derive(Clone, Debug)]
pub struct Stream {
    cuda: CudaDevice,
    device: Device,
}

/// A place in the order of a stream.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Stream {
    /// # Errors
    /// `device` is no GPU.
    pub fn on(device: &Device) -> Result<Self> {
        match device {
            Device::Cuda(cuda) => Ok(Self { cuda: cuda.clone(), device: device.clone() }),
            _ => bail!("a CPU has no stream"),
        }
    }

    /// The `CUstream`; its context becomes that of the calling thread.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn handle(&self) -> Result<*mut c_void> {
        let stream = self.cuda.cuda_stream();
        stream.context().bind_to_thread().w()?;
        Ok(stream.cu_stream().cast())
    }

    /// The address of the first element of a contiguous tensor on this GPU.
    ///
    /// # Errors
    /// The tensor is none.
    pub fn address(&self, t: &Tensor) -> Result<*mut c_void> {
        Ok(address(t)? as *mut c_void)
    }

    /// A tensor with these bytes.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn upload(&self, bytes: &[u8]) -> Result<Tensor> {
        list(bytes, &self.device)
    }

    /// A tensor of so many bytes, which must be written before they are read.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn empty(&self, bytes: usize) -> Result<Tensor> {
        empty(&[bytes], DType::U8, &self.device)
    }

    /// The place behind all that was queued so far.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.cuda.cuda_stream().record_event(None).w()?))
    }
}

impl Mark {
    /// Whether the GPU has got there.
    ///
    /// # Errors
    /// Those of the GPU, also of what was queued before.
    pub fn is_reached(&self) -> Result<bool> {
        self.0.try_is_complete().w()
    }
}
