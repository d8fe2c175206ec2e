//! The hashes of a finished file, of the whole and of its blocks, read back from where it was written.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use crate::corpus::shards::manifest::{BLOCK_BYTES, BLOCK_DIGITS};
use crate::runtime::files::{self, Growing};

/// Blocks read and hashed at a time.
const BLOCKS: usize = 8;

/// What `shards.json` says of a file.
pub(super) struct FileHashes {
    /// BLAKE3 of all of it.
    pub(super) blake3: String,
    /// The first digits of each block's BLAKE3, one after another.
    pub(super) blocks: String,
}

/// Hashes what has been written to `file`.
pub(super) fn digest(file: &mut Growing) -> Result<FileHashes> {
    let reader = file.reader()?;
    let path = file.path();
    hash(reader, path)
}

fn hash(mut reader: File, path: &Path) -> Result<FileHashes> {
    let mut whole = blake3::Hasher::new();
    let mut blocks = String::new();
    let mut buffer = vec![0; BLOCKS * BLOCK_BYTES];
    loop {
        let piece = fill(&mut reader, &mut buffer).map_err(|e| files::io_failure("read", path, &e))?;
        if piece.is_empty() {
            return Ok(FileHashes { blake3: whole.finalize().to_hex().to_string(), blocks });
        }
        // Both hashes from one reading of the file.
        let (_, hashes) = rayon::join(
            || whole.update(piece).count(),
            || piece.par_chunks(BLOCK_BYTES).map(blake3::hash).collect::<Vec<_>>(),
        );
        blocks.extend(hashes.iter().map(|hash| hash.to_hex()[..BLOCK_DIGITS].to_string()));
    }
}

/// Reads until `buffer` is full or the file ends.
fn fill<'b>(reader: &mut File, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(&buffer[..filled])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn whole_and_blocks_at_every_kind_of_border() {
        let dir = tempfile::tempdir().unwrap();
        for size in
            [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, BLOCKS * BLOCK_BYTES, BLOCKS * BLOCK_BYTES + 7]
        {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
            let mut file = Growing::open(&dir.path().join(size.to_string()), 0).unwrap();
            file.write_all(&bytes).unwrap();
            let content = digest(&mut file).unwrap();
            assert_eq!(content.blake3, blake3::hash(&bytes).to_hex().as_str());
            let blocks = bytes.chunks(BLOCK_BYTES).map(|block| blake3::hash(block).to_hex()[..32].to_string());
            assert_eq!(content.blocks, blocks.collect::<String>(), "{size}");
        }
    }
}
