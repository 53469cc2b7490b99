//! Decode steps that launch the same kernels as the step before: their launches are recorded once and then replayed.
use std::thread::{self, ThreadId};

use crate::kernels::recording::Recording;

/// Slots that every sequence must have free before a step is recorded. When the cache grows, the recording ends.
pub(super) const ROOM_TO_RECORD: usize = 8;

/// The number of failed attempts to record after which no further attempt is made.
const MOST_TRIES: usize = 3;

/// What the launches of a decode step depend on. Further changes make the runner drop the recording explicitly.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StepKey {
    /// The sequences, in the order of their rows.
    seqs: Vec<usize>,
    /// With drafts, the rows of each sequence.
    drafted: Option<usize>,
    /// The [`generation`](crate::cache::KvCache::generation) of the cache.
    generation: u64,
    /// The launching thread, because the device keeps no order between the work of two threads.
    thread: ThreadId,
}

impl StepKey {
    /// The step of `seqs` that this thread launches. `drafted`: the rows of each, if it has drafts.
    pub fn new(seqs: &[usize], drafted: Option<usize>, generation: u64) -> Self {
        Self { seqs: seqs.to_vec(), drafted, generation, thread: thread::current().id() }
    }
}

/// The recording of a decode step, and the state that decides whether one is made.
pub(super) struct Repeated {
    /// Whether steps are recorded at all.
    on: bool,
    /// The sequences of the latest calls, and how many calls in a row decoded these sequences.
    calls: (Vec<usize>, usize),
    recording: Option<(StepKey, Recording)>,
    /// Failed attempts to record since the last recording.
    tries: usize,
}

impl Repeated {
    pub fn new(on: bool) -> Self {
        Self { on, calls: (Vec::new(), 0), recording: None, tries: 0 }
    }

    /// Counts a call that decodes `seqs`.
    pub fn note(&mut self, seqs: &[usize]) {
        if self.calls.0 != seqs {
            self.forget();
            self.calls.0 = seqs.to_vec();
        }
        self.calls.1 += 1;
    }

    /// Whether many steps of the same sequences are likely to come: they were decoded by the call before, too.
    pub fn is_steady(&self) -> bool {
        self.on && self.calls.1 > 1
    }

    /// The recording of this step, if there is one.
    pub fn recording(&self, step: &StepKey) -> Option<&Recording> {
        self.recording.as_ref().filter(|(recorded, _)| recorded == step).map(|(_, recording)| recording)
    }

    /// Keeps the recording of a step, if it could be made. If it could not, the next call that decodes the same
    /// sequences tries again, up to [`MOST_TRIES`] times.
    pub fn keep(&mut self, step: StepKey, recording: Option<Recording>) {
        if recording.is_some() {
            self.tries = 0;
        } else {
            (self.tries, self.calls.1) = (self.tries + 1, 0);
            self.on &= self.tries < MOST_TRIES;
        }
        self.recording = recording.map(|recording| (step, recording));
    }

    /// Drops the recording before a buffer that it writes is replaced.
    pub fn drop_recording(&mut self) {
        self.recording = None;
    }

    /// Drops the recording because something else is launched.
    pub fn forget(&mut self) {
        self.drop_recording();
        self.calls = (Vec::new(), 0);
    }
}
