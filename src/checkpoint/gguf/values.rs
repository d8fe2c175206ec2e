//! The values of tensors as GGUF files store them.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use half::f16;

use super::header::{ALIGNMENT, BLOCK, Storage};
use crate::checkpoint::tensors::{refuse_non_finite, write_values};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::io_context;

/// Elements converted at a time: whole blocks.
const CHUNK: usize = 1 << 18;

/// The largest magnitude whose block has a scale that f16 can hold.
const LARGEST: f32 = Q_MAX * 65504.0;

/// Integers of a block lie between this and its negative.
const Q_MAX: f32 = 127.0;

/// Writes the values of the tensor `name`, and zeros up to where the next tensor begins. Values that `storage` cannot hold are refused;
/// `path` is for messages.
pub(super) fn write_tensor(
    out: &mut impl Write,
    path: &Path,
    name: &str,
    values: &[f32],
    storage: Storage,
) -> Result<()> {
    match storage {
        Storage::Plain(dtype) => write_values(out, path, name, values, dtype)?,
        Storage::Q8_0 => {
            for (n, chunk) in values.chunks(CHUNK).enumerate() {
                refuse_non_finite(name, chunk, n * CHUNK)?;
                out.write_all(&blocks(name, chunk)?).map_err(io_context("write", path))?;
            }
        }
    }
    let bytes = storage.bytes_of(values.len()).with_context(|| format!("{name} is too large"))?;
    let padding = bytes.next_multiple_of(ALIGNMENT) - bytes;
    out.write_all(&[0; ALIGNMENT][..padding]).map_err(io_context("write", path))
}

/// `values`, a multiple of [`BLOCK`], in blocks of q8_0: each value is an integer times the scale of its block.
fn blocks(name: &str, values: &[f32]) -> Result<Vec<u8>> {
    if let Some(value) = values.iter().find(|value| value.abs() > LARGEST) {
        let message = format!("{name} holds {value:e}, which is too large for q8_0");
        return Err(fail(Exit::Data, message).hint("export in bf16 or f32").into());
    }
    let mut bytes = Vec::new();
    for block in values.as_chunks::<BLOCK>().0 {
        let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = largest / Q_MAX;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        bytes.extend(block.map(|value| (value * inverse).round() as i8 as u8));
    }
    Ok(bytes)
}
