//! The problems of the built-in reasoner's task, letter for letter those of `models/train/task.py`: the same splits
//! in the same order, so that results here can be compared with those of the PyTorch code. Training never uses them.
//!
//! The problems depend on Python's random number generator, so this module implements it.
use ring::digest::{SHA512, digest};

use super::Problem;

/// A split of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// 4 to 6 facts, at most one of which changes an earlier value.
    Normal,
    /// 10 to 12 facts, of which one to three change an earlier value, with operands from anywhere.
    Hard,
}

struct Shape {
    name: &'static str,
    seed: usize,
    facts: (u32, u32),
    updates: (u32, u32),
    far: bool,
}

impl Split {
    fn shape(self) -> Shape {
        match self {
            Self::Normal => Shape { name: "normal", seed: 11_000, facts: (4, 6), updates: (0, 1), far: false },
            Self::Hard => Shape { name: "hard", seed: 77_000, facts: (10, 12), updates: (1, 3), far: true },
        }
    }
}

/// `count` problems of a split, after the first `skip`.
pub fn problems(split: Split, skip: usize, count: usize) -> Vec<Problem> {
    let shape = split.shape();
    let problem = |index: usize| {
        let mut random = Python::seeded(&format!("{}-{}", shape.name, shape.seed + index));
        let facts = random.within(shape.facts.0, shape.facts.1 + 1);
        let updates = random.within(shape.updates.0, shape.updates.1 + 1);
        let (question, answer) = make(&mut random, facts as usize, updates, shape.far);
        Problem { id: format!("{}-{index}", shape.name), question, answer: answer.to_string() }
    };
    (skip..skip.saturating_add(count)).map(problem).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Operand {
    Letter(char),
    Digit(u32),
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Letter(letter) => letter.fmt(f),
            Self::Digit(digit) => digit.fmt(f),
        }
    }
}

/// `letter` becomes `left` plus or minus `right`, or the constant `right`.
struct Fact {
    letter: char,
    plus: bool,
    left: Option<char>,
    right: Operand,
}

impl Fact {
    fn operands(&self) -> impl Iterator<Item = char> {
        let right = if let Operand::Letter(letter) = self.right { Some(letter) } else { None };
        self.left.into_iter().chain(right)
    }

    fn worded(&self, random: &mut Python) -> String {
        let Self { letter: x, plus, left, right: z } = self;
        let Some(y) = left else { return format!("{x} {} {z}.", random.choice(&["is", "starts at", "equals"])) };
        if x == y {
            return format!(
                "{x} {} by {z}.",
                random.choice(if *plus { &["grows", "rises"] } else { &["drops", "falls"] })
            );
        }
        let op = if *plus { "plus" } else { "minus" };
        match random.below(3) {
            0 => format!("{x} is {y} {op} {z}."),
            1 => format!("{x} equals {y} {op} {z}."),
            _ => format!("{x} {} {y} by {z}.", if *plus { "exceeds" } else { "trails" }),
        }
    }
}

/// One problem and its answer. The order of the draws is that of `make_problem` in `task.py`.
fn make(random: &mut Python, n: usize, updates: u32, far: bool) -> (String, u32) {
    loop {
        let (facts, target) = draw(random, n, updates, far);
        let Some(last) = facts.iter().rposition(|fact| fact.letter == target).filter(|i| facts[*i].left.is_some())
        else {
            continue;
        };
        // Most facts must matter. Otherwise a short path would answer a long problem.
        let (mut matter, mut needed) = (0, vec![target]);
        for fact in facts[..=last].iter().rev() {
            if needed.contains(&fact.letter) {
                matter += 1;
                needed.retain(|letter| *letter != fact.letter);
                needed.extend(fact.operands());
            }
        }
        if (matter as f64) < 0.6 * n as f64 {
            continue;
        }
        let mut values = std::collections::HashMap::new();
        for fact in &facts[..=last] {
            let of = |letter: &char| values.get(letter).copied().unwrap_or(0);
            let right = match &fact.right {
                Operand::Letter(letter) => of(letter),
                Operand::Digit(digit) => *digit,
            };
            let value = match (&fact.left, fact.plus) {
                (None, _) => right,
                (Some(left), true) => (of(left) + right) % 10,
                (Some(left), false) => (10 + of(left) - right) % 10,
            };
            values.insert(fact.letter, value);
        }
        let body: Vec<String> =
            facts.iter().enumerate().map(|(i, fact)| format!("#{} {}", i + 1, fact.worded(random))).collect();
        return (format!("We count modulo 10. {} What is {target}?", body.join(" ")), values[&target]);
    }
}

fn draw(random: &mut Python, n: usize, mut updates: u32, far: bool) -> (Vec<Fact>, char) {
    let all: Vec<char> = "abcdefghkmnprstw".chars().collect();
    let mut letters = random.sample(&all, all.len());
    let givens = if n <= 3 {
        1
    } else if n <= 8 {
        2
    } else {
        3
    };
    let places: Vec<usize> = (1..(n - 1).max(2)).collect();
    let given_at = random.sample(&places, (givens - 1).min((n - 2).max(1)));
    let (mut facts, mut known): (Vec<Fact>, Vec<char>) = (Vec::new(), Vec::new());
    let operand = |random: &mut Python, known: &[char], but: Option<char>| {
        let pool: Vec<char> = known.iter().copied().filter(|letter| Some(*letter) != but).collect();
        let near = !far && pool.len() > 3 && random.real() < 0.6;
        *random.choice(if near { &pool[pool.len() - 3..] } else { &pool })
    };
    for i in 0..n {
        let right = |random: &mut Python, known: &[char], left: char, share: f64| {
            if known.len() > 1 && random.real() < share {
                Operand::Letter(operand(random, known, Some(left)))
            } else {
                Operand::Digit(random.within(1, 10))
            }
        };
        let fact = if i == 0 || given_at.contains(&i) {
            let letter = letters.pop().unwrap_or('a');
            Fact { letter, plus: true, left: None, right: Operand::Digit(random.within(0, 10)) }
        } else if updates > 0 && i >= 2 && random.real() < f64::from(updates) / (n - i) as f64 {
            let x = operand(random, &known, None);
            let right = right(random, &known, x, 0.3);
            updates -= 1;
            Fact { letter: x, plus: random.below(2) == 0, left: Some(x), right }
        } else {
            let y = operand(random, &known, None);
            let right = right(random, &known, y, 0.5);
            let letter = letters.pop().unwrap_or('a');
            Fact { letter, plus: random.below(2) == 0, left: Some(y), right }
        };
        known.retain(|letter| *letter != fact.letter);
        known.push(fact.letter);
        facts.push(fact);
    }
    let before_last = n > 4 && random.real() < 0.15;
    let target = facts[if before_last { n - 2 } else { n - 1 }].letter;
    (facts, target)
}

/// `random.Random` of Python 3: the Mersenne Twister MT19937, seeded by a text.
struct Python {
    state: [u32; 624],
    next: usize,
}

impl Python {
    /// `random.Random(text)`: the number whose bytes are the text and its SHA-512.
    fn seeded(text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.extend_from_slice(digest(&SHA512, text.as_bytes()).as_ref());
        bytes.reverse();
        let word = |part: &[u8]| part.iter().rev().fold(0, |word: u32, byte| word << 8 | u32::from(*byte));
        let mut key: Vec<u32> = bytes.chunks(4).map(word).collect();
        while key.len() > 1 && key.last() == Some(&0) {
            key.pop();
        }
        // Matsumoto and Nishimura's `init_by_array`.
        let mut state = [0; 624];
        state[0] = 19_650_218u32;
        for i in 1..624 {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ state[i - 1] >> 30).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        let mix = |state: &[u32; 624], i: usize, factor: u32| (state[i - 1] ^ state[i - 1] >> 30).wrapping_mul(factor);
        for _ in 0..624.max(key.len()) {
            state[i] = (state[i] ^ mix(&state, i, 1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            (i, j) = (i + 1, (j + 1) % key.len());
            if i == 624 {
                state[0] = state[623];
                i = 1;
            }
        }
        for _ in 0..623 {
            state[i] = (state[i] ^ mix(&state, i, 1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i == 624 {
                state[0] = state[623];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, next: 624 }
    }

    fn word(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % 624] & 0x7fff_ffff;
                let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[i] = self.state[(i + 397) % 624] ^ y >> 1 ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// `random()`.
    fn real(&mut self) -> f64 {
        let (a, b) = (self.word() >> 5, self.word() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `randrange(n)`, for n of at least 1.
    fn below(&mut self, n: u32) -> u32 {
        let bits = 32 - n.leading_zeros();
        loop {
            let drawn = self.word() >> (32 - bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `randrange(from, to)`.
    fn within(&mut self, from: u32, to: u32) -> u32 {
        from + self.below(to - from)
    }

    fn choice<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u32) as usize]
    }

    /// `sample(from, count)`, for the short lists for which Python draws from a shrinking copy.
    fn sample<T: Copy>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut pool = from.to_vec();
        let draw = |left: usize| {
            let drawn = self.below(left as u32) as usize;
            pool.swap_remove(drawn)
        };
        (0..count).map(|taken| from.len() - taken).map(draw).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `models/train/task.py` gives the same texts; the hashes are of its first 500 problems of each split.
    #[test]
    fn they_are_those_of_the_python_code() {
        let first = &problems(Split::Normal, 0, 1)[0];
        let question =
            "We count modulo 10. #1 f is 5. #2 d starts at 7. #3 k is d minus f. #4 g is k plus d. What is g?";
        assert_eq!((first.question.as_str(), first.answer.as_str()), (question, "9"));
        assert_eq!(first.id, "normal-0");
        for (split, hash) in [
            (Split::Normal, "99f4ce2d151c8ce93ff0feafdc1ff959e0330e8d4daa7906bf13804bed2c1064"),
            (Split::Hard, "7b0788d12d5929c8fb5f1695f0882c685d09ae52c018c08ba2191d60bfcfc82e"),
        ] {
            assert_eq!(super::super::calibrate::hash(&problems(split, 0, 500)), hash);
        }
        assert_eq!(problems(Split::Hard, 7, 2), problems(Split::Hard, 0, 9)[7..]);
    }
}
