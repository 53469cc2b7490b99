//! Changes inputs without a fuzzer: for the short run in the ordinary tests.

/// Draws changes from a seed (SplitMix64).
pub struct Mutator(u64);

/// Texts that often matter to a reader.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "1e400",
    "NaN",
    "null",
    "18446744073709551615",
    "9223372036854775808",
    "[]",
    "{}",
    "\"\"",
    "true",
    "../x",
    "\u{0}",
    "\u{feff}",
    "GGUF",
    "a-00001-of-99999.gguf",
    "\\ud800",
    "[[[[[[[[[[[[[[[[",
    "{{ ",
    "{% for a in range(99999) %}",
    "<think>",
    "</think>",
    "tokens:",
    "🙂",
];

impl Mutator {
    /// The same seed gives the same changes.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A part of `data`.
    fn part(&mut self, data: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(data.len() + 1);
        let longest = 1 + self.below(32);
        start..start + self.below(longest).min(data.len() - start)
    }

    /// One of `seeds`, with one to eight changes.
    pub fn changed(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let part = self.part(&data);
            match self.below(8) {
                0 => drop(data.drain(part)),
                1 => {
                    let copy = data[part].to_vec();
                    let at = self.below(data.len() + 1);
                    data.splice(at..at, copy);
                }
                2 => {
                    let other = seeds[self.below(seeds.len())].clone();
                    let from = self.part(&other);
                    data.splice(part, other[from].iter().copied());
                }
                3 => drop(data.splice(part, WORDS[self.below(WORDS.len())].bytes())),
                4 => {
                    // A number becomes another one.
                    let digits = data.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit());
                    let digits: Vec<usize> = digits.map(|(at, _)| at).collect();
                    if !digits.is_empty() {
                        data[digits[self.below(digits.len())]] = b'0' + self.below(10) as u8;
                    }
                }
                5 => {
                    let most = self.below(data.len() + 1);
                    if self.below(8) == 0 {
                        data.truncate(most);
                    }
                }
                _ if !data.is_empty() => {
                    let (at, byte) = (self.below(data.len()), self.next() as u8);
                    data[at] = if self.below(2) == 0 { byte } else { data[at] ^ (1 << (byte % 8)) };
                }
                _ => {}
            }
        }
        data
    }
}
