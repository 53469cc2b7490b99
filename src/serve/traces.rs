//! The traces of the latest requests that asked for one, bounded in bytes.
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::answer::Frame;
use crate::trace::Trace;

/// The store. When it is full, the oldest traces are removed first.
pub(super) struct Traces {
    kept: Mutex<VecDeque<Kept>>,
    most_bytes: usize,
}

struct Kept {
    id: String,
    owner: Option<blake3::Hash>,
    json: String,
}

impl Traces {
    /// An empty store that holds at most `most_bytes` of JSON.
    pub fn new(most_bytes: usize) -> Self {
        Self { kept: Mutex::default(), most_bytes }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the trace of a choice, if there is one. The first choice's has the response's id; those of the others have
    /// the choice's number behind it.
    pub fn keep(&self, frame: &Frame, choice: usize, trace: Option<Trace>) {
        let Some(json) = trace.and_then(|trace| serde_json::to_string(&trace).ok()) else { return };
        let id = if choice == 0 { frame.id.clone() } else { format!("{}-{choice}", frame.id) };
        let mut kept = self.kept();
        kept.push_back(Kept { id, owner: frame.owner, json });
        let mut bytes: usize = kept.iter().map(|kept| kept.json.len()).sum();
        while bytes > self.most_bytes {
            let Some(oldest) = kept.pop_front() else { break };
            bytes -= oldest.json.len();
        }
    }

    /// The trace with this id, if the same client made the request.
    pub fn get(&self, id: &str, owner: Option<blake3::Hash>) -> Option<String> {
        self.kept().iter().find(|kept| kept.id == id && kept.owner == owner).map(|kept| kept.json.clone())
    }

    /// Removes a trace. Returns whether there was one.
    pub fn remove(&self, id: &str, owner: Option<blake3::Hash>) -> bool {
        let mut kept = self.kept();
        let before = kept.len();
        kept.retain(|kept| kept.id != id || kept.owner != owner);
        kept.len() < before
    }
}
