//! How many decode steps are launched between two reads.
use std::time::Duration;

use web_time::Instant;

use super::super::record::LAG;

/// How many decode steps make a burst on this device: as many as take a moment together, so that text comes evenly,
/// and a request that is cancelled ends soon. What is generated does not depend on it.
pub(super) struct Pace {
    /// Steps of a burst.
    pub(super) steps: usize,
    /// Whether they stay what they are.
    pub(super) fixed: bool,
    /// When the latest tokens were read.
    pub(super) latest: Option<Instant>,
}

impl Pace {
    /// How long a burst should take.
    const MOMENT: Duration = Duration::from_millis(100);

    pub(super) fn new() -> Self {
        Self { steps: 1, fixed: false, latest: None }
    }

    /// Takes in that tokens of so many steps were read.
    pub(super) fn read(&mut self, steps: usize) {
        let now = Instant::now();
        if let Some(before) = self.latest.replace(now).filter(|_| steps > 0 && !self.fixed) {
            // Two reads that had both been finished say little, so it only doubles.
            self.steps = Self::steps(now - before, steps).min(2 * self.steps);
        }
    }

    /// Steps of a burst where so many took this long.
    fn steps(time: Duration, steps: usize) -> usize {
        let each = time.as_secs_f64() / steps as f64;
        ((Self::MOMENT.as_secs_f64() / each.max(1e-6)) as usize).clamp(1, LAG)
    }
}
