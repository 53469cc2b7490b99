//! The feed-forward part of a layer: SwiGLU (Shazeer 2020, arXiv 2002.05202), or a mixture of experts each of which
//! is one.
use burn::tensor::Tensor;

use super::config::{MixtureOfExperts, ModelConfig};
use super::decoder::{Decoder, Rows};
use super::matrix::{ExpertMatrices, Matrix, Uploader};
use super::tensors::{self, ExpertNames};
use crate::Result;
use crate::kernels::{self, Choices, ExpertSumSpec, ExpertsSpec, MOST_TOGETHER, Mode, NormSpec, RouterSpec, TilesSpec};
use crate::weights::PackedRows;
use crate::weights::precision::Role;

/// The weights of the feed-forward part of a layer.
pub(super) enum FeedForward {
    /// One SwiGLU for all tokens.
    Dense {
        /// The products of SwiGLU, in order: one matrix with the rows of gate and up in turn, so that the product can
        /// finish each pair; or, if their types differ, gate and then up.
        gate_up: Vec<(Matrix, Mode)>,
        down: Matrix,
    },
    /// One SwiGLU for each expert.
    Experts {
        /// A row for each expert.
        router: Matrix,
        /// The products of an expert's SwiGLU, as in a dense layer.
        gate_up: Vec<(ExpertMatrices, Mode)>,
        down: ExpertMatrices,
    },
}

impl FeedForward {
    pub fn load(config: &ModelConfig, uploader: &Uploader<'_>, layer: usize) -> Result<Self> {
        if let Some(mixture) = config.experts.as_ref().filter(|mixture| mixture.has_experts(layer)) {
            return Self::load_experts(config, mixture, uploader, layer);
        }
        let (h, inter) = (config.hidden_size, config.intermediate_size);
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        Ok(Self::Dense {
            gate_up: Self::load_gate_up(config, uploader, layer)?,
            down: uploader.load(&name, Role::Inner, [h, inter], true)?,
        })
    }

    /// The products of a dense SwiGLU, for the field of the same name.
    fn load_gate_up(config: &ModelConfig, uploader: &Uploader<'_>, layer: usize) -> Result<Vec<(Matrix, Mode)>> {
        // The extra rows are zeros. They give zeros where the next product reads padded values.
        let width = uploader.width(config.intermediate_size);
        let both = tensors::gate_up(config, uploader, layer)?;
        if both[0].dtype == both[1].dtype {
            return Ok(vec![(uploader.interleaved(&both, width)?, Mode::SwiGlu)]);
        }
        let [gate, up] = &both;
        Ok(vec![(uploader.with_zeros(gate, width)?, Mode::Store), (uploader.with_zeros(up, width)?, Mode::Gated)])
    }

    fn load_experts(
        config: &ModelConfig,
        mixture: &MixtureOfExperts,
        uploader: &Uploader<'_>,
        layer: usize,
    ) -> Result<Self> {
        let count = mixture.experts;
        let names = ExpertNames::find(uploader.weights, layer);
        let gate_up = |expert| names.gate_up(config, mixture, uploader, expert);
        let [gate, up] = gate_up(0)?;
        let gate_up = if gate.dtype() == up.dtype() {
            let interleaved = |expert| {
                let [gate, up] = gate_up(expert)?;
                PackedRows::interleave_rows(&gate, &up)
            };
            vec![(uploader.experts(count, interleaved)?, Mode::SwiGlu)]
        } else {
            let gate = |expert| gate_up(expert).map(|[gate, _]| gate.into_owned());
            let up = |expert| gate_up(expert).map(|[_, up]| up.into_owned());
            vec![(uploader.experts(count, gate)?, Mode::Store), (uploader.experts(count, up)?, Mode::Gated)]
        };
        let down = |expert| Ok(names.down(config, mixture, uploader, expert)?.into_owned());
        let name = format!("model.layers.{layer}.mlp.gate.weight");
        Ok(Self::Experts {
            router: uploader.load(&name, Role::Router, [count, config.hidden_size], true)?,
            gate_up,
            down: uploader.experts(count, down)?,
        })
    }

    /// The matrices that every token multiplies.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let (first, gate_up) = match self {
            Self::Dense { gate_up, down } => (down, &gate_up[..]),
            Self::Experts { router, .. } => (router, &[][..]),
        };
        std::iter::once(first).chain(gate_up.iter().map(|(matrix, _)| matrix))
    }

    /// The matrices of all experts.
    pub fn experts(&self) -> impl Iterator<Item = &ExpertMatrices> {
        let (gate_up, down) = match self {
            Self::Dense { .. } => (&[][..], None),
            Self::Experts { gate_up, down, .. } => (&gate_up[..], Some(down)),
        };
        gate_up.iter().map(|(matrices, _)| matrices).chain(down)
    }
}

impl Decoder {
    /// Adds the result of a layer's feed-forward part to the residual stream `x`. It reads the rows of `x` normalised
    /// with the weights `norm`.
    pub(super) fn feed_forward(&self, part: &FeedForward, norm: &Tensor<1>, x: Tensor<2>) -> Tensor<2> {
        let [n, cols] = x.dims();
        match (part, &self.config.experts) {
            (FeedForward::Dense { gate_up, down }, _) => {
                let normed = self.normed(&x, norm, 0..n);
                let product = |out, (w, mode): &(Matrix, Mode)| self.linear(w, &normed, None, out, *mode);
                let gated = gate_up.iter().fold(self.empty(n, self.gated), product);
                // The product with down writes `x` in place, so there must be no other handle to it.
                drop(normed);
                self.linear(down, &Rows::of(gated), None, x, Mode::Add)
            }
            (FeedForward::Experts { router, gate_up, down }, Some(mixture)) => {
                let (experts, k) = (mixture.experts, mixture.experts_per_token);
                // Router and experts read the same rows, which are normalised once for all of them.
                let normed = kernels::rms_norm(&x, norm, NormSpec { n, first_row: 0, cols, eps: self.eps });
                let rows = Rows::of(normed.clone());
                let logits = self.linear(router, &rows, None, self.empty(n, experts), Mode::Store);
                let spec = RouterSpec { n, experts, k, normalise: mixture.normalised };
                let (chosen, gains) = kernels::router(&logits, spec);
                // With few rows, hardly any experts are shared, and each row is computed in the same way whatever the
                // other rows are.
                let (list, choices) = if n <= MOST_TOGETHER {
                    (chosen, Choices::Each(n * k))
                } else {
                    let spec = TilesSpec { choices: n * k, experts };
                    (kernels::expert_tiles(&chosen, spec), Choices::Tiles(spec.tiles()))
                };
                let product = |w: &ExpertMatrices, x: &Tensor<2>, share: usize, out: Tensor<2>, mode: Mode| {
                    assert_eq!(x.dims()[1], w.cols, "an expert takes vectors of its own width");
                    let [_, out_stride] = out.dims();
                    w.shards.iter().fold(out, |out, shard| {
                        let spec = ExpertsSpec {
                            dtype: w.dtype,
                            mode,
                            rows: w.rows,
                            cols: w.cols,
                            first_expert: shard.first_expert,
                            experts: shard.experts,
                            share,
                            out_stride,
                            choices,
                            tuning: self.device.tuning,
                        };
                        kernels::experts(&shard.words, x, &list, out, spec)
                    })
                };
                let gated = self.empty(n * k, down.cols);
                let gated = gate_up.iter().fold(gated, |out, (w, mode)| product(w, &normed, k, out, *mode));
                let y = product(down, &gated, 1, self.empty(n * k, cols), Mode::Store);
                kernels::expert_sum(&y, &gains, x, ExpertSumSpec { n, k, cols })
            }
            (FeedForward::Experts { .. }, None) => unreachable!("only a mixture is loaded as experts"),
        }
    }
}
