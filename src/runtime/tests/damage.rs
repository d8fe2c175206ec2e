//! Damage for the tests of parsers: what disks, transfers and adversaries do to the bytes of a file. One generator for all of them, so
//! that every parser meets every kind. It is compiled into tests alone: those of the crate, and those in tests/all.

/// How often a test repeats itself: `quick` times, or 20 times that if LLAMA_LITE_TORTURE is "full".
pub(crate) fn rounds(quick: usize) -> usize {
    if std::env::var_os("LLAMA_LITE_TORTURE").is_some_and(|wish| wish == "full") { 20 * quick } else { quick }
}

/// Numbers that promise what no file can hold, or are none.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "2147483648",
    "4294967295",
    "4294967296",
    "1125899906842624",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "1e999",
    "-0",
    "1125899906842624000000000000000",
];

/// What opens something; repeated, it nests.
const OPENINGS: [&str; 6] = ["[", "{", "{\"a\":", "(", "a.", "a={"];

/// An endless row of damaged forms, the same on every machine.
pub(crate) struct Damage(u64);

impl Damage {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// `whole` with one to three faults.
    pub(crate) fn of(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + self.below(3) {
            self.fault(&mut bytes);
        }
        bytes
    }

    /// A linear congruential generator (the multiplier is Knuth's).
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end.max(1)
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    fn fault(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let end = bytes.len().min(at + 1 + self.below(16));
        match self.below(12) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.insert(at, self.below(256) as u8),
            3 => {
                let depth = [1, 2, 100, 20_000][self.below(4)];
                let nested = self.pick(&OPENINGS).repeat(depth);
                drop(bytes.splice(at..at, nested.bytes()));
            }
            4 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            5 => self.decimal(bytes, at),
            6 => self.binary(bytes, at),
            7 if end > at => bytes.swap(at, end - 1),
            8 if end > at => bytes[at] = *self.pick(&[&0, &0x7f, &0x80, &0xff, &b'"', &b'\\', &b'\n', &b' ']),
            _ if end > at => bytes[at] ^= 1 << self.below(8),
            _ => bytes.push(0),
        }
    }

    /// Puts another number in the place of the first one behind `at`.
    fn decimal(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let start = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()).unwrap_or(at);
        let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
        let number = self.pick(&NUMBERS);
        drop(bytes.splice(start..start + digits, number.bytes()));
    }

    /// Writes a large little-endian number over what lies at `at`.
    fn binary(&mut self, bytes: &mut [u8], at: usize) {
        let number = [1 << 31, u64::MAX, 1 << 50, 1 << 63, 1 << 24][self.below(5)].to_le_bytes();
        let width = [4, 8][self.below(2)];
        bytes[at..].iter_mut().zip(&number[..width]).for_each(|(byte, new)| *byte = *new);
    }
}
