//! The one decoder graph of all [architectures](crate::expert::model::config::Architecture): RMSNorm, QKV (with or
//! without bias), norms of each head (if there are any), RoPE (in all layers or some, of whole heads or their first
//! components), grouped-query attention, SwiGLU, tied or untied head. A [`ModelConfig`] says which of them a model
//! has.
//!
//! The graph has no branch for devices: the operations of [`kernels`](crate::expert::kernels) run as WGSL where the
//! weights are on a GPU, and as their CPU twins where they are on the CPU. Weights stay as they are stored, packed in
//! u32 words, unless a precision is chosen. Activations are f32.
use burn::tensor::{Int, Tensor};

use crate::cache::KvCache;
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::kernels::embed::Ids;
use crate::kernels::memory::{empty_f32, empty_u32};
use crate::kernels::{
    self, AttentionRowSpec, AttentionSpec, AttentionSumsSpec, EmbedSpec, ExpectedSpec, KeySimilaritySpec, LayerSpec,
    LinearSpec, MOST_ROWS, MOST_TOGETHER, Mode, NormSpec, RecurrenceSpec, Reduce, RopeAppendSpec, ValueSizesSpec,
};
use crate::model::config::ModelConfig;
use crate::model::feed_forward::FeedForward;
pub use crate::model::limits::check_device;
use crate::model::limits::{check_dimensions, check_partials, check_rope, usable_context};
use crate::model::matrix::{ExpertMatrices, Matrix, Uploader};
use crate::model::{required, rope, tensors};
use crate::policy::Positions;
use crate::weights::Weights;
use crate::weights::precision::{Precision, Role};
use crate::{Error, ErrorKind, Result};
use std::cmp::Reverse;
use std::ops::Range;

/// Positions after the latest query whose queries are expected, as in kvpress.
const FUTURE: usize = 512;

/// One decoder layer's weights.
struct Layer {
    input_norm: Tensor<1>,
    /// The rows of the queries, then of the keys, then of the values, so that one product computes all three.
    qkv: Matrix,
    qkv_bias: Option<Tensor<1>>,
    /// Norm weights of the query heads, then of the key heads: f32 `[2 head_dim]`.
    qk_norm: Option<Tensor<1>>,
    o: Matrix,
    o_bias: Option<Tensor<1>>,
    post_norm: Tensor<1>,
    feed_forward: FeedForward,
}

impl Layer {
    fn load(config: &ModelConfig, up: &Uploader<'_>, i: usize) -> Result<Self> {
        let h = config.hidden_size;
        let (q, kv) = (config.q_size(), config.kv_size());
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let qkv = tensors::qkv(config, up, i)?;
        let qkv_bias = match config.attention_bias {
            false => None,
            true => {
                let mut bias = Vec::with_capacity(q + 2 * kv);
                for (what, len) in [("q", q), ("k", kv), ("v", kv)] {
                    bias.extend(up.weights.vector(&name(&format!("self_attn.{what}_proj.bias")), len)?);
                }
                Some(up.vector(bias))
            }
        };
        let o_bias = match config.output_bias {
            false => None,
            true => Some(up.vector(up.weights.vector(&name("self_attn.o_proj.bias"), h)?)),
        };
        let qk_norm = match config.qk_norm {
            false => None,
            true => {
                let norm =
                    |what: &str| up.weights.vector(&name(&format!("self_attn.{what}_norm.weight")), config.head_dim);
                Some(up.vector([norm("q")?, norm("k")?].concat()))
            }
        };
        Ok(Self {
            input_norm: up.norm(up.weights.vector(&name("input_layernorm.weight"), h)?),
            qkv: up.stacked(&qkv)?,
            qkv_bias,
            qk_norm,
            o_bias,
            // The results of attention, which are the input of this product, are not padded.
            o: up.load(&name("self_attn.o_proj.weight"), Role::Inner, [h, q], false)?,
            post_norm: up.norm(up.weights.vector(&name("post_attention_layernorm.weight"), h)?),
            feed_forward: FeedForward::load(config, up, i)?,
        })
    }
}

/// The tokens to forward.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// A chunk of ids of one sequence, at its next positions.
    Chunk {
        /// The sequence that the ids belong to.
        seq: usize,
        /// The ids of the chunk.
        ids: &'a [u32],
    },
    /// A chunk that will be rolled back: like [`Chunk`](Self::Chunk), but the cache does not track its attention and
    /// queries, and it is forwarded only up to the attention of the last layer that is read. It has no logits.
    Probe {
        /// The sequence that the probe is appended to.
        seq: usize,
        /// The ids of the probe.
        ids: &'a [u32],
        /// The number of the first layers whose attention is read, at least 1.
        layers: usize,
    },
    /// The pending token of each of these sequences, taken from the device's state: a decode step. Rows follow this
    /// order.
    Pending(&'a [usize]),
    /// The pending token of each of these sequences and the drafts behind it, taken from the device's state: a decode
    /// step in which the device decides how many tokens it adds. Each row is computed as in [`Pending`](Self::Pending).
    Drafted {
        /// The sequences, at most [`MOST_TOGETHER`](kernels::MOST_TOGETHER) rows of all of them together.
        seqs: &'a [usize],
        /// Rows of each sequence: one more than its drafts.
        chunk: usize,
    },
}

impl Input<'_> {
    /// The sequences that are forwarded.
    pub(crate) fn seqs(&self) -> &[usize] {
        match self {
            Input::Chunk { seq, .. } | Input::Probe { seq, .. } => std::slice::from_ref(seq),
            Input::Pending(seqs) | Input::Drafted { seqs, .. } => seqs,
        }
    }

    /// Tokens of each sequence.
    pub(crate) fn chunk(&self) -> usize {
        match self {
            Input::Chunk { ids, .. } | Input::Probe { ids, .. } => ids.len(),
            Input::Pending(_) => 1,
            Input::Drafted { chunk, .. } => *chunk,
        }
    }

    /// Whether this is a decode step, whose rows are computed one by one.
    fn decodes(&self) -> bool {
        matches!(self, Input::Pending(_) | Input::Drafted { .. })
    }
}

/// A forward that has been checked against all limits and for which the cache has room ([`Decoder::plan`]).
#[derive(Debug)]
pub struct Plan<'a> {
    input: Input<'a>,
    /// Rows of the activations: tokens of all sequences.
    n: usize,
    /// Tokens of each sequence.
    chunk: usize,
    /// Offset in the state of the list of the rows' sequences.
    row_seq_offset: usize,
    /// Whether attention is launched for as many slots as the cache has room for. The launches of the next step are
    /// then the same, and the results do not depend on it.
    for_all_room: bool,
}

impl Plan<'_> {
    /// Whether the next decode step of the same sequences launches the same kernels with the same parameters, as long
    /// as the buffers of the cache are not replaced.
    pub(crate) fn repeats(&self) -> bool {
        self.for_all_room
    }

    /// Whether nothing after the attention of this layer is needed.
    fn ends_at(&self, layer: usize) -> bool {
        matches!(self.input, Input::Probe { layers, .. } if layer + 1 >= layers)
    }
}

/// Which rows get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last row of a chunk, or the row of every sequence of a decode step.
    Last,
    /// Every row.
    All,
    /// This number of rows of a chunk (second value), from the given row on (first value).
    Rows(usize, usize),
}

/// The result of a forward.
pub struct ForwardOutput {
    /// The activations after the last layer, f32 `[rows, hidden_size]`, padded: input of [`Decoder::logits`]. Of a
    /// probe they are those of an earlier layer.
    hidden: Tensor<2>,
    /// Number of sequences that were forwarded.
    seqs: usize,
    /// The attention weights of each sequence's last row over its slots, those of the forwarded chunk included: f32
    /// `[out_rows, slots]`, layer by layer, in each layer one for each sequence. Empty if no readout was asked for.
    pub readout: Vec<Tensor<2>>,
}

impl ForwardOutput {
    /// The attention weights of one of the forwarded sequences (`row`: its place among them), layer by layer.
    pub fn readout_of(&self, row: usize) -> Vec<&Tensor<2>> {
        self.readout.iter().skip(row).step_by(self.seqs).collect()
    }
}

/// The vectors of a product.
pub(super) struct Rows {
    x: Tensor<2>,
    /// The weights and the parameters of the norm that the product applies to the rows of `x`.
    norm: Option<(Tensor<1>, NormSpec)>,
}

impl Rows {
    /// All rows of `x` as they are.
    pub fn of(x: Tensor<2>) -> Self {
        Self { x, norm: None }
    }
}

/// The model on a device.
pub struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) device: ComputeDevice,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor<1>,
    /// `None` for a tied head: the embedding is used.
    head: Option<Matrix>,
    /// Cosines and sines of all positions.
    rope: Tensor<1>,
    /// The ε of the norms over the residual stream.
    pub(super) eps: f32,
    /// Values of a row between SwiGLU and the product with down, in layers that have no experts.
    pub(super) gated: usize,
    /// The table of the layers without RoPE, if there are any: cosines of 1 and sines of 0.
    unrotated: Option<Tensor<1>>,
    context: usize,
    /// Bound in place of a bias, and of the weights of a norm, that the model or a product does not have: every
    /// binding of a shader needs a buffer, and no two bindings may have the same one.
    unread_bias: Tensor<1>,
    unread_norm: Tensor<1>,
    weight_bytes: u64,
}

impl Decoder {
    /// Uploads the weights of `config` from `weights`, for contexts of up to `context` positions. With a `precision`,
    /// weights that are not quantized yet are quantized as they are read. `progress` is called with the number of
    /// parts done and of all parts.
    ///
    /// # Errors
    /// The errors of [`check_device`] for one sequence, except that of attention; a tensor that is missing or has the
    /// wrong shape or type.
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        context: usize,
        precision: Option<Precision>,
        device: &ComputeDevice,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let context = usable_context(config, context);
        check_dimensions(config, device)?;
        check_rope(config, context, device)?;
        let h = config.hidden_size;
        let total = config.num_layers + 2;
        let mut done = 0;
        let mut tick = || {
            // The pages that were read are not needed again. Without this, the whole file would stay in memory beside
            // the copy on the device.
            weights.release_memory();
            done += 1;
            progress(done, total);
        };
        // Without these checks, a missing tensor would be noticed only after others have been uploaded.
        required::check(config, weights, precision)?;
        required::check_expert_size(config, weights, precision, device)?;
        required::check_memory(config, weights, precision, device)?;
        let up = Uploader { device, weights, precision };
        let vocabulary = |name: &str| up.load(name, Role::Vocabulary, [config.vocab_size, h], true);
        let embedding = vocabulary("model.embed_tokens.weight")?;
        tick();
        let mut layers = Vec::with_capacity(config.num_layers);
        for i in 0..config.num_layers {
            layers.push(Layer::load(config, &up, i)?);
            tick();
        }
        let norm = up.norm(weights.vector("model.norm.weight", h)?);
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(vocabulary("lm_head.weight")?),
        };
        tick();
        let table =
            |rotary| up.vector(rope::table(config.head_dim, rotary, config.rope_theta, &config.rope_scaling, context));
        let rope = table(config.rotary_dim);
        let unrotated = (config.rotated_layers.unrotated(config.num_layers) > 0).then(|| table(0));
        let [unread_bias, unread_norm] = [(); 2].map(|()| up.vector(vec![0.0; 4]));
        let mut model = Self {
            config: config.clone(),
            device: device.clone(),
            embedding,
            layers,
            norm,
            head,
            rope,
            eps: up.padded_eps(config.rms_norm_eps, h),
            gated: up.width(config.intermediate_size),
            unrotated,
            context,
            unread_bias,
            unread_norm,
            weight_bytes: 0,
        };
        model.weight_bytes = model.weight_types().iter().map(|(_, bytes)| bytes).sum();
        if let Some(precision) = precision
            && required::is_quantized(weights)
        {
            log::warn!("the file has quantized weights, which `weights` {precision} does not change");
        }
        // A lack of memory is reported only when the device processes the uploads. It must be reported before the
        // model counts as loaded.
        #[cfg(not(target_family = "wasm"))]
        device
            .wait_until_done()
            .map_err(|e| e.expected(format!("room for {} bytes of weights", model.weight_bytes)))?;
        Ok(model)
    }

    /// The configuration that the model was loaded with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    #[cfg(test)]
    pub(crate) fn limit_bindings(&mut self, bytes: u64) {
        self.device.info.max_binding_bytes = bytes;
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &ComputeDevice {
        &self.device
    }

    /// Number of positions of the RoPE table.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of all weight matrices on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// The element types of the weight matrices on the device, and the bytes of each; the one with the most bytes
    /// first.
    pub fn weight_types(&self) -> Vec<(Dtype, u64)> {
        let mut types: Vec<(Dtype, u64)> = Vec::new();
        let shards = self.matrices().flat_map(Matrix::shard_bytes);
        for (dtype, bytes) in shards.chain(self.experts().flat_map(ExpertMatrices::shard_bytes)) {
            match types.iter_mut().find(|(known, _)| *known == dtype) {
                Some((_, sum)) => *sum += bytes,
                None => types.push((dtype, bytes)),
            }
        }
        types.sort_by_key(|(dtype, bytes)| (Reverse(*bytes), dtype.name()));
        types
    }

    /// Bytes of the weight matrices that a decode step of `sequences` sequences reads: all except an embedding that
    /// is not the head as well, of which a step reads a few rows, and except the experts that are not chosen. If
    /// several sequences choose different experts, all of those are read.
    pub fn step_bytes(&self, sequences: usize) -> u64 {
        let unread = if self.head.is_some() { self.embedding.bytes() } else { 0 };
        let experts: u64 = self.experts().map(ExpertMatrices::bytes).sum();
        let share = self.config.experts.as_ref().map_or(0.0, |mixture| mixture.share_read(sequences));
        self.weight_bytes - unread - experts + (experts as f64 * share) as u64
    }

    /// The matrices that every token multiplies, the embedding included.
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers
            .iter()
            .flat_map(|l| [&l.qkv, &l.o].into_iter().chain(l.feed_forward.matrices()))
            .chain([&self.embedding])
            .chain(&self.head)
    }

    /// The matrices of all experts of all layers.
    fn experts(&self) -> impl Iterator<Item = &ExpertMatrices> {
        self.layers.iter().flat_map(|layer| layer.feed_forward.experts())
    }

    /// Prepares to forward `input` at the next positions of its sequences: checks all limits, makes room in `cache`,
    /// and selects the rows' sequences. The cache must not change between the plan and its
    /// [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a context that would be exceeded and for an id outside the vocabulary,
    /// [`ErrorKind::Device`] for a cache or an attention beyond the device's limits. The contents of the cache have
    /// not changed then.
    pub fn plan<'a>(&self, input: Input<'a>, cache: &mut KvCache) -> Result<Plan<'a>> {
        let (seqs, chunk) = (input.seqs(), input.chunk());
        let n = seqs.len() * chunk;
        if n == 0 {
            return Err(Error::new(ErrorKind::Internal, "nothing to forward"));
        }
        if n > MOST_ROWS {
            return Err(Error::new(ErrorKind::Internal, "too many rows to forward at once")
                .expected(format!("at most {MOST_ROWS}"))
                .found(n));
        }
        if let Input::Chunk { ids, .. } | Input::Probe { ids, .. } = input
            && let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size)
        {
            return Err(Error::new(ErrorKind::Input, "a token id is outside the vocabulary")
                .expected(format!("ids below {}", self.config.vocab_size))
                .found(id));
        }
        // Of a step with drafts, the limit of the sequence keeps the device from accepting what exceeds the context.
        let certain = if matches!(input, Input::Drafted { .. }) { 1 } else { chunk };
        for &seq in seqs {
            let next = match cache.positions() {
                Positions::Compact => cache.longest(seq),
                Positions::Original => cache.sequence(seq).position.0 as usize,
            };
            if next + certain > self.context {
                return Err(Error::new(ErrorKind::Input, "the context is full")
                    .expected(format!("at most {} positions", self.context))
                    .found(next + certain)
                    .help("raise `context` (up to the model's own maximum) or lower `max_new_tokens`"));
            }
        }
        cache.reserve(seqs, chunk)?;
        let mut plan = Plan { n, chunk, row_seq_offset: cache.select(seqs), input, for_all_room: false };
        let checked = |most_seen| check_partials(self.attention_spec(&plan, cache, 0, most_seen), &self.device);
        checked(seqs.iter().map(|seq| cache.longest(*seq) + cache.ahead(*seq)).max().unwrap_or(0) + chunk)?;
        let room = (0..self.layers.len()).flat_map(|layer| seqs.iter().map(move |seq| (layer, *seq)));
        let room = room.map(|(layer, seq)| cache.capacity(layer, seq)).max().unwrap_or(0);
        plan.for_all_room = input.decodes() && checked(room).is_ok();
        Ok(plan)
    }

    /// The graph: forwards what `plan` says and appends keys and values to `cache`. Where `readout` says which
    /// attention rows are returned, it reads those of each sequence's last token. Lengths and positions advance only
    /// when the caller advances them ([`KvCache::advance`], [`Sampler::sample`](crate::sampling::Sampler::sample)).
    pub fn forward(&self, plan: &Plan<'_>, cache: &mut KvCache, readout: Option<Reduce>) -> ForwardOutput {
        let mut x = self.embed(plan, cache);
        let mut rows = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = self.normed(&x, &layer.input_norm, 0..plan.n);
            let qkv = self.empty(plan.n, layer.qkv.rows);
            let qkv = self.linear(&layer.qkv, &normed, layer.qkv_bias.as_ref(), qkv, Mode::Store);
            // The residual stream can be written in place only while there is no other handle to it.
            drop(normed);
            let q = self.append(i, qkv, plan, cache);
            let (values, lse) = self.attend(i, &q, plan, cache);
            if let Some(reduce) = readout {
                rows.extend(self.last_rows(i, &q, &lse, reduce, plan, cache));
            }
            if plan.ends_at(i) {
                break;
            }
            self.track(i, &q, &lse, plan, cache);
            x = self.linear(&layer.o, &Rows::of(values), layer.o_bias.as_ref(), x, Mode::Add);
            x = self.feed_forward(&layer.feed_forward, &layer.post_norm, x);
        }
        ForwardOutput { hidden: x, seqs: plan.input.seqs().len(), readout: rows }
    }

    /// The logits of a forward: f32 `[rows, vocab_size]`, where [`Logits::Last`] has a row for each sequence.
    pub fn logits(&self, out: &ForwardOutput, rows: Logits) -> Tensor<2> {
        let [n, _] = out.hidden.dims();
        let (first_row, rows) = match rows {
            // A decode step has one row for each sequence; a chunk has several rows for its only one.
            Logits::Last if out.seqs == 1 => (n - 1, 1),
            Logits::Last | Logits::All => (0, n),
            Logits::Rows(first, rows) => (first, rows),
        };
        let normed = self.normed(&out.hidden, &self.norm, first_row..first_row + rows);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        self.linear(head, &normed, None, self.empty(rows, self.config.vocab_size), Mode::Store)
    }

    /// The RoPE table of a layer: that of the model, or for a layer without RoPE the one that rotates nothing.
    fn rope(&self, layer: usize) -> &Tensor<1> {
        match &self.unrotated {
            Some(unrotated) if !self.config.rotated_layers.contains(layer) => unrotated,
            _ => &self.rope,
        }
    }

    /// Normalises and rotates queries and keys, and appends keys and values to the cache. Returns the queries.
    fn append(&self, layer: usize, qkv: Tensor<2>, plan: &Plan<'_>, cache: &mut KvCache) -> Tensor<2> {
        let qk_norm = self.layers[layer].qk_norm.as_ref();
        let spec = RopeAppendSpec {
            layer: self.layer_spec(cache, layer),
            n: plan.n,
            chunk: plan.chunk,
            row_seq_offset: plan.row_seq_offset,
            norm: qk_norm.map(|_| self.config.rms_norm_eps as f32),
        };
        let norm = qk_norm.unwrap_or(&self.unread_norm);
        cache.write_layer(layer, |kv, state| kernels::rope_append(qkv, self.rope(layer), state, kv, norm, spec))
    }

    /// Attention over the cached slots. Returns the values and the log-sum-exp of each row and head.
    fn attend(&self, layer: usize, q: &Tensor<2>, plan: &Plan<'_>, cache: &KvCache) -> (Tensor<2>, Tensor<2>) {
        let most_seen = match plan.for_all_room {
            true => plan.input.seqs().iter().map(|seq| cache.capacity(layer, *seq)).max().unwrap_or(0),
            false => most_seen(plan, cache, layer),
        };
        let spec = self.attention_spec(plan, cache, layer, most_seen);
        kernels::attention(q, cache.layer(layer), cache.state(), self.rope(layer), spec)
    }

    /// The attention weights of each sequence's last row.
    fn last_rows(
        &self,
        layer: usize,
        q: &Tensor<2>,
        lse: &Tensor<2>,
        reduce: Reduce,
        plan: &Plan<'_>,
        cache: &KvCache,
    ) -> Vec<Tensor<2>> {
        let read = |(i, &seq): (usize, &usize)| {
            let (row, slots) = (i + plan.chunk - 1, cache.len(layer, seq) + plan.chunk);
            let spec = AttentionRowSpec { layer: self.layer_spec(cache, layer), row, slots, seq, reduce };
            kernels::attention_row(q, lse, cache.layer(layer), cache.state(), self.rope(layer), spec)
        };
        plan.input.seqs().iter().enumerate().map(read).collect()
    }

    /// Updates what the cache tracks of past attention. Steps of probes and of drafts are left out: the cache may track
    /// for the policy of a neighbour, but a sequence with drafts has no policy that needs it.
    fn track(&self, layer: usize, q: &Tensor<2>, lse: &Tensor<2>, plan: &Plan<'_>, cache: &mut KvCache) {
        if matches!(plan.input, Input::Probe { .. } | Input::Drafted { .. }) {
            return;
        }
        if cache.tracking().sums {
            let spec = AttentionSumsSpec {
                layer: self.layer_spec(cache, layer),
                chunk: plan.chunk,
                row_seq_offset: plan.row_seq_offset,
                seqs: plan.input.seqs().len(),
                already_cached: 0,
                slots: most_seen(plan, cache, layer),
                mean: false,
            };
            cache.add_sums(layer, q, lse, self.rope(layer), spec);
        }
        if cache.tracking().recurrence {
            let spec = RecurrenceSpec {
                layer: self.layer_spec(cache, layer),
                chunk: plan.chunk,
                row_seq_offset: plan.row_seq_offset,
                seqs: plan.input.seqs().len(),
                slots: most_seen(plan, cache, layer),
            };
            cache.add_recurrence(layer, q, lse, self.rope(layer), spec);
        }
        if cache.tracking().queries {
            cache.store_queries(layer, q, plan.chunk);
        }
    }

    /// The mean attention of the latest queries of `seq` (as many of `most` as are
    /// [`observable`](KvCache::observable)) over the slots that are cached now, where each query sees the tokens
    /// before it: for each layer `[kv_heads, slots]`, f32 bits in u32 words. The stored queries are used again;
    /// nothing is forwarded or appended.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the cache does not track queries.
    pub fn observe(&self, cache: &mut KvCache, seq: usize, most: usize) -> Result<Vec<Tensor<1, Int>>> {
        let (n, row_seq_offset) = (cache.observable(seq, most), cache.select(&[seq]));
        let cache = &*cache;
        let layer = |layer: usize| {
            let q = cache.latest_queries(layer, n)?;
            let (layer_spec, slots) = (self.layer_spec(cache, layer), cache.len(layer, seq));
            let attend = AttentionSpec {
                layer: layer_spec,
                n,
                chunk: n,
                separate: false,
                row_seq_offset,
                most_seen: slots,
                already_cached: n,
                tuning: self.device.tuning,
            };
            let (kv, state) = (cache.layer(layer), cache.state());
            let (_, lse) = kernels::attention(&q, kv, state, self.rope(layer), attend);
            let spec = AttentionSumsSpec {
                layer: layer_spec,
                chunk: n,
                row_seq_offset,
                seqs: 1,
                already_cached: n,
                slots,
                mean: true,
            };
            let out = empty_u32(&self.device.burn, layer_spec.kv_heads * slots);
            Ok(kernels::attention_sums(&q, &lse, kv, state, self.rope(layer), out, spec))
        };
        (0..self.layers.len()).map(layer).collect()
    }

    /// How similar the cached keys of `seq` are to each other: for each layer `[kv_heads, slots]`, see
    /// [`key_similarity`](mod@kernels::key_similarity).
    pub fn compare_keys(&self, cache: &KvCache, seq: usize) -> Vec<Tensor<2>> {
        let layer = |layer: usize| {
            let slots = cache.len(layer, seq);
            let spec = KeySimilaritySpec { layer: self.layer_spec(cache, layer), slots, seq };
            kernels::key_similarity(cache.layer(layer), cache.state(), self.rope(layer), spec)
        };
        (0..self.layers.len()).map(layer).collect()
    }

    /// The ranges and the lengths of the cached values of `seq`: for each layer `[2 kv_heads, slots]`, see
    /// [`value_sizes`](mod@kernels::value_sizes).
    pub fn value_sizes(&self, cache: &KvCache, seq: usize) -> Vec<Tensor<2>> {
        let layer = |layer: usize| {
            let slots = cache.len(layer, seq);
            let spec = ValueSizesSpec { layer: self.layer_spec(cache, layer), slots, seq };
            kernels::value_sizes(cache.layer(layer), cache.state(), spec)
        };
        (0..self.layers.len()).map(layer).collect()
    }

    /// The logarithms of the attention that the slots of `seq` can expect from coming queries, which are taken to be
    /// like the latest (as many of `most` as are [`observable`](KvCache::observable)): for each layer
    /// `[heads, slots]`, see [`expected_attention`](mod@kernels::expected_attention).
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the cache does not track queries.
    pub fn expect(&self, cache: &mut KvCache, seq: usize, most: usize) -> Result<Vec<Tensor<2>>> {
        let n = cache.observable(seq, most);
        // No token follows after the positions that the model is loaded for.
        let future = FUTURE.min(self.context.saturating_sub(n)).max(1);
        cache.select(&[seq]);
        let cache = &*cache;
        let layer = |layer: usize| {
            let q = cache.latest_queries(layer, n)?;
            let (layer_spec, slots) = (self.layer_spec(cache, layer), cache.len(layer, seq));
            let spec = ExpectedSpec { layer: layer_spec, n, slots, seq, future };
            Ok(kernels::expected_attention(&q, cache.layer(layer), cache.state(), self.rope(layer), spec))
        };
        (0..self.layers.len()).map(layer).collect()
    }

    fn layer_spec(&self, cache: &KvCache, layer: usize) -> LayerSpec {
        let c = &self.config;
        LayerSpec {
            dtype: cache.shape().dtype,
            d: c.head_dim,
            heads: c.num_heads,
            kv_heads: c.num_kv_heads,
            layer_table_offset: cache.table_offset(layer),
            positions: self.context,
            compact: cache.positions() == Positions::Compact,
        }
    }

    fn attention_spec(&self, plan: &Plan<'_>, cache: &KvCache, layer: usize, most_seen: usize) -> AttentionSpec {
        let Plan { n, chunk, row_seq_offset, .. } = *plan;
        AttentionSpec {
            layer: self.layer_spec(cache, layer),
            n,
            chunk,
            separate: plan.input.decodes(),
            row_seq_offset,
            most_seen,
            already_cached: 0,
            tuning: self.device.tuning,
        }
    }

    /// An uninitialised output of `[rows, cols]`.
    pub(super) fn empty(&self, rows: usize, cols: usize) -> Tensor<2> {
        empty_f32(&self.device.burn, [rows, cols])
    }

    /// The rows of the embedding: of the given ids, or of the pending tokens in the state.
    fn embed(&self, plan: &Plan<'_>, cache: &KvCache) -> Tensor<2> {
        let row_seq_offset = plan.row_seq_offset;
        let (words, ids) = match plan.input {
            Input::Chunk { ids, .. } | Input::Probe { ids, .. } => {
                (kernels::u32_tensor(ids.to_vec(), &self.device.burn), Ids::Listed)
            }
            Input::Pending(_) => (cache.state().clone(), Ids::Pending { row_seq_offset }),
            Input::Drafted { chunk, .. } => {
                (cache.state().clone(), Ids::Drafted { row_seq_offset, drafts_offset: cache.drafts_offset(), chunk })
            }
        };
        let Matrix { shards, rows: vocab, cols } = &self.embedding;
        shards.iter().fold(self.empty(plan.n, *cols), |out, shard| {
            let (dtype, shard_first_row, rows) = (shard.dtype, shard.first_row, shard.rows);
            let spec = EmbedSpec { dtype, n: plan.n, cols: *cols, shard_first_row, rows, vocab: *vocab, ids };
            kernels::embed(&shard.words, &words, out, spec)
        })
    }

    /// The rows of a range of the residual stream `x` for products, normalised: few rows by each product, if the
    /// device is tuned for that, many rows here.
    pub(super) fn normed(&self, x: &Tensor<2>, weight: &Tensor<1>, rows: Range<usize>) -> Rows {
        let norm = NormSpec { n: rows.len(), first_row: rows.start, cols: x.dims()[1], eps: self.eps };
        match self.device.tuning.norm_in_product && norm.n <= MOST_TOGETHER {
            true => Rows { x: x.clone(), norm: Some((weight.clone(), norm)) },
            false => Rows::of(kernels::rms_norm(x, weight, norm)),
        }
    }

    pub(super) fn linear(
        &self,
        w: &Matrix,
        rows: &Rows,
        bias: Option<&Tensor<1>>,
        out: Tensor<2>,
        mode: Mode,
    ) -> Tensor<2> {
        let Rows { x, norm } = rows;
        let [all, cols] = x.dims();
        let [_, out_stride] = out.dims();
        assert_eq!(cols, w.cols, "a matrix takes vectors of its own width");
        let (gains, norm) = norm.as_ref().map_or((&self.unread_norm, None), |(weight, norm)| (weight, Some(*norm)));
        let n = norm.map_or(all, |norm| norm.n);
        w.shards.iter().fold(out, |out, shard| {
            let spec = LinearSpec {
                dtype: shard.dtype,
                mode,
                has_bias: bias.is_some(),
                rows: shard.rows,
                cols: w.cols,
                shard_first_row: shard.first_row,
                out_stride,
                n,
                norm,
                tuning: self.device.tuning,
            };
            kernels::linear(&shard.words, x, gains, bias.unwrap_or(&self.unread_bias), out, spec)
        })
    }
}

/// The most slots that a row of `plan` sees in `layer`.
fn most_seen(plan: &Plan<'_>, cache: &KvCache, layer: usize) -> usize {
    let most = plan.input.seqs().iter().map(|seq| cache.len(layer, *seq) + cache.ahead(*seq)).max();
    most.unwrap_or(0) + plan.chunk
}
