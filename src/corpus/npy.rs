//! Token files: one-dimensional little-endian `<u2`/`<u4` `.npy` arrays, and the `.bin` shards of llm.c (read only).
//!
//! A reader of our own because a token file is untrusted input and a 200 MB one must not be loaded whole: the header is
//! capped, the declared size is compared with the file's size before anything is allocated, trailing bytes are an
//! error, and tokens are fetched with `pread`. Not `mmap`: a file truncated under a running job must be an error that
//! names it, not a SIGBUS.

pub mod header;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;
use crate::runtime::shell::quoted;

use header::{MAX_HEADER, Remedy, TokenLayout, npy_header};

/// What to do about the refused file `path`. No command writes an id as another one: the type follows from the largest.
fn hint(remedy: Remedy, path: &Path) -> String {
    let file = quoted(path);
    let python = "python3 -c \"import sys, numpy as np;";
    match remedy {
        Remedy::Rewrite => format!(
            "write it as one dimension of <u2 or <u4: {python} a = np.load(sys.argv[1]).ravel(); \
             assert (a.astype('<u4') == a).all(); \
             np.save(sys.argv[2], a.astype('<u2' if a.max() < 65536 else '<u4'))\" {file} NEW.npy"
        ),
        Remedy::AddHeader => format!(
            "if it is bare 16-bit ids, as nanoGPT writes them (of 32 bits: '<u4'): {python} \
             np.save(sys.argv[2], np.fromfile(sys.argv[1], '<u2'))\" {file} NEW.npy"
        ),
        Remedy::Restore => "restore it from a good copy, or make it again".into(),
        Remedy::Other => "token files are .npy (one dimension, <u2 or <u4) or shards of llm.c; \
                          `llama-lite data prepare` makes them from text"
            .into(),
    }
}

/// The width of a token on disk; always little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenDtype {
    /// 16-bit tokens: vocabularies of up to 65,536 ids.
    #[serde(rename = "<u2")]
    U16,
    /// 32-bit tokens: vocabularies of more.
    #[serde(rename = "<u4")]
    U32,
}

impl TokenDtype {
    /// The narrowest type that holds every id of a vocabulary of `vocab_size` ids.
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes per token: 2 or 4.
    pub fn width(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// numpy's name of the type.
    pub fn descr(self) -> &'static str {
        match self {
            Self::U16 => "<u2",
            Self::U32 => "<u4",
        }
    }

    /// Appends `id` to `bytes`; false if it does not fit.
    pub fn push(self, bytes: &mut Vec<u8>, id: u32) -> bool {
        match self {
            Self::U16 => match u16::try_from(id) {
                Ok(id) => bytes.extend_from_slice(&id.to_le_bytes()),
                Err(_) => return false,
            },
            Self::U32 => bytes.extend_from_slice(&id.to_le_bytes()),
        }
        true
    }

    /// Decodes `raw`, which holds exactly `out.len()` tokens.
    fn decode(self, raw: &[u8], out: &mut [u32]) {
        match self {
            Self::U16 => {
                for (id, b) in out.iter_mut().zip(raw.chunks_exact(2)) {
                    *id = u32::from(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            Self::U32 => {
                for (id, b) in out.iter_mut().zip(raw.chunks_exact(4)) {
                    *id = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }
}

/// A whole `.npy` file of `tokens` (for small files: it is built in memory).
///
/// # Errors
/// [`Exit::Internal`] if an id does not fit `dtype`.
pub fn npy_bytes(tokens: &[u32], dtype: TokenDtype) -> Result<Vec<u8>> {
    let mut bytes = npy_header(dtype, tokens.len()).to_vec();
    for &id in tokens {
        if !dtype.push(&mut bytes, id) {
            return Err(fail(Exit::Internal, format!("token {id} does not fit {}", dtype.descr())).into());
        }
    }
    Ok(bytes)
}

/// An open token file. Reads are positional, so one handle serves many threads.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: File,
    layout: TokenLayout,
}

impl TokenFile {
    /// Opens a `.npy` or llm.c `.bin` file (by its content, not by its name) and checks its header and size.
    ///
    /// # Errors
    /// [`Exit::Io`] if it is not a regular file or cannot be read, [`Exit::Data`] if it is in neither format.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, size) = files::open_input(path, true)?;
        let mut head = Vec::new();
        (&file)
            .take((12 + MAX_HEADER) as u64)
            .read_to_end(&mut head)
            .map_err(|e| files::io_failure("read", path, &e))?;
        let layout = TokenLayout::parse(&head, size).map_err(|refusal| {
            fail(Exit::Data, format!("{}: {}", path.display(), refusal.what)).hint(hint(refusal.remedy, path))
        })?;
        if usize::try_from(size).is_err() {
            let message = format!("{}: is larger than this machine can address", path.display());
            return Err(fail(Exit::Data, message).hint("divide it into several files").into());
        }
        Ok(Self { path: path.to_path_buf(), file, layout })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn len(&self) -> usize {
        self.layout.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.layout.len == 0
    }

    /// Width of a token on disk.
    pub fn dtype(&self) -> TokenDtype {
        self.layout.dtype
    }

    /// Fills `out` with the tokens from `start` on.
    ///
    /// # Errors
    /// [`Exit::Data`] if the file has shrunk since it was opened, [`Exit::Io`] if it cannot be read,
    /// [`Exit::Internal`] if the range does not lie within the file.
    pub fn read(&self, start: usize, out: &mut [u32]) -> Result<()> {
        if start.checked_add(out.len()).is_none_or(|end| end > self.len()) {
            let n = out.len();
            let path = self.path.display();
            return Err(fail(Exit::Internal, format!("{path}: {n} tokens from {start} of {}", self.len())).into());
        }
        let width = self.dtype().width();
        let mut raw = [0u8; 16 * 1024];
        let mut at = self.layout.offset + (start * width) as u64;
        for ids in out.chunks_mut(raw.len() / width) {
            let raw = &mut raw[..ids.len() * width];
            self.file.read_exact_at(raw, at).map_err(|e| self.read_error(&e))?;
            self.dtype().decode(raw, ids);
            at += raw.len() as u64;
        }
        Ok(())
    }

    /// Bytes of the file that hold the `count` tokens from `start` on.
    pub fn bytes_of(&self, start: usize, count: usize) -> Range<u64> {
        let width = self.dtype().width();
        let first = self.layout.offset + (start * width) as u64;
        first..first + (count * width) as u64
    }

    /// Tokens that lie, wholly or in part, in `bytes` of the file.
    pub fn tokens_in(&self, bytes: Range<u64>) -> Range<usize> {
        let width = self.dtype().width() as u64;
        let from = bytes.start.saturating_sub(self.layout.offset);
        let to = bytes.end.saturating_sub(self.layout.offset);
        (from / width) as usize..to.div_ceil(width) as usize
    }

    /// Size of the file in bytes, header included.
    pub fn size(&self) -> u64 {
        self.bytes_of(0, self.len()).end
    }

    /// Fills `out` with the bytes of the file from `at` on.
    ///
    /// # Errors
    /// [`Exit::Data`] if the file has shrunk since it was opened, [`Exit::Io`] if it cannot be read.
    pub fn read_bytes(&self, at: u64, out: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(out, at).map_err(|e| self.read_error(&e))?)
    }

    /// BLAKE3 of the whole file, header included, in hex.
    ///
    /// # Errors
    /// [`Exit::Io`] if it cannot be read.
    pub fn blake3(&self) -> Result<String> {
        let file = self.file.try_clone().map_err(|e| files::io_failure("read", &self.path, &e))?;
        Ok(files::hash_open_file(file, &self.path)?.blake3)
    }

    fn read_error(&self, error: &io::Error) -> Failure {
        let path = self.path.display();
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return fail(Exit::Data, format!("{path}: the file became shorter while it was in use"))
                .hint("restore the file, then resume");
        }
        files::io_failure("read", &self.path, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/npy").join(name)
    }

    /// The rule by which scripts/fixtures/npy.py fills its files.
    fn expected(n: u32, modulus: u32) -> Vec<u32> {
        (0..n).map(|i| (i * 7919 + 13) % modulus).collect()
    }

    fn all_tokens(file: &TokenFile) -> Vec<u32> {
        let mut tokens = vec![0; file.len()];
        file.read(0, &mut tokens).unwrap();
        tokens
    }

    fn exit_of(error: &anyhow::Error) -> Exit {
        error.downcast_ref::<Failure>().unwrap().exit
    }

    #[test]
    fn reads_what_numpy_and_llm_c_write() {
        let cases = [
            ("ok_u2.npy", 100, 50257, TokenDtype::U16),
            ("ok_u2_v2.npy", 100, 50257, TokenDtype::U16),
            ("ok_u2_v3.npy", 100, 50257, TokenDtype::U16),
            ("ok_u2_empty.npy", 0, 50257, TokenDtype::U16),
            ("ok_u4.npy", 100, 128256, TokenDtype::U32),
            ("ok_u2.bin", 100, 50257, TokenDtype::U16),
        ];
        for (name, n, modulus, dtype) in cases {
            let file = TokenFile::open(&fixture(name)).unwrap();
            assert_eq!((file.dtype(), all_tokens(&file)), (dtype, expected(n, modulus)), "{name}");
        }
    }

    #[test]
    fn writes_the_bytes_numpy_writes() {
        for (name, n, modulus, dtype) in [
            ("ok_u2.npy", 100, 50257, TokenDtype::U16),
            ("ok_u2_empty.npy", 0, 50257, TokenDtype::U16),
            ("ok_u4.npy", 100, 128256, TokenDtype::U32),
        ] {
            let ours = npy_bytes(&expected(n, modulus), dtype).unwrap();
            assert_eq!(ours, std::fs::read(fixture(name)).unwrap(), "{name}");
        }
        assert!(npy_bytes(&[65536], TokenDtype::U16).is_err());
    }

    #[test]
    fn refuses_other_arrays_by_name() {
        for (name, reason) in [
            ("bad_big_endian.npy", ">u2"),
            ("bad_int64.npy", "<i8"),
            ("bad_float.npy", "<f4"),
            ("bad_object.npy", "|O"),
            ("bad_struct.npy", "structured"),
            ("bad_2d.npy", "one dimension"),
            ("bad_2d_fortran.npy", "C order"),
            ("bad_0d.npy", "one dimension"),
            ("bad_version.bin", "version 2"),
        ] {
            let error = TokenFile::open(&fixture(name)).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Data);
            let message = error.to_string();
            assert!(message.contains(name) && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn shards_of_llm_c_for_llama_3_have_32_bits() {
        let dir = tempfile::tempdir().unwrap();
        let ids = [1, 128_000, u32::MAX];
        let mut header = vec![0u8; 1024];
        for (at, field) in [20_240_801i32, 7, 3].into_iter().enumerate() {
            header[4 * at..4 * at + 4].copy_from_slice(&field.to_le_bytes());
        }
        let body: Vec<u8> = ids.iter().flat_map(|id: &u32| id.to_le_bytes()).collect();
        let path = dir.path().join("x.bin");
        std::fs::write(&path, [&header[..], &body].concat()).unwrap();
        let file = TokenFile::open(&path).unwrap();
        assert_eq!((file.dtype(), all_tokens(&file)), (TokenDtype::U32, ids.to_vec()));
        // A Llama 3 shard of GPT-2's version, and what else llm.c writes.
        header[4] = 1;
        std::fs::write(&path, [&header[..], &body].concat()).unwrap();
        assert!(TokenFile::open(&path).unwrap_err().to_string().contains("version 1"));
        header[..4].copy_from_slice(&20_240_326i32.to_le_bytes());
        std::fs::write(&path, &header).unwrap();
        assert!(TokenFile::open(&path).unwrap_err().to_string().contains("a model of llm.c"));
    }

    #[test]
    fn a_length_that_numpy_2_has_written_as_its_own_type_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let mut bytes = npy_bytes(&[7, 8, 9], TokenDtype::U16).unwrap();
        let dict = "{'descr': '<u2', 'fortran_order': False, 'shape': (np.int64(3),), }";
        bytes[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(all_tokens(&TokenFile::open(&path).unwrap()), [7, 8, 9]);
    }

    #[test]
    fn hints_are_those_of_the_file_and_never_wrap_an_id() {
        let dir = tempfile::tempdir().unwrap();
        let mut advice = Vec::new();
        for name in ["bad_int64.npy", "bad_2d.npy", "bad_object.npy"] {
            let error = TokenFile::open(&fixture(name)).unwrap_err();
            advice.push(error.downcast_ref::<Failure>().unwrap().hint.clone().unwrap());
        }
        assert!(advice[..2].iter().all(|hint| hint.contains("'<u2' if a.max() < 65536 else '<u4'")), "{advice:?}");
        assert!(!advice[2].contains("np.save"), "{advice:?}");
        for (name, bytes, said) in [
            ("nano.bin", &[1u8, 0, 0, 200][..], "no header"),
            ("page.npy", b"<html>", "an HTML page"),
            ("pointer.bin", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = TokenFile::open(&path).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn positional_reads_and_their_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.npy");
        let tokens = expected(20_000, 50257);
        std::fs::write(&path, npy_bytes(&tokens, TokenDtype::U16).unwrap()).unwrap();
        let file = TokenFile::open(&path).unwrap();
        let mut out = vec![0; 9_000];
        file.read(10_500, &mut out).unwrap();
        assert_eq!(out, tokens[10_500..19_500]);
        assert_eq!(exit_of(&file.read(11_001, &mut out).unwrap_err()), Exit::Internal);
        assert_eq!(exit_of(&file.read(usize::MAX, &mut out).unwrap_err()), Exit::Internal);

        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(30_000).unwrap();
        file.read(0, &mut out).unwrap();
        let error = file.read(10_500, &mut out).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Data);
        assert!(error.to_string().contains("tokens.npy"), "{error}");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(exit_of(&TokenFile::open(dir.path()).unwrap_err()), Exit::Io);
        assert_eq!(exit_of(&TokenFile::open(&dir.path().join("absent.npy")).unwrap_err()), Exit::Io);
        let empty = dir.path().join("empty.npy");
        std::fs::write(&empty, b"").unwrap();
        assert_eq!(exit_of(&TokenFile::open(&empty).unwrap_err()), Exit::Data);
    }
}
