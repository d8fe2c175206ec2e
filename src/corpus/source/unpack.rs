//! Decompression of files: gzip and zstd, also one within the other, as a single stream of bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;

use crate::corpus::source::Compression;
use crate::runtime::content::Kind;
use crate::runtime::memory;

/// Layers of compression that are removed at most; real files have one, sometimes two.
const MAX_LAYERS: usize = 4;

/// Bytes that show what a layer is.
const MAGIC: usize = 8;

/// The base-two logarithms of the windows that zstd reads: by default (128 MiB), and with `--long=31` (2 GiB).
const WINDOWS: std::ops::RangeInclusive<u32> = 27..=31;

type Bytes = Box<dyn Read + Send>;

/// The decompressed bytes of a file.
pub(super) struct Unpacked {
    bytes: Bytes,
    taken: Arc<AtomicU64>,
}

impl Unpacked {
    /// Bytes of the file read so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Read for Unpacked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(into)
    }
}

/// Opens a compressed file, and what is compressed in it again.
pub(super) fn open(file: File, outermost: Compression) -> io::Result<Unpacked> {
    let taken = Arc::new(AtomicU64::new(0));
    let mut bytes: Bytes = Box::new(Counted { file, taken: taken.clone() });
    let mut layer = outermost;
    for _ in 0..MAX_LAYERS {
        bytes = match layer {
            Compression::None => break,
            Compression::Gzip => Box::new(Gzip(Some(GzDecoder::new(BufReader::new(bytes))))),
            Compression::Zstd => Box::new(Zstd::new(bytes)?),
        };
        let peeked = Peeked::new(bytes);
        layer = match Kind::of_head(&peeked.head) {
            Kind::Gzip => Compression::Gzip,
            Kind::Zstd => Compression::Zstd,
            _ => Compression::None,
        };
        bytes = Box::new(peeked);
    }
    Ok(Unpacked { bytes, taken })
}

/// A file that knows how much of it was read.
struct Counted {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(into)?;
        self.taken.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Members one after another. Zeros behind the last one are the padding of a tape or of a block device, as for gzip itself.
struct Gzip(Option<GzDecoder<BufReader<Bytes>>>);

impl Read for Gzip {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(into)?;
            if n > 0 || into.is_empty() {
                return Ok(n);
            }
            // The end of a member: what follows is another member, padding, or nothing.
            let Some(decoder) = self.0.take() else { break };
            let mut rest = decoder.into_inner();
            if skip_zeros(&mut rest)? {
                self.0 = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// Passes over zero bytes; false if nothing follows them.
fn skip_zeros(bytes: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let data = bytes.fill_buf()?;
        if data.is_empty() {
            return Ok(false);
        }
        let zeros = data.iter().take_while(|b| **b == 0).count();
        let all = zeros == data.len();
        bytes.consume(zeros);
        if !all {
            return Ok(true);
        }
    }
}

struct Zstd {
    decoder: zstd::stream::read::Decoder<'static, BufReader<Bytes>>,
    window: u32,
}

impl Zstd {
    fn new(bytes: Bytes) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(bytes))?;
        // A frame asks for its window before a byte of it is decoded: at most half of the memory that is free.
        let free = memory::available().map_or(0, |bytes| bytes / 2);
        let window = free.checked_ilog2().unwrap_or(0).clamp(*WINDOWS.start(), *WINDOWS.end());
        decoder.window_log_max(window)?;
        Ok(Self { decoder, window })
    }
}

impl Read for Zstd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(into).map_err(|error| {
            if !error.to_string().contains("too much memory") {
                return error;
            }
            let limit = (1u64 << self.window) >> 20;
            let what = format!(
                "a zstd window of more than {limit} MiB; pack the file again with a smaller one (zstd --long=27)"
            );
            io::Error::new(ErrorKind::Unsupported, what)
        })
    }
}

/// A stream whose first bytes are known. What went wrong while they were read is kept for its place.
struct Peeked {
    head: Vec<u8>,
    at: usize,
    error: Option<io::Error>,
    rest: Bytes,
}

impl Peeked {
    fn new(mut rest: Bytes) -> Self {
        let mut head = Vec::with_capacity(MAGIC);
        let mut error = None;
        while head.len() < MAGIC {
            let mut byte = [0];
            match rest.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => head.push(byte[0]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    error = Some(e);
                    break;
                }
            }
        }
        Self { head, at: 0, error, rest }
    }
}

impl Read for Peeked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at < self.head.len() {
            let n = into.len().min(self.head.len() - self.at);
            into[..n].copy_from_slice(&self.head[self.at..self.at + n]);
            self.at += n;
            return Ok(n);
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => self.rest.read(into),
        }
    }
}
