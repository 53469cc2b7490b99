//! Quantizing rows of f32, after ggml's reference implementation (`ggml-quants.c`).
use super::blocks::{Block, put};
use crate::dtype::{Dtype, Scales};
use half::f16;

impl Dtype {
    /// Whether rows of f32 can be quantized to this type.
    pub(crate) const fn can_quantize(self) -> bool {
        matches!(
            self,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q4K | Self::Q5K | Self::Q6K
        )
    }
}

/// Quantizes a row, which is whole blocks, and appends its words. Returns false if a value is not finite, or too
/// large for an f16 scale.
pub(super) fn quantize(dtype: Dtype, row: &[f32], words: &mut Vec<u32>) -> bool {
    let format = dtype.format().expect("a quantized type");
    let start = words.len();
    words.resize(start + dtype.row_words(row.len()), 0);
    let mut finite = row.iter().all(|v| v.is_finite());
    let most = (1u16 << (format.low_bits + format.high_bits)) - 1;
    let mut block = Block::EMPTY;
    for (i, values) in row.chunks_exact(format.block).enumerate() {
        match format.scales {
            Scales::One => one_scale(dtype, values, &mut block),
            Scales::OneWithMinimum => with_minimum(most, values, &mut block),
            Scales::Nested => nested(values, &mut block),
            Scales::NestedWithMinimum => nested_with_minimum(most, values, &mut block),
        }
        finite &= block.is_finite();
        put(&format, &block, i, row.len(), &mut words[start..]);
    }
    finite
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest whole number to a value of up to 2^22, ties to even. Unlike [`f32::round`], it is two additions, which
/// the compiler can do for several values at once.
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: a sum with it loses its fraction
    (value + SHIFT) - SHIFT
}

fn half(value: f32) -> (u16, f32) {
    let half = f16::from_f32(value);
    (half.to_bits(), half.to_f32())
}

/// The value of largest magnitude, with its sign.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, v| if v.abs() > most.abs() { *v } else { most })
}

/// Q8_0, Q4_0 and Q5_0. With 4 and 5 bits, the value of largest magnitude maps to the negative end of the range, which
/// has one step more.
fn one_scale(dtype: Dtype, values: &[f32], block: &mut Block) {
    let most = largest(values);
    let scale = match dtype {
        Dtype::Q8_0 => most.abs() / 127.0,
        Dtype::Q4_0 => most / -8.0,
        _ => most / -16.0,
    };
    (block.d, block.m) = (half(scale).0, 0);
    let inverse = inverse(scale);
    for (q, v) in block.quants.iter_mut().zip(values) {
        *q = match dtype {
            Dtype::Q8_0 => (v * inverse).round() as i8 as u8,
            Dtype::Q4_0 => ((v * inverse + 8.5) as u8).min(15),
            _ => ((v * inverse + 16.5) as u8).min(31),
        };
    }
}

/// Q4_1 and Q5_1: from the smallest to the largest value in `most` steps.
fn with_minimum(most: u16, values: &[f32], block: &mut Block) {
    let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
    let scale = (max - min) / f32::from(most);
    (block.d, block.m) = (half(scale).0, half(min).0);
    let inverse = inverse(scale);
    for (q, v) in block.quants.iter_mut().zip(values) {
        *q = ((v - min) * inverse + 0.5).min(f32::from(most)) as u8;
    }
}

/// One value for each group of a block. The searches below handle all groups of a block at once, because the compiler
/// turns loops over `Lanes` into vector instructions, which it does not do with sums within a group: the order of
/// their additions is given.
type Lanes<const GROUPS: usize> = [f32; GROUPS];

/// The columns of a block's groups: element `c` holds column `c` of every group.
fn columns<const GROUPS: usize, const WIDTH: usize>(values: &[f32]) -> [Lanes<GROUPS>; WIDTH] {
    std::array::from_fn(|column| std::array::from_fn(|group| values[group * WIDTH + column]))
}

fn lanes<const GROUPS: usize>(value: impl Fn(usize) -> f32) -> Lanes<GROUPS> {
    std::array::from_fn(value)
}

/// Selects `a` or `b`. Unlike a branch, it does not keep the compiler from turning the loop around it into vector
/// instructions.
fn select(condition: bool, a: f32, b: f32) -> f32 {
    if condition { a } else { b }
}

/// The nearest whole number between `least` and `most`.
fn quant(value: f32, least: f32, most: f32) -> f32 {
    let nearest = nearest(value);
    let nearest = select(nearest < most, nearest, most);
    select(nearest > least, nearest, least)
}

/// Q6_K: 16 groups of 16 columns, quants of -32 to 31, scales of -128 to 127.
fn nested(values: &[f32], block: &mut Block) {
    *block = Block::EMPTY;
    let scales = best_scales(values);
    let most = largest(&scales);
    // Quants of -32 to 31 are stored with an offset of 32: an empty block is one of scale 0.
    if most.abs() < 1e-15 {
        return;
    }
    let d;
    (block.d, d) = half(most / -128.0);
    for (j, group) in values.chunks_exact(16).enumerate() {
        let share = (scales[j] * (-128.0 / most)).round().min(127.0);
        block.shared[j] = share as i8 as u8;
        let inverse = inverse(d * share);
        for (q, v) in block.quants[16 * j..].iter_mut().zip(group) {
            *q = (nearest(v * inverse).clamp(-32.0, 31.0) + 32.0) as u8;
        }
    }
}

/// The scale of each group of 16 with which quants of -32 to 31 come nearest to its values, by squared errors that
/// count more for large values (ggml's `make_qx_quants`). `values` are a block of 256.
fn best_scales(values: &[f32]) -> Lanes<16> {
    let columns = columns::<16, 16>(values);
    let most: Lanes<16> = lanes(|group| largest(&values[16 * group..][..16]));
    let (mut scale, mut best) = ([0f32; 16], [0f32; 16]);
    for step in -9i8..=9 {
        let steps = -(32.0 + 0.1 * f32::from(step));
        let inverse: Lanes<16> = lanes(|group| steps / most[group]);
        let (mut with_values, mut with_itself) = ([0f32; 16], [0f32; 16]);
        for column in &columns {
            for group in 0..16 {
                let v = column[group];
                let q = quant(v * inverse[group], -32.0, 31.0);
                with_values[group] += v * v * v * q;
                with_itself[group] += v * v * q * q;
            }
        }
        for group in 0..16 {
            let (values, itself) = (with_values[group], with_itself[group]);
            let found = values / itself;
            let better = (itself > 0.0) & (values * values > best[group] * itself);
            scale[group] = select(better, found, scale[group]);
            best[group] = select(better, found * values, best[group]);
        }
    }
    lanes(|group| select(most[group].abs() < 1e-15, 0.0, scale[group]))
}

/// Q4_K and Q5_K: 8 groups of 32 columns, quants of 0 to `most`, scales and minima of 0 to 63.
fn nested_with_minimum(most: u16, values: &[f32], block: &mut Block) {
    *block = Block::EMPTY;
    let (scales, minima) = best_scales_and_minima(f32::from(most), values);
    let (scale, minimum) = (0..8).fold((0f32, 0f32), |(s, m), j| (s.max(scales[j]), m.max(minima[j])));
    let (d, m);
    (block.d, d) = half(scale / 63.0);
    (block.m, m) = half(minimum / 63.0);
    for (j, group) in values.chunks_exact(32).enumerate() {
        let share = (scales[j] * inverse(scale / 63.0)).round().min(63.0);
        let below = (minima[j] * inverse(minimum / 63.0)).round().min(63.0);
        (block.shared[j], block.shared[8 + j]) = (share as u8, below as u8);
        let (inverse, below) = (inverse(d * share), m * below);
        for (q, v) in block.quants[32 * j..].iter_mut().zip(group) {
            *q = nearest((v + below) * inverse).clamp(0.0, f32::from(most)) as u8;
        }
    }
}

/// For each group of 32 in `values`, a block of 256: the scale and the magnitude of the minimum, which is never above
/// zero, with which quants of 0 to `most` have the least squared error. Errors of large values count more (ggml's
/// `make_qkx2_quants`).
fn best_scales_and_minima(most: f32, values: &[f32]) -> (Lanes<8>, Lanes<8>) {
    let columns = columns::<8, 32>(values);
    let (mut min, mut max, mut squares) = ([0f32; 8], [f32::MIN; 8], [0f32; 8]);
    for column in &columns {
        for group in 0..8 {
            let v = column[group];
            min[group] = select(v < min[group], v, min[group]);
            max[group] = select(v > max[group], v, max[group]);
            squares[group] += v * v;
        }
    }
    let typical = squares.map(|sum| (sum / 32.0).sqrt());
    let mut weights = [[0f32; 8]; 32];
    let (mut sum_w, mut sum_x) = ([0f32; 8], [0f32; 8]);
    for (weight, column) in weights.iter_mut().zip(&columns) {
        for group in 0..8 {
            let w = typical[group] + column[group].abs();
            weight[group] = w;
            sum_w[group] += w;
            sum_x[group] += w * column[group];
        }
    }
    let mut quants = [[0f32; 8]; 32];
    let quantize = |quants: &mut [Lanes<8>; 32], steps: f32| {
        let inverse: Lanes<8> = lanes(|group| steps / (max[group] - min[group]));
        for (quants, column) in quants.iter_mut().zip(&columns) {
            for group in 0..8 {
                quants[group] = quant((column[group] - min[group]) * inverse[group], 0.0, most);
            }
        }
    };
    let error = |quants: &[Lanes<8>; 32], scale: &Lanes<8>, low: &Lanes<8>| {
        let mut sum = [0f32; 8];
        for ((quants, weights), column) in quants.iter().zip(&weights).zip(&columns) {
            for group in 0..8 {
                let off = scale[group] * quants[group] + low[group] - column[group];
                sum[group] += weights[group] * off * off;
            }
        }
        sum
    };
    let mut scale: Lanes<8> = lanes(|group| (max[group] - min[group]) / most);
    let mut low = min;
    quantize(&mut quants, most);
    let mut least = error(&quants, &scale, &low);
    for step in 0i8..=20 {
        quantize(&mut quants, f32::from(step) * 0.1 - 1.0 + most);
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        for ((quants, weights), column) in quants.iter().zip(&weights).zip(&columns) {
            for group in 0..8 {
                let (w, l) = (weights[group], quants[group]);
                sum_l[group] += w * l;
                sum_l2[group] += w * l * l;
                sum_xl[group] += w * l * column[group];
            }
        }
        let (mut fit, mut below, mut limit) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        for group in 0..8 {
            let (w, x, l, l2, xl) = (sum_w[group], sum_x[group], sum_l[group], sum_l2[group], sum_xl[group]);
            let determinant = w * l2 - l * l;
            let minimum = (l2 * x - l * xl) / determinant;
            fit[group] = select(minimum > 0.0, xl / l2, (w * xl - x * l) / determinant);
            below[group] = select(minimum > 0.0, 0.0, minimum);
            // Without a fit, this candidate is rejected.
            limit[group] = select(determinant > 0.0, least[group], f32::MIN);
        }
        let found = error(&quants, &fit, &below);
        for group in 0..8 {
            let better = found[group] < limit[group];
            least[group] = select(better, found[group], least[group]);
            scale[group] = select(better, fit[group], scale[group]);
            low[group] = select(better, below[group], low[group]);
        }
    }
    // A group of equal values has no range to divide.
    let flat = |group: usize| max[group] <= min[group];
    (lanes(|group| select(flat(group), 0.0, scale[group])), lanes(|group| -select(flat(group), min[group], low[group])))
}
