//! Addresses of tensors, launches of kernels, matrix products.
//!
//! Everything is queued on the device's one stream, in the order of the calls; the memory of a dropped tensor is freed in the
//! same order, so a queued launch may outlive its arguments.

use candle_core::{DType, Device, Result, Storage, Tensor, WithDType, bail};
use std::ffi::c_void;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    Pointer(u64),
    I32(i32),
    U64(u64),
    F32(f32),
    F32s([f32; 9]),
}

impl Arg {
    fn value(&self) -> *mut c_void {
        match self {
            Self::Pointer(x) | Self::U64(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::I32(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::F32(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::F32s(x) => std::ptr::from_ref(x).cast_mut().cast(),
        }
    }
}

pub(super) fn int(x: usize) -> Result<Arg> {
    i32::try_from(x).map(Arg::I32).map_err(|_| candle_core::Error::Msg(format!("{x} does not fit a kernel's argument")))
}

/// Blocks, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
    pub(super) shared: usize,
}

impl Grid {
    /// `blocks` in one dimension.
    pub(super) fn linear(blocks: usize, threads: usize) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared: 0 }
    }
}

/// The part of a kernel's name that is the type of its elements.
pub(super) fn suffix(t: &Tensor) -> Result<&'static str> {
    match t.dtype() {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        other => bail!("no kernel takes elements of {other:?}"),
    }
}

/// The address of the first element of a contiguous tensor.
pub(super) fn pointer(t: &Tensor) -> Result<Arg> {
    address(t).map(Arg::Pointer)
}

/// [`pointer`], or null.
pub(super) fn pointer_or_null(t: Option<&Tensor>) -> Result<Arg> {
    t.map_or(Ok(Arg::Pointer(0)), pointer)
}

pub(super) fn address(t: &Tensor) -> Result<u64> {
    if !t.is_contiguous() {
        bail!("a kernel needs contiguous elements, not {:?} with strides {:?}", t.dims(), t.stride());
    }
    let (storage, layout) = t.storage_and_layout();
    let base = match &*storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => device::base(storage)?,
        #[cfg(test)]
        Storage::Cpu(storage) => emulated::base(storage)?,
        _ => bail!("a kernel needs a tensor on the GPU"),
    };
    Ok(base + (layout.start_offset() * t.dtype().size_in_bytes()) as u64)
}

/// An uninitialised tensor: a kernel must write every element before one is read.
pub(super) fn empty(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    if cfg!(test) && device.is_cpu() && dtype != DType::U32 {
        return Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype);
    }
    // SAFETY: every bit pattern is an element, and none is read before it is written (the callers' part, above).
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// `values` as a tensor on `device`.
pub(super) fn list<T: WithDType>(values: &[T], device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(cuda), false) = (device, values.is_empty()) {
        return upload::upload(values, cuda, device);
    }
    Tensor::from_slice(values, values.len(), device)
}

/// Queues `kernel` with `args`, which must be those of its source.
pub(super) fn launch(device: &Device, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
    // CUDA refuses an empty grid; there is nothing to compute.
    if grid.blocks.contains(&0) {
        return Ok(());
    }
    let mut values: Vec<*mut c_void> = args.iter().map(Arg::value).collect();
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::launch(device, kernel, grid, &mut values),
        #[cfg(test)]
        Device::Cpu => emulated::launch(kernel, grid, &mut values),
        _ => bail!("{kernel}: no GPU"),
    }
}

/// A matrix in memory, row by row, `stride` elements from row to row; `transposed` when its transpose is meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) at: u64,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
    pub(super) dtype: DType,
    pub(super) transposed: bool,
}

impl Matrix {
    /// All elements of `t` as rows of `columns`.
    pub(super) fn view(t: &Tensor, columns: usize) -> Result<Self> {
        let rows = t.elem_count() / columns;
        Ok(Self { at: address(t)?, rows, columns, stride: columns, dtype: t.dtype(), transposed: false })
    }

    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// (rows, columns) after the transposition.
    pub(super) fn size(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    /// Rows `from..from + n`.
    pub(super) fn narrow(self, from: usize, n: usize) -> Self {
        Self { at: self.at + (from * self.stride * self.dtype.size_in_bytes()) as u64, rows: n, ..self }
    }

    /// Columns `range`.
    pub(super) fn columns(self, range: std::ops::Range<usize>) -> Self {
        Self { at: self.at + (range.start * self.dtype.size_in_bytes()) as u64, columns: range.len(), ..self }
    }
}

/// `out = a b`, or `out += a b`; sums in f32, whatever the type of the elements.
pub(super) fn product(device: &Device, out: Matrix, accumulate: bool, a: Matrix, b: Matrix) -> Result<()> {
    scaled_product(device, out, accumulate, 1.0, a, b)
}

/// `out = factor a b`, or `out += factor a b`.
pub(super) fn scaled_product(
    device: &Device,
    out: Matrix,
    accumulate: bool,
    factor: f32,
    a: Matrix,
    b: Matrix,
) -> Result<()> {
    let (m, k) = a.size();
    let (kb, n) = b.size();
    if k != kb || out.size() != (m, n) || out.transposed || a.dtype != b.dtype {
        bail!("product: {a:?} and {b:?} do not make {out:?}");
    }
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::product(device, out, accumulate, factor, a, b),
        #[cfg(test)]
        Device::Cpu => emulated::product(out, accumulate, factor, a, b),
        _ => bail!("product: no GPU"),
    }
}

/// Launches that are the same every time: run the first time, recorded the second, replayed from then on.
#[derive(Default)]
pub(super) enum Replay {
    #[default]
    New,
    Warm,
    #[cfg(feature = "cuda")]
    Recorded(device::Recording),
    #[cfg(feature = "cuda")]
    Never,
}

impl Replay {
    /// Runs `work`, or replays the launches that it queued before.
    pub(super) fn run(&mut self, device: &Device, work: impl Fn() -> Result<()>) -> Result<()> {
        match (&*self, device) {
            // The first run loads the kernels, which cannot be done while recording.
            (Self::New, _) => {
                work()?;
                *self = Self::Warm;
                Ok(())
            }
            #[cfg(feature = "cuda")]
            (Self::Warm, Device::Cuda(device)) => match device::record(device, &work) {
                Ok(recording) => {
                    let done = recording.play();
                    *self = Self::Recorded(recording);
                    done
                }
                Err(_) => {
                    // What cannot be recorded here is launched one by one.
                    *self = Self::Never;
                    work()
                }
            },
            #[cfg(feature = "cuda")]
            (Self::Recorded(recording), _) => recording.play(),
            _ => work(),
        }
    }
}

#[cfg(feature = "cudnn")]
pub(super) mod cudnn;
#[cfg(feature = "cuda")]
pub(super) mod device;
#[cfg(test)]
pub(super) mod emulated;
#[cfg(feature = "cuda")]
pub(super) mod stream;
#[cfg(feature = "cuda")]
pub(super) mod times;
#[cfg(feature = "cuda")]
mod upload;
