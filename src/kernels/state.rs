//! Layout of the sequences' state on the device. [`cache`](crate::expert::cache) writes it, shaders read it, `sample`
//! advances it.
//!
//! The state is one buffer of u32 words: a header of [`SEQ`] words for each sequence; then, for each layer and
//! sequence, an entry of [`ROW`] words; then the ring of sampled ids of each sequence; then the list that names the
//! sequence of each row of a step; then the same list for steps with drafts; then, for each sequence, the [`DRAFTED`]
//! tokens of its next step with drafts.

/// Declares the words of a header or an entry, each with the constant of `common.wgsl` that must have the same value.
/// A test compares them.
macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident = $value:literal is $wgsl:ident;)*) => {
        $($(#[$doc])* pub const $name: usize = $value;)*

        /// Every constant of the layout: its name in `common.wgsl`, and its value.
        pub const CONSTANTS: &[(&str, usize)] = &[$((stringify!($wgsl), $value)),*];
    };
}

layout! {
    /// Words of a sequence's header.
    SEQ = 16 is SEQ;
    /// The pending token: sampled, not yet forwarded.
    TOKEN = 0 is SEQ_TOKEN;
    /// Logical position of the next token to be forwarded.
    POSITION = 1 is SEQ_POSITION;
    /// Tokens sampled so far.
    STEP = 2 is SEQ_STEP;
    /// f32: the largest share of the requested probability mass that has lain outside a sampler's candidates.
    MISSED = 3 is SEQ_MISSED;
    /// f32: divides the logits; 0 takes the most likely token.
    TEMPERATURE = 4 is SEQ_TEMPERATURE;
    /// The number of candidates of a draw; 0 takes all.
    TOP_K = 5 is SEQ_TOP_K;
    /// f32: the share of the probability that the candidates of a draw reach together.
    TOP_P = 6 is SEQ_TOP_P;
    /// f32: the least probability of a candidate, as a share of that of the most likely one.
    MIN_P = 7 is SEQ_MIN_P;
    /// f32: the factor of the negative logits of tokens seen before.
    PENALTY = 8 is SEQ_PENALTY;
    /// f32: the factor of their other logits, the inverse of the penalty.
    RELIEF = 9 is SEQ_RELIEF;
    /// Low half of the seed.
    SEED_LOW = 10 is SEQ_SEED_LOW;
    /// High half of the seed.
    SEED_HIGH = 11 is SEQ_SEED_HIGH;
    /// f32: the amount that is subtracted from a token's logit for each time that the token was generated.
    FREQUENCY = 12 is SEQ_FREQUENCY;
    /// f32: the amount that is subtracted once from the logit of a token that was generated.
    PRESENCE = 13 is SEQ_PRESENCE;
    /// The number of sampled tokens at which steps with drafts stop: see [`sample`](super::sample()).
    LIMIT = 14 is SEQ_LIMIT;
    /// Words of a sequence's list of tokens that a step with drafts forwards: the pending token, then the drafts.
    DRAFTED = 8 is DRAFTED;
    /// Words of a layer's entry for one sequence.
    ROW = 4 is ROW;
    /// Cached slots.
    LEN = 0 is ROW_LEN;
    /// First row of the sequence's region in the layer's buffer.
    BASE = 1 is ROW_BASE;
    /// Slots that the region has room for.
    CAP = 2 is ROW_CAP;
}

/// The id that `sample` writes where a logit is not finite.
pub const BROKEN: u32 = u32::MAX;

/// The settings of one sequence's sampler: the words of its header from [`MISSED`] on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerHeader {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// The number of candidates; 0 takes all.
    pub top_k: u32,
    /// The share of the probability that the candidates reach together.
    pub top_p: f32,
    /// The least probability of a candidate, as a share of that of the most likely one.
    pub min_p: f32,
    /// The factor of the negative logits of tokens seen before. The others are divided by it.
    pub repetition_penalty: f32,
    /// The amount that is subtracted from a token's logit for each time that the token was generated.
    pub frequency_penalty: f32,
    /// The amount that is subtracted once from the logit of a token that was generated.
    pub presence_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl SamplerHeader {
    /// The words, with [`MISSED`] reset to 0.
    pub fn words(&self) -> [u32; SEQ - MISSED] {
        let mut header = [0; SEQ];
        header[TEMPERATURE] = self.temperature.to_bits();
        header[TOP_K] = self.top_k;
        header[TOP_P] = self.top_p.to_bits();
        header[MIN_P] = self.min_p.to_bits();
        header[PENALTY] = self.repetition_penalty.to_bits();
        header[RELIEF] = (1.0 / self.repetition_penalty).to_bits();
        header[FREQUENCY] = self.frequency_penalty.to_bits();
        header[PRESENCE] = self.presence_penalty.to_bits();
        header[SEED_LOW] = self.seed as u32;
        header[SEED_HIGH] = (self.seed >> 32) as u32;
        std::array::from_fn(|i| header[MISSED + i])
    }
}
