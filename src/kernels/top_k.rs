//! The highest values of each row of logits, in order: the candidates that a sampler chooses from.
//!
//! Contract: row `i` of `n` belongs to the sequence that `state[row_seq_offset + i]` names. Its values are its logits
//! `[count]`.
//! The logit of a token whose bit is set in the sequence's row of `seen` `[sequences, seen_words]` is multiplied by
//! the sequence's penalty if it is negative, else by the penalty's inverse (repetition penalty). A chunk of [`CHUNK`]
//! values of a row gives a list of `k` values in descending order, the lowest index first among equals, as `[values'
//! bits, indices]` in row `i`, list `chunk` of `[n, groups, 2 k]`. A list of fewer values is filled up to `k` with
//! −1e30 at index `u32::MAX`. Each chunk also gives four sums `[n, groups, 4]`: the maximum `m`; `Σ exp((value − m) /
//! temperature)` over the chunk (1 if `k` is 1; a temperature of 0 counts as 1); 1 if a value is not finite, else 0;
//! and 0. A list with such a value is not specified.
//! With `merge`, the values and indices are those of a row's lists, all in one chunk. No two rounded numbers are
//! compared: the product with the penalty is the only arithmetic on a value.
//!
//! Bound: lists exact; sums 1e-5 relative.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::state;
use super::twin::{floats, slice, words};
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Values of a row that one list is made of.
pub const CHUNK: usize = 8192;
/// The most values of a list, and so the most candidates of a draw.
pub const MOST: usize = 128;
/// The most values of all lists of a row together: an index among them has 16 bits.
const MOST_MERGED: usize = 65_536;
/// The filler of a list that has fewer than `k` values.
pub(super) const LOWEST: f32 = -1.0e30;

/// Parameters of [`top_k`] and [`top_k_merge`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopKSpec {
    /// Values of a row; of a merge, those of all its lists.
    pub count: usize,
    /// Number of rows.
    pub n: usize,
    /// Length of a list: 1 or [`MOST`].
    pub k: usize,
    /// Whether the values are lists of a row, which are merged, rather than logits.
    pub merge: bool,
    /// Offset in the state, in words, of the list of the rows' sequences.
    pub row_seq_offset: usize,
    /// Words of a sequence's row of `seen`.
    pub seen_words: usize,
}

/// The highest values of each row of `logits` `[n, count]`: lists `[n lists 2 k]` and sums `[n lists, 4]`.
pub fn top_k(
    logits: &Tensor<2>,
    state: &Tensor<1, Int>,
    seen: &Tensor<1, Int>,
    spec: TopKSpec,
) -> (Tensor<1, Int>, Tensor<2>) {
    let [lists, sums] = run(&spec, [read(logits), read(state), read(seen)]);
    (Tensor::from_dispatch(lists), Tensor::from_dispatch(sums))
}

/// Merges the lists of each row into one: `[n 2 k]`.
pub fn top_k_merge(
    lists: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    seen: &Tensor<1, Int>,
    spec: TopKSpec,
) -> Tensor<1, Int> {
    let [merged] = run(&spec, [read(lists), read(state), read(seen)]);
    Tensor::from_dispatch(merged)
}

/// What a draw chooses from.
pub struct Candidates {
    /// The lists of each row: one, unless `k` is 1.
    pub lists: Tensor<1, Int>,
    /// Lists of a row.
    pub per_row: usize,
    /// The sums of the chunks of each row, as [`top_k`] gives them.
    pub sums: Tensor<2>,
}

/// [`top_k`], and [`top_k_merge`] where a row has several lists that can be merged.
pub fn candidates(logits: &Tensor<2>, state: &Tensor<1, Int>, seen: &Tensor<1, Int>, spec: TopKSpec) -> Candidates {
    let (lists, sums) = top_k(logits, state, seen, spec);
    match spec.merging() {
        Some(merging) => Candidates { lists: top_k_merge(&lists, state, seen, merging), per_row: 1, sums },
        None => Candidates { lists, per_row: spec.lists(), sums },
    }
}

uniform! {
    struct Info { count: u32, groups: u32, row_seq_offset: u32, seen_words: u32 }
}

impl TopKSpec {
    /// Lists of a row.
    pub fn lists(&self) -> usize {
        if self.merge { 1 } else { self.count.div_ceil(CHUNK) }
    }

    /// The spec of the merge, if a row has several lists.
    pub fn merging(&self) -> Option<Self> {
        (self.lists() > 1 && self.k > 1).then(|| Self { count: self.lists() * self.k, merge: true, ..*self })
    }

    fn chunk(&self) -> usize {
        if self.merge { MOST_MERGED } else { CHUNK }
    }

    fn variant(&self) -> Variant {
        let [k, chunk, merge] = [self.k, self.chunk(), self.merge as usize].map(|v| v as u32);
        let constants = [("THREADS", 256), ("K", k), ("CHUNK", chunk), ("MERGE", merge)];
        Variant::new::<Info>("top_k", include_str!("../../shaders/top_k.wgsl"), constants)
    }
}

impl Kernel<3, 2> for TopKSpec {
    fn launch(&self, [values, state, seen]: [CubeTensor; 3]) -> [CubeTensor; 2] {
        assert!(!self.merge || self.count <= MOST_MERGED, "a vocabulary of more than four million tokens");
        let lists = empty(&values, vec![self.n * self.lists() * 2 * self.k], DType::U32);
        let sums = empty(&values, vec![self.n * self.lists(), 4], DType::F32);
        let info = Info {
            count: self.count as u32,
            groups: self.lists() as u32,
            row_seq_offset: self.row_seq_offset as u32,
            seen_words: self.seen_words as u32,
        };
        let groups = [self.lists(), self.n, 1];
        launch(&self.variant(), groups, &[&values, &state, &seen, &lists, &sums], info);
        [lists, sums]
    }

    fn twin(&self, [values, state, seen]: [FlexTensor; 3]) -> [FlexTensor; 2] {
        let bits: Vec<u32> = match self.merge {
            true => slice(&values).to_vec(),
            false => slice::<f32>(&values).iter().map(|v| v.to_bits()).collect(),
        };
        let (lists, sums) = twin(&bits, slice(&state), slice(&seen), self);
        [words(lists), floats(sums, [self.n * self.lists(), 4])]
    }
}

/// The merge of a row's lists. The sums are discarded.
impl Kernel<3, 1> for TopKSpec {
    fn launch(&self, inputs: [CubeTensor; 3]) -> [CubeTensor; 1] {
        let [lists, _] = <Self as Kernel<3, 2>>::launch(self, inputs);
        [lists]
    }

    fn twin(&self, inputs: [FlexTensor; 3]) -> [FlexTensor; 1] {
        let [lists, _] = <Self as Kernel<3, 2>>::twin(self, inputs);
        [lists]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec = |k, merge| TopKSpec { count: 8, n: 1, k, merge, row_seq_offset: 0, seen_words: 1 };
    [1, MOST].into_iter().flat_map(|k| [false, true].map(|merge| spec(k, merge).variant())).collect()
}

/// Lists and sums, from the bits of logits or from lists.
fn twin(values: &[u32], st: &[u32], seen: &[u32], spec: &TopKSpec) -> (Vec<u32>, Vec<f32>) {
    let TopKSpec { count, k, .. } = *spec;
    let (mut lists, mut sums) = (Vec::new(), Vec::new());
    for row in 0..spec.n {
        let seq = st[spec.row_seq_offset + row] as usize;
        let header = &st[seq * state::SEQ..][..state::SEQ];
        let item = |i: usize| {
            if spec.merge {
                let from = row * count * 2 + i / k * 2 * k + i % k;
                return (f32::from_bits(values[from]), values[from + k]);
            }
            let value = f32::from_bits(values[row * count + i]);
            let was_seen = seen[seq * spec.seen_words + i / 32] >> (i % 32) & 1 == 1;
            let factor = header[if value.is_sign_negative() { state::PENALTY } else { state::RELIEF }];
            (if was_seen { value * f32::from_bits(factor) } else { value }, i as u32)
        };
        for begin in (0..count).step_by(spec.chunk()) {
            let mut items: Vec<(f32, u32)> = (begin..count.min(begin + spec.chunk())).map(item).collect();
            let highest = items.iter().fold(LOWEST, |m, (v, _)| m.max(*v));
            let temperature = f32::from_bits(header[state::TEMPERATURE]);
            let sharpness = if temperature > 0.0 { 1.0 / temperature as f64 } else { 1.0 };
            let mass: f64 = items.iter().map(|(v, _)| ((v - highest) as f64 * sharpness).exp()).sum();
            let broken = items.iter().any(|(v, _)| !v.is_finite());
            sums.extend([highest, if k == 1 { 1.0 } else { mass as f32 }, broken as u32 as f32, 0.0]);
            // The sort is stable: equal values stay in the order of their indices. Adding zero makes both zeros
            // equal.
            items.sort_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)));
            items.resize(items.len().max(k), (LOWEST, u32::MAX));
            lists.extend(items[..k].iter().map(|(v, _)| v.to_bits()));
            lists.extend(items[..k].iter().map(|(_, id)| *id));
        }
    }
    (lists, sums)
}

/// One value to several chunks, one beyond a chunk; both lengths; ties across chunks; penalties; rows in another
/// order.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (count, k, kind) in [
        (1, 1, "noise"),
        (320, MOST, "noise"),
        (90, MOST, "noise"),
        (1000, MOST, "ties"),
        (8193, 1, "ties"),
        (8193, MOST, "noise"),
        (20_011, MOST, "ties"),
        (16_384, MOST, "equal"),
        (9000, MOST, "low"),
    ] {
        let name = format!("{count} values, {k} of them, {kind}");
        cases.push(Case::new("top_k", name, move |device| {
            let (n, all) = (2, 3);
            let mut logits = noise(n * count, 12, 9.0);
            match kind {
                // Among thousands of values between −9 and 9 in steps of a quarter, hundreds are equal.
                "ties" => logits.iter_mut().for_each(|v| *v = (*v * 4.0).round() / 4.0 + 0.0),
                "equal" => logits.fill(-3.5),
                "low" => logits.iter_mut().for_each(|v| *v = *v * 1e3 - 1e6),
                _ => (),
            }
            let seen_words = count.div_ceil(32);
            let seen = (0..all * seen_words).map(|i| (i as u32).wrapping_mul(2_654_435_761)).collect();
            let state = StateBuilder::new(all, 1, 1).samplers(&[(0.0, 1.0), (0.7, 1.3), (1.5, 0.8)]).map(&[2, 1]);
            let spec = TopKSpec { count, n, k, merge: false, row_seq_offset: state.row_seq_offset(), seen_words };
            let (state, seen) = (device_words(state.build(), device), device_words(seen, device));
            let (lists, sums) = top_k(&device_floats(logits, n, count, device), &state, &seen, spec);
            let mut checks = Vec::new();
            if let Some(merging) = spec.merging() {
                checks.push(Check::u32("merged", top_k_merge(&lists, &state, &seen, merging), 2 * k, Bound::Exact));
            }
            checks.push(Check::u32("lists", lists, 2 * k, Bound::Exact));
            checks.push(Check::floats("sums", sums, Bound::Relative(1e-5)));
            checks
        }));
    }
    cases
}
