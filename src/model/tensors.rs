//! The matrices of a layer as the one graph multiplies them, whichever way the checkpoint stores them.
//!
//! Some checkpoints (Phi-3) have the rows of q, k and v below each other in one tensor, and those of gate and up in
//! another.
//!
//! **Heads that are rotated in part.** The kernels rotate component `i` of a head with component `i + d / 2`. Of a
//! head of which only the first `r` components are rotated, transformers rotates `i` with `i + r / 2`. Moving the
//! rows of q and k brings each pair to the components that the kernels rotate together. Attention scores, the norms
//! of keys and their similarities are sums over the components, so the order of the components does not matter. The
//! RoPE table does not rotate the other pairs ([`rope::table`](super::rope::table)).
use super::config::{MixtureOfExperts, ModelConfig};
use super::matrix::{Unread, Uploader};
use crate::Result;
use crate::weights::precision::Role;
use crate::weights::{PackedRows, Weights};
use std::ops::Range;

/// The rows of the queries, of the keys and of the values of a layer, each `[rows, hidden_size]`.
///
/// # Errors
/// A tensor that is missing or has the wrong shape or type.
pub(super) fn qkv<'a>(config: &ModelConfig, up: &Uploader<'a>, layer: usize) -> Result<[PackedRows<'a>; 3]> {
    let (h, q, kv) = (config.hidden_size, config.q_size(), config.kv_size());
    let name = |what: &str| format!("model.layers.{layer}.self_attn.{what}_proj.weight");
    let [queries, keys, values] = match config.fused_projections {
        true => {
            let name = name("qkv");
            let all = up.stored(&name, q + 2 * kv, h)?;
            let part = |range, role| up.precise(&name, rows(&all, range)?, role);
            [part(0..q, Role::Inner)?, part(q..q + kv, Role::Inner)?, part(q + kv..q + 2 * kv, Role::Values)?]
        }
        false => [
            up.rows(&name("q"), Role::Inner, q, h)?,
            up.rows(&name("k"), Role::Inner, kv, h)?,
            up.rows(&name("v"), Role::Values, kv, h)?,
        ],
    };
    let (d, rotated) = (config.head_dim, config.rotary_dim);
    Ok([pair_halves(queries, d, rotated)?, pair_halves(keys, d, rotated)?, values])
}

/// The rows of gate and of up of a layer, each `[intermediate_size, hidden_size]`.
///
/// # Errors
/// A tensor that is missing or has the wrong shape or type.
pub(super) fn gate_up<'a>(config: &ModelConfig, up: &Uploader<'a>, layer: usize) -> Result<[Unread<'a>; 2]> {
    let (h, inter) = (config.hidden_size, config.intermediate_size);
    let unread = |what: &str, rows: usize| {
        up.unread(&format!("model.layers.{layer}.mlp.{what}_proj.weight"), Role::Inner, [rows, h], true)
    };
    match config.fused_projections {
        true => {
            let both = unread("gate_up", 2 * inter)?;
            Ok([both.part(0..inter), both.part(inter..2 * inter)])
        }
        false => Ok([unread("gate", inter)?, unread("up", inter)?]),
    }
}

/// How a checkpoint stores the experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredExperts {
    /// Three matrices of each expert.
    Each,
    /// One tensor of the gates of all experts, one of their ups and one of their downs, as in GGUF files.
    Stacked,
    /// One tensor of the gates and ups of all experts, the rows of gate first, and one of their downs, as in the
    /// memory of transformers 5.
    Fused,
}

/// The names of the tensors of the experts of a layer.
pub(super) struct ExpertNames {
    pub stored: StoredExperts,
    /// The names of the tensors of the gates, of the ups and of the downs. The first two are equal if gate and up are
    /// fused. `{}` stands for the number of an expert.
    names: [String; 3],
}

impl ExpertNames {
    pub fn find(weights: &Weights, layer: usize) -> Self {
        let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{part}");
        let (stored, names) = if weights.contains(&name("gate_up_proj")) {
            (StoredExperts::Fused, ["gate_up_proj", "gate_up_proj", "down_proj"])
        } else if weights.contains(&name("gate_proj.weight")) {
            (StoredExperts::Stacked, ["gate_proj.weight", "up_proj.weight", "down_proj.weight"])
        } else {
            (StoredExperts::Each, ["{}.gate_proj.weight", "{}.up_proj.weight", "{}.down_proj.weight"])
        };
        Self { stored, names: names.map(name) }
    }

    /// The names of an expert's gate, up and down.
    pub fn expert(&self, expert: usize) -> [String; 3] {
        self.names.each_ref().map(|name| name.replace("{}", &expert.to_string()))
    }

    /// The rows of gate, up or down (`part` 0, 1 or 2) of an expert, `[rows, width of cols]`, in the element type of
    /// their role.
    fn read<'a>(
        &self,
        up: &Uploader<'a>,
        part: usize,
        [count, rows, cols]: [usize; 3],
        expert: usize,
    ) -> Result<PackedRows<'a>> {
        let name = &self.expert(expert)[part];
        let matrix = match self.stored {
            StoredExperts::Each => up.weights.matrix(name, rows, cols)?,
            StoredExperts::Fused if part < 2 => {
                let both = up.weights.matrix_of(name, [count, 2 * rows, cols], expert)?;
                self::rows(&both, part * rows..(part + 1) * rows)?
            }
            _ => up.weights.matrix_of(name, [count, rows, cols], expert)?,
        };
        let width = if matrix.dtype().is_quantized() { cols } else { up.width(cols) };
        up.precise(name, matrix.padded(rows, width)?, Role::Inner)
    }

    /// The rows of gate and of up of an expert, each `[width of the expert, hidden_size]`: rows of zeros make zeros
    /// where the product with down reads padded values.
    ///
    /// # Errors
    /// A tensor that is missing or has the wrong shape or type.
    pub fn gate_up<'a>(
        &self,
        config: &ModelConfig,
        mixture: &MixtureOfExperts,
        up: &Uploader<'a>,
        expert: usize,
    ) -> Result<[PackedRows<'a>; 2]> {
        let shape = [mixture.experts, mixture.intermediate_size, config.hidden_size];
        let part = |part: usize| {
            let rows = self.read(up, part, shape, expert)?;
            let cols = rows.cols();
            rows.padded(up.width(mixture.intermediate_size), cols)
        };
        Ok([part(0)?, part(1)?])
    }

    /// The rows of down of an expert, `[width of the residual stream, width of the expert]`: rows of zeros make zeros
    /// where the residual stream is padded.
    ///
    /// # Errors
    /// A tensor that is missing or has the wrong shape or type.
    pub fn down<'a>(
        &self,
        config: &ModelConfig,
        mixture: &MixtureOfExperts,
        up: &Uploader<'a>,
        expert: usize,
    ) -> Result<PackedRows<'a>> {
        let shape = [mixture.experts, config.hidden_size, mixture.intermediate_size];
        let rows = self.read(up, 2, shape, expert)?;
        let cols = rows.cols();
        rows.padded(up.width(config.hidden_size), cols)
    }
}

fn rows(all: &PackedRows<'_>, range: Range<usize>) -> Result<PackedRows<'static>> {
    Ok(all.slice_rows(range)?.into_owned())
}

/// Moves the rows of each head of `d` so that component `i` is rotated with `i + d / 2`, where the checkpoint rotates
/// it with `i + rotated / 2`, for `i < rotated / 2`. Nothing moves if whole heads are rotated.
fn pair_halves(rows: PackedRows<'_>, d: usize, rotated: usize) -> Result<PackedRows<'_>> {
    if rotated == d {
        return Ok(rows);
    }
    let (half, rest) = (rotated / 2, (d - rotated) / 2);
    let parts = [0..half, rotated..rotated + rest, half..rotated, rotated + rest..d];
    let heads = (0..rows.rows()).step_by(d);
    let moved = heads.flat_map(|head| parts.clone().map(|part| rows.slice_rows(head + part.start..head + part.end)));
    PackedRows::concat_rows(&moved.collect::<Result<Vec<_>>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    #[test]
    fn rotated_pairs_are_half_a_head_apart() -> Result<()> {
        // The example has two heads of eight components, of which the first six are rotated: 0 with 3, 1 with 4, 2
        // with 5.
        let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let rows = PackedRows::from_f32(Dtype::F32, 16, 1, &values)?;
        let moved = pair_halves(rows.clone(), 8, 6)?.to_f32();
        assert_eq!(moved, [0., 1., 2., 6., 3., 4., 5., 7., 8., 9., 10., 14., 11., 12., 13., 15.]);
        assert_eq!(pair_halves(rows.clone(), 8, 8)?, rows, "whole heads stay as they are");
        Ok(())
    }
}
