//! The conformance cases: one list for every backend. A case makes its inputs, runs a kernel on a given device and
//! names the outputs to compare. On the CPU the outputs are those of the twin, with which the outputs of GPUs are
//! compared.
use crate::device::ProcessorKind;
use crate::dtype::Dtype;
use burn::tensor::{Device, Int, Tensor};

use super::memory::POISON_WORD;
use super::readback::{as_f32, as_u32, read_f32, read_u32};
use super::{Mode, f32_tensor, state, u32_tensor};
use crate::Result;
use crate::weights::{PackedRows, blocks};

/// How far a result may differ from the twin's. Every comparison accepts only `error <= bound`, so NaN fails. Each
/// row is compared by itself, so that one wrong head cannot hide in an average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Bit for bit.
    Exact,
    /// Absolute difference.
    Absolute(f64),
    /// Difference relative to the largest value of the row.
    Relative(f64),
    /// Difference relative to the largest value of the row and √terms: sums of `terms` products in any order.
    RelativeSum {
        /// The factor of √terms.
        factor: f64,
        /// Products in a sum.
        terms: usize,
    },
    /// Difference relative to 1 + |value|.
    Mixed(f64),
    /// u32 words that hold f32 values: difference relative to 1 + |value|, but exact where the twin's word is not a
    /// number.
    FloatWords(f64),
    /// u32 words that hold two f16 values each: units in the last place. Sentinels must be equal.
    HalfUlps(u32),
}

impl Bound {
    /// The tolerance as a number, for the conformance table.
    pub fn value(&self) -> f64 {
        match *self {
            Bound::Exact => 0.0,
            Bound::Absolute(v) | Bound::Relative(v) | Bound::Mixed(v) | Bound::FloatWords(v) => v,
            Bound::RelativeSum { factor, terms } => factor * (terms as f64).sqrt(),
            Bound::HalfUlps(n) => n as f64,
        }
    }
}

/// An output of a case, and its bound.
pub struct Check {
    /// Name of the output.
    pub name: &'static str,
    /// Values in a row.
    pub row: usize,
    /// The bound of the comparison.
    pub bound: Bound,
    data: Data,
}

enum Data {
    Floats(Tensor<2>),
    U32(Tensor<1, Int>),
}

impl Check {
    /// An f32 output `[rows, row]`.
    pub fn floats(name: &'static str, tensor: Tensor<2>, bound: Bound) -> Self {
        Self { name, row: tensor.dims()[1], bound, data: Data::Floats(tensor) }
    }

    /// A u32 output with `row` words a row.
    pub fn u32(name: &'static str, tensor: Tensor<1, Int>, row: usize, bound: Bound) -> Self {
        Self { name, row, bound, data: Data::U32(tensor) }
    }

    /// The output's words, floats as their bits.
    pub async fn read(&self) -> Result<Vec<u32>> {
        Ok(match &self.data {
            Data::Floats(t) => as_f32(&read_f32(&[t]).await?[0]).iter().map(|v| v.to_bits()).collect(),
            Data::U32(t) => as_u32(&read_u32(&[t]).await?[0]),
        })
    }
}

type Run = Box<dyn Fn(&Device) -> Vec<Check> + Send + Sync>;

/// One run of one kernel.
pub struct Case {
    /// The name of the kernel: the stem of its files.
    pub kernel: &'static str,
    /// The parameters of the run, for people.
    pub name: String,
    /// The kind of device that the shader is tiled for, if there is one.
    pub tiled_for: Option<ProcessorKind>,
    /// How a product writes its output, if the kernel is one.
    pub mode: Option<Mode>,
    /// Whether a product normalises the rows that it reads.
    pub normed: bool,
    run: Run,
}

impl Case {
    pub(super) fn new(
        kernel: &'static str,
        name: String,
        run: impl Fn(&Device) -> Vec<Check> + Send + Sync + 'static,
    ) -> Self {
        Self { kernel, name, tiled_for: None, mode: None, normed: false, run: Box::new(run) }
    }

    /// The same case, of a shader that is tiled for this kind of device.
    pub(super) fn tiled_for(self, kind: ProcessorKind) -> Self {
        Self { tiled_for: Some(kind), ..self }
    }

    /// The same case, of a product that writes in this way, and that normalises what it reads or not.
    pub(super) fn in_mode(self, mode: Mode, normed: bool) -> Self {
        Self { mode: Some(mode), normed, ..self }
    }

    /// Runs the kernel on `device` and returns its outputs with their bounds.
    pub fn run(&self, device: &Device) -> Vec<Check> {
        (self.run)(device)
    }
}

/// Every case of every kernel.
pub fn all() -> Vec<Case> {
    super::KERNELS.iter().flat_map(|kernel| (kernel.cases)()).collect()
}

/// The worst error of `found` against `expected`, as a fraction of the bound (≤ 1 passes). Both are u32 words; floats
/// are given by their bits. A word that is poison in `expected` (a sentinel) must be poison in `found`.
///
/// # Errors
/// The first place where `found` is wrong.
pub fn compare(expected: &[u32], found: &[u32], row: usize, bound: Bound) -> std::result::Result<f64, String> {
    if expected.len() != found.len() {
        return Err(format!("{} words, expected {}", found.len(), expected.len()));
    }
    let mut worst = 0f64;
    for (r, (want, got)) in expected.chunks(row).zip(found.chunks(row)).enumerate() {
        let largest =
            want.iter().map(|w| f32::from_bits(*w)).filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs() as f64));
        for (c, (&w, &g)) in want.iter().zip(got).enumerate() {
            if w == g {
                continue;
            }
            let place = || format!("row {r} column {c}: {}", describe(w, g));
            let error = match bound {
                _ if w == POISON_WORD => {
                    return Err(format!("{}: written, although the kernel must not write there", place()));
                }
                Bound::Exact => return Err(place()),
                Bound::HalfUlps(most) => half_ulps(w, g) as f64 / most as f64,
                _ => {
                    let (w, g) = (f32::from_bits(w) as f64, f32::from_bits(g) as f64);
                    let scale = match bound {
                        Bound::Relative(_) | Bound::RelativeSum { .. } => bound.value() * largest,
                        Bound::Mixed(tol) | Bound::FloatWords(tol) => tol * (1.0 + w.abs()),
                        other => other.value(),
                    };
                    if w == g { 0.0 } else { (w - g).abs() / scale }
                }
            };
            if error.is_nan() || error > 1.0 {
                return Err(format!("{}: {error:.3} times the bound", place()));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

fn describe(want: u32, got: u32) -> String {
    let show = |w: u32| match w {
        POISON_WORD => "nothing (poison)".to_string(),
        _ => format!("{:e} (0x{w:08x})", f32::from_bits(w)),
    };
    format!("{}, expected {}", show(got), show(want))
}

/// The larger distance of two packed f16 values, in units in the last place; `u32::MAX` if one is not a number.
fn half_ulps(a: u32, b: u32) -> u32 {
    let ordered = |h: u16| if h & 0x8000 != 0 { -((h & 0x7fff) as i32) } else { h as i32 };
    let distance = |a: u16, b: u16| {
        let nan = |h: u16| h & 0x7c00 == 0x7c00 && h & 0x3ff != 0;
        if nan(a) || nan(b) { if a == b { 0 } else { u32::MAX } } else { ordered(a).abs_diff(ordered(b)) }
    };
    distance(a as u16, b as u16).max(distance((a >> 16) as u16, (b >> 16) as u16))
}

/// Deterministic values in ±`scale`.
pub fn noise(n: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..n).map(|_| next()).collect()
}

/// `cols`, rounded up to a number of columns that a row of type `dtype` can have.
pub(super) fn whole_blocks(dtype: Dtype, cols: usize) -> usize {
    cols.next_multiple_of(dtype.stored_block().0)
}

/// A packed matrix with values in about ±`size`: noise, or quantized blocks of arbitrary bits.
pub(super) fn weights(dtype: Dtype, rows: usize, cols: usize, seed: u32, size: f32) -> Vec<u32> {
    let packed = match dtype.is_quantized() {
        false => PackedRows::from_f32(dtype, rows, cols, &noise(rows * cols, seed, size)),
        true => {
            let blocks = blocks::arbitrary(dtype, rows, cols, seed, size);
            PackedRows::from_le_bytes(dtype, rows, cols, &blocks).map(PackedRows::into_owned)
        }
    };
    packed.expect("finite, whole blocks").into_words()
}

/// Noise for `n` cached values, packed.
pub(super) fn cache_words(dtype: Dtype, n: usize) -> Vec<u32> {
    dtype.pack(&noise(n, 13, 1.5))
}

/// u32 words on `device`, padded to whole 16-byte vectors, because kernels read some buffers as `vec4<u32>`.
pub(super) fn device_words(mut values: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    values.resize(values.len().next_multiple_of(4), POISON_WORD);
    u32_tensor(values, device)
}

pub(super) fn device_floats(values: Vec<f32>, rows: usize, cols: usize, device: &Device) -> Tensor<2> {
    f32_tensor(values, [rows, cols], device)
}

/// A RoPE table `[positions, d]` of the frequencies `theta^(-2 i / d)`: in each row, `d / 2` cosines, then the sines
/// of the same angles, computed in f64.
pub(super) fn device_rope(d: usize, theta: f64, positions: usize, device: &Device) -> Tensor<1> {
    let frequencies: Vec<f64> = (0..d / 2).map(|i| theta.powf(-((2 * i) as f64) / d as f64)).collect();
    let mut table = Vec::with_capacity(positions * d);
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| (p as f64 * f).cos() as f32));
        table.extend(frequencies.iter().map(|f| (p as f64 * f).sin() as f32));
    }
    f32_tensor(table, [positions * d], device)
}

/// An output for a kernel that writes in place, full of sentinels.
pub(super) fn poison_floats(rows: usize, cols: usize, device: &Device) -> Tensor<2> {
    device_floats(vec![f32::from_bits(POISON_WORD); rows * cols], rows, cols, device)
}

/// Builds the state of the sequences for a case.
pub(super) struct StateBuilder {
    seqs: usize,
    kv_heads: usize,
    words: Vec<u32>,
    layers: usize,
    ring: usize,
    map: Vec<u32>,
    drafts: Vec<u32>,
}

impl StateBuilder {
    pub(super) fn new(seqs: usize, layers: usize, kv_heads: usize) -> Self {
        let words = vec![0; seqs * state::SEQ + layers * seqs * state::ROW];
        Self { seqs, kv_heads, words, layers, ring: 1, map: Vec::new(), drafts: Vec::new() }
    }

    /// Sets lengths and capacities in `layer`. Regions follow each other without gaps.
    pub(super) fn lens(mut self, layer: usize, lens: &[usize], caps: &[usize]) -> Self {
        let mut base = 0;
        for seq in 0..self.seqs {
            let at = self.layer_table_offset(layer) + seq * state::ROW;
            self.words[at + state::LEN] = lens[seq] as u32;
            self.words[at + state::BASE] = base as u32;
            self.words[at + state::CAP] = caps[seq] as u32;
            base += 2 * self.kv_heads * caps[seq];
        }
        self
    }

    fn header(mut self, field: usize, values: &[u32]) -> Self {
        for (seq, v) in values.iter().enumerate() {
            self.words[seq * state::SEQ + field] = *v;
        }
        self
    }

    pub(super) fn positions(self, positions: &[u32]) -> Self {
        self.header(state::POSITION, positions)
    }

    pub(super) fn steps(self, steps: &[u32]) -> Self {
        self.header(state::STEP, steps)
    }

    /// Sets the temperature and the repetition penalty of each sequence.
    pub(super) fn samplers(self, samplers: &[(f32, f32)]) -> Self {
        self.full_samplers(&samplers.iter().map(|(t, p)| (*t, *p, 0, 1.0, 0.0)).collect::<Vec<_>>())
    }

    /// Sets temperature, repetition penalty, top-k, top-p and min-p of each sequence. The seed follows from its
    /// number.
    pub(super) fn full_samplers(mut self, samplers: &[(f32, f32, u32, f32, f32)]) -> Self {
        for (seq, &(temperature, repetition_penalty, top_k, top_p, min_p)) in samplers.iter().enumerate() {
            let seed = 0x1_0000_0007 * (seq as u64 + 1);
            let header = state::SamplerHeader {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                frequency_penalty: 0.0,
                presence_penalty: 0.0,
                seed,
            };
            self.words[seq * state::SEQ + state::MISSED..(seq + 1) * state::SEQ].copy_from_slice(&header.words());
        }
        self
    }

    /// Sets the frequency penalty and the presence penalty of each sequence.
    pub(super) fn penalties(self, penalties: &[(f32, f32)]) -> Self {
        let (frequency, presence): (Vec<u32>, Vec<u32>) =
            penalties.iter().map(|(frequency, presence)| (frequency.to_bits(), presence.to_bits())).unzip();
        self.header(state::FREQUENCY, &frequency).header(state::PRESENCE, &presence)
    }

    pub(super) fn tokens(self, tokens: &[u32]) -> Self {
        self.header(state::TOKEN, tokens)
    }

    /// Sets the list of the rows' sequences.
    pub(super) fn map(mut self, seqs: &[usize]) -> Self {
        self.map = seqs.iter().map(|s| *s as u32).collect();
        self
    }

    /// Sets the number of sampled tokens at which steps with drafts stop.
    pub(super) fn limits(self, limits: &[u32]) -> Self {
        self.header(state::LIMIT, limits)
    }

    /// Sets the tokens that a step with drafts forwards, [`DRAFTED`](state::DRAFTED) for each sequence.
    pub(super) fn drafts(mut self, drafts: &[u32]) -> Self {
        self.drafts = drafts.to_vec();
        self
    }

    /// Offset of these tokens in the state, in words.
    pub(super) fn drafts_offset(&self) -> usize {
        self.row_seq_offset() + self.map.len()
    }

    /// Offset of the list of the rows' sequences in the state, in words.
    pub(super) fn row_seq_offset(&self) -> usize {
        self.layer_table_offset(self.layers) + self.seqs * self.ring
    }

    pub(super) fn ring(mut self, ring: usize) -> Self {
        self.ring = ring;
        self
    }

    /// Offset of the entries of `layer` in the state, in words.
    pub(super) fn layer_table_offset(&self, layer: usize) -> usize {
        self.seqs * state::SEQ + layer * self.seqs * state::ROW
    }

    /// Cache rows of `layer`, all sequences together.
    pub(super) fn rows(&self, layer: usize) -> usize {
        let cap = |seq: usize| self.words[self.layer_table_offset(layer) + seq * state::ROW + state::CAP] as usize;
        (0..self.seqs).map(cap).sum::<usize>() * 2 * self.kv_heads
    }

    pub(super) fn build(&self) -> Vec<u32> {
        let mut words = self.words.clone();
        debug_assert_eq!(words.len(), self.layer_table_offset(self.layers));
        words.resize(words.len() + self.seqs * self.ring, 0xabcd);
        words.extend(&self.map);
        words.extend(&self.drafts);
        words
    }
}
