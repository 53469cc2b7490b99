//! A decoder without a cache to prune: the oracle for every eviction, whichever policy chose it.
//!
//! It consists of plain loops in f64 over the stored weights. It keeps every key and value, and for each layer and KV
//! head a list of the positions that may still be seen. The positions that a query sees are fixed when it is
//! forwarded, so a later eviction does not change rows that still saw the evicted tokens. It uses none of the
//! library's kernels, slots, gathers or RoPE tables, only the code that reads config and weight files. `policies.rs`
//! compares it with transformers.
use secateur::Dtype;
use std::f64::consts::TAU;

use secateur::expert::model::config::{ModelConfig, RopeScaling};
use secateur::expert::weights::Weights;
use secateur::policy::Positions;

struct Matrix {
    cols: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..][..self.cols]
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.cols);
        self.values.chunks(self.cols).map(|row| dot(row, x)).collect()
    }
}

/// Keeps eight sums, because with a single one each addition would wait for the one before.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0f64; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += a * b;
    }
    sums.iter().sum()
}

fn softmax(dots: &[f64]) -> Vec<f64> {
    let most = dots.iter().fold(f64::MIN, |m, d| m.max(*d));
    let powers: Vec<f64> = dots.iter().map(|d| (d - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

fn norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

struct Layer {
    input_norm: Vec<f64>,
    post_norm: Vec<f64>,
    /// Query, key and value projections with their biases; the norms of query and key heads.
    projections: [(Matrix, Option<Vec<f64>>); 3],
    head_norms: Option<[Vec<f64>; 2]>,
    o: Matrix,
    /// The router's matrix, with a row for each expert, if there are experts.
    router: Option<Matrix>,
    /// Gate, up and down: of the layer, or of each expert.
    feed_forward: Vec<[Matrix; 3]>,
}

fn swiglu([gate, up, down]: &[Matrix; 3], x: &[f64]) -> Vec<f64> {
    let gate = gate.times(x).into_iter().map(|v| v / (1.0 + (-v).exp()));
    down.times(&gate.zip(up.times(x)).map(|(gate, up)| gate * up).collect::<Vec<_>>())
}

impl Layer {
    /// The result of the feed-forward part. Experts are taken one at a time, the most likely of the remaining ones
    /// first.
    fn feed_forward(&self, config: &ModelConfig, x: &[f64]) -> Vec<f64> {
        let (Some(router), Some(mixture)) = (&self.router, &config.experts) else {
            return swiglu(&self.feed_forward[0], x);
        };
        let shares = softmax(&router.times(x));
        let mut left: Vec<usize> = (0..shares.len()).collect();
        let mut chosen = Vec::new();
        while chosen.len() < mixture.experts_per_token {
            let best = left.iter().copied().reduce(|best, e| if shares[e] > shares[best] { e } else { best });
            chosen.push(best.expect("no more than there are"));
            left.retain(|e| Some(*e) != best);
        }
        let all = if mixture.normalised { chosen.iter().map(|e| shares[*e]).sum() } else { 1.0 };
        let mut sum = vec![0.0; x.len()];
        for e in chosen {
            sum.iter_mut().zip(swiglu(&self.feed_forward[e], x)).for_each(|(sum, v)| *sum += shares[e] / all * v);
        }
        sum
    }
}

/// The weights of the reference decoder.
pub struct Reference {
    pub config: ModelConfig,
    layers: Vec<Layer>,
    embedding: Matrix,
    /// `None` if the embedding is used.
    head: Option<Matrix>,
    norm: Vec<f64>,
    /// Cosines and sines of every position.
    turns: Vec<Vec<(f64, f64)>>,
}

impl Reference {
    /// A decoder for texts of up to `context` tokens.
    pub fn new(config: &ModelConfig, weights: &Weights, context: usize) -> Self {
        let values = |name: &str| -> Vec<f64> {
            let tensor = weights.tensor(name).unwrap_or_else(|e| panic!("{e}"));
            let pairs = || tensor.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            match tensor.stored.to_string().as_str() {
                "F32" => {
                    secateur::expert::kernels::readback::as_f32(tensor.bytes).iter().map(|v| f64::from(*v)).collect()
                }
                "F16" => pairs().map(|bits| half::f16::from_bits(bits).to_f64()).collect(),
                "BF16" => pairs().map(|bits| half::bf16::from_bits(bits).to_f64()).collect(),
                // These are the blocks of GGUF. A unit test compares their values with those of the gguf package.
                _ => tensor.to_f32().unwrap_or_else(|e| panic!("{e}")).into_iter().map(f64::from).collect(),
            }
        };
        let matrix = |name: &str| {
            let cols = weights.tensor(name).unwrap_or_else(|e| panic!("{e}")).shape[1];
            Matrix { cols, values: values(name) }
        };
        assert!(!config.output_bias, "not written for a bias of o");
        let layer = |i: usize| {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let projection = |what: &str| {
                let bias = config.attention_bias.then(|| values(&name(&format!("self_attn.{what}_proj.bias"))));
                (matrix(&name(&format!("self_attn.{what}_proj.weight"))), bias)
            };
            let experts =
                config.experts.as_ref().filter(|mixture| mixture.has_experts(i)).map(|mixture| mixture.experts);
            let swiglu =
                |mlp: &str| ["gate", "up", "down"].map(|what| matrix(&name(&format!("{mlp}.{what}_proj.weight"))));
            let head_norm = |what: &str| values(&name(&format!("self_attn.{what}_norm.weight")));
            Layer {
                input_norm: values(&name("input_layernorm.weight")),
                post_norm: values(&name("post_attention_layernorm.weight")),
                projections: ["q", "k", "v"].map(projection),
                head_norms: config.qk_norm.then(|| ["q", "k"].map(head_norm)),
                o: matrix(&name("self_attn.o_proj.weight")),
                router: experts.map(|_| matrix(&name("mlp.gate.weight"))),
                feed_forward: match experts {
                    None => vec![swiglu("mlp")],
                    Some(count) => (0..count).map(|expert| swiglu(&format!("mlp.experts.{expert}"))).collect(),
                },
            }
        };
        let frequencies: Vec<f64> = (0..config.head_dim / 2).map(|i| frequency(config, i)).collect();
        let turn = |position: usize| frequencies.iter().map(|f| (position as f64 * f).sin_cos()).collect();
        Self {
            config: config.clone(),
            layers: (0..config.num_layers).map(layer).collect(),
            embedding: matrix("model.embed_tokens.weight"),
            head: (!config.tie_word_embeddings).then(|| matrix("lm_head.weight")),
            norm: values("model.norm.weight"),
            turns: (0..context).map(turn).collect(),
        }
    }

    /// Rotates each pair `i`, `i + d / 2` to `position` (RoPE).
    fn rotated(&self, row: &[f64], position: usize) -> Vec<f64> {
        let half = row.len() / 2;
        let mut turned = row.to_vec();
        for (i, (sin, cos)) in self.turns[position].iter().enumerate() {
            turned[i] = row[i] * cos - row[i + half] * sin;
            turned[i + half] = row[i + half] * cos + row[i] * sin;
        }
        turned
    }

    /// Begins a text. `words` is the type in which the cache stores keys and values.
    pub fn read(&self, positions: Positions, words: Dtype) -> Reading<'_> {
        let sets = self.config.num_layers * self.config.num_kv_heads;
        let none = || vec![Vec::new(); self.config.num_layers];
        let (heads, queries, bare_queries) = (vec![Head::default(); sets], none(), none());
        Reading { model: self, positions, words, read: 0, settled: 0, heads, queries, bare_queries }
    }
}

/// The angle by which a position rotates pair `i`. Llama 3's scaling is written as its three cases of wavelengths.
fn frequency(config: &ModelConfig, i: usize) -> f64 {
    let plain = 1.0 / config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64);
    match &config.rope_scaling {
        RopeScaling::None => plain,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (wavelength, context) = (TAU / plain, *original_max_position_embeddings as f64);
            if wavelength < context / high_freq_factor {
                plain
            } else if wavelength > context / low_freq_factor {
                plain / factor
            } else {
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * plain / factor + smooth * plain
            }
        }
        other => panic!("not written for {other}"),
    }
}

/// The keys and values of a text in one KV head of one layer.
#[derive(Clone, Default)]
struct Head {
    /// The keys as the cache stores them: keys and values are rounded as the cache rounds, and keys are rotated if
    /// positions stay the original ones.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    /// The positions that may be seen, in ascending order.
    seen: Vec<usize>,
    /// The attention that each position has received, averaged over the query heads of the group.
    drawn: Vec<f64>,
    /// For each position, the latest token that gave it an attention of at least 1e-4, and the longest gap between two
    /// such tokens.
    mattered: Vec<(i64, i64)>,
}

/// A text that is read token by token.
#[derive(Clone)]
pub struct Reading<'m> {
    model: &'m Reference,
    positions: Positions,
    words: Dtype,
    /// Tokens so far.
    read: usize,
    /// The number of tokens before the latest eviction.
    settled: usize,
    /// `[layer][KV head]`.
    heads: Vec<Head>,
    /// `[layer][token][query head]`, rotated.
    queries: Vec<Vec<Vec<Vec<f64>>>>,
    /// As `queries`, before they are rotated.
    bare_queries: Vec<Vec<Vec<Vec<f64>>>>,
}

/// The results of one token.
pub struct Given {
    pub logits: Vec<f64>,
    /// `[layer][query head]`: the token's attention weights over the positions that the head may see, its own
    /// included, in the order of positions.
    pub attention: Vec<Vec<Vec<f64>>>,
}

impl Reading<'_> {
    /// Positions that KV head `head` of `layer` may see.
    pub fn seen(&self, layer: usize, head: usize) -> &[usize] {
        &self.heads[layer * self.model.config.num_kv_heads + head].seen
    }

    /// Hides the positions `gone(layer, KV head)` from every token that is read from now on.
    pub fn evict(&mut self, gone: impl Fn(usize, usize) -> Vec<u32>) {
        let kv_heads = self.model.config.num_kv_heads;
        let mut any = false;
        for (set, head) in self.heads.iter_mut().enumerate() {
            let gone = gone(set / kv_heads, set % kv_heads);
            let before = head.seen.len();
            head.seen.retain(|p| !gone.contains(&(*p as u32)));
            assert_eq!(head.seen.len() + gone.len(), before, "evicted what was not there");
            any |= !gone.is_empty();
        }
        if any {
            self.settled = self.read;
        }
    }

    fn rounded(&self, row: &[f64]) -> Vec<f64> {
        match self.words {
            Dtype::F16 => row.iter().map(|v| half::f16::from_f64(*v).to_f64()).collect(),
            _ => row.to_vec(),
        }
    }

    /// The attention weights of a rotated query over the positions up to `upto` that `head` sees.
    fn weights(&self, head: &Head, query: &[f64], upto: usize) -> Vec<f64> {
        let scale = 1.0 / (query.len() as f64).sqrt();
        let dot = |(rank, position): (usize, &usize)| {
            let key = &head.keys[*position];
            scale
                * match self.positions {
                    Positions::Original => dot(query, key),
                    Positions::Compact => dot(query, &self.model.rotated(key, rank)),
                }
        };
        softmax(&head.seen.iter().take_while(|p| **p <= upto).enumerate().map(dot).collect::<Vec<_>>())
    }

    /// Reads the next token.
    pub fn forward(&mut self, id: u32) -> Given {
        let model = self.model;
        let c = &model.config;
        let (d, group, position) = (c.head_dim, c.num_heads / c.num_kv_heads, self.read);
        let mut x = model.embedding.row(id as usize).to_vec();
        let mut attention = Vec::new();
        for (l, layer) in model.layers.iter().enumerate() {
            let normed = norm(&x, &layer.input_norm, c.rms_norm_eps);
            let mut parts = layer.projections.each_ref().map(|(matrix, bias)| {
                let mut out = matrix.times(&normed);
                out.iter_mut().zip(bias.iter().flatten()).for_each(|(v, b)| *v += b);
                out.chunks(d).map(<[f64]>::to_vec).collect::<Vec<_>>()
            });
            for (part, weight) in parts.iter_mut().zip(layer.head_norms.iter().flatten()) {
                part.iter_mut().for_each(|head| *head = norm(head, weight, c.rms_norm_eps));
            }
            let [queries, keys, values] = parts;
            let (mut mixed, mut rotated, mut rows) = (Vec::new(), Vec::new(), Vec::new());
            for (g, (key, value)) in keys.iter().zip(&values).enumerate() {
                let mut head = std::mem::take(&mut self.heads[l * c.num_kv_heads + g]);
                // The position for RoPE: the original one, or the next one after the positions that are left.
                let stands = if self.positions == Positions::Compact { head.seen.len() } else { position };
                head.keys.push(match self.positions {
                    Positions::Original => self.rounded(&model.rotated(key, position)),
                    Positions::Compact => self.rounded(key),
                });
                head.values.push(self.rounded(value));
                head.seen.push(position);
                head.drawn.push(0.0);
                head.mattered.push((position as i64 - 1, 0));
                let mut attended = vec![0.0; head.seen.len()];
                for query in &queries[g * group..][..group] {
                    let query = model.rotated(query, stands);
                    let weights = self.weights(&head, &query, position);
                    let mut sum = vec![0.0; d];
                    for (weight, p) in weights.iter().zip(&head.seen) {
                        head.drawn[*p] += weight / group as f64;
                        sum.iter_mut().zip(&head.values[*p]).for_each(|(sum, v)| *sum += weight * v);
                    }
                    mixed.extend(sum);
                    attended.iter_mut().zip(&weights).for_each(|(sum, weight)| *sum += weight / group as f64);
                    rotated.push(query);
                    rows.push(weights);
                }
                for (_, p) in attended.iter().zip(&head.seen).filter(|(weight, _)| **weight >= 1e-4) {
                    let (last, longest) = head.mattered[*p];
                    head.mattered[*p] = (position as i64, longest.max(position as i64 - last));
                }
                self.heads[l * c.num_kv_heads + g] = head;
            }
            self.queries[l].push(rotated);
            self.bare_queries[l].push(queries);
            attention.push(rows);
            add(&mut x, &layer.o.times(&mixed));
            let normed = norm(&x, &layer.post_norm, c.rms_norm_eps);
            add(&mut x, &layer.feed_forward(c, &normed));
        }
        self.read += 1;
        let logits = model.head.as_ref().unwrap_or(&model.embedding).times(&norm(&x, &model.norm, c.rms_norm_eps));
        Given { logits, attention }
    }

    /// The results that the last of `ids` would have if they were read next. The text is not changed.
    pub fn aside(&self, ids: &[u32]) -> Given {
        let mut aside = self.clone();
        ids.iter().map(|id| aside.forward(*id)).last().expect("something is read")
    }

    /// `[layer][KV head]`: the attention that the visible positions have received from all tokens, in the order of
    /// positions.
    pub fn sums(&self) -> Vec<Vec<Vec<f64>>> {
        let of = |head: &Head| head.seen.iter().map(|p| head.drawn[*p]).collect();
        self.heads.chunks(self.model.config.num_kv_heads).map(|layer| layer.iter().map(of).collect()).collect()
    }

    /// `[layer][KV head]`: the ranges of the values at the visible positions.
    pub fn value_ranges(&self) -> Vec<Vec<Vec<f64>>> {
        let range = |value: &Vec<f64>| {
            let most = |sign: f64| value.iter().map(|v| sign * v).fold(f64::MIN, f64::max);
            most(1.0) + most(-1.0)
        };
        let of = |head: &Head| head.seen.iter().map(|p| range(&head.values[*p])).collect();
        self.heads.chunks(self.model.config.num_kv_heads).map(|layer| layer.iter().map(of).collect()).collect()
    }

    /// `[layer][KV head]`: LazyEviction's scores of the visible positions, from the time since each last mattered and
    /// from its longest interval.
    pub fn recurrence(&self) -> Vec<Vec<Vec<f64>>> {
        let score = |(last, longest): (i64, i64)| {
            let since = (self.read as i64 - 1 - last) as f64;
            let again = if longest == 0 { 0.0 } else { 2.0 / (1.0 + (longest as f64 - 1.0).exp()) };
            2.0 / (1.0 + (1.0 + since / (longest as f64 + 1e-5)).exp()) + again
        };
        let of = |head: &Head| head.seen.iter().map(|p| score(head.mattered[*p])).collect();
        self.heads.chunks(self.model.config.num_kv_heads).map(|layer| layer.iter().map(of).collect()).collect()
    }

    /// `[layer][KV head]`: the attention that the visible positions can expect from the tokens of the next `future`
    /// positions (as far as the context goes), times the length of the value. The queries of these tokens have the
    /// mean and the covariance of the `most` latest ones before rotation. The rotations are averaged over the
    /// positions.
    pub fn expected(&self, most: usize, future: usize) -> Vec<Vec<Vec<f64>>> {
        let c = &self.model.config;
        let (d, group) = (c.head_dim, c.num_heads / c.num_kv_heads);
        let since = if self.positions == Positions::Compact { self.settled } else { 0 };
        let latest = since.max(self.read.saturating_sub(most))..self.read;
        let future = future.min(self.model.turns.len() - latest.len());
        let of = |(set, head): (usize, &Head)| {
            let (l, g) = (set / c.num_kv_heads, set % c.num_kv_heads);
            let next = if self.positions == Positions::Compact { head.seen.len() } else { self.read };
            let turn = |i: usize| {
                let angles = (next..next + future).map(|p| p as f64 * frequency(c, i));
                let (sin, cos) = angles.fold((0.0, 0.0), |(sin, cos), angle| (sin + angle.sin(), cos + angle.cos()));
                (sin / future as f64, cos / future as f64)
            };
            let turns: Vec<(f64, f64)> = (0..d / 2).map(turn).collect();
            let keys: Vec<Vec<f64>> = head
                .seen
                .iter()
                .enumerate()
                .map(|(rank, p)| match self.positions {
                    Positions::Original => head.keys[*p].clone(),
                    Positions::Compact => self.model.rotated(&head.keys[*p], rank),
                })
                .collect();
            let mut scores = vec![0.0; keys.len()];
            for h in g * group..(g + 1) * group {
                let queries: Vec<&Vec<f64>> = latest.clone().map(|p| &self.bare_queries[l][p][h]).collect();
                let n = queries.len() as f64;
                let mean: Vec<f64> = (0..d).map(|i| queries.iter().map(|q| q[i]).sum::<f64>() / n).collect();
                let covariance =
                    |i: usize, j: usize| queries.iter().map(|q| (q[i] - mean[i]) * (q[j] - mean[j])).sum::<f64>() / n;
                let covariances: Vec<Vec<f64>> = (0..d).map(|i| (0..d).map(|j| covariance(i, j)).collect()).collect();
                let logarithm = |key: &Vec<f64>| {
                    // Rotating the key by the transposed matrix has the same effect as rotating the queries.
                    let mut back = vec![0.0; d];
                    for (i, (sin, cos)) in turns.iter().enumerate() {
                        back[i] = key[i] * cos + key[i + d / 2] * sin;
                        back[i + d / 2] = key[i + d / 2] * cos - key[i] * sin;
                    }
                    let spread: f64 = back.iter().zip(&covariances).map(|(v, row)| v * dot(row, &back)).sum();
                    dot(&mean, &back) / (d as f64).sqrt() + spread / (2 * d) as f64
                };
                // The first four tokens are left out.
                let attention = softmax(&keys.iter().skip(4).map(logarithm).collect::<Vec<_>>());
                scores.iter_mut().skip(4).zip(attention).for_each(|(score, weight)| *score += weight / group as f64);
            }
            let length = |p: &usize| dot(&head.values[*p], &head.values[*p]).sqrt();
            scores.iter().zip(&head.seen).map(|(score, p)| score * length(p)).collect()
        };
        let sets: Vec<Vec<f64>> = self.heads.iter().enumerate().map(of).collect();
        sets.chunks(c.num_kv_heads).map(<[Vec<f64>]>::to_vec).collect()
    }

    /// `[layer][KV head]`: the mean attention of the `most` latest queries over the positions that are visible now.
    /// With compact positions, only the queries since the latest eviction count, because older ones have other
    /// positions.
    pub fn window(&self, most: usize) -> Vec<Vec<Vec<f64>>> {
        let c = &self.model.config;
        let group = c.num_heads / c.num_kv_heads;
        let since = if self.positions == Positions::Compact { self.settled } else { 0 };
        let first = since.max(self.read.saturating_sub(most));
        let of = |(set, head): (usize, &Head)| {
            let (l, g) = (set / c.num_kv_heads, set % c.num_kv_heads);
            let mut mean = vec![0.0; head.seen.len()];
            for position in first..self.read {
                for query in &self.queries[l][position][g * group..][..group] {
                    let share = 1.0 / (group * (self.read - first)) as f64;
                    let weights = self.weights(head, query, position);
                    mean.iter_mut().zip(weights).for_each(|(mean, weight)| *mean += weight * share);
                }
            }
            mean
        };
        let sets: Vec<Vec<f64>> = self.heads.iter().enumerate().map(of).collect();
        sets.chunks(c.num_kv_heads).map(<[Vec<f64>]>::to_vec).collect()
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
