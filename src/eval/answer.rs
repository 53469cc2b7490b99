//! Answers many questions side by side, in the places of the engine's batch.
use std::sync::atomic::Ordering;

use crate::Result;
use crate::engine::{Engine, Event, Prompt, RunResult};
use crate::settings::Settings;
use crate::trace::StopReason;

/// Answers `jobs`: each has a name of the caller's, a prompt and its settings. `done` takes each name with its result,
/// in the order in which the answers end. Once `stop` returns true, no job is begun, and those under way end without a
/// result.
///
/// # Errors
/// The errors of a run, and those of `done`.
pub async fn side_by_side<J>(
    engine: &mut Engine,
    jobs: &mut dyn Iterator<Item = (J, Prompt, Settings)>,
    stop: &dyn Fn() -> bool,
    done: &mut dyn FnMut(J, RunResult) -> Result<()>,
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
            let (job, result) = (added[request].take(), result?);
            if result.trace.stop_reason == StopReason::Cancelled {
                continue;
            }
            if let Some(error) = result.error {
                return Err(error);
            }
            if let Some(job) = job {
                done(job, result)?;
            }
        }
    }
}
