//! The end of a step: draws each sequence's next tokens from their candidates and advances its state, on the device.
//!
//! Contract: row `i` of `n` belongs to the sequence that `state[row_seq_offset + i / chunk]` names. Its candidates
//! are those of [`top_k`](super::top_k()): one list of `k` in `lists` `[n, lists, 2 k]`, or, if `k` is 1, several. If
//! the sequence's temperature is 0 or `k` is 1, `token` is the first candidate, that of the earliest list among
//! equals. Otherwise the token is drawn as transformers draws it, one filter after the other:
//! - weights `exp((value − first) / temperature)`;
//! - **top-k**: the first k candidates, and those that equal the last of them. A k of 0, or above the list's length,
//!   keeps the whole list; the mass of the vocabulary outside the list is then known from `sums`;
//! - **top-p**: the fewest candidates whose mass reaches this share of the mass that is left, or of the vocabulary's
//!   mass if top-k kept the whole list;
//! - **min-p**: no candidate whose weight is below this share of the first one's, and none whose weight is 0 as an
//!   f32;
//! - of the remaining candidates, the one in whose part of the mass the lot falls.
//!
//! The lot is [`lot`]: Philox of the sequence's seed at its step. If the list was too short for the request, the
//! share of the requested mass outside it is stored in the state if it is the largest so far
//! ([`MISSED`](state::MISSED)), rounded to 1/1024.
//!
//! If a logit was not finite, `token` is [`BROKEN`](super::state::BROKEN). The token becomes the pending one; it
//! enters the ring of sampled ids at `step % ring`, and the sequence's row of `seen`. Then `step += 1`, `position +=
//! advance`, and every layer's `length += advance`. Sequences that are not named stay as they are.
//!
//! Without drafts, `chunk` is 1. With drafts, row `j` of a sequence's `chunk` was computed for the `j`-th token at
//! `state[drafts_offset + seq · DRAFTED]`, of which the first was the pending one. Rows are drawn one after the other,
//! each as in a step of its own, while `step` is below the sequence's [`LIMIT`](state::LIMIT) and the token just
//! drawn is the one that the next row was computed for. The others are left alone: what a sequence generates does not
//! depend on its drafts. (Leviathan et al. 2023, arXiv 2211.17192, accept a draft with a probability. Here it is
//! accepted if it is the token that the seed draws.)
//!
//! Bound: exact, unless the lot falls within 1e-5 of the boundary between two candidates, or the mass outside within
//! 1e-5 of a rounding boundary: masses are sums of rounded exponentials. The cases here avoid both.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::top_k::MOST;
use super::twin::{slice, slice_mut};
use super::uniform::uniform;
use super::variant::Variant;
use super::{Candidates, TopKSpec, candidates, state};
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};

/// The rows of a step with drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftRows {
    /// Rows of each sequence: at most [`DRAFTED`](state::DRAFTED).
    pub chunk: usize,
    /// Offset in the state, in words, of the tokens that were forwarded, [`DRAFTED`](state::DRAFTED) for each sequence.
    pub drafts_offset: usize,
}

/// Parameters of [`sample`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSpec {
    /// Rows, all sequences together.
    pub n: usize,
    /// The rows of each sequence, if there are drafts. `None`: one row.
    pub drafts: Option<DraftRows>,
    /// Length of a list.
    pub k: usize,
    /// Lists of a row.
    pub lists: usize,
    /// Number of chunks of a row: each has one group of sums.
    pub chunks: usize,
    /// Offset in the state, in words, of the list of the rows' sequences.
    pub row_seq_offset: usize,
    /// Number of layers in the state.
    pub layers: usize,
    /// Number of sequences in the state.
    pub all_seqs: usize,
    /// Number of entries of the ring.
    pub ring: usize,
    /// By how much lengths and positions grow: 1 for a decode step, 0 if the host has written them already.
    pub advance: usize,
    /// Words of a sequence's row of `seen`.
    pub seen_words: usize,
}

/// Draws the next tokens and writes them to `state` and `seen`, in place. Returns both.
pub fn sample(
    lists: &Tensor<1, Int>,
    sums: &Tensor<2>,
    state: Tensor<1, Int>,
    seen: Tensor<1, Int>,
    spec: SampleSpec,
) -> (Tensor<1, Int>, Tensor<1, Int>) {
    let [state, seen] = run(&spec, [read(lists), read(sums), state.into_dispatch(), seen.into_dispatch()]);
    (Tensor::from_dispatch(state), Tensor::from_dispatch(seen))
}

uniform! {
    struct Info {
        lists: u32, groups: u32, layers: u32, all_seqs: u32, ring: u32, advance: u32, row_seq_offset: u32, seen_words: u32,
        chunk: u32, drafts_offset: u32, pad0: u32, pad1: u32,
    }
}

impl SampleSpec {
    fn variant(&self) -> Variant {
        let constants = [("THREADS", MOST as u32), ("K", self.k as u32), ("DRAFTS", self.drafts.is_some() as u32)];
        Variant::new::<Info>("sample", include_str!("../../shaders/sample.wgsl"), constants)
    }
}

impl Kernel<4, 2> for SampleSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(2, "the state"), (3, "the seen tokens")];

    fn launch(&self, [lists, sums, state, seen]: [CubeTensor; 4]) -> [CubeTensor; 2] {
        let DraftRows { chunk, drafts_offset } = self.drafts.unwrap_or(DraftRows { chunk: 1, drafts_offset: 0 });
        let info = Info {
            lists: self.lists as u32,
            groups: self.chunks as u32,
            layers: self.layers as u32,
            all_seqs: self.all_seqs as u32,
            ring: self.ring as u32,
            advance: self.advance as u32,
            row_seq_offset: self.row_seq_offset as u32,
            seen_words: self.seen_words as u32,
            chunk: chunk as u32,
            drafts_offset: drafts_offset as u32,
            pad0: 0,
            pad1: 0,
        };
        launch(&self.variant(), [self.n / chunk, 1, 1], &[&lists, &sums, &state, &seen], info);
        [state, seen]
    }

    fn twin(&self, [lists, sums, mut state, mut seen]: [FlexTensor; 4]) -> [FlexTensor; 2] {
        twin(slice(&lists), slice(&sums), slice_mut(&mut state), slice_mut(&mut seen), self);
        [state, seen]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec = |k, drafts| SampleSpec {
        n: 1,
        drafts,
        k,
        lists: 1,
        chunks: 1,
        row_seq_offset: 0,
        layers: 1,
        all_seqs: 1,
        ring: 1,
        advance: 1,
        seen_words: 1,
    };
    let drafts = [None, Some(DraftRows { chunk: 1, drafts_offset: 0 })];
    drafts.into_iter().flat_map(|drafts| [1, MOST].map(|k| spec(k, drafts).variant())).collect()
}

/// The first word of Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC
/// 2011) with `seed` for its key and `step` for its counter.
pub fn philox(seed: u64, step: u32) -> u32 {
    philox_4x32([step, 0, 0, 0], [seed as u32, (seed >> 32) as u32])[0]
}

fn philox_4x32(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| (a as u64 * b as u64) as u32;
    let high = |a: u32, b: u32| ((a as u64 * b as u64) >> 32) as u32;
    let (m0, m1) = (0xd251_1f53, 0xcd9e_8d57);
    for _ in 0..10 {
        c = [high(m1, c[2]) ^ c[1] ^ k[0], product(m1, c[2]), high(m0, c[0]) ^ c[3] ^ k[1], product(m0, c[0])];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

/// The lot that decides step `step` of a sequence with this seed, in [0, 1): a multiple of 2⁻²⁴, uniform.
pub fn lot(seed: u64, step: u32) -> f64 {
    (philox(seed, step) >> 8) as f64 / (1 << 24) as f64
}

fn twin(lists: &[u32], sums: &[f32], st: &mut [u32], seen: &mut [u32], spec: &SampleSpec) {
    let SampleSpec { k, .. } = *spec;
    let tables = spec.all_seqs * state::SEQ;
    let rings = tables + spec.layers * spec.all_seqs * state::ROW;
    let mut rows_drawn = 0;
    let DraftRows { chunk, drafts_offset } = spec.drafts.unwrap_or(DraftRows { chunk: 1, drafts_offset: 0 });
    for row in 0..spec.n {
        let (seq, j) = (st[spec.row_seq_offset + row / chunk] as usize, row % chunk);
        let header = seq * state::SEQ;
        if spec.drafts.is_some() {
            let forwarded = &st[drafts_offset + seq * state::DRAFTED..];
            // The first row was computed for the pending token, whatever it is. A row behind one that was not drawn
            // cannot be drawn: the pending token is then not the one it was computed for, or the limit is reached.
            let computed_for_pending = j == 0 || rows_drawn == j && forwarded[j] == st[header + state::TOKEN];
            if j == 0 {
                rows_drawn = 0;
            }
            if !computed_for_pending || st[header + state::STEP] >= st[header + state::LIMIT] {
                continue;
            }
            rows_drawn += 1;
        }
        let lists = &lists[row * spec.lists * 2 * k..][..spec.lists * 2 * k];
        let sums = &sums[row * spec.chunks * 4..][..spec.chunks * 4];
        let temperature = f32::from_bits(st[header + state::TEMPERATURE]) as f64;
        let token = if sums.chunks_exact(4).any(|s| s[2] != 0.0) {
            state::BROKEN
        } else if k == 1 || temperature == 0.0 {
            let mut best = 0;
            for list in 1..spec.lists {
                if f32::from_bits(lists[list * 2 * k]) > f32::from_bits(lists[best * 2 * k]) {
                    best = list;
                }
            }
            lists[best * 2 * k + k]
        } else {
            let (drawn, missed) = draw(lists, sums, &st[header..header + state::SEQ], k);
            let most = missed.max(f32::from_bits(st[header + state::MISSED]));
            st[header + state::MISSED] = most.to_bits();
            drawn
        };
        for layer in 0..spec.layers {
            st[tables + (layer * spec.all_seqs + seq) * state::ROW + state::LEN] += spec.advance as u32;
        }
        let step = st[header + state::STEP];
        st[rings + seq * spec.ring + step as usize % spec.ring] = token;
        st[header + state::STEP] = step + 1;
        st[header + state::TOKEN] = token;
        st[header + state::POSITION] += spec.advance as u32;
        if (token as usize / 32) < spec.seen_words {
            seen[seq * spec.seen_words + token as usize / 32] |= 1 << (token % 32);
        }
    }
}

/// The token drawn from a list, and the share of the requested mass outside it.
fn draw(list: &[u32], sums: &[f32], header: &[u32], k: usize) -> (u32, f32) {
    let float = |word: usize| f32::from_bits(header[word]) as f64;
    let temperature = float(state::TEMPERATURE);
    let (values, ids) = list.split_at(k);
    let values: Vec<f64> = values.iter().map(|v| f32::from_bits(*v) as f64).collect();
    let count = ids.iter().take_while(|id| **id != u32::MAX).count();
    let weights: Vec<f64> = values[..count].iter().map(|v| ((v - values[0]) / temperature).exp()).collect();
    let asked = header[state::TOP_K] as usize;
    let all = asked == 0 || asked > k;
    let mut kept = count;
    if !all && asked < count {
        kept = (asked..count).find(|&j| values[j] != values[asked - 1]).unwrap_or(count);
    }
    let mut total: f64 = weights[..kept].iter().sum();
    if all {
        let highest = sums.chunks_exact(4).fold(f32::MIN, |m, s| m.max(s[0])) as f64;
        let mass = |s: &[f32]| s[1] as f64 * ((s[0] as f64 - highest) / temperature).exp();
        total = total.max(sums.chunks_exact(4).map(mass).sum());
    }
    let (top_p, min_p) = (float(state::TOP_P), float(state::MIN_P));
    let (mut mass, mut chosen) = (weights[0], 1);
    while chosen < kept
        && weights[chosen] as f32 > 0.0
        && weights[chosen] >= min_p
        && (top_p >= 1.0 || mass < top_p * total)
    {
        mass += weights[chosen];
        chosen += 1;
    }
    let short = all && chosen == k;
    let missed =
        if short { ((1.0 - mass / (top_p.min(1.0) * total)).max(0.0) * 1024.0 + 0.5).floor() / 1024.0 } else { 0.0 };
    let seed = header[state::SEED_LOW] as u64 | (header[state::SEED_HIGH] as u64) << 32;
    let target = lot(seed, header[state::STEP]) * mass;
    let mut upto = 0.0;
    let drawn = weights[..chosen].iter().position(|weight| {
        upto += weight;
        upto > target
    });
    (ids[drawn.unwrap_or(chosen - 1)], missed as f32)
}

/// From logits to the next state: small and large vocabularies, ties, all equal, very negative logits, NaN and
/// infinities, a sequence that is not named; greedily, and with every setting of a sampler.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let logits = [
        (1, "none"),
        (320, "none"),
        (1000, "tie"),
        (257, "equal"),
        (512, "nan"),
        (300, "inf"),
        (5000, "low"),
        (9001, "none"),
        (16_384, "equal"),
        (9001, "nan"),
    ];
    for (vocab, fault) in logits {
        for (k, advance) in [(1, 0), (1, 1), (MOST, 0), (MOST, 1)] {
            let name = format!("vocab {vocab} fault {fault} candidates {k} advance {advance}");
            cases.push(Case::new("sample", name, move |device| {
                let (all_seqs, n, layers, ring) = (8, 6, 2, 5);
                let mut logits = noise(n * vocab, 12, 9.0);
                match fault {
                    "tie" => [17, 900, 400, 1999].iter().for_each(|&i| logits[i] = 10.0),
                    "equal" => logits.fill(-3.5),
                    "nan" => logits[vocab + 300] = f32::NAN,
                    "inf" => logits[2] = f32::INFINITY,
                    "low" => logits.iter_mut().for_each(|v| *v = *v * 1e3 - 1e6),
                    _ => (),
                }
                let seen_words = vocab.div_ceil(32);
                let seen = (0..all_seqs * seen_words).map(|i| (i as u32).wrapping_mul(2_654_435_761)).collect();
                // temperature, penalty, top-k, top-p, min-p: greedy, all, and each alone.
                let samplers = [
                    (0.0, 1.0, 0, 1.0, 0.0),
                    (1.0, 1.0, 0, 1.0, 0.0),
                    (0.6, 1.0, 50, 0.95, 0.0),
                    (0.8, 1.1, 3, 1.0, 0.0),
                    (1.3, 0.9, 0, 0.5, 0.0),
                    (2.0, 1.0, 100, 1.0, 0.3),
                    (0.0, 1.5, 7, 0.9, 0.1),
                    (0.7, 1.2, 20, 0.8, 0.05),
                ];
                let state = StateBuilder::new(all_seqs, layers, 1)
                    .ring(ring)
                    .positions(&[3, 4, 5, 6, 7, 8, 9, 10])
                    .steps(&[4, 5, 0, 9, 1, 77, 6, 1000])
                    .lens(0, &[1, 2, 3, 4, 5, 6, 7, 8], &[9; 8])
                    .lens(1, &[4, 5, 6, 7, 8, 1, 2, 3], &[9; 8])
                    .full_samplers(&samplers)
                    .map(&[3, 0, 2, 5, 7, if advance == 0 { 1 } else { 4 }]);
                let row_seq_offset = state.row_seq_offset();
                let spec = TopKSpec { count: vocab, n, k, merge: false, row_seq_offset, seen_words };
                let (state, seen) = (device_words(state.build(), device), device_words(seen, device));
                let chunks = spec.lists();
                let logits = device_floats(logits, n, vocab, device);
                let Candidates { lists, per_row, sums } = candidates(&logits, &state, &seen, spec);
                let spec = SampleSpec {
                    n,
                    drafts: None,
                    k,
                    lists: per_row,
                    chunks,
                    row_seq_offset,
                    layers,
                    all_seqs,
                    ring,
                    advance,
                    seen_words,
                };
                let (state, seen) = sample(&lists, &sums, state, seen, spec);
                vec![Check::u32("state", state, 1, Bound::Exact), Check::u32("seen", seen, 1, Bound::Exact)]
            }));
        }
    }
    cases.extend([1, MOST].into_iter().flat_map(|k| [0, 1].map(|advance| case_with_drafts(k, advance))));
    cases
}

/// Steps with drafts of sequences that take all their drafts, none, and some; one that reaches its limit in the middle,
/// one that has reached it before, and one whose second row is broken. Each row has one token that is by far the most
/// likely, so that it is known which drafts are confirmed.
fn case_with_drafts(k: usize, advance: usize) -> Case {
    Case::new("sample", format!("drafts candidates {k} advance {advance}"), move |device| {
        let (vocab, chunk, order) = (700, 4, [5, 0, 3, 1, 4, 2]);
        let (all_seqs, n, layers, ring) = (6, order.len() * chunk, 2, 5);
        let likely = |row: usize| (row * 37 + 11) % vocab;
        let mut logits = noise(n * vocab, 12, 3.0);
        let mut drafts = vec![0u32; all_seqs * state::DRAFTED];
        for (i, seq) in order.into_iter().enumerate() {
            for j in 0..chunk {
                logits[(i * chunk + j) * vocab + likely(i * chunk + j)] = 90.0;
                // The draft at place j + 1 is the token of row j, except where a sequence misses it.
                let missed = (seq, j) == (0, 0) || (seq, j) == (1, 2);
                drafts[seq * state::DRAFTED + j + 1] = (likely(i * chunk + j) + usize::from(missed)) as u32;
            }
        }
        // The sequence 2 is the last of the order.
        logits[(5 * chunk + 1) * vocab + 3] = f32::NAN;
        let seen_words = vocab.div_ceil(32);
        let samplers = [0.0, 0.7, 0.0, 0.6, 1.0, 0.0].map(|temperature| (temperature, 1.0, 0, 0.95, 0.0));
        let state = StateBuilder::new(all_seqs, layers, 1)
            .ring(ring)
            .positions(&[3, 4, 5, 6, 7, 8])
            .steps(&[4, 5, 0, 9, 1, 77])
            .lens(0, &[1, 2, 3, 4, 5, 6], &[9; 6])
            .lens(1, &[4, 5, 6, 7, 8, 1], &[9; 6])
            .full_samplers(&samplers)
            .limits(&[1000, 1000, 1000, 11, 1, 1000])
            .map(&order)
            .drafts(&drafts);
        let (row_seq_offset, drafts_offset) = (state.row_seq_offset(), state.drafts_offset());
        let (words, rows) = (state.build(), order.iter().flat_map(|seq| [*seq as u32; 4]).collect::<Vec<_>>());
        // The kernel before it reads the sequence of each row, so its rows are listed one by one, behind the state.
        let listed = words.len();
        let listing = device_words([words.clone(), rows].concat(), device);
        let seen = device_words(vec![0; all_seqs * seen_words], device);
        let spec = TopKSpec { count: vocab, n, k, merge: false, row_seq_offset: listed, seen_words };
        let chunks = spec.lists();
        let logits = device_floats(logits, n, vocab, device);
        let Candidates { lists, per_row, sums } = candidates(&logits, &listing, &seen, spec);
        let spec = SampleSpec {
            n,
            drafts: Some(DraftRows { chunk, drafts_offset }),
            k,
            lists: per_row,
            chunks,
            row_seq_offset,
            layers,
            all_seqs,
            ring,
            advance,
            seen_words,
        };
        let (state, seen) = sample(&lists, &sums, device_words(words, device), seen, spec);
        vec![Check::u32("state", state, 1, Bound::Exact), Check::u32("seen", seen, 1, Bound::Exact)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with Random123, the authors' library (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, answer) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox_4x32(counter, key), answer);
        }
        assert_eq!(philox(0, 0), 0x6627_e8d5);
        assert!((0..1000).all(|step| (0.0..1.0).contains(&lot(7, step))));
    }

    /// How many tokens each sequence of the case with drafts gets, counted by hand.
    #[test]
    fn drafts_are_taken_as_far_as_they_are_what_is_drawn() {
        let device = crate::device::ComputeDevice::cpu();
        let before = [4, 5, 0, 9, 1, 77];
        // All four; one, because its first draft is wrong; three; two up to its limit; none; two, the second broken.
        let drawn = [(5, 4), (0, 1), (1, 3), (3, 2), (4, 0), (2, 2)];
        for k in [1, MOST] {
            let checks = case_with_drafts(k, 1).run(&device.burn);
            let state = pollster::block_on(checks[0].read()).expect("the CPU can be read");
            for (seq, tokens) in drawn {
                let header = &state[seq * state::SEQ..][..state::SEQ];
                assert_eq!(header[state::STEP], before[seq] + tokens, "sequence {seq}");
                assert_eq!(header[state::POSITION], 3 + seq as u32 + tokens, "sequence {seq}");
                assert_eq!(header[state::TOKEN] == state::BROKEN, seq == 2, "sequence {seq}");
            }
        }
    }
}
