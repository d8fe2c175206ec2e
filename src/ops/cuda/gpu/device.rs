//! The driver and cuBLAS, through candle's cudarc.

use super::libraries::open_libraries;
use super::times::{timed, variable_that_waits};
use super::{Grid, Matrix, Product};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::cublas::{result::CublasError, result::gemm_ex, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, DevicePtr, DeviceRepr, result, sys,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{DType, Device, DeviceLocation, Result as CandleResult, bail};
use half::bf16;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::{LazyLock, Mutex, PoisonError};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that a kernel gets without asking for more: 48 KB together with its static shared memory.
const PLAIN_SHARED: usize = 40 << 10;

/// Kernels by GPU and name: looking one up in the driver costs as much as a small launch.
static FUNCTIONS: LazyLock<Mutex<BTreeMap<(usize, String), CudaFunction>>> = LazyLock::new(Mutex::default);

/// The GPU `number`, with a stream of its own, and memory that stays with the process between uses.
pub(in crate::ops) fn open(number: usize) -> Result<Device, String> {
    // Linked libraries are open; and without a GPU none is needed.
    if let Some(major) = option_env!("LLAMA_LITE_CUDA_MAJOR").filter(|_| count().is_ok_and(|count| count > 0)) {
        open_libraries(major);
    }
    let device = CudaDevice::new_with_stream(number).map_err(|error| plain(&error.to_string()))?;
    // SAFETY: all work of this process goes through the device's one stream.
    unsafe { device.disable_event_tracking() };
    keep_memory(&device).map_err(|error| plain(&error.to_string()))?;
    sum_in_f32(&device).map_err(|error| plain(&error.to_string()))?;
    Ok(Device::Cuda(device))
}

/// How many GPUs this process can see. Unlike [`open`] it takes no memory of any of them.
pub(in crate::ops) fn count() -> Result<usize, String> {
    let count = CudaContext::device_count().map_err(|error| plain(&error.to_string()))?;
    usize::try_from(count).map_err(|e| e.to_string())
}

/// What tells a GPU from all others, on any host: UUID in hexadecimal; empty if the driver does not say.
pub(in crate::ops) fn unique_name(device: &CudaDevice) -> String {
    let uuid = device.cuda_stream().context().uuid();
    uuid.map_or_else(|_| String::new(), |uuid| uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect())
}

/// cuBLAS may otherwise add partial sums of a product in the type of its result.
fn sum_in_f32(device: &CudaDevice) -> Result<(), CublasError> {
    let mode = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle is open.
    unsafe { blas::cublasSetMathMode(*device.cublas_handle().handle(), mode) }.result()
}

/// Keeps freed memory in the driver's pool, which by default returns unused memory at every synchronisation.
fn keep_memory(device: &CudaDevice) -> Result<(), result::DriverError> {
    let stream = device.cuda_stream();
    let mut all = u64::MAX;
    let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is one that was opened; this attribute of its pool is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device())?;
        result::mem_pool::set_attribute(pool, threshold, std::ptr::from_mut(&mut all).cast())
    }
}

/// cuBLAS's version; empty if it cannot be asked.
pub(in crate::ops) fn blas_version(device: &CudaDevice) -> String {
    let cublas = device.cublas_handle();
    let mut version = 0;
    // SAFETY: the handle is open; it writes one int.
    let status = unsafe { blas::cublasGetVersion_v2(*cublas.handle(), &mut version) };
    if status != blas::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return "of an unknown version".into();
    }
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// Free bytes of the GPU's memory.
pub(in crate::ops) fn free_memory(device: &Device) -> Option<u64> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().bind_to_thread().ok()?;
    result::mem_get_info().ok().map(|(free, _)| free as u64)
}

/// The GPU's name and the CUDA version of its driver.
pub(in crate::ops) fn describe(device: &CudaDevice) -> (String, String) {
    let name = device.cuda_stream().context().name().unwrap_or_else(|_| "a GPU".into());
    let mut version = 0;
    // SAFETY: it writes one int.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) } == sys::CUresult::CUDA_SUCCESS;
    let driver = if known { format!("CUDA {}.{}", version / 1000, version % 1000 / 10) } else { String::new() };
    (name, driver)
}

/// The driver's error without names of constants and backtraces.
fn plain(error: &str) -> String {
    match missing().filter(|words| !words.contains("libcuda.so")) {
        Some(words) => format!(
            "{words}; NVIDIA's libraries are looked for in LD_LIBRARY_PATH, and in the Python environments of VIRTUAL_ENV, CONDA_PREFIX and this program"
        ),
        None if ["NO_DEVICE", "NOT_INITIALIZED"].iter().any(|name| error.contains(name)) => {
            "no GPU or no NVIDIA driver was found".into()
        }
        None => error.lines().next().unwrap_or_default().to_owned(),
    }
}

/// The dynamic linker's message about a library that is missing.
#[cfg(cuda_stand_ins)]
fn missing() -> Option<String> {
    unsafe extern "C" {
        fn llama_lite_cuda_missing() -> *const std::ffi::c_char;
    }
    // SAFETY: a function of stand_in.c; the text is null or ends with a 0, and stays.
    let words = unsafe {
        let words = llama_lite_cuda_missing();
        (!words.is_null()).then(|| std::ffi::CStr::from_ptr(words))
    };
    words.map(|words| words.to_string_lossy().into_owned())
}

#[cfg(not(cuda_stand_ins))]
fn missing() -> Option<String> {
    None
}

/// The address of a storage's first element.
pub(super) fn base(storage: &CudaStorage) -> CandleResult<u64> {
    match storage.dtype() {
        DType::F32 => base_of::<f32>(storage),
        DType::BF16 => base_of::<bf16>(storage),
        DType::U32 => base_of::<u32>(storage),
        DType::I64 => base_of::<i64>(storage),
        DType::F64 => base_of::<f64>(storage),
        DType::U8 => base_of::<u8>(storage),
        other => bail!("no kernel takes elements of {other:?}"),
    }
}

fn base_of<T: CudaDType + DeviceRepr>(storage: &CudaStorage) -> CandleResult<u64> {
    let stream = storage.device().cuda_stream();
    let (at, _guard) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
    Ok(at)
}

fn function(device: &CudaDevice, kernel: &str) -> CandleResult<CudaFunction> {
    let DeviceLocation::Cuda { gpu_id } = device.location() else { bail!("{kernel}: no GPU") };
    let key = (gpu_id, kernel.to_owned());
    let mut known = FUNCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = known.get(&key) {
        return Ok(function.clone());
    }
    let entry = format!(".entry {kernel}(");
    let Some((module, ptx)) = KERNELS.iter().find(|(_, ptx)| ptx.contains(&entry)) else {
        bail!("{kernel}: this program was built without its kernels")
    };
    let function = device.get_or_load_custom_func(kernel, module, ptx)?.into_cuda_function();
    known.insert(key, function.clone());
    Ok(function)
}

/// Queues a kernel on the device's stream.
pub(super) fn launch(device: &CudaDevice, kernel: &str, grid: Grid, values: &mut [*mut c_void]) -> CandleResult<()> {
    let function = function(device, kernel)?;
    let [x, y, z] = grid.blocks.map(|n| n as u32);
    let threads = grid.threads as u32;
    let shared = grid.shared as u32;
    if grid.shared > PLAIN_SHARED {
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, shared as i32).w()?;
    }
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    timed(
        device,
        || (kernel.to_owned(), 0.0),
        || {
            let function = function.cu_function();
            let stream = stream.cu_stream();
            // SAFETY: the arguments are those that the kernel's source has; what they point to lives until the stream has finished this launch.
            unsafe { result::launch_kernel(function, (x, y, z), (threads, 1, 1), shared, stream, values) }.w()
        },
    )
}

/// Queues a memset: it counts bytes in 64 bits, where candle's fill counts elements in 32 and never ends if there are more.
pub(super) fn zero(device: &CudaDevice, at: u64, bytes: usize) -> CandleResult<()> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    timed(
        device,
        || ("zero".to_owned(), 0.0),
        // SAFETY: the bytes are those of a tensor that lives until the stream has passed this call; 0 is an element of every type.
        || unsafe { result::memset_d8_async(at, 0, bytes, stream.cu_stream()) }.w(),
    )
}

pub(in crate::ops::cuda) struct Recording(CudaGraph);

impl Recording {
    pub(super) fn play(&self) -> CandleResult<()> {
        self.0.launch().w()
    }
}

/// Records what `work` queues without running it. `work` must not allocate, and its kernels must have been loaded before.
pub(super) fn record(device: &CudaDevice, work: impl Fn() -> CandleResult<()>) -> CandleResult<Recording> {
    if let Some(variable) = variable_that_waits() {
        bail!("{variable} waits for every launch");
    }
    let stream = device.cuda_stream();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).w()?;
    let queued = work();
    // The recording must end in any case: until then nothing else can be queued.
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    queued?;
    match graph? {
        Some(graph) => Ok(Recording(graph)),
        None => bail!("nothing was recorded"),
    }
}

fn kind(dtype: DType) -> CandleResult<blas::cudaDataType> {
    match dtype {
        DType::F32 => Ok(blas::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(blas::cudaDataType::CUDA_R_16BF),
        other => bail!("no product takes elements of {other:?}"),
    }
}

fn operation(m: &Matrix) -> blas::cublasOperation_t {
    if m.transposed { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N }
}

/// A factor as cuBLAS takes it: by address, of the type of the sums.
fn factor_address(x: &f32) -> *const c_void {
    std::ptr::from_ref(x).cast()
}

impl Product {
    /// What the library multiplies the old elements by.
    pub(super) fn beta(&self) -> f32 {
        if self.accumulate { 1.0 } else { 0.0 }
    }
}

/// One cuBLAS call, by the algorithm of its choice. cuBLAS stores matrices by columns: the transposed product of the transposed matrices lies row
/// by row in `out`.
pub(super) fn default_product(device: &CudaDevice, product: &Product) -> CandleResult<()> {
    let Product { out, factor, a, b, .. } = product;
    let (rows, inner) = a.size();
    let (_, columns) = b.size();
    let [rows, columns, inner] = [rows, columns, inner].map(|n| n as c_int);
    let beta = product.beta();
    let cublas = device.cublas_handle();
    let a_kind = kind(a.dtype)?;
    let b_kind = kind(b.dtype)?;
    let out_kind = kind(out.dtype)?;
    // SAFETY: the matrices lie within their tensors, which live until the stream has passed this call.
    let status = unsafe {
        gemm_ex(
            *cublas.handle(),
            operation(b),
            operation(a),
            columns,
            rows,
            inner,
            factor_address(factor),
            b.at as *const c_void,
            b_kind,
            b.stride as c_int,
            a.at as *const c_void,
            a_kind,
            a.stride as c_int,
            factor_address(&beta),
            out.at as *mut c_void,
            out_kind,
            out.stride as c_int,
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    status.w()
}
