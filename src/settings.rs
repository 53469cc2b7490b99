//! How one request is generated and pruned, with nothing left open. The engine, a sequence, its trace and a
//! calibration all hold this one type. A front-end does not fill it in: it sends a
//! [`Request`](crate::engine::Request), and [`PreparedModel::resolve`](crate::engine::PreparedModel::resolve) turns
//! that into settings.
use serde::{Deserialize, Serialize};

use crate::answer_format::AnswerFormat;
use crate::kernels::state::DRAFTED;
use crate::policy::{self, Budget, Layers, Normalise, PolicyRef, Positions, Scope};
use crate::probe;
use crate::sampling::Sampling;
use crate::steps::Boundaries;
use crate::{Error, ErrorKind, Result};

/// The default of the most tokens to generate, for a model that does not think.
pub const MAX_NEW_TOKENS: usize = 2048;

/// The same default for a model that thinks. Reasoning models often spend several thousand tokens on one question,
/// and a limit of 2048 would end many runs before the answer begins. A shorter context ends a run earlier.
pub const MAX_NEW_TOKENS_THINKING: usize = 8192;

/// The most drafts of a step: the pending token has a row as well.
pub const MOST_DRAFTS: usize = DRAFTED - 1;

/// How much of the probe's attention a trace records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionDetail {
    /// Only the steps' importances.
    #[default]
    Off,
    /// A row for each layer. This costs nothing on the device: the rows are read in any case.
    Layers,
    /// In addition, a row for each query head. Every probe is then forwarded a second time, and `heads` times as many
    /// weights are read back.
    Heads,
}

/// How to generate and prune. In JSON, each field has its name. A field that an older trace lacks has the value that
/// was fixed when that trace was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which tokens are evicted.
    pub policy: PolicyRef,
    /// How much may be evicted.
    pub budget: Budget,
    /// Latest tokens that are never evicted.
    pub window: usize,
    /// Thinking tokens from one probe to the next.
    pub probe_every: usize,
    /// The text that a probe appends. It ends in `</think>`, or in the model's own closing tag.
    #[serde(default = "default_probe_text")]
    pub probe_text: String,
    /// How the next token is chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Seed of sampling and of policies that evict at random.
    pub seed: u64,
    /// Which layers and heads share a kept set.
    #[serde(default)]
    pub scope: Scope,
    /// The layers whose attention counts in a shared set.
    #[serde(default)]
    pub layers: Layers,
    /// Whether heads are brought to one scale before they are averaged.
    #[serde(default)]
    pub normalise: Normalise,
    /// The positions of kept keys after an eviction.
    #[serde(default)]
    pub positions: Positions,
    /// Where steps of the thinking begin.
    #[serde(default = "keywords")]
    pub steps: Boundaries,
    /// The most tokens to generate; 0 in a trace that was written before traces recorded this limit.
    #[serde(default)]
    pub max_new_tokens: usize,
    /// Whether generation continues after the model's end-of-sequence tokens, for measurements.
    #[serde(default)]
    pub ignore_eos: bool,
    /// How much of each probe's attention the trace records. What is generated does not depend on it.
    #[serde(default)]
    pub attention: AttentionDetail,
    /// Texts that end the answer and are not part of it. They have no effect on the thinking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Ids of tokens that end the answer and are not part of it. They have no effect on the thinking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_ids: Vec<u32>,
    /// Whether the text or the token that ended the answer is part of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub include_stop: bool,
    /// Number of thinking tokens after which the engine ends the thinking by writing `</think>` instead of the next
    /// token. A thought that the model begins later is ended after [`LAG`](crate::engine::LAG) tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_thinking_tokens: Option<usize>,
    /// The most tokens outside the thinking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answer_tokens: Option<usize>,
    /// What the answer must look like. The thinking before it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_format: Option<AnswerFormat>,
    /// Reports the probability of each generated token, and those of this number of the most likely tokens, at most
    /// [`MOST_LOGPROBS`](crate::engine::MOST_LOGPROBS). They are not part of the trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<usize>,
    /// As `logprobs`, for the tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<usize>,
    /// Tokens that each decode step drafts from the text so far, at most [`MOST_DRAFTS`].
    /// What is generated does not depend on them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub draft: usize,
}

pub(crate) fn is_zero(value: &usize) -> bool {
    *value == 0
}

fn default_probe_text() -> String {
    probe::DEFAULT_PROBE_TEXT.into()
}

/// The rule of traces that do not name one.
fn keywords() -> Boundaries {
    Boundaries::Keywords
}

impl Settings {
    /// Whether a run needs kernels, before its first probe, that [`test_first`](crate::conformance::test_first) leaves
    /// out.
    #[cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "only a browser puts off the test of kernels"))]
    pub(crate) fn needs_other_kernels(&self) -> bool {
        let observes = self.logprobs.is_some() || self.prompt_logprobs.is_some();
        // Both settings lower the logits of tokens that are not allowed, with the same kernel.
        let masks = self.answer_format.is_some() || self.max_thinking_tokens.is_some();
        observes || masks || self.sampling.counts() || self.draft > 0
    }

    /// Why nothing can be drafted with these settings; `None` if it can.
    pub(crate) fn undraftable(&self) -> Option<String> {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        let needs_each = [
            ("repetition_penalty", repetition_penalty != 1.0),
            ("frequency_penalty", frequency_penalty != 0.0),
            ("presence_penalty", presence_penalty != 0.0),
            ("answer_format", self.answer_format.is_some()),
            ("logprobs", self.logprobs.is_some()),
        ];
        if let Some((name, _)) = needs_each.iter().find(|(_, given)| *given) {
            return Some(format!("`{name}` needs each token before the next one is forwarded"));
        }
        let why = || format!("the policy {} measures every token that is forwarded", self.policy);
        (self.policy.evicts() && self.policy.needs().follows_every_token()).then(why)
    }

    /// Checks the number of drafts, and that the other settings allow them.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for too many drafts, and for drafts where there can be none.
    pub(crate) fn check_draft(&self) -> Result<()> {
        if self.draft > MOST_DRAFTS {
            let e = Error::new(ErrorKind::Input, "so many tokens cannot be drafted in a step").at("`draft`");
            return Err(e.expected(format!("at most {MOST_DRAFTS}")).found(self.draft));
        }
        match self.undraftable() {
            Some(why) if self.draft > 0 => Err(Error::new(ErrorKind::Input, why).at("`draft`")),
            _ => Ok(()),
        }
    }
}

impl Default for Settings {
    /// The settings if neither the request nor the model sets any: greedy, seed 0.
    fn default() -> Self {
        Self {
            policy: PolicyRef::default(),
            budget: Budget::default(),
            window: policy::DEFAULT_WINDOW,
            probe_every: probe::DEFAULT_PROBE_EVERY,
            probe_text: default_probe_text(),
            sampling: Sampling::GREEDY,
            seed: 0,
            scope: Scope::default(),
            layers: Layers::default(),
            normalise: Normalise::default(),
            positions: Positions::default(),
            steps: Boundaries::default(),
            max_new_tokens: MAX_NEW_TOKENS,
            ignore_eos: false,
            attention: AttentionDetail::Off,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            include_stop: false,
            max_thinking_tokens: None,
            max_answer_tokens: None,
            answer_format: None,
            logprobs: None,
            prompt_logprobs: None,
            draft: 0,
        }
    }
}
