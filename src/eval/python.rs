//! What the lm-evaluation-harness gets from Python: its random numbers and its notions of text. Few-shot draws and prompts depend on
//! them to the bit.

/// Python's `random.Random`: MT19937 (Matsumoto and Nishimura, 1998), seeded as CPython seeds it with an integer.
pub struct Random {
    state: [u32; N],
    index: usize,
}

const N: usize = 624;
const M: usize = 397;

impl Random {
    /// `random.Random(seed)`, for seeds below 2³².
    pub fn new(seed: u32) -> Self {
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        // `init_by_array` with a key of one word.
        let mut i = 1;
        for _ in 0..N {
            let previous = state[i - 1];
            state[i] = (state[i] ^ (previous ^ (previous >> 30)).wrapping_mul(1_664_525)).wrapping_add(seed);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let previous = state[i - 1];
            state[i] = (state[i] ^ (previous ^ (previous >> 30)).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, index: N }
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.index = 0;
    }

    pub fn u32(&mut self) -> u32 {
        if self.index == N {
            self.refill();
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: 53 bits in [0, 1).
    pub fn random(&mut self) -> f64 {
        let a = self.u32() >> 5;
        let b = self.u32() >> 6;
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// An integer below `m`, which is at least 1 and at most 2³².
    fn below(&mut self, m: u64) -> u64 {
        // `getrandbits` and rejection, as CPython does it: the same state must give the same draws.
        let bits = u64::BITS - m.leading_zeros();
        loop {
            let r = if bits > 32 { u64::from(self.u32()) } else { u64::from(self.u32() >> (32 - bits)) };
            if r < m {
                return r;
            }
        }
    }

    /// `sample(range(n), k)`; at most n.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        // CPython's estimate of when a list of all takes less memory than a set; it decides which numbers are drawn.
        let mut small = 21;
        if k > 5 {
            let mut power = 1;
            while power < 3 * k {
                power *= 4;
            }
            small += power;
        }
        if n <= small {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below((n - i) as u64) as usize;
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect();
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(k);
        let mut seen = std::collections::BTreeSet::new();
        while chosen.len() < k {
            let j = self.below(n as u64) as usize;
            if seen.insert(j) {
                chosen.push(j);
            }
        }
        chosen
    }
}

/// `str.isspace`: Unicode's White_Space and U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.lstrip()`.
pub fn lstrip(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// `str.rstrip()`.
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.capitalize()`: the first character in title case, the others in lower case.
pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    // The digraphs, whose title case is neither of the others.
    let title = match first {
        '\u{1c4}'..='\u{1c6}' => "\u{1c5}".to_owned(),
        '\u{1c7}'..='\u{1c9}' => "\u{1c8}".to_owned(),
        '\u{1ca}'..='\u{1cc}' => "\u{1cb}".to_owned(),
        '\u{1f1}'..='\u{1f3}' => "\u{1f2}".to_owned(),
        'ß' => "Ss".to_owned(),
        _ => first.to_uppercase().collect(),
    };
    // Lower-casing the whole text keeps the rule of the final sigma, which looks at what is before it.
    let lower = text.to_lowercase();
    let head: usize = first.to_lowercase().map(char::len_utf8).sum();
    title + lower.get(head..).unwrap_or_default()
}

/// Number of characters, as `len` counts them.
pub fn len(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pythons() {
        let mut random = Random::new(1234);
        let first: Vec<u32> = (0..4).map(|_| random.u32()).collect();
        assert_eq!(first, [4_150_886_329, 3_342_196_574, 1_892_932_127, 501_869_158]);
        let mut random = Random::new(1234);
        assert_eq!([random.random(), random.random()], [0.966_453_535_692_138_8, 0.440_732_599_175_352_7]);
        let mut random = Random::new(0);
        let choices: Vec<usize> = (0..8).map(|_| (random.random() * 10.0) as usize).collect();
        assert_eq!(choices, [8, 7, 4, 2, 5, 4, 7, 3]);
    }

    #[test]
    fn samples_are_pythons() {
        let known: [(usize, usize, &[usize], &[usize]); 7] = [
            (10, 5, &[7, 1, 0, 9, 4], &[0, 1, 8, 6, 2]),
            (60, 6, &[49, 28, 7, 0, 5, 51], &[37, 2, 42, 44, 5, 6]),
            (85, 6, &[56, 14, 0, 11, 74, 4], &[10, 12, 45, 30, 2, 3]),
            (86, 6, &[56, 14, 0, 11, 74, 4], &[85, 10, 12, 45, 30, 2]),
            (21, 5, &[14, 3, 0, 2, 1], &[2, 3, 11, 7, 0]),
            (22, 5, &[14, 3, 0, 2, 18], &[1, 21, 2, 3, 11]),
            (40398, 6, &[28883, 7657, 490, 5940, 38156, 2288], &[5500, 6450, 23241, 15519, 1142, 2019]),
        ];
        for (n, k, first, second) in known {
            let mut random = Random::new(1234);
            assert_eq!((random.sample(n, k), random.sample(n, k)), (first.to_vec(), second.to_vec()), "{n} {k}");
        }
        let large = Random::new(1234).sample(39905, 11);
        assert_eq!(large, [28883, 7657, 490, 5940, 38156, 2288, 5500, 6450, 23241, 15519, 1142]);
        assert_eq!(Random::new(1).sample(3, 9).len(), 3);
    }

    #[test]
    fn text_is_pythons() {
        assert_eq!(strip("\u{1c} a\u{a0}b\u{2003}\n\u{1f}"), "a\u{a0}b");
        assert_eq!((lstrip(" a "), rstrip(" a ")), ("a ", " a"));
        for (text, want) in [
            ("the DJ from Oslo", "The dj from oslo"),
            ("", ""),
            ("ΟΔΟΣ", "Οδος"),
            ("ǆabA", "ǅaba"),
            ("ßtraße", "Sstraße"),
            ("éA", "Éa"),
            ("[title] Go", "[title] go"),
        ] {
            assert_eq!(capitalize(text), want);
        }
        assert_eq!(len("añ😀"), 3);
    }
}
