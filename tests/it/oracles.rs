//! Tests of the tests: the comparison and the conformance cases have to notice wrong results, and no others. They are
//! tried on data, and on real kernels with changed text that run on a GPU adapter.
use crate::common::*;
use std::collections::BTreeSet;

use secateur::Dtype;
use secateur::device::ComputeDevice;
use secateur::expert::conformance::{self, SelfTest};
use secateur::expert::kernels::Mode;
use secateur::expert::kernels::cases::{self, Bound, Case, compare, noise};
use secateur::expert::kernels::memory::{POISON_WORD, poison_outputs};
use secateur::expert::kernels::variant::hooks;
use secateur::expert::kernels::variants;

fn words(values: &[f32]) -> Vec<u32> {
    bits(values)
}

const ROW: usize = 16;
/// Bounds of the size the kernels state, for values of about 1.
const BOUNDS: [Bound; 4] = [Bound::Absolute(1e-5), Bound::Relative(1e-5), Bound::Mixed(1e-5), Bound::FloatWords(1e-5)];

#[test]
fn data_that_is_wrong_is_refused_by_every_bound() {
    let right = noise(ROW * 4, 1, 2.0);
    let changed = |change: &dyn Fn(&mut Vec<f32>)| {
        let mut values = right.clone();
        change(&mut values);
        words(&values)
    };
    let mut stale = words(&right);
    stale[ROW + 3] = POISON_WORD;
    let wrong = [
        ("NaN", changed(&|v| v[5] = f32::NAN)),
        ("an infinity", changed(&|v| v[5] = f32::INFINITY)),
        ("NaN everywhere", vec![f32::NAN.to_bits(); right.len()]),
        ("nothing written", vec![POISON_WORD; right.len()]),
        ("one element not written", stale),
        ("zeros", vec![0; right.len()]),
        ("two rows swapped", changed(&|v| (0..ROW).for_each(|c| v.swap(c, ROW + c)))),
        ("the first and the last row swapped", changed(&|v| (0..ROW).for_each(|c| v.swap(c, 3 * ROW + c)))),
        ("two columns swapped", changed(&|v| v.swap(2, 3))),
        ("a row late", [&words(&right)[..ROW], &words(&right)[..3 * ROW]].concat()),
        ("one element late", [&words(&right)[..1], &words(&right)[..4 * ROW - 1]].concat()),
        ("a sign", changed(&|v| v[7] = -v[7])),
        ("ten times the bound", changed(&|v| v[9] += 1e-3)),
        ("one element too few", words(&right)[1..].to_vec()),
        ("one element too many", [words(&right), vec![0]].concat()),
        ("nothing", vec![]),
    ];
    for bound in BOUNDS.into_iter().chain([Bound::Exact, Bound::HalfUlps(1)]) {
        assert_eq!(compare(&words(&right), &words(&right), ROW, bound), Ok(0.0));
        for (what, wrong) in &wrong {
            assert!(compare(&words(&right), wrong, ROW, bound).is_err(), "{bound:?} accepts {what}");
        }
        // If a kernel writes where the twin does not, it is refused as well.
        let mut sentinel = words(&right);
        sentinel[ROW] = POISON_WORD;
        assert!(compare(&sentinel, &words(&right), ROW, bound).is_err(), "{bound:?} accepts a write outside");
    }
}

#[test]
fn a_wrong_row_does_not_hide_behind_a_large_one() {
    let mut right = noise(ROW * 2, 2, 1e6);
    right[ROW..].iter_mut().for_each(|v| *v *= 1e-6);
    let mut wrong = right.clone();
    wrong[ROW + 1] += 0.01;
    assert!(compare(&words(&right), &words(&wrong), ROW, Bound::Relative(1e-5)).is_err());
    assert!(compare(&words(&right), &words(&wrong), 2 * ROW, Bound::Relative(1e-5)).is_ok(), "one row: it would hide");
}

#[test]
fn halfs_are_counted_in_their_own_units() {
    let pack =
        |a: f32, b: f32| half::f16::from_f32(a).to_bits() as u32 | (half::f16::from_f32(b).to_bits() as u32) << 16;
    let right = vec![pack(1.0, -2.0), pack(0.0, 6.1e-5)];
    let accepts = |found: Vec<u32>| compare(&right, &found, 2, Bound::HalfUlps(1)).is_ok();
    assert!(accepts(vec![right[0] + 1, right[1]]), "one unit, low half");
    assert!(accepts(vec![right[0] + 0x1_0000, right[1]]), "one unit, high half");
    assert!(accepts(vec![right[0], right[1] | 0x8000]), "-0 is 0");
    assert!(!accepts(vec![right[0] + 2, right[1]]), "two units");
    assert!(!accepts(vec![right[0] ^ 0x8000, right[1]]), "a sign");
    assert!(!accepts(vec![right[0] & 0xffff_0000 | 0x7e00, right[1]]), "NaN");
    assert!(!accepts(vec![right[0].rotate_left(16), right[1]]), "swapped halves");
}

#[test]
fn sums_may_be_reassociated_but_not_shortened() {
    for cols in [8, 64, 896, 4864] {
        let (a, b) = (noise(cols, 3, 1.0), noise(cols, 4, 1.0));
        let products: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
        let exact: f64 = a.iter().zip(&b).map(|(a, b)| *a as f64 * *b as f64).sum();
        // The bound of matvec for a row whose largest value is 1 or more.
        let bound = Bound::Relative(2e-6 * (cols as f64).sqrt());
        let judge = |sum: f32| compare(&words(&[exact as f32, 1.0]), &words(&[sum, 1.0]), 2, bound);
        let lanes = (0..8).map(|lane| products.iter().skip(lane).step_by(8).sum::<f32>()).sum();
        for (what, sum) in [
            ("forwards", products.iter().sum::<f32>()),
            ("backwards", products.iter().rev().sum()),
            ("in eight lanes", lanes),
        ] {
            assert!(judge(sum).is_ok(), "{cols} terms {what}: {:?}", judge(sum));
        }
        assert!(judge((exact - *products.last().expect("terms") as f64) as f32).is_err(), "{cols} terms less one");
        assert!(judge((exact - products[cols / 2] as f64) as f32).is_err(), "{cols} terms less one in the middle");
    }
}

/// The cases of a kernel, with the words of each output of the CPU twin.
struct Expected(Vec<(Case, Vec<Vec<u32>>)>);

impl Expected {
    /// With `unpacking`, only the cases whose weights are quantized, else only the others: every mutant recompiles
    /// the kernel for each element type that it runs with.
    fn of(kernel: &str, unpacking: bool) -> Self {
        let answer = |case: Case| {
            let outputs = case.run(&devices()[0].burn);
            let words = outputs.iter().map(|check| block_on(check.read()).expect("readable")).collect();
            (case, words)
        };
        let wanted = |case: &Case| case.kernel == kernel && case.name.starts_with(['Q', 'I']) == unpacking;
        let cases: Vec<_> = cases::all().into_iter().filter(wanted).map(answer).collect();
        assert!(!cases.is_empty(), "{kernel} has no cases");
        Self(cases)
    }

    /// The number of cases that notice the change, and the number of all cases. The cases behind the `enough`-th that
    /// notices are left out: each of them may compile the changed shader once more.
    fn noticed(
        &self,
        device: &ComputeDevice,
        replace: Option<(&'static str, String)>,
        enough: usize,
    ) -> (usize, usize) {
        let replaced = replace.as_ref().map(|r| r.0);
        let fails = |(case, expected): &&(Case, Vec<Vec<u32>>)| {
            poison_outputs(true);
            let found = case.run(&device.burn);
            poison_outputs(false);
            assert_eq!(found.len(), expected.len());
            expected.iter().zip(&found).any(|(want, check)| {
                let got = block_on(check.read()).expect("readable");
                compare(want, &got, check.row, check.bound).is_err()
            })
        };
        let (failed, launches) = hooks::with(replace, || self.0.iter().filter(fails).take(enough).count());
        if let Some(replaced) = replaced {
            assert!(launches.iter().any(|l| l.variant.kernel == replaced), "{replaced} was not launched");
        }
        (failed, self.0.len())
    }
}

/// The text of `shader` with `from` replaced by `to`.
#[track_caller]
fn mutant(shader: &'static str, from: &str, to: &str) -> Option<(&'static str, String)> {
    let text = variants().into_iter().find(|v| v.kernel == shader).expect("listed").text;
    // The included texts can be changed as well.
    let text = text.replace("// include weights.wgsl", include_str!("../../shaders/weights.wgsl"));
    let text = text.replace("// include dots.wgsl", include_str!("../../shaders/dots.wgsl"));
    assert!(text.contains(from), "{from:?} is not in {shader}.wgsl any more");
    Some((shader, text.replace(from, to)))
}

/// (kernel whose cases run, shader, what, from, to, the least number of cases that must notice)
type Mutant = (&'static str, &'static str, &'static str, &'static str, &'static str, usize);

const WRONG: &[Mutant] = &[
    ("matvec", "matvec", "drops the last term", "k < info.cols; k += 8u", "k + 8u < info.cols; k += 8u", 21),
    (
        "matvec",
        "matvec",
        "drops the bias",
        "if (HAS_BIAS != 0u) { y += bias[at]; }",
        "if (HAS_BIAS != 0u) { y += 0.0 * bias[at]; }",
        9,
    ),
    ("matvec", "matvec", "takes the next row", "dots(p, row * p.size,", "dots(p, (row + 1u) * p.size,", 20),
    ("matvec", "matvec", "ignores the shard's first row", "let at = info.shard_first_row + row;", "let at = row;", 9),
    (
        "matvec",
        "matvec",
        "writes nothing",
        "row >= info.rows) { return; }",
        "row >= info.rows || info.cols > 0u) { return; }",
        21,
    ),
    (
        "matvec",
        "matvec",
        "writes one row too many",
        "if (lane != 0u || row >= info.rows)",
        "if (lane != 0u || row > info.rows)",
        3,
    ),
    ("matvec", "matvec", "the first vector for all", "(info.first_row + i)", "(info.first_row + 0u * i)", 9),
    (
        "matvec",
        "matvec",
        "adds instead of storing",
        "if (MODE == 0u) {\n            out[i * info.out_stride + at] = y;",
        "if (MODE == 0u) {\n            out[i * info.out_stride + at] += y;",
        9,
    ),
    (
        "matvec",
        "matvec",
        "gate and up exchanged",
        "silu(y) * part[i * THREADS + thread + LANES]",
        "y * silu(part[i * THREADS + thread + LANES])",
        6,
    ),
    ("matvec", "matvec", "forgets the gains of a half", "o.a *= gain(k / 4u);", "o.a *= 1.0;", 18),
    ("matvec", "matvec", "forgets eps", "+ info.eps)", "+ 0.0 * info.eps)", 18),
    ("matvec", "matvec", "a mean over too many", "f32(info.cols)", "f32(info.cols + 8u)", 18),
    (
        "matvec",
        "matvec",
        "the first row's norm for all",
        "part[SQUARES + i * THREADS]",
        "part[SQUARES + min(i, 0u)]",
        12,
    ),
    (
        "matvec",
        "matvec",
        "drops the last squares",
        "c < info.cols / 4u; c += THREADS",
        "c + 1u < info.cols / 4u; c += THREADS",
        18,
    ),
    ("matvec", "matvec", "the squares of one row's lanes", "select(LANES, THREADS, NORM != 0u)", "LANES", 12),
    ("matvec", "matvec", "ignores the first row of x", "(info.first_row + i)", "(0u * info.first_row + i)", 9),
    ("matvec", "matvec", "scales the bias too", "{ y += bias[at]; }", "{ y += bias[at] * scale; }", 6),
    ("matvec", "matvec", "scales the gate only", "+ LANES] * scale;", "+ LANES];", 6),
    ("matmul", "matmul", "drops the last column of a slice", "k < SLICE; k++", "k + 1u < SLICE; k++", 20),
    ("matmul", "matmul", "skips the last tile", "k0 < info.cols;", "k0 + DEPTH < info.cols;", 24),
    ("matmul", "matmul", "writes nothing", "if (i >= info.n) { return; }", "if (i >= 0u * info.n) { return; }", 24),
    ("matmul", "matmul", "forgets the last slice", "other < SLICES;", "other + 1u < SLICES;", 12),
    ("matmul", "matmul", "gate and up exchanged", "silu(sums.x) * sums.y", "sums.x * silu(sums.y)", 6),
    (
        "matmul",
        "matmul",
        "wrong SwiGLU where vectors are many",
        "if (MODE == 2u) {",
        "if (MODE == 2u && TILE_N > 32u) { out[0] = 0.0; return; }\n if (MODE == 2u) {",
        3,
    ),
    ("matmul", "matmul_rows", "skips the last step", "q < quads;", "q + 2u < quads;", 14),
    (
        "matmul",
        "matmul_rows",
        "the even row for both",
        "min(row + r, info.rows - 1u) * p.size",
        "min((row + r) & ~1u, info.rows - 1u) * p.size",
        12,
    ),
    (
        "matmul",
        "matmul_rows",
        "the first vector for all",
        "min(first_n + i, info.n - 1u)",
        "min(first_n + 0u * i, info.n - 1u)",
        15,
    ),
    ("matmul", "matmul_rows", "gate and up exchanged", "silu(y) * acc[i][r + 1u]", "y * silu(acc[i][r + 1u])", 3),
    ("matmul", "matmul_rows", "writes nothing", "|| row + r >= info.rows", "|| row + r >= 0u", 15),
    ("rms_norm", "rms_norm", "forgets eps", "+ info.eps)", "+ 0.0 * info.eps)", 1),
    (
        "rms_norm",
        "rms_norm",
        "sums one value less",
        "c < info.cols; c += THREADS) {\n            let v",
        "c + 1u < info.cols; c += THREADS) {\n            let v",
        4,
    ),
    ("rms_norm", "rms_norm", "ignores the first row", "(info.first_row + row)", "(row + 0u * info.first_row)", 2),
    ("rope_append", "rope_append", "turns the other way", "b * cosines + a * sines", "b * cosines - a * sines", 6),
    (
        "rope_append",
        "rope_append",
        "slot for position",
        "state[seq * SEQ + SEQ_POSITION] + offset",
        "state[entry + ROW_LEN] + offset",
        6,
    ),
    (
        "rope_append",
        "rope_append",
        "one slot too far",
        "state[entry + ROW_LEN] + offset;",
        "state[entry + ROW_LEN] + offset + 1u;",
        6,
    ),
    (
        "rope_append",
        "rope_append",
        "writes beyond the capacity",
        "if (slot >= cap) { return; }",
        "if (slot > cap + 100000u) { return; }",
        2,
    ),
    (
        "attention",
        "attention",
        "sees one slot too many",
        "length + row_of % info.chunk + 1u",
        "length + row_of % info.chunk + 2u",
        8,
    ),
    (
        "attention",
        "attention",
        "sees one slot too few",
        "length + row_of % info.chunk + 1u",
        "length + row_of % info.chunk",
        8,
    ),
    (
        "attention",
        "attention",
        "no causal mask",
        "let visible = base + s < length",
        "let visible = base + s < 100000u + length",
        8,
    ),
    (
        "attention",
        "attention",
        "another KV head",
        "let kv_head = first_head / (info.heads / info.kv_heads);",
        "let kv_head = info.kv_heads - 1u - first_head / (info.heads / info.kv_heads);",
        6,
    ),
    (
        "attention",
        "attention",
        "two query heads exchanged",
        "let query = row * info.heads + head;",
        "let query = row * info.heads + (head ^ 1u) % info.heads;",
        8,
    ),
    ("attention", "attention", "forgets to shrink", "acc[j] *= shrink[j];", "acc[j] *= 1.0;", 1),
    ("attention", "attention", "no scale", "+ e % (D / 4u)] * info.scale", "+ e % (D / 4u)]", 16),
    (
        "attention",
        "attention_combine",
        "drops the last split",
        "s < count; s++) {\n            let at",
        "s + 1u < count; s++) {\n            let at",
        32,
    ),
    ("attention", "attention_combine", "one block of splits", "block < splits;", "block < min(splits, THREADS);", 2),
    (
        "attention_row",
        "attention_row",
        "two heads exchanged",
        "out[(first + j) * info.slots + slot] = weight;",
        "out[(first + (j + 1u) % G) * info.slots + slot] = weight;",
        2,
    ),
    (
        "attention_row",
        "attention_row",
        "KV heads exchanged",
        "weigh(kv_head, slot, state[entry + ROW_BASE] + kv_head * cap + slot)",
        "weigh(kv_head, slot, state[entry + ROW_BASE] + (info.kv_heads - 1u - kv_head) * cap + slot)",
        8,
    ),
    (
        "attention_row",
        "attention_row",
        "one slot too far",
        "kv_head * cap + slot)",
        "kv_head * cap + min(slot + 1u, cap - 1u))",
        12,
    ),
    ("attention_row", "attention_row", "not normalised", "exp(dots[j] - lse[", "exp(dots[j] - 0.0 * lse[", 18),
    ("attention_row", "attention_row", "a sum for a mean", "sum / f32(G)", "sum", 4),
    ("attention_row", "attention_row", "another row", "info.row * heads +", "0u * info.row * heads +", 8),
    (
        "cache_gather",
        "cache_gather",
        "off by one",
        "let slot = keep[first + i];",
        "let slot = min(keep[first + i] + 1u, old_cap - 1u);",
        6,
    ),
    (
        "cache_gather",
        "cache_gather",
        "ignores the kept set",
        "let slot = keep[first + i];",
        "let slot = i + 0u * keep[first + i];",
        5,
    ),
    (
        "cache_gather",
        "cache_gather",
        "one set for all heads",
        "+ head * moves[m + 6u]",
        "+ 0u * head * moves[m + 6u]",
        2,
    ),
    ("cache_gather", "cache_gather", "drops the last row", "i >= kept", "i + 1u >= kept", 6),
    ("cache_gather", "cache_gather", "writes nothing", "if (slot < old_cap)", "if (slot < 0u * old_cap)", 6),
    (
        "cache_gather",
        "cache_gather",
        "the first workgroup's rows again",
        "+ group.x) * THREADS",
        "+ 0u * group.x) * THREADS",
        1,
    ),
    ("cache_gather", "cache_gather", "half of what an invocation moves", "e < EACH;", "e < EACH / 2u;", 1),
    (
        "attention",
        "attention",
        "the second look sees more",
        "shared_extent.x - info.already_cached",
        "shared_extent.x",
        4,
    ),
    ("attention_sums", "attention_sums", "drops a query", "t < queries && slot", "t + 1u < queries && slot", 10),
    ("attention_sums", "attention_sums", "sees the future", "length + t / G + 1u", "length + info.chunk", 4),
    ("attention_sums", "attention_sums", "begins anew", "select(sums[at], 0.0, slot >= length)", "0.0", 4),
    (
        "attention_sums",
        "attention_sums",
        "keeps what a rolled-back chunk left",
        "select(sums[at], 0.0, slot >= length)",
        "sums[at]",
        4,
    ),
    ("key_similarity", "key_similarity", "spares nothing", "spared[t] != slot", "spared[t] != slot + info.slots", 6),
    ("key_similarity", "key_similarity", "is like itself", "other == slot)", "other == slot + info.slots)", 12),
    (
        "key_similarity",
        "key_similarity",
        "spares the first look-alike",
        "if (cosine > ALIKE)",
        "if (cosine > ALIKE && last == NONE)",
        6,
    ),
    ("value_sizes", "value_sizes", "keys for values", "(info.kv_heads + kv_head) * cap", "kv_head * cap", 10),
    (
        "value_sizes",
        "value_sizes",
        "the largest component for the range",
        "max(high.z, high.w)) - min(",
        "max(high.z, high.w)) - 0.0 * min(",
        8,
    ),
    ("value_sizes", "value_sizes", "a square for the length", "= sqrt(square);", "= square;", 8),
    ("value_sizes", "value_sizes", "drops the last columns", "c < D / 4u; c++", "c + 1u < D / 4u; c++", 8),
    (
        "attention_recurrence",
        "attention_recurrence",
        "a new slot mattered to itself",
        "position + slot - length - 1u",
        "position + slot - length",
        10,
    ),
    (
        "attention_recurrence",
        "attention_recurrence",
        "forgets the records",
        "if (inside && slot < length)",
        "if (inside && slot < 0u * length)",
        16,
    ),
    (
        "attention_recurrence",
        "attention_recurrence",
        "keeps what a rolled-back chunk left",
        "if (inside && slot < length)",
        "if (inside)",
        16,
    ),
    ("attention_recurrence", "attention_recurrence", "a sum for a mean", "IMPORTANT * f32(G)", "IMPORTANT", 8),
    ("attention_recurrence", "attention_recurrence", "sees the future", "length + i + 1u", "length + info.chunk", 8),
    (
        "attention_recurrence",
        "attention_recurrence",
        "the latest interval for the longest",
        "max(record.y, position + i - record.x)",
        "position + i - record.x",
        16,
    ),
    ("expected_attention", "expected_attention", "no spread", "+ 0.5 * squares", "+ 0.0 * squares", 16),
    ("expected_attention", "expected_attention", "not centred", "part.low - mean.low;", "part.low;", 18),
    (
        "expected_attention",
        "expected_attention",
        "turns back",
        "b * cosines + a * sines);\n}\n\n// The mean rotation",
        "b * cosines - a * sines);\n}\n\n// The mean rotation",
        18,
    ),
    ("expected_attention", "expected_attention", "a token late", "info.n - i + j,", "info.n - i + j + 1u,", 16),
    (
        "expected_attention",
        "expected_attention",
        "another KV head",
        "head / G * cap",
        "(info.kv_heads - 1u - head / G) * cap",
        8,
    ),
    ("query_ring", "query_ring", "one place on", "(position + offset) %", "(position + offset + 1u) %", 3),
    ("query_ring", "query_ring", "newest first", "(position - info.n + i)", "(position - 1u - i)", 2),
    ("rope_append", "rope_append", "turns keys that are to lie", "(COMPACT == 0u ||", "(COMPACT <= 1u ||", 3),
    ("embed", "embed", "the next id", "var place = i;", "var place = (i + 1u) % info.n;", 3),
    (
        "embed",
        "embed",
        "the next sequence's token",
        "info.row_seq_offset + i]",
        "info.row_seq_offset + (i + 1u) % info.n]",
        3,
    ),
    (
        "embed",
        "embed",
        "junk for unknown ids",
        "var o = Octet(vec4<f32>(0.0), vec4<f32>(0.0));\n    if (inside)",
        "var o = Octet(vec4<f32>(1.0), vec4<f32>(1.0));\n    if (inside)",
        3,
    ),
    (
        "top_k",
        "top_k",
        "the highest index among equals",
        "v == part[thread] && i < at[thread]",
        "v == part[thread] && i > at[thread]",
        1,
    ),
    ("top_k", "top_k", "no penalty", "& 1u) == 0u) { return", "& 1u) < 2u) { return", 4),
    ("top_k", "top_k", "relief for all", "let negative = (bits >> 31u) == 1u;", "let negative = false;", 3),
    ("top_k", "top_k", "one too few", "need = min(K, end - begin);", "need = min(K - 1u, end - begin);", 4),
    ("top_k", "top_k", "unsorted", "if (below == ((a & size) == 0u))", "if (below && size > 2u * K)", 4),
    (
        "sample",
        "top_k",
        "misses what is not finite",
        "if (not_finite(v)) { broken = 1u; }",
        "if (v != v && v == v) { broken = 1u; }",
        8,
    ),
    (
        "sample",
        "sample",
        "a row's number for its sequence",
        "let seq = state[info.row_seq_offset + group.x];",
        "let seq = min(state[info.row_seq_offset + group.x], group.x);",
        30,
    ),
    ("sample", "sample", "takes a wrong draft", "added < rows && token ==", "added < rows && token !=", 4),
    ("sample", "sample", "passes the limit", "confirmed && state[header + SEQ_STEP] <", "confirmed && 0u <", 4),
    ("sample", "sample", "begins at the limit", "u, state[header + SEQ_STEP] <", "u, 0u <", 4),
    ("sample", "sample", "counts one of several", "+= added * info.advance", "+= min(added, 1u) * info.advance", 2),
    ("draft", "draft", "compares one token", "const LONGEST = 6u;", "const LONGEST = 1u;", 1),
    ("draft", "draft", "an earlier match", "length * PLACES + place)", "length * PLACES + place / 2u)", 4),
    ("draft", "draft", "matches itself", "place < tokens - 1u;", "place < tokens;", 4),
    ("draft", "draft", "forgets what it appended", "text[0] = tokens;", "text[0] = before;", 4),
    ("draft", "draft", "beyond the end", "% (tokens - next)", "% 1000u", 2),
    ("draft", "draft", "takes lost tokens", "fresh <= info.ring &&", "fresh <= 100u &&", 1),
    ("embed", "embed", "drafts of one sequence", "+ i / info.chunk] * DRAFTED", "] * DRAFTED", 3),
    ("router", "router", "the higher index first", "&& other < e)", "&& other > e)", 5),
    ("router", "router", "the smaller logit first", "keys[other] > key ||", "keys[other] < key ||", 14),
    (
        "router",
        "router",
        "zeros differ",
        "== 0u) { return 0x80000000u; }",
        "== 0xffffffffu) { return 0x80000000u; }",
        2,
    ),
    ("router", "router", "normalises the other way", "if (info.normalise == 0u)", "if (info.normalise != 0u)", 10),
    ("router", "router", "a shift that underflows", "let highest = best[0];", "let highest = best[0] + 200.0;", 17),
    ("router", "router", "the first row for all", "let at = row * info.experts;", "let at = 0u * row;", 8),
    (
        "expert_tiles",
        "expert_tiles",
        "drops the last choice",
        "i < info.choices; i++) {\n            if",
        "i + 1u < info.choices; i++) {\n            if",
        7,
    ),
    ("expert_tiles", "expert_tiles", "a tile too few", "(count + N - 1u) / N", "count / N", 6),
    (
        "expert_tiles",
        "expert_tiles",
        "leaves the rest unwritten",
        "i = all * (1u + N) + thread",
        "i = all * (1u + N) + thread + 1u",
        3,
    ),
    (
        "expert_tiles",
        "expert_tiles",
        "does not fill up tiles",
        "place < used[e] * N; place++",
        "place + 1u < used[e] * N; place++",
        4,
    ),
    (
        "experts",
        "experts",
        "the neighbour's rows",
        "(expert * info.rows + row) * p.size",
        "(min(expert + 1u, info.experts - 1u) * info.rows + row) * p.size",
        18,
    ),
    (
        "experts",
        "experts",
        "the first expert for all",
        "(expert * info.rows + row) * p.size",
        "(0u * expert + row) * p.size",
        15,
    ),
    (
        "experts",
        "experts",
        "another row of x",
        "select(c / info.share, 0u, c == NONE)",
        "select(c / (info.share + 1u), 0u, c == NONE)",
        18,
    ),
    ("experts", "experts", "computes experts of other shards", " - info.first_expert;", " % info.experts;", 9),
    ("experts", "experts", "forgets where the shard begins", " - info.first_expert;", ";", 6),
    (
        "experts",
        "experts",
        "writes the first choice only",
        "if (c == NONE) { continue; }",
        "if (c == NONE || i > 0u) { continue; }",
        9,
    ),
    (
        "experts",
        "experts",
        "gate and up exchanged",
        "silu(y) * part[i * THREADS + thread + LANES]",
        "y * silu(part[i * THREADS + thread + LANES])",
        6,
    ),
    (
        "experts",
        "experts_rows",
        "the neighbour's rows",
        "(expert * info.rows + min",
        "(min(expert + 1u, info.experts - 1u) * info.rows + min",
        6,
    ),
    (
        "experts",
        "experts_rows",
        "the first choice for all",
        "let low = x[first[i] + q];",
        "let low = x[first[0] + q];",
        6,
    ),
    (
        "experts",
        "experts_rows",
        "one row too many",
        "|| row + r >= info.rows) { continue; }",
        "|| row + r > info.rows) { continue; }",
        4,
    ),
    ("expert_sum", "expert_sum", "drops the last choice", "j < info.k; j++", "j + 1u < info.k; j++", 5),
    ("expert_sum", "expert_sum", "the first weight for all", "sum += gains[c]", "sum += gains[0u * c]", 4),
    ("expert_sum", "expert_sum", "forgets the residual stream", "x[at] += sum;", "x[at] = sum;", 5),
    ("sample", "sample", "forgets a length", "layer < info.layers;", "layer + 1u < info.layers;", 20),
    ("sample", "sample", "an older ring entry", "ring + step % info.ring", "ring + (step + 1u) % info.ring", 40),
    ("sample", "sample", "another lot", "^ c.y ^ k.x", "^ c.y ^ k.y", 10),
    ("sample", "sample", "no top-k", "let whole = asked == 0u || asked > K;", "let whole = asked < 1000u;", 4),
    ("sample", "sample", "no top-p", "top_p < 1.0 && mass", "top_p < 0.0 && mass", 4),
    ("sample", "sample", "no min-p", "weight < min_p ||", "weight < 0.0 ||", 2),
    ("sample", "sample", "sees nothing", "|= 1u << (token % 32u)", "|= 0u << (token % 32u)", 10),
    ("penalty", "penalty", "forgets the presence", "+ bitcast<f32>(state[header + SEQ_PRESENCE])", "+ 0.0", 4),
    ("penalty", "penalty", "once for all times", "f32(times) * frequency", "frequency", 4),
    ("penalty", "penalty", "does not count", "counts[seq * info.count + token] = times;", "times += 0u;", 5),
    ("penalty", "penalty", "counts before the first", "SEQ_STEP] > 0u", "SEQ_STEP] < 900u", 4),
    ("penalty", "penalty", "counts of the row", "let header = seq * SEQ;", "let header = row * SEQ;", 4),
    ("token_mask", "token_mask", "hides failures", " || not_finite(value)", "", 6),
    ("token_mask", "token_mask", "another token's bit", "(token % 32u)", "(token % 31u)", 3),
    ("token_logit", "token_logit", "the next token", "info.count + token]", "info.count + token / 2u * 2u]", 4),
    ("token_logit", "token_logit", "the first row for all", "row * info.count", "0u * info.count", 6),
    ("token_logit", "token_logit", "the sequences in order", "ids[info.row_seq_offset + row] * SEQ", "row * SEQ", 3),
    ("token_logit", "token_logit", "takes unknown tokens", "if (token < info.count)", "if (token <= info.count)", 4),
];

/// Mistakes in unpacking, which only the cases of quantized weights notice.
const WRONG_UNPACKING: &[Mutant] = &[
    (
        "matvec",
        "matvec",
        "the next block's scale",
        "block_scales(p, row_start, b)",
        "block_scales(p, row_start, b + 1u)",
        36,
    ),
    ("matvec", "matvec", "drops the last block", "b < info.cols / 32u;", "b + 1u < info.cols / 32u;", 40),
    (
        "matvec",
        "matvec",
        "forgets the high bits",
        "if (HIGH_BITS > 0u) { bytes |=",
        "if (HIGH_BITS > 2u) { bytes |=",
        16,
    ),
    ("matvec", "matvec", "the high bits of the next four", "% HIGH_FOURS))) & HIGH", "% HIGH_FOURS + 1u))) & HIGH", 16),
    ("matvec", "matvec", "forgets the offset", "- f32(OFFSET)", "- 0.0 * f32(OFFSET)", 12),
    ("matvec", "matvec", "forgets the minimum", "+ s.plus.y;", "+ 0.0 * s.plus.y;", 16),
    ("matvec", "matvec", "one scale for both halves", "s.scale.y * high_half", "s.scale.x * high_half", 6),
    ("matvec", "matvec", "levels by another order", "q >= vec4<u32>(8u)", "q < vec4<u32>(8u)", 6),
    ("matvec", "matvec", "minima in the place of scales", "bytes.xz, bytes.yw", "bytes.zx, bytes.wy", 6),
    ("matvec", "matvec", "the gains of a block's first four", "gain(8u * b + j)", "gain(8u * b)", 24),
    ("experts", "experts", "drops the last block", "b < info.cols / 32u;", "b + 1u < info.cols / 32u;", 40),
    ("matmul", "matmul", "the next block's scale", "row_start, k / 32u)", "row_start, k / 32u + 1u)", 20),
    ("matmul", "matmul_rows", "the next block's scale", "row_start, k / 32u)", "row_start, k / 32u + 1u)", 20),
    ("matmul", "matmul_rows", "the first half's scale", "s.scale.y, second)", "s.scale.x, second)", 4),
    ("embed", "embed", "the low quants twice", "quants(low_next, high, t + 1u)", "quants(low_next, high, t)", 24),
    ("embed", "embed", "forgets the minimum", "o.b += plus;", "o.b += 0.0 * plus;", 8),
    (
        "matmul",
        "matmul",
        "wrong quants where vectors are many",
        "o.a = scale * quants(low, high, t);",
        "o.a = scale * quants(low, high, t); if (TILE_N > 32u) { o.a = vec4<f32>(scale); }",
        10,
    ),
];

/// Runs every one of `mutants`. The adapter is given free after each: a test that waits for the adapter alone, and the
/// tests that wait behind that one, do not wait for all mutants.
fn each_is_noticed<'m>(mutants: impl Iterator<Item = &'m Mutant>, unpacking: bool) {
    let Some(device) = gpu() else { return };
    let mut expected = std::collections::BTreeMap::new();
    let (mut missed, mut count) = (Vec::new(), 0);
    for (kernel, shader, what, from, to, least) in mutants {
        let _one = beside_others();
        let cases = expected.entry(kernel).or_insert_with(|| {
            let cases = Expected::of(kernel, unpacking);
            let (failed, of) = cases.noticed(device, None, usize::MAX);
            assert_eq!(failed, 0, "{kernel} as it is: {failed} of {of} cases fail");
            cases
        });
        let began = std::time::Instant::now();
        let (failed, of) = cases.noticed(device, mutant(shader, from, to), *least);
        println!("{shader} {what}: at least {failed} of {of} cases notice ({:.1} s)", began.elapsed().as_secs_f64());
        if failed < *least {
            missed.push(format!("{shader} {what}: {failed} of {of} cases notice, {least} must"));
        }
        count += 1;
    }
    println!("{count} mutants on {}", device.info.name);
    assert!(count > 0, "there are no mutants");
    assert!(missed.is_empty(), "{missed:#?}");
}

fn is_product(mutant: &&Mutant) -> bool {
    ["matvec", "matmul"].contains(&mutant.0)
}

fn is_attention(mutant: &&Mutant) -> bool {
    mutant.0 == "attention"
}

#[test]
fn every_kernel_has_a_changed_one() {
    let changed: Vec<&str> = WRONG.iter().map(|mutant| mutant.0).collect();
    let without: BTreeSet<&str> =
        cases::all().iter().map(|case| case.kernel).filter(|kernel| !changed.contains(kernel)).collect();
    assert!(without.is_empty(), "kernels that no mutant changes: {without:?}");
}

// Several tests, because tests run side by side.

#[test]
fn changed_products_are_noticed() {
    each_is_noticed(WRONG.iter().filter(is_product), false);
}

#[test]
fn changed_attention_is_noticed() {
    each_is_noticed(WRONG.iter().filter(is_attention), false);
}

#[test]
fn other_changed_kernels_are_noticed() {
    each_is_noticed(WRONG.iter().filter(|mutant| !is_product(mutant) && !is_attention(mutant)), false);
}

#[test]
fn changed_unpacking_is_noticed() {
    each_is_noticed(WRONG_UNPACKING.iter(), true);
}

/// The test of an adapter before it is relied on runs few cases, but each way in which a product writes its output: a
/// kernel that is wrong in one of them is refused, by its name.
#[test]
fn the_self_test_notices_each_way_of_writing() {
    let _one = beside_others();
    let Some(device) = gpu() else { return };
    let all = SelfTest::ElementTypes.cases(device.tuning);
    let products: Vec<&Case> = all.iter().filter(|case| case.mode.is_some()).collect();
    println!("{} cases in all, {} of products", all.len(), products.len());
    println!("{} cases before the first token", SelfTest::FirstToken.cases(device.tuning).len());
    for kernel in ["matvec", "matmul", "experts"] {
        for dtype in Dtype::ALL {
            let of_type = products.iter().filter(|case| case.kernel == kernel);
            let of_type = of_type.filter(|case| case.name.split(' ').next() == Some(&*format!("{dtype:?}"))).count();
            let plain = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            let least = if plain { if kernel == "experts" { 3 } else { 4 } } else { 1 };
            assert!(of_type >= least, "{kernel} {dtype:?}: {of_type} cases");
        }
    }
    let rows = if device.tuning.is_cpu() { "matmul_rows" } else { "matmul" };
    let wrong_rows: [(Mode, &str, &str); 3] = match device.tuning.is_cpu() {
        true => [
            (Mode::Add, "MODE == 1u", "MODE == 4u"),
            (Mode::SwiGlu, "silu(", "(0.5 * "),
            (Mode::Gated, "MODE == 3u", "MODE == 4u"),
        ],
        false => [
            (Mode::Add, "if (MODE == 1u)", "if (MODE == 4u)"),
            (Mode::SwiGlu, "if (MODE == 2u)", "if (MODE == 4u)"),
            (Mode::Gated, "if (MODE == 3u)", "if (MODE == 4u)"),
        ],
    };
    let matvec = [
        (Mode::Add, "MODE == 1u", "MODE == 4u"),
        (Mode::SwiGlu, "silu(y) * part[i * THREADS + thread + LANES]", "y * part[i * THREADS + thread + LANES]"),
        (Mode::Gated, "MODE == 3u", "MODE == 4u"),
    ];
    let experts = [
        (Mode::Store, "MODE == 0u", "MODE == 4u"),
        (Mode::SwiGlu, "silu(y) * part[i * THREADS + thread + LANES]", "y * part[i * THREADS + thread + LANES]"),
        (Mode::Gated, "MODE == 3u", "MODE == 4u"),
    ];
    for (kernel, shader, mutants) in
        [("matvec", "matvec", matvec), ("matmul", rows, wrong_rows), ("experts", "experts", experts)]
    {
        let mut cases = SelfTest::ElementTypes.cases(device.tuning);
        cases.retain(|case| case.kernel == kernel && case.name.starts_with("BF16"));
        for (mode, from, to) in mutants {
            let (report, _) =
                hooks::with(mutant(shader, from, to), || block_on(conformance::run(device, &cases, |_, _| ())));
            let report = report.expect("readable");
            let failures: Vec<&String> = report.kernels.iter().flat_map(|kernel| &kernel.failures).collect();
            let of_mode = failures.iter().filter(|failure| failure.contains(&format!("{mode:?}"))).count();
            assert!(of_mode > 0, "{shader} is wrong in {mode:?}, and none of {} cases notices", cases.len());
        }
    }
    let wrong = mutant("matvec", "MODE == 1u", "MODE == 4u");
    let (tested, _) = hooks::with(wrong, || block_on(conformance::self_test(device, SelfTest::FirstToken, |_, _| ())));
    let refused = tested.expect_err("a wrong kernel passes").to_string();
    assert!(refused.contains("computes wrong results in matvec") && refused.contains("Add"), "{refused}");
}

/// Kernels that sum in another order, or use equivalent arithmetic, must pass.
#[test]
fn reassociated_kernels_pass() {
    let _one = beside_others();
    let Some(device) = gpu() else { return };
    let equivalent = [
        (
            "matvec",
            "matvec",
            "each lane takes a run of its own",
            "for (var k = 8u * lane; k < info.cols; k += 8u * LANES) {",
            "let run = (info.cols / 8u + LANES - 1u) / LANES * 8u;\n for (var k = lane * run; k < min(info.cols, (lane + 1u) * run); k += 8u) {",
        ),
        (
            "matvec",
            "matvec",
            "backwards",
            "for (var k = 8u * lane; k < info.cols; k += 8u * LANES) {",
            "for (var z = 8u * lane; z < info.cols; z += 8u * LANES) { let k = info.cols - 8u - z;",
        ),
        ("matvec", "matvec", "squares backwards", "x[vectors[i] + c]", "x[vectors[i] + info.cols / 4u - 1u - c]"),
        (
            "matmul",
            "matmul",
            "backwards within a tile",
            "let column = slice * SLICE + k;",
            "let column = slice * SLICE + (SLICE - 1u - k);",
        ),
        (
            "matmul",
            "matmul_rows",
            "backwards",
            "for (var q = 0u; q < quads; q += 2u) {",
            "for (var z = 0u; z < quads; z += 2u) { let q = quads - 2u - z;",
        ),
        ("rms_norm", "rms_norm", "backwards", "let v = x[at + c];", "let v = x[at + info.cols - 1u - c];"),
    ];
    for (kernel, shader, what, from, to) in equivalent {
        let replace = mutant(shader, from, to);
        let (failed, of) = Expected::of(kernel, false).noticed(device, replace, usize::MAX);
        assert_eq!(failed, 0, "{shader} {what}: {failed} of {of} cases fail");
        println!("{shader} {what}: all {of} cases pass");
    }
}
