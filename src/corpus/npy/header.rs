//! Headers of token files, from bytes to a checked layout: a pure function, so that it can be tried on any bytes.
//!
//! `.npy` is `\x93NUMPY`, two version bytes, the header's length (u16 in version 1.0, u32 in 2.0 and 3.0), a Python
//! dict literal, the array. llm.c's `.bin` is 256 little-endian i32 (magic, version, token count), then the tokens: u16 for
//! GPT-2 (magic 20240520, version 1), u32 for Llama 3 (20240801, 7).

use crate::corpus::npy::TokenDtype;
use crate::runtime::content::Kind;

/// Length of every header we write: the dict padded for a 21-digit count as numpy pads it, then to 64-byte alignment.
pub const HEADER_LEN: usize = 128;

/// numpy's own limit on the header of an untrusted file.
pub const MAX_HEADER: usize = 10_000;

const NPY_MAGIC: &[u8] = b"\x93NUMPY";
const BIN_HEADER: usize = 1024;

/// Magic, version and width of llm.c's shards.
const SHARDS: [(i32, i32, TokenDtype); 2] = [(20_240_520, 1, TokenDtype::U16), (20_240_801, 7, TokenDtype::U32)];

/// What else llm.c writes into `.bin` files.
const OTHERS: [(i32, &str); 4] = [
    (20_240_326, "a model of llm.c"),
    (20_240_327, "debugging data of llm.c"),
    (20_240_328, "a tokenizer of llm.c"),
    (20_240_522, "evaluation data of llm.c"),
];

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong with it, after its name.
    pub what: String,
    pub remedy: Remedy,
}

/// What can be done about a refused file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is intact, and its numbers can be written in a form that is read.
    Rewrite,
    /// It was cut off or changed after it was written.
    Restore,
    AddHeader,
    /// It does not hold tokens.
    Other,
}

impl From<String> for Refusal {
    fn from(what: String) -> Self {
        Self { what, remedy: Remedy::Restore }
    }
}

impl From<&str> for Refusal {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

fn rewrite(what: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), remedy: Remedy::Rewrite }
}

/// The version 1.0 `.npy` header of `len` tokens, byte for byte what `numpy.save` writes.
pub fn npy_header(dtype: TokenDtype, len: usize) -> [u8; HEADER_LEN] {
    let dict = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({len},), }}", dtype.descr());
    let mut header = [b' '; HEADER_LEN];
    header[..6].copy_from_slice(NPY_MAGIC);
    header[6..10].copy_from_slice(&[1, 0, (HEADER_LEN - 10) as u8, 0]);
    header[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
    header[HEADER_LEN - 1] = b'\n';
    header
}

/// Where the tokens of a file lie. `offset + len * width` is exactly the file's size.
#[derive(Debug, PartialEq, Eq)]
pub struct TokenLayout {
    /// Bytes before the first token.
    pub offset: u64,
    pub len: u64,
    pub dtype: TokenDtype,
}

impl TokenLayout {
    /// From the first bytes of a file (as many as a header may take) and its size.
    pub fn parse(head: &[u8], size: u64) -> Result<Self, Refusal> {
        let magic = head.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
        let shard = SHARDS.into_iter().find(|(known, ..)| Some(*known) == magic);
        let layout = match shard {
            Some((_, version, dtype)) => Self::parse_bin(head, version, dtype)?,
            None if head.starts_with(NPY_MAGIC) => Self::parse_npy(head)?,
            None => return Err(no_tokens(head, magic)),
        };
        let declared = layout.len.checked_mul(layout.dtype.width() as u64).and_then(|n| n.checked_add(layout.offset));
        match declared {
            Some(n) if n == size => Ok(layout),
            Some(n) if n > size => {
                Err(format!("is cut short: its header declares {n} bytes, the file has {size}").into())
            }
            Some(n) => {
                Err(format!("has {} bytes after the {} tokens its header declares", size - n, layout.len).into())
            }
            None => Err(format!("declares an impossible size of {} tokens", layout.len).into()),
        }
    }

    fn parse_npy(head: &[u8]) -> Result<Self, Refusal> {
        let (header_len, start) = match *head {
            [_, _, _, _, _, _, 1, 0, a, b, ..] => (u32::from(u16::from_le_bytes([a, b])), 10),
            [_, _, _, _, _, _, 2 | 3, 0, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]), 12),
            [_, _, _, _, _, _, major, minor, _, _, _, _, ..] => {
                return Err(rewrite(format!("has .npy version {major}.{minor}; versions 1.0, 2.0 and 3.0 are read")));
            }
            _ => return Err("is cut short inside its .npy header".into()),
        };
        let header_len = header_len as usize;
        if header_len > MAX_HEADER {
            return Err(format!("has a .npy header of {header_len} bytes; at most {MAX_HEADER} are read").into());
        }
        let header = head.get(start..start + header_len).ok_or("is cut short inside its .npy header")?;
        let header = std::str::from_utf8(header).map_err(|_| "has a .npy header that is not text")?;
        let (dtype, len) = Literal(header).array()?;
        Ok(Self { offset: (start + header_len) as u64, len, dtype })
    }

    fn parse_bin(head: &[u8], version: i32, dtype: TokenDtype) -> Result<Self, Refusal> {
        let header = head.get(..BIN_HEADER).ok_or("is cut short inside its llm.c header")?;
        let fields = header.as_chunks::<4>().0;
        let found = i32::from_le_bytes(fields[1]);
        if found != version {
            return Err(format!("is an llm.c shard of version {found}; version {version} is read").into());
        }
        let declared = i32::from_le_bytes(fields[2]);
        let len = u64::try_from(declared).map_err(|_| format!("declares {declared} tokens"))?;
        Ok(Self { offset: BIN_HEADER as u64, len, dtype })
    }
}

/// Refuses a file without the header of a token file, by what it is.
fn no_tokens(head: &[u8], magic: Option<i32>) -> Refusal {
    if let Some((_, what)) = OTHERS.iter().find(|(known, _)| Some(*known) == magic) {
        return Refusal { what: format!("is {what}, not a shard of tokens"), remedy: Remedy::Other };
    }
    match Kind::of_head(head) {
        Kind::Binary => Refusal {
            what: "is neither a .npy file nor an llm.c .bin shard: it has no header that is known".into(),
            remedy: Remedy::AddHeader,
        },
        kind => Refusal { what: format!("is {}, not a file of tokens", kind.describe()), remedy: Remedy::Other },
    }
}

/// What is left to parse of a `.npy` header: the Python literal `{'descr': '<u2', 'fortran_order': False, 'shape':
/// (9,)}`.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn array(mut self) -> Result<(TokenDtype, u64), Refusal> {
        let mut dtype = None;
        let mut order = None;
        let mut len = None;
        self.expect("{")?;
        while !self.eat("}") {
            let key = self.quoted().ok_or("has a malformed .npy header")?;
            self.expect(":")?;
            let repeated = match key {
                "descr" => dtype.replace(self.dtype()?).is_some(),
                "fortran_order" => {
                    order.replace(self.expect("False").map_err(|_| rewrite("is not in C order"))?).is_some()
                }
                "shape" => len.replace(self.shape()?).is_some(),
                _ => return Err(format!("has an unknown key {key:?} in its .npy header").into()),
            };
            if repeated {
                return Err(format!("names {key:?} twice in its .npy header").into());
            }
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        match (dtype, order, len) {
            (Some(dtype), Some(()), Some(len)) if self.0.trim().is_empty() => Ok((dtype, len)),
            _ => Err("has an incomplete or malformed .npy header".into()),
        }
    }

    fn dtype(&mut self) -> Result<TokenDtype, Refusal> {
        match self.quoted() {
            Some("<u2") => Ok(TokenDtype::U16),
            Some("<u4") => Ok(TokenDtype::U32),
            Some(other) => {
                let what = format!("holds {other:?} values, not \"<u2\" or \"<u4\"");
                let is_number = other.trim_start_matches(['<', '>', '|', '=']).starts_with(['i', 'u', 'f']);
                Err(if is_number { rewrite(what) } else { Refusal { what, remedy: Remedy::Other } })
            }
            None => {
                let what = "holds structured values, not \"<u2\" or \"<u4\"".into();
                Err(Refusal { what, remedy: Remedy::Other })
            }
        }
    }

    fn shape(&mut self) -> Result<u64, Refusal> {
        self.expect("(")?;
        // Programs that built the header from a NumPy integer have written how NumPy 2 shows it: numpy/numpy#28334.
        let is_wrapped = ["np.int64(", "np.int32(", "np.uint64(", "np.intp("].into_iter().any(|name| self.eat(name));
        self.0 = self.0.trim_start();
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        let is_closed = !is_wrapped || self.eat(")");
        if number.is_empty() || !is_closed || !self.eat(",") || !self.eat(")") {
            return Err(rewrite("does not have exactly one dimension"));
        }
        number.parse().map_err(|_| format!("declares an impossible size of {number} tokens").into())
    }

    fn quoted(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (inside, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(inside)
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.0.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("has a malformed .npy header ({token:?} expected)")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_sizes_are_refused_before_allocation() {
        let npy = |shape: &str| {
            let mut bytes = npy_header(TokenDtype::U16, 0).to_vec();
            let dict = format!("{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}");
            bytes[10..HEADER_LEN - 1].fill(b' ');
            bytes[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
            bytes
        };
        assert!(TokenLayout::parse(&npy("(0,)"), HEADER_LEN as u64).is_ok());
        for shape in
            ["(4000000000000,)", "(9223372036854775807,)", "(18446744073709551615,)", "(99999999999999999999,)"]
        {
            let message = TokenLayout::parse(&npy(shape), HEADER_LEN as u64).unwrap_err().what;
            assert!(message.contains("declares"), "{shape}: {message}");
        }
        for shape in ["()", "(1)", "(-1,)", "(1, 1)", "(0x10,)", "(,)", "1", "(0,"] {
            assert!(TokenLayout::parse(&npy(shape), HEADER_LEN as u64).is_err(), "{shape}");
        }
        let mut long = npy("(0,)");
        long[6] = 2;
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(TokenLayout::parse(&long, u64::MAX).unwrap_err().what.contains("at most 10000"));
    }

    #[test]
    fn every_accepted_mutation_is_consistent() {
        for name in ["ok_u2.npy", "ok_u4.npy", "ok_u2_v2.npy", "ok_u2.bin"] {
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/npy");
            let good = std::fs::read(format!("{fixtures}/{name}")).unwrap();
            let mut accepted = 0;
            let mut check = |bytes: &[u8]| {
                if let Ok(layout) = TokenLayout::parse(bytes, bytes.len() as u64) {
                    assert_eq!(layout.offset + layout.len * layout.dtype.width() as u64, bytes.len() as u64);
                    accepted += 1;
                }
            };
            for at in 0..good.len().min(1100) {
                for flip in 1..=255u8 {
                    let mut bytes = good.clone();
                    bytes[at] ^= flip;
                    check(&bytes);
                }
                check(&good[..at]);
            }
            check(&[&good[..], &[0]].concat());
            assert!(accepted > 1000, "{name}: flips in the padding and in the tokens are harmless");
        }
    }
}
