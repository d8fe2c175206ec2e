//! A GPU for tests: kernels compiled by the machine's C++ compiler (see `emulated.h`), on tensors of the CPU.

use super::{Grid, Matrix, Product, times};
use candle_core::{CpuStorage, DType, Result, bail};
use half::bf16;
use libloading::{Library, Symbol};
use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

const SOURCES: [&str; 11] = [
    "adamw",
    "attention",
    "attention_plain",
    "bias",
    "cross_entropy",
    "decode",
    "elementwise",
    "embedding",
    "noise",
    "qk_norm",
    "rms_norm",
];

thread_local! {
    static EMULATED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with this thread's tensors on the emulated GPU: ops call their CUDA twins.
pub(crate) fn emulated<R>(work: impl FnOnce() -> R) -> R {
    EMULATED.set(true);
    let result = work();
    EMULATED.set(false);
    result
}

/// Whether this thread is within [`emulated`].
pub(crate) fn is_emulated() -> bool {
    EMULATED.get()
}

type Kernel = unsafe extern "C" fn(*const c_uint, *const c_uint, c_uint, *mut *mut c_void) -> c_int;

/// The kernels; one launch at a time, because a block's shared memory is a global of its library.
static LIBRARIES: LazyLock<Mutex<Vec<Library>>> = LazyLock::new(|| Mutex::new(SOURCES.map(compiled).into()));

fn compiled(name: &str) -> Library {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda");
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("kernels.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let done = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-DLLAMA_LITE_EMULATED", "-shared", "-fPIC", "-x", "c++"])
        .arg(sources.join(name).with_extension("cu"))
        .arg("-o")
        .arg(&to)
        .output();
    let done = done.unwrap_or_else(|error| panic!("{compiler}: {error}; the tests of kernels need a C++ compiler"));
    assert!(done.status.success(), "{name}.cu: {}", String::from_utf8_lossy(&done.stderr));
    // SAFETY: our own code, which does nothing when it is loaded.
    unsafe { Library::new(&to).unwrap() }
}

/// The address of a storage's first element.
pub(super) fn base(storage: &CpuStorage) -> Result<u64> {
    Ok(match storage {
        CpuStorage::F32(data) => data.as_ptr() as u64,
        CpuStorage::BF16(data) => data.as_ptr() as u64,
        CpuStorage::U32(data) => data.as_ptr() as u64,
        CpuStorage::I64(data) => data.as_ptr() as u64,
        CpuStorage::F64(data) => data.as_ptr() as u64,
        other => bail!("no kernel takes elements of {:?}", candle_core::backend::BackendStorage::dtype(other)),
    })
}

/// Runs a kernel to completion.
pub(super) fn launch(kernel: &str, grid: Grid, values: &mut [*mut c_void]) -> Result<()> {
    let libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let symbol = format!("emulated_{kernel}");
    // SAFETY: every exported name is a function of this type.
    let found: Option<Symbol<Kernel>> =
        libraries.iter().find_map(|library| unsafe { library.get(symbol.as_bytes()).ok() });
    let Some(run) = found else { bail!("no such kernel") };
    let blocks = grid.blocks.map(|n| n as c_uint);
    let threads = [grid.threads as c_uint, 1, 1];
    let started = Instant::now();
    // SAFETY: the arguments are those that the kernel's source has.
    match unsafe { run(blocks.as_ptr(), threads.as_ptr(), grid.shared as c_uint, values.as_mut_ptr()) } {
        0 => {
            if times::are_wanted() {
                times::add(kernel.to_owned(), 0.0, started.elapsed().as_secs_f32());
            }
            Ok(())
        }
        _ => bail!("this is more than a block can have"),
    }
}

/// Sets `bytes` of a tensor to 0.
pub(super) fn zero(at: u64, bytes: usize) {
    // SAFETY: within the tensor that the address is of (the caller's part).
    unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
}

/// A matrix product, term by term.
pub(super) fn product(product: &Product) -> Result<()> {
    let Product { out, accumulate, factor, a, b } = *product;
    let (m, k) = a.size();
    let (_, n) = b.size();
    for i in 0..m {
        for j in 0..n {
            let sum: f32 = (0..k).map(|l| read(a, i, l) * read(b, l, j)).sum();
            let before = if accumulate { read(out, i, j) } else { 0.0 };
            write(out, i, j, before + factor * sum);
        }
    }
    Ok(())
}

fn read(m: Matrix, i: usize, j: usize) -> f32 {
    let place = if m.transposed { j * m.stride + i } else { i * m.stride + j };
    // SAFETY: within the tensor that the matrix is of.
    unsafe {
        match m.dtype {
            DType::F32 => *(m.at as *const f32).add(place),
            _ => (*(m.at as *const bf16).add(place)).to_f32(),
        }
    }
}

fn write(m: Matrix, i: usize, j: usize, x: f32) {
    // SAFETY: within the tensor that the matrix is of.
    unsafe {
        match m.dtype {
            DType::F32 => *(m.at as *mut f32).add(i * m.stride + j) = x,
            _ => *(m.at as *mut bf16).add(i * m.stride + j) = bf16::from_f32(x),
        }
    }
}
