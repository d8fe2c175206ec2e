//! What a file holds, by its first bytes: its name may be wrong, a download may be a web page, and a clone may hold Git LFS pointers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use super::error::{Exit, Failure, fail};
use super::files;
use super::shell::quoted;

/// How many bytes from the start of a file decide its kind.
pub const HEAD: usize = 4096;

/// The kind of a file, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Empty,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
    Zip,
    Tar,
    Parquet,
    Arrow,
    Npy,
    /// A shard or a model of llm.c.
    LlmC,
    Safetensors,
    Gguf,
    Pickle,
    Pdf,
    /// What Git stores in place of a large file.
    LfsPointer,
    Html,
    Xml,
    Utf16,
    /// UTF-8 that begins like a JSON object or array.
    Json,
    /// Other UTF-8 without control characters.
    Text,
    Binary,
}

/// Bytes that a file of the kind begins with.
const MAGIC: [(&[u8], Kind); 18] = [
    (b"\x1f\x8b", Kind::Gzip),
    (b"\x28\xb5\x2f\xfd", Kind::Zstd),
    // A skippable frame, as pzstd writes first.
    (b"\x50\x2a\x4d\x18", Kind::Zstd),
    (b"BZh", Kind::Bzip2),
    (b"\xfd7zXZ\0", Kind::Xz),
    (b"PK\x03\x04", Kind::Zip),
    (b"PAR1", Kind::Parquet),
    (b"ARROW1", Kind::Arrow),
    // The stream format, in which the `datasets` library keeps its files.
    (b"\xff\xff\xff\xff", Kind::Arrow),
    (b"\x93NUMPY", Kind::Npy),
    (b"\x88\xd7\x34\x01", Kind::LlmC),
    (b"\xa1\xd9\x34\x01", Kind::LlmC),
    (b"GGUF", Kind::Gguf),
    (b"\x80\x02", Kind::Pickle),
    (b"%PDF-", Kind::Pdf),
    (b"version https://git-lfs.github.com/spec/", Kind::LfsPointer),
    (b"\xff\xfe", Kind::Utf16),
    (b"\xfe\xff", Kind::Utf16),
];

impl Kind {
    /// The kind of the file at `path`.
    ///
    /// # Errors
    /// [`Exit::Io`] if it is not a regular file or cannot be read.
    pub fn of_file(path: &Path) -> Result<Self> {
        Self::of_open(&files::open_input(path, true)?.0, path)
    }

    /// The kind of the open `file`, wherever it is read from next; `path` is for messages.
    ///
    /// # Errors
    /// [`Exit::Io`] if it cannot be read.
    pub fn of_open(file: &File, path: &Path) -> Result<Self> {
        let mut head = vec![0; HEAD];
        let mut length = 0;
        while length < HEAD {
            match file.read_at(&mut head[length..], length as u64) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(files::io_failure("read", path, &e).into()),
            }
        }
        Ok(Self::of_head(&head[..length]))
    }

    /// The kind of a file that begins with `head`: its first [`HEAD`] bytes, or all there are.
    pub fn of_head(head: &[u8]) -> Self {
        let head = &head[..head.len().min(HEAD)];
        if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
            // torch.save writes a zip archive whose first member is a pickle.
            let by_torch =
                *kind == Self::Zip && memchr::memmem::find(&head[..head.len().min(128)], b"data.pkl").is_some();
            return if by_torch { Self::Pickle } else { *kind };
        }
        match () {
            () if head.is_empty() => Self::Empty,
            () if head.get(257..262) == Some(b"ustar") => Self::Tar,
            () if is_safetensors(head) => Self::Safetensors,
            () if is_wide(head) => Self::Utf16,
            () => Self::of_text(head).unwrap_or(Self::Binary),
        }
    }

    fn of_text(head: &[u8]) -> Option<Self> {
        let text = match std::str::from_utf8(head) {
            Ok(text) => text,
            // The head may end in the middle of a character.
            Err(e) if head.len() == HEAD && e.error_len().is_none() => {
                std::str::from_utf8(&head[..e.valid_up_to()]).ok()?
            }
            Err(_) => return None,
        };
        if text.chars().any(|c| c.is_ascii_control() && !"\t\n\r\x08\x0b\x0c\x1b".contains(c)) {
            return None;
        }
        let start = text.trim_start_matches('\u{feff}').trim_start();
        let markup: String = start.chars().take(16).flat_map(char::to_lowercase).collect();
        Some(match () {
            () if ["<!doctype html", "<html", "<head"].iter().any(|tag| markup.starts_with(tag)) => Self::Html,
            () if markup.starts_with("<?xml") => Self::Xml,
            () if start.starts_with(['{', '[']) => Self::Json,
            () => Self::Text,
        })
    }

    /// The kind in words, after "is".
    pub fn describe(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Gzip => "compressed with gzip",
            Self::Zstd => "compressed with zstd",
            Self::Bzip2 => "compressed with bzip2",
            Self::Xz => "compressed with xz",
            Self::Zip => "a zip archive",
            Self::Tar => "a tar archive",
            Self::Parquet => "a Parquet file",
            Self::Arrow => "an Arrow file",
            Self::Npy => "a NumPy array",
            Self::LlmC => "a file of llm.c",
            Self::Safetensors => "a safetensors file",
            Self::Gguf => "a GGUF model",
            Self::Pickle => "a Python pickle",
            Self::Pdf => "a PDF document",
            Self::LfsPointer => "a Git LFS pointer",
            Self::Html => "an HTML page",
            Self::Xml => "an XML document",
            Self::Utf16 => "text in UTF-16, not in UTF-8",
            Self::Json => "JSON",
            Self::Text => "plain text",
            Self::Binary => "binary data of an unknown kind",
        }
    }

    /// Refuses a file at `path` that is recognisably something else than `wanted`: another format, a web page, a pointer.
    ///
    /// # Errors
    /// [`Exit::Data`] with what it is and what to do.
    pub fn refuse_unless(self, wanted: Self, path: &Path) -> Result<(), Failure> {
        if self == wanted || matches!(self, Self::Empty | Self::Json | Self::Text | Self::Binary) {
            return Ok(());
        }
        let message = format!("{} is {}, not {}", path.display(), self.describe(), wanted.describe());
        Err(fail(Exit::Data, message).hint(self.advice(path)))
    }

    /// What to do with a file at `path` of this kind where another one is needed.
    pub fn advice(self, path: &Path) -> String {
        let file = quoted(path);
        match self {
            Self::Empty | Self::Html | Self::Xml => {
                "something else than the file was downloaded (often a log-in or error page): download it again".into()
            }
            Self::LfsPointer => {
                "fetch the content: run `git lfs pull` in its repository, or download the file itself".into()
            }
            Self::Gzip => format!("unpack it: gunzip < {file} > NEW"),
            Self::Zstd => format!("unpack it: zstd -d < {file} > NEW"),
            Self::Bzip2 => format!("unpack it: bunzip2 < {file} > NEW"),
            Self::Xz => format!("unpack it: xz -d < {file} > NEW"),
            Self::Zip => format!("unpack it: unzip {file}"),
            Self::Tar => format!("unpack it: tar -xf {file}"),
            Self::Utf16 => format!("convert it: iconv -f UTF-16 -t UTF-8 {file} > NEW"),
            Self::Arrow => "convert it to Parquet, for example with the `datasets` library: \
                            load_from_disk(DIR).to_parquet(\"data.parquet\")"
                .into(),
            Self::Npy | Self::LlmC => "token files are data already: name them as data.train and data.val".into(),
            Self::Gguf => "get the model in its Hugging Face form, with safetensors".into(),
            Self::Pickle => "convert it to safetensors: transformers' from_pretrained, then save_pretrained".into(),
            Self::Json => "rename it to end in .jsonl".into(),
            Self::Text => "rename it to end in .txt".into(),
            _ => "give another file, or convert it".into(),
        }
    }
}

/// The length of a JSON header, and the brace that it begins with.
fn is_safetensors(head: &[u8]) -> bool {
    let Some((length, rest)) = head.split_first_chunk::<8>() else { return false };
    (2..1 << 30).contains(&u64::from_le_bytes(*length)) && rest.first() == Some(&b'{')
}

/// Whether every other byte is zero and the ones between are ASCII: UTF-16 without a byte order mark.
fn is_wide(head: &[u8]) -> bool {
    let pairs = head.as_chunks::<2>().0;
    pairs.len() >= 4 && (is_zero_beside_ascii(pairs, 0) || is_zero_beside_ascii(pairs, 1))
}

fn is_zero_beside_ascii(pairs: &[[u8; 2]], zero: usize) -> bool {
    pairs.iter().all(|pair| pair[zero] == 0 && pair[1 - zero].is_ascii() && pair[1 - zero] != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn bytes_say_what_they_are() {
        let long = format!("{}\u{e9}", "a".repeat(HEAD - 1));
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, kind) in [
            (&b""[..], Kind::Empty),
            (b"\x1f\x8b\x08\0", Kind::Gzip),
            (b"\x28\xb5\x2f\xfd\x20", Kind::Zstd),
            (b"BZh91AY", Kind::Bzip2),
            (b"PAR1\x15", Kind::Parquet),
            (b"\x10\0\0\0\0\0\0\0{\"a\":{}}", Kind::Safetensors),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", Kind::LfsPointer),
            (b"\n <!DOCTYPE HTML><p>", Kind::Html),
            (b"<?xml version=\"1.0\"?><Error>", Kind::Xml),
            ("\u{feff}{\"text\": 1}".as_bytes(), Kind::Json),
            (b" [1]", Kind::Json),
            ("caf\u{e9} <html>".as_bytes(), Kind::Text),
            (&long.as_bytes()[..HEAD], Kind::Text),
            (b"caf\xe9", Kind::Binary),
            (b"a\0b", Kind::Binary),
            (&utf16("\u{feff}hello"), Kind::Utf16),
            (&utf16("{\"text\": 1}"), Kind::Utf16),
            (&tar, Kind::Tar),
        ] {
            assert_eq!(Kind::of_head(head), kind, "{:?}", String::from_utf8_lossy(head));
        }
    }
}
