//! safetensors files as streams: written and read one tensor at a time.
//!
//! The format is an 8-byte header length, a JSON header, then the tensors' bytes without gaps. The `safetensors` crate
//! owns the header (both ways); its whole-file interface is not used because it wants every byte in memory at once.
//! A header is bounded and its claims are compared with the file's size before anything is allocated.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use safetensors::tensor::{Metadata, TensorInfo};

use super::dtype::Dtype;
use crate::runtime::content::Kind;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::{io_context, io_failure};
use crate::runtime::shell::quoted;

/// A named tensor in memory: row-major `f32`.
#[derive(Clone, Debug)]
pub struct TensorRef<'a> {
    pub name: String,
    /// Dimensions; their product is the length of `data`.
    pub shape: Vec<usize>,
    pub data: &'a [f32],
}

/// Name and shape of a tensor.
pub type ShapeRef<'a> = (&'a str, &'a [usize]);

/// Receives one tensor: name, shape, row-major values.
pub type TensorSink<'s> = dyn FnMut(&str, &[usize], Vec<f32>) -> Result<()> + 's;

/// The largest header accepted: 16 MiB describe some 100,000 tensors.
const MAX_HEADER: u64 = 16 << 20;

/// Elements converted at a time.
const CHUNK: usize = 1 << 18;

/// Bytes that the data of a tensor of this shape takes; an error on overflow.
pub fn data_size(shape: &[usize], dtype: Dtype) -> Result<usize> {
    let size = shape.iter().try_fold(dtype.size(), |size, &n| size.checked_mul(n));
    size.with_context(|| format!("the shape {shape:?} is too large"))
}

/// The start of a file that will hold tensors of these names and shapes, in this order.
pub fn header(tensors: &[ShapeRef<'_>], dtype: Dtype) -> Result<Vec<u8>> {
    let stored = match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::F16 => safetensors::Dtype::F16,
    };
    let mut infos = Vec::with_capacity(tensors.len());
    let mut start = 0_usize;
    for (name, shape) in tensors {
        let end = start.checked_add(data_size(shape, dtype)?).context("the tensors are too large")?;
        infos.push((name.to_string(), TensorInfo { dtype: stored, shape: shape.to_vec(), data_offsets: (start, end) }));
        start = end;
    }
    // transformers refuses files that do not name their framework.
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let mut json = serde_json::to_vec(&Metadata::new(Some(format), infos)?)?;
    // The data then begins 8-byte aligned, as readers that map the file expect.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// Writes the values of the tensor `name`. A NaN or infinity, or a value that becomes one in `dtype`, is refused: what
/// is broken must not be published.
pub fn write_values(out: &mut impl Write, path: &Path, name: &str, values: &[f32], dtype: Dtype) -> Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK.min(values.len()) * dtype.size());
    for (n, chunk) in values.chunks(CHUNK).enumerate() {
        refuse_non_finite(name, chunk, n * CHUNK)?;
        bytes.clear();
        dtype.encode(chunk, &mut bytes);
        if dtype != Dtype::F32 {
            refuse_overflow(name, chunk, &bytes, dtype)?;
        }
        out.write_all(&bytes).map_err(io_context("write", path))?;
    }
    Ok(())
}

/// Refuses a NaN or an infinity among `values`, which are those of the tensor `name` from the element `start` on.
pub(super) fn refuse_non_finite(name: &str, values: &[f32], start: usize) -> Result<()> {
    let Some(at) = values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
    let message = format!("{name} holds {} at element {}: it was not written", values[at], start + at);
    Err(fail(Exit::Diverged, message).hint("go back to an earlier checkpoint; try a lower learning rate").into())
}

fn refuse_overflow(name: &str, values: &[f32], bytes: &[u8], dtype: Dtype) -> Result<()> {
    let mut stored = Vec::with_capacity(values.len());
    dtype.decode(bytes, &mut stored);
    match stored.iter().position(|v| !v.is_finite()) {
        Some(at) => {
            let message = format!("{name} holds {:e}, which is too large for {}", values[at], dtype.torch_name());
            Err(fail(Exit::Data, message).hint("export in bf16 or f32").into())
        }
        None => Ok(()),
    }
}

/// A safetensors file opened for reading, its header checked.
#[derive(Debug)]
pub struct TensorFile {
    file: File,
    path: PathBuf,
    data_start: u64,
    header: Metadata,
}

impl TensorFile {
    /// Reads and checks the header of `file`, which has `size` bytes; `path` is for messages. Damage is exit 65.
    pub fn open(file: File, size: u64, path: &Path) -> Result<TensorFile> {
        let mut length = [0; 8];
        if size < 8 {
            return Err(damaged(path, "it is shorter than a safetensors header").into());
        }
        file.read_exact_at(&mut length, 0).map_err(|e| io_failure("read", path, &e))?;
        let length = u64::from_le_bytes(length);
        // Before so many bytes are allocated.
        if length > MAX_HEADER || length > size - 8 {
            Kind::of_open(&file, path)?.refuse_unless(Kind::Safetensors, path)?;
            return Err(damaged(path, &format!("its header claims {length} bytes")).into());
        }
        let mut json = vec![0; length as usize];
        file.read_exact_at(&mut json, 8).map_err(|e| io_failure("read", path, &e))?;
        // Deserialising checks that the tensors lie without gap or overlap and fit their shapes.
        let header: Metadata =
            serde_json::from_slice(&json).map_err(|e| damaged(path, &format!("its header is malformed: {e}")))?;
        let data_start = 8 + length;
        if header.data_len() as u64 != size - data_start {
            let what = format!(
                "it has {} bytes of tensors where its header describes {}",
                size - data_start,
                header.data_len()
            );
            return Err(damaged(path, &what).into());
        }
        Ok(TensorFile { file, path: path.to_owned(), data_start, header })
    }

    /// Names of the tensors in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Shape of the tensor `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Element type of `name`; an integer, f64 or 8-bit tensor is refused.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        let info = self.header.info(name).with_context(|| format!("{} has no {name}", self.path.display()))?;
        match info.dtype {
            safetensors::Dtype::F32 => Ok(Dtype::F32),
            safetensors::Dtype::BF16 => Ok(Dtype::Bf16),
            safetensors::Dtype::F16 => Ok(Dtype::F16),
            other => {
                let message = format!("{name} in {} has dtype {other:?}, which is not supported", self.path.display());
                Err(fail(Exit::Config, message).hint("convert the weights to f32, bf16 or f16").into())
            }
        }
    }

    /// The tensor `name` as f32, and its shape.
    pub fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let dtype = self.dtype(name)?;
        let info = self.header.info(name).with_context(|| format!("{} has no {name}", self.path.display()))?;
        let start = self.data_start + info.data_offsets.0 as u64;
        let end = self.data_start + info.data_offsets.1 as u64;
        let mut values = Vec::with_capacity((end - start) as usize / dtype.size());
        // A chunk at a time, so that the tensor is in memory once and not twice.
        let mut buffer = vec![0; (CHUNK * dtype.size()).min((end - start) as usize)];
        let mut at = start;
        while at < end {
            let chunk = &mut buffer[..((end - at) as usize).min(CHUNK * dtype.size())];
            self.file.read_exact_at(chunk, at).map_err(|e| io_failure("read", &self.path, &e))?;
            dtype.decode(chunk, &mut values);
            at += chunk.len() as u64;
        }
        Ok((info.shape.clone(), values))
    }
}

fn damaged(path: &Path, what: &str) -> Failure {
    fail(Exit::Data, format!("{} is damaged: {what}", path.display())).hint(replacement_hint(path))
}

/// How to get a good copy of the file at `path`. Where it is a link into a cache, the file behind the link is the bad one, and a
/// download would find that and use it again.
pub(super) fn replacement_hint(path: &Path) -> String {
    match (path.is_symlink(), path.canonicalize()) {
        (true, Ok(blob)) => {
            format!("delete the damaged file itself, then download it again: rm {}", quoted(&blob))
        }
        _ => "copy or download the file again".to_owned(),
    }
}
