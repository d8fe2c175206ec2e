//! The functions of NCCL that are used. Nothing is linked: the library is opened when the program runs, and it stays open. cudarc's own
//! bindings would link to all of NCCL, and of that a dozen functions are needed.

use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

/// What helps where there is no library.
pub(super) const HINT: &str =
    "pip install nvidia-nccl-cu13 (or nvidia-nccl-cu12), and put the folder of its libnccl.so.2 into LD_LIBRARY_PATH";

/// `ncclComm_t` and `cudaStream_t`: pointers to what only the libraries know.
type Handle = *mut c_void;

/// Values of `ncclResult_t`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// `ncclUint8` of `ncclDataType_t`: bytes are moved as they are, whatever they mean.
const BYTES: c_int = 1;

const ID_BYTES: usize = 128;

/// The oldest version that is used, as `ncclGetVersion` has it: from there on a communicator can be ended while it waits.
const OLDEST: c_int = 21_800;

/// `ncclUniqueId`: by it ranks find each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId([u8; ID_BYTES]);

impl UniqueId {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        self.0.to_vec()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let id = bytes.try_into().map_err(|_| fail(Exit::Internal, format!("an id of {} bytes", bytes.len())))?;
        Ok(Self(id))
    }
}

/// The functions of an open library.
#[derive(Clone, Copy)]
pub(super) struct Api {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    get_async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Handle) -> *const c_char,
}

impl Api {
    /// Opens the library `path`, or the one that the system's loader finds by this name.
    ///
    /// # Errors
    /// The outer one: there is no such library. The inner one: it is there and cannot be used.
    pub(super) fn open(path: &Path) -> Result<Result<Self, Failure>, libloading::Error> {
        // SAFETY: the initialisers of NCCL have no conditions; it is opened before it is used from any thread.
        let library = unsafe { Library::new(path)? };
        // Never closed: its threads may run until the process exits.
        let library: &'static Library = Box::leak(Box::new(library));
        Ok(Self::of(library).map_err(|error| too_old(path, &error.to_string())).and_then(|api| api.checked(path)))
    }

    fn of(library: &'static Library) -> Result<Self, libloading::Error> {
        /// The function `name`.
        ///
        /// # Safety
        /// `T` is the type of a pointer to that function.
        unsafe fn function<T: Copy>(library: &'static Library, name: &str) -> Result<T, libloading::Error> {
            // SAFETY: the caller's promise is passed on.
            unsafe { library.get::<T>(name).map(|symbol| *symbol) }
        }
        // SAFETY: the fields have the types that nccl.h gives to the functions of these names.
        unsafe {
            Ok(Self {
                get_version: function(library, "ncclGetVersion")?,
                get_unique_id: function(library, "ncclGetUniqueId")?,
                init_rank: function(library, "ncclCommInitRank")?,
                destroy: function(library, "ncclCommDestroy")?,
                abort: function(library, "ncclCommAbort")?,
                get_async_error: function(library, "ncclCommGetAsyncError")?,
                group_start: function(library, "ncclGroupStart")?,
                group_end: function(library, "ncclGroupEnd")?,
                send: function(library, "ncclSend")?,
                receive: function(library, "ncclRecv")?,
                get_error_string: function(library, "ncclGetErrorString")?,
                get_last_error: function(library, "ncclGetLastError")?,
            })
        }
    }

    fn checked(self, path: &Path) -> Result<Self, Failure> {
        match self.number() {
            Some(number) if number >= OLDEST => Ok(self),
            Some(number) => Err(too_old(path, &format!("it is {}", written(number)))),
            None => Err(too_old(path, "it does not say its version")),
        }
    }

    fn number(&self) -> Option<c_int> {
        let mut number = 0;
        // SAFETY: may be called at any time; it writes one int.
        let code = unsafe { (self.get_version)(&raw mut number) };
        (code == SUCCESS).then_some(number)
    }

    /// The version of the library, such as 2.28.9.
    pub(super) fn version(&self) -> String {
        self.number().map_or_else(String::new, written)
    }

    /// What the first rank tells the others.
    ///
    /// # Errors
    /// Those of the library, such as no network.
    pub(super) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: it writes one id.
        self.check("ncclGetUniqueId", ptr::null_mut(), unsafe { (self.get_unique_id)(&raw mut id) })?;
        Ok(id)
    }

    /// Joins the ranks that have the same id, on the current GPU of the calling thread; waits for all of them.
    ///
    /// # Errors
    /// Those of the library.
    pub(super) fn join(&self, id: UniqueId, rank: usize, ranks: usize) -> Result<Communicator> {
        let mut handle = ptr::null_mut();
        let rank = c_int::try_from(rank)?;
        let ranks = c_int::try_from(ranks)?;
        // SAFETY: the handle is written before the call returns; the id is passed by value.
        let code = unsafe { (self.init_rank)(&raw mut handle, ranks, id, rank) };
        self.check("ncclCommInitRank", ptr::null_mut(), code)?;
        Ok(Communicator { api: *self, handle })
    }

    fn check(&self, function: &str, communicator: Handle, code: c_int) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: any number may be asked for; the text ends with a 0 and stays.
        let what = unsafe { text_at((self.get_error_string)(code)) };
        // SAFETY: null is allowed instead of a communicator; the text ends with a 0 and stays for now.
        let details = unsafe { text_at((self.get_last_error)(communicator)) };
        let details = details.trim();
        let details = if details.is_empty() { String::new() } else { format!(": {details}") };
        Err(fail(Exit::Internal, format!("{function}: {what}{details}"))
            .hint("NCCL says more with the variable NCCL_DEBUG=WARN")
            .into())
    }
}

/// This process among the ranks that NCCL has joined.
pub(super) struct Communicator {
    api: Api,
    handle: Handle,
}

// SAFETY: NCCL lets any thread call, one at a time, which `Nccl` sees to.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

/// Memory of a GPU.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) at: *mut c_void,
    pub(super) bytes: usize,
}

impl Communicator {
    /// Queues on `stream` that `send` goes to `peer` and that `receive` is filled by it.
    ///
    /// # Errors
    /// Those of the library.
    ///
    /// # Safety
    /// Both stay valid, and nothing else uses `receive`, until the stream has got there or the communicator has been aborted; the stream
    /// is that of the GPU that this rank has joined with.
    pub(super) unsafe fn queue(&self, peer: usize, send: Memory, receive: Memory, stream: Handle) -> Result<()> {
        let api = &self.api;
        let peer = c_int::try_from(peer)?;
        // SAFETY: no conditions.
        self.check("ncclGroupStart", unsafe { (api.group_start)() })?;
        let mut queued = Ok(());
        if send.bytes > 0 {
            // SAFETY: the caller keeps the memory.
            let code = unsafe { (api.send)(send.at, send.bytes, BYTES, peer, self.handle, stream) };
            queued = self.check("ncclSend", code);
        }
        if queued.is_ok() && receive.bytes > 0 {
            // SAFETY: the caller keeps the memory for this call alone.
            let code = unsafe { (api.receive)(receive.at, receive.bytes, BYTES, peer, self.handle, stream) };
            queued = self.check("ncclRecv", code);
        }
        // SAFETY: the group was started above, and must be ended in any case.
        let ended = self.check("ncclGroupEnd", unsafe { (api.group_end)() });
        queued.and(ended)
    }

    /// Whether what goes on has failed.
    ///
    /// # Errors
    /// That failure.
    pub(super) fn check_progress(&self) -> Result<()> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is open; one int is written.
        self.check("ncclCommGetAsyncError", unsafe { (self.api.get_async_error)(self.handle, &raw mut state) })?;
        self.check("exchange by NCCL", state)
    }

    /// Ends what goes on. Nothing else may be called afterwards.
    pub(super) fn abort(&self) {
        // SAFETY: `Nccl` calls this once, and nothing after it.
        let _ = unsafe { (self.api.abort)(self.handle) };
    }

    /// Parts from the others, with whom nothing goes on. Nothing else may be called afterwards.
    pub(super) fn destroy(&self) {
        // SAFETY: as above.
        let _ = unsafe { (self.api.destroy)(self.handle) };
    }

    fn check(&self, function: &str, code: c_int) -> Result<()> {
        self.api.check(function, self.handle, code)
    }
}

/// The text at `at`.
///
/// # Safety
/// It ends with a 0, or there is none.
unsafe fn text_at(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// 2.28.9 for 22809.
fn written(number: c_int) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

fn too_old(path: &Path, why: &str) -> Failure {
    let oldest = written(OLDEST);
    fail(Exit::Config, format!("{}: this NCCL is too old ({oldest} is needed): {why}", path.display())).hint(HINT)
}
