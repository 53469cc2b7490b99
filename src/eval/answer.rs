//! Answers many questions side by side, in the places of the engine's batch.
use std::sync::atomic::Ordering;

use crate::engine::{Engine, Event, Prompt, RunResult};
use crate::settings::Settings;
use crate::trace::StopReason;
use crate::{Error, ErrorKind, Result};

/// An answer, or why there is none. The result of a run that failed in the middle is there as well.
#[derive(Debug)]
pub struct Answered {
    /// The result of the run, complete or up to its failure; `None` if it failed before its first token.
    pub result: Option<RunResult>,
    /// Why the run failed; `None` if it did not fail.
    pub error: Option<Error>,
}

impl Answered {
    /// The result of a run that did not fail.
    ///
    /// # Errors
    /// The error of the run.
    pub fn whole(self) -> Result<RunResult> {
        match (self.error, self.result) {
            (None, Some(result)) => Ok(result),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::new(ErrorKind::Internal, "an answer without a result and without an error")),
        }
    }
}

/// Answers `jobs`, each of which has a label of the caller, a prompt and its settings. `done` receives each label
/// with its answer, in the order in which the answers end. Once `stop` returns true, no further job is begun, and
/// running jobs end without an answer.
///
/// # Errors
/// The errors of a run after which no other can be made, such as the loss of the device, and those of `done`.
pub async fn side_by_side<J>(
    engine: &mut Engine,
    jobs: &mut dyn Iterator<Item = (J, Prompt, Settings)>,
    stop: &dyn Fn() -> bool,
    done: &mut dyn FnMut(J, Answered) -> Result<()>,
) -> Result<()> {
    let flag = engine.stop_flag();
    let mut batch = engine.batch();
    // The jobs that were added, by the number of their request.
    let mut added: Vec<Option<J>> = Vec::new();
    let mut started = 0;
    loop {
        if stop() {
            flag.store(true, Ordering::Relaxed);
        } else if added.len() == started
            && let Some((job, prompt, settings)) = jobs.next()
        {
            // At most one request waits for a place, so that thousands of prompts do not fill the memory.
            batch.add(&prompt, &settings)?;
            added.push(Some(job));
        }
        if batch.is_idle() {
            return Ok(());
        }
        let mut on = |_: usize, event: Event<'_>| started += usize::from(matches!(event, Event::Start { .. }));
        for (request, result) in batch.step(&mut on).await {
            let Some(job) = added[request].take() else { continue };
            let answered = match result {
                Ok(result) if result.trace.stop_reason == StopReason::Cancelled => continue,
                Ok(mut result) => Answered { error: result.error.take(), result: Some(result) },
                Err(error) => Answered { result: None, error: Some(error) },
            };
            if let Some(error) = answered.error.as_ref().filter(|error| ends_all(error)) {
                return Err(error.clone());
            }
            done(job, answered)?;
        }
    }
}

/// Whether an evaluation ends with this error. A failure of the device, its memory or a file affects more than one
/// question, and would otherwise count against the run in which it happens to occur.
fn ends_all(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Device | ErrorKind::Io | ErrorKind::Internal)
}
