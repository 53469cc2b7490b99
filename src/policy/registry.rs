//! The list of policies, and how one is found by its name.
use super::{
    EvictionPolicy, Full, H2o, LastAttention, RKv, Random, RandomStep, SnapKv, StreamingLlm, ThinkClearly, ThinkToken,
};
use crate::{Error, ErrorKind, Result};

/// A policy in the list of all.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    make: fn() -> Box<dyn EvictionPolicy>,
}

impl Entry {
    /// The policy itself.
    pub fn make(&self) -> Box<dyn EvictionPolicy> {
        (self.make)()
    }
}

/// Every policy.
pub const POLICIES: &[Entry] = &[
    Entry {
        name: "think-clearly",
        summary: "evicts the reasoning steps to which </think> of a self-summary probe attends least",
        make: || Box::new(ThinkClearly),
    },
    Entry {
        name: "think-token",
        summary: "the same probe, token by token, without steps (ablation)",
        make: || Box::new(ThinkToken),
    },
    Entry { name: "full", summary: "evicts nothing", make: || Box::new(Full) },
    Entry { name: "random", summary: "evicts thinking tokens at random, seeded (control)", make: || Box::new(Random) },
    Entry {
        name: "random-step",
        summary: "evicts reasoning steps at random, seeded (control)",
        make: || Box::new(RandomStep),
    },
    Entry {
        name: "last-attention",
        summary: "as think-clearly, scored by the latest token instead of a probe (ablation)",
        make: || Box::new(LastAttention),
    },
    Entry {
        name: "h2o",
        summary: "keeps the tokens that drew most attention so far, and the recent ones",
        make: || Box::new(H2o),
    },
    Entry {
        name: "snapkv",
        summary: "evicts the tokens that the latest 32 queries attend to least, pooled",
        make: || Box::new(SnapKv),
    },
    Entry {
        name: "r-kv",
        summary: "attention of the latest 8 queries against similarity of keys",
        make: || Box::new(RKv),
    },
    Entry {
        name: "streaming-llm",
        summary: "evicts the oldest thinking tokens, keeps 4 sinks and the recent ones",
        make: || Box::new(StreamingLlm),
    },
];

/// The policy of that name.
///
/// # Errors
/// For an unknown name, with the known ones.
pub fn by_name(name: &str) -> Result<Box<dyn EvictionPolicy>> {
    let known = || POLICIES.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
    let entry = POLICIES.iter().find(|e| e.name == name).ok_or_else(|| {
        let e = Error::new(ErrorKind::Input, "unknown policy").at("--policy");
        e.expected(format!("one of {}", known())).found(format!("{name:?}"))
    })?;
    Ok(entry.make())
}
