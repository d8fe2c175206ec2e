//! The functions of MPI that are used, by the standard binary interface of MPI 5: the same types and constants in every library that
//! has it. Nothing is linked: the library is opened when the program runs, and it stays open.

use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use libloading::Library;
use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

/// `MPI_Comm`, `MPI_Datatype`, `MPI_Errhandler`, `MPI_Request`: pointers to what only the library knows, or small numbers.
type Handle = *mut c_void;

const COMM_WORLD: Handle = ptr::without_provenance_mut(0x101);
const ERRORS_RETURN: Handle = ptr::without_provenance_mut(0x143);
const REQUEST_NULL: Handle = ptr::without_provenance_mut(0x180);
const BYTE: Handle = ptr::without_provenance_mut(0x247);

const SUCCESS: c_int = 0;
/// Any thread may call, one at a time.
const THREAD_SERIALIZED: c_int = 2048;

/// Bytes for the text of an error, and for the name of a library (`MPI_MAX_ERROR_STRING`, `MPI_MAX_LIBRARY_VERSION_STRING`).
const ERROR_TEXT: usize = 512;
const VERSION_TEXT: usize = 8192;

/// What helps where no library fits.
pub(super) const HINT: &str = "pip install mpich (MPICH 5 or newer, or Open MPI 6 or newer), and start the program with the mpiexec of that package";

/// `MPI_Status`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Status {
    source: c_int,
    tag: c_int,
    error: c_int,
    internal: [c_int; 5],
}

/// The functions of an open library.
pub(super) struct Abi {
    abi_get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    get_library_version: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int,
    init_thread: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    comm_set_errhandler: unsafe extern "C" fn(Handle, Handle) -> c_int,
    comm_rank: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    comm_size: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    isend: unsafe extern "C" fn(*const c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int,
    irecv: unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int,
    test: unsafe extern "C" fn(*mut Handle, *mut c_int, *mut Status) -> c_int,
    get_count: unsafe extern "C" fn(*const Status, Handle, *mut c_int) -> c_int,
    cancel: unsafe extern "C" fn(*mut Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
}

/// A transfer that goes on. The memory that it reads or writes must stay where it is until [`Abi::is_done`].
pub(super) struct Request {
    handle: Handle,
    /// Bytes that are to arrive; `None` of what is sent.
    expected: Option<usize>,
}

impl Request {
    /// Nothing to wait for.
    pub(super) fn none() -> Self {
        Self { handle: REQUEST_NULL, expected: None }
    }

    pub(super) fn is_none(&self) -> bool {
        self.handle == REQUEST_NULL
    }
}

impl Abi {
    /// Opens the library `path`, or the one that the system's loader finds by this name.
    ///
    /// # Errors
    /// The outer one: there is no such library. The inner one: it is there and cannot be used.
    pub(super) fn open(path: &Path) -> Result<Result<Self, Failure>, libloading::Error> {
        // SAFETY: the initialisers of an MPI library have no conditions; it is opened before it is used from any thread.
        let library = unsafe { Library::new(path)? };
        // Never closed: it has handlers that run when the process exits.
        let library: &'static Library = Box::leak(Box::new(library));
        Ok(Self::of(library).map_err(|error| too_old(path, &error.to_string())).and_then(|abi| abi.checked(path)))
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
        // SAFETY: the fields have the types that the standard gives to the functions of these names.
        unsafe {
            Ok(Self {
                // First: older libraries lack it, and their other functions take other types.
                abi_get_version: function(library, "MPI_Abi_get_version")?,
                get_library_version: function(library, "MPI_Get_library_version")?,
                init_thread: function(library, "MPI_Init_thread")?,
                comm_set_errhandler: function(library, "MPI_Comm_set_errhandler")?,
                comm_rank: function(library, "MPI_Comm_rank")?,
                comm_size: function(library, "MPI_Comm_size")?,
                isend: function(library, "MPI_Isend")?,
                irecv: function(library, "MPI_Irecv")?,
                test: function(library, "MPI_Test")?,
                get_count: function(library, "MPI_Get_count")?,
                cancel: function(library, "MPI_Cancel")?,
                error_string: function(library, "MPI_Error_string")?,
                abort: function(library, "MPI_Abort")?,
                finalize: function(library, "MPI_Finalize")?,
            })
        }
    }

    fn checked(self, path: &Path) -> Result<Self, Failure> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: may be called at any time; both places outlive the call.
        let code = unsafe { (self.abi_get_version)(&raw mut major, &raw mut minor) };
        if code == SUCCESS && major >= 1 {
            return Ok(self);
        }
        Err(too_old(path, &format!("its binary interface has the version {major}.{minor}")))
    }

    /// Joins the processes that the launcher has started. Until then no other function may be called but [`version`](Self::version).
    ///
    /// # Errors
    /// Those of the library, which may also end the process.
    pub(super) fn init(&self) -> Result<()> {
        let mut provided = 0;
        // SAFETY: the standard allows null for both arguments of `main`. `join` calls this once in a process.
        self.check("MPI_Init_thread", unsafe {
            (self.init_thread)(ptr::null_mut(), ptr::null_mut(), THREAD_SERIALIZED, &raw mut provided)
        })?;
        if provided < THREAD_SERIALIZED {
            return Err(fail(Exit::Config, "this MPI library cannot be called from more than one thread")
                .hint("pip install mpich")
                .into());
        }
        // SAFETY: both are handles of the standard; errors are returned from now on instead of ending the process.
        self.check("MPI_Comm_set_errhandler", unsafe { (self.comm_set_errhandler)(COMM_WORLD, ERRORS_RETURN) })
    }

    /// The number of this process, and how many there are.
    pub(super) fn rank_and_size(&self) -> Result<(usize, usize)> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: the places outlive the calls.
        self.check("MPI_Comm_rank", unsafe { (self.comm_rank)(COMM_WORLD, &raw mut rank) })?;
        // SAFETY: as above.
        self.check("MPI_Comm_size", unsafe { (self.comm_size)(COMM_WORLD, &raw mut size) })?;
        Ok((usize::try_from(rank)?, usize::try_from(size)?))
    }

    /// Name and version of the library: the first line of what it says.
    pub(super) fn version(&self) -> String {
        let mut text = [0; VERSION_TEXT];
        let mut length = 0;
        // SAFETY: may be called at any time; the text has as many bytes as the standard asks for.
        let code = unsafe { (self.get_library_version)(text.as_mut_ptr(), &raw mut length) };
        let text = if code == SUCCESS { text_of(&text, length) } else { String::new() };
        let words: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().collect();
        words.join(" ")
    }

    /// Starts to send `bytes` to the rank `peer`.
    ///
    /// # Safety
    /// `bytes` stays valid until the request is done or no function but [`abort`](Self::abort) is called any more.
    pub(super) unsafe fn start_send(&self, bytes: &[u8], peer: usize, tag: c_int) -> Result<Request> {
        let mut request = Request::none();
        let count = c_int::try_from(bytes.len())?;
        let peer = c_int::try_from(peer)?;
        // SAFETY: the caller keeps `bytes`; the handle is written before the call returns.
        let code =
            unsafe { (self.isend)(bytes.as_ptr().cast(), count, BYTE, peer, tag, COMM_WORLD, &raw mut request.handle) };
        self.check("MPI_Isend", code)?;
        Ok(request)
    }

    /// Starts to receive from the rank `peer` into `bytes`.
    ///
    /// # Safety
    /// `bytes` stays valid, and nothing else uses it, until the request is done.
    pub(super) unsafe fn start_receive(&self, bytes: &mut [u8], peer: usize, tag: c_int) -> Result<Request> {
        let mut request = Request { handle: REQUEST_NULL, expected: Some(bytes.len()) };
        let count = c_int::try_from(bytes.len())?;
        let peer = c_int::try_from(peer)?;
        // SAFETY: the caller keeps `bytes` for the library alone; the handle is written before the call returns.
        let code = unsafe {
            (self.irecv)(bytes.as_mut_ptr().cast(), count, BYTE, peer, tag, COMM_WORLD, &raw mut request.handle)
        };
        self.check("MPI_Irecv", code)?;
        Ok(request)
    }

    /// Lets the library work, and says whether the transfer is over.
    ///
    /// # Errors
    /// Those of the library; fewer bytes than expected.
    pub(super) fn is_done(&self, request: &mut Request) -> Result<bool> {
        if request.is_none() {
            return Ok(true);
        }
        let mut status = Status::default();
        let mut done = 0;
        // SAFETY: the handle is that of a transfer that goes on; the places outlive the call.
        self.check("MPI_Test", unsafe { (self.test)(&raw mut request.handle, &raw mut done, &raw mut status) })?;
        if done == 0 {
            return Ok(false);
        }
        if let Some(expected) = request.expected {
            let mut count = 0;
            // SAFETY: the status is that of a receive that is over.
            self.check("MPI_Get_count", unsafe { (self.get_count)(&raw const status, BYTE, &raw mut count) })?;
            anyhow::ensure!(usize::try_from(count) == Ok(expected), "received {count} bytes, not {expected}");
        }
        Ok(true)
    }

    /// Asks that the transfer end unfinished; afterwards [`is_done`](Self::is_done) says when it has.
    pub(super) fn cancel(&self, request: &mut Request) {
        if !request.is_none() {
            // SAFETY: the handle is that of a transfer that goes on. Whether it works is seen by what `is_done` says.
            let _ = unsafe { (self.cancel)(&raw mut request.handle) };
        }
    }

    /// Ends all processes; returns where the library cannot.
    pub(super) fn abort(&self, code: c_int) {
        // SAFETY: a handle of the standard; what other processes do has no conditions.
        let _ = unsafe { (self.abort)(COMM_WORLD, code) };
    }

    /// Leaves the other processes; waits until they leave as well. Afterwards no other function may be called.
    pub(super) fn finalize(&self) -> Result<()> {
        // SAFETY: `Mpi` calls this once, after `init`, and nothing after it.
        self.check("MPI_Finalize", unsafe { (self.finalize)() })
    }

    fn check(&self, function: &str, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut text = [0; ERROR_TEXT];
        let mut length = 0;
        // SAFETY: the text has as many bytes as the standard asks for.
        let known = unsafe { (self.error_string)(code, text.as_mut_ptr(), &raw mut length) } == SUCCESS;
        let text = if known { text_of(&text, length) } else { format!("error {code}") };
        Err(fail(Exit::Internal, format!("{function}: {}", text.split_whitespace().collect::<Vec<_>>().join(" ")))
            .into())
    }
}

fn text_of(text: &[c_char], length: c_int) -> String {
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    let bytes: Vec<u8> = text[..length].iter().map(|c| c.to_ne_bytes()[0]).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn too_old(path: &Path, why: &str) -> Failure {
    fail(Exit::Config, format!("{}: the MPI library is too old: {why}", path.display())).hint(HINT)
}
