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
/// vectors of values do at once.
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: what is added to it loses its fraction
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

/// Q8_0, Q4_0 and Q5_0. The largest value takes the longer end of the range of 4 and 5 bits.
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

/// Q6_K: 16 groups of 16 columns, quants of -32 to 31, scales of -128 to 127.
fn nested(values: &[f32], block: &mut Block) {
    *block = Block::EMPTY;
    let mut scales = [0f32; 16];
    for (scale, group) in scales.iter_mut().zip(values.chunks_exact(16)) {
        *scale = best_scale(group);
    }
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

/// The scale with which quants of -32 to 31 come nearest to `values`, by squared errors that count more for large
/// values (ggml's `make_qx_quants`).
fn best_scale(values: &[f32]) -> f32 {
    let most = largest(values);
    if most.abs() < 1e-15 {
        return 0.0;
    }
    let (mut scale, mut best) = (0.0, 0.0);
    for step in -9i8..=9 {
        let inverse = -(32.0 + 0.1 * f32::from(step)) / most;
        let (mut with_values, mut with_itself) = (0f32, 0f32);
        for v in values {
            let q = nearest(v * inverse).clamp(-32.0, 31.0);
            with_values += v * v * v * q;
            with_itself += v * v * q * q;
        }
        if with_itself > 0.0 && with_values * with_values > best * with_itself {
            scale = with_values / with_itself;
            best = scale * with_values;
        }
    }
    scale
}

/// Q4_K and Q5_K: 8 groups of 32 columns, quants of 0 to `most`, scales and minima of 0 to 63.
fn nested_with_minimum(most: u16, values: &[f32], block: &mut Block) {
    *block = Block::EMPTY;
    let mut fits = [(0f32, 0f32); 8];
    for (fit, group) in fits.iter_mut().zip(values.chunks_exact(32)) {
        *fit = best_scale_and_minimum(f32::from(most), group);
    }
    let (scale, minimum) = fits.iter().fold((0f32, 0f32), |(s, m), fit| (s.max(fit.0), m.max(fit.1)));
    let (d, m);
    (block.d, d) = half(scale / 63.0);
    (block.m, m) = half(minimum / 63.0);
    for (j, group) in values.chunks_exact(32).enumerate() {
        let share = (fits[j].0 * inverse(scale / 63.0)).round().min(63.0);
        let below = (fits[j].1 * inverse(minimum / 63.0)).round().min(63.0);
        (block.shared[j], block.shared[8 + j]) = (share as u8, below as u8);
        let (inverse, below) = (inverse(d * share), m * below);
        for (q, v) in block.quants[32 * j..].iter_mut().zip(group) {
            *q = nearest((v + below) * inverse).clamp(0.0, f32::from(most)) as u8;
        }
    }
}

/// The scale and the minimum, by its magnitude, with which quants of 0 to `most` come nearest to `values`, by squared
/// errors that count more for large values (ggml's `make_qkx2_quants`). The minimum is never above zero.
fn best_scale_and_minimum(most: f32, values: &[f32]) -> (f32, f32) {
    let (min, max) = values.iter().fold((0f32, f32::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
    if max <= min {
        return (0.0, -min);
    }
    let typical = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    let weight = |v: f32| typical + v.abs();
    let (mut sum_w, mut sum_x) = (0f32, 0f32);
    values.iter().for_each(|&v| {
        sum_w += weight(v);
        sum_x += weight(v) * v;
    });
    let error = |scale: f32, min: f32, inverse: f32, from: f32| {
        let off = |v: f32| scale * nearest((v - from) * inverse).clamp(0.0, most) + min - v;
        values.iter().map(|&v| weight(v) * off(v) * off(v)).sum::<f32>()
    };
    let mut best = ((max - min) / most, min);
    let mut least = error(best.0, best.1, most / (max - min), min);
    for step in 0i8..=20 {
        let inverse = (f32::from(step) * 0.1 - 1.0 + most) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for &v in values {
            let (w, l) = (weight(v), nearest((v - min) * inverse).clamp(0.0, most));
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut fit = ((sum_w * sum_xl - sum_x * sum_l) / determinant, (sum_l2 * sum_x - sum_l * sum_xl) / determinant);
        if fit.1 > 0.0 {
            fit = (sum_xl / sum_l2, 0.0);
        }
        let found = error(fit.0, fit.1, inverse, min);
        if found < least {
            (least, best) = (found, fit);
        }
    }
    (best.0, -best.1)
}
