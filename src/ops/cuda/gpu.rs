//! Addresses of tensors, launches of kernels, matrix products.
//!
//! Everything is queued on the device's one stream, in the order of the calls; the memory of a dropped tensor is freed in the
//! same order, so a queued launch may outlive its arguments.

#[cfg(feature = "cuda")]
use crate::runtime::error::note;
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

impl std::fmt::Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pointer(x) => write!(f, "{x:#x}"),
            Self::I32(x) => write!(f, "{x}"),
            Self::U64(x) => write!(f, "{x}"),
            Self::F32(x) => write!(f, "{x:?}"),
            Self::F32s(x) => write!(f, "{x:?}"),
        }
    }
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
    let queued = match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::launch(device, kernel, grid, &mut values),
        #[cfg(test)]
        Device::Cpu => emulated::launch(kernel, grid, &mut values),
        _ => Err(candle_core::Error::Msg("no GPU".into())),
    };
    queued.map_err(|error| launch_error(kernel, grid, args, &error))
}

/// What the driver says of a launch, with what was launched: its own errors name nothing.
fn launch_error(kernel: &str, grid: Grid, args: &[Arg], error: &candle_core::Error) -> candle_core::Error {
    let Grid { blocks: [x, y, z], threads, shared } = grid;
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    candle_core::Error::Msg(format!(
        "launch of {kernel}, {x} x {y} x {z} blocks of {threads} threads, {shared} bytes of shared memory, arguments ({}): {error}",
        args.join(", ")
    ))
}

/// Queues that every byte of `t` becomes 0.
pub(in crate::ops) fn zero(t: &Tensor) -> Result<()> {
    let at = address(t)?;
    let bytes = t.elem_count() * t.dtype().size_in_bytes();
    // CUDA refuses to set nothing.
    if bytes == 0 {
        return Ok(());
    }
    match t.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::zero(device, at, bytes),
        #[cfg(test)]
        Device::Cpu => {
            emulated::zero(at, bytes);
            Ok(())
        }
        _ => bail!("zero: no GPU"),
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

/// `out = factor a b`, or `out += factor a b`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) out: Matrix,
    pub(super) accumulate: bool,
    pub(super) factor: f32,
    pub(super) a: Matrix,
    pub(super) b: Matrix,
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
    let product = Product { out, accumulate, factor, a, b };
    let queued: Result<()> = match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => products::product(device, &product),
        #[cfg(test)]
        Device::Cpu => emulated::product(&product),
        _ => Err(candle_core::Error::Msg("no GPU".into())),
    };
    queued.map_err(|error| candle_core::Error::Msg(format!("product of {a:?} and {b:?} into {out:?}: {error}")))
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
                Err(error) => {
                    // What cannot be recorded here is launched one by one.
                    note_unrecorded(&error);
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

/// Why launches are not recorded as a CUDA graph: once, however many recorders there are.
#[cfg(feature = "cuda")]
fn note_unrecorded(error: &candle_core::Error) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let reason = error.to_string();
    let reason = reason.lines().next().unwrap_or_default();
    ONCE.call_once(|| note(&format!("note: tokens are computed without a CUDA graph, which is slower: {reason}")));
}

#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cudnn")]
pub(super) mod cudnn;
#[cfg(feature = "cuda")]
pub(super) mod device;
#[cfg(test)]
pub(super) mod emulated;
#[cfg(any(test, feature = "cuda"))]
mod libraries;
#[cfg(feature = "cuda")]
pub(super) mod products;
#[cfg(feature = "cuda")]
pub(super) mod stream;
pub(super) mod times;
#[cfg(feature = "cuda")]
mod upload;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_that_fails_says_what_was_launched() {
        let args = [Arg::Pointer(0x1f0), int(17).unwrap(), Arg::F32(0.5)];
        let grid = Grid { blocks: [3, 2, 1], threads: 64, shared: 128 };
        let error = launch(&Device::Cpu, "no_such_kernel_f32", grid, &args).unwrap_err().to_string();
        let expected = "launch of no_such_kernel_f32, 3 x 2 x 1 blocks of 64 threads, 128 bytes of shared memory, arguments (0x1f0, 17, 0.5): ";
        assert!(error.starts_with(expected), "{error}");
        let wide = Grid { threads: 4096, ..Grid::linear(1, 1) };
        let x = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
        let args = [pointer(&x).unwrap(), pointer(&x).unwrap(), Arg::U64(8), Arg::U64(8)];
        let error = launch(&Device::Cpu, "sum_of_squares", wide, &args).unwrap_err().to_string();
        assert!(
            error.contains("sum_of_squares, 1 x 1 x 1 blocks of 4096 threads") && error.contains("more than a block"),
            "{error}"
        );
    }

    #[test]
    fn zero_sets_the_bytes_of_a_view_and_no_others() {
        for dtype in [DType::F32, DType::BF16] {
            let all = Tensor::ones(12, DType::F32, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            zero(&all.narrow(0, 3, 7).unwrap()).unwrap();
            zero(&all.narrow(0, 1, 0).unwrap()).unwrap();
            let values = all.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], "{dtype:?}");
        }
        let transposed = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap().t().unwrap();
        assert!(zero(&transposed).is_err(), "bytes between its elements are not its own");
    }
}
