//! Counters in the text format of Prometheus. Counters that mean the same as one of vLLM have its name, with the
//! prefix of secateur, so that dashboards need one replacement.
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The counters of a server. They only grow, and reading them changes nothing.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Tokens of prompts of requests that were given a place.
    pub prompt_tokens: AtomicU64,
    /// Prompt tokens that were copied from another request. They are counted in `prompt_tokens` as well.
    pub shared_tokens: AtomicU64,
    /// Tokens that were generated.
    pub generation_tokens: AtomicU64,
    /// Tokens evicted from the cache.
    pub evicted_slots: AtomicU64,
    /// Probes made.
    pub probes: AtomicU64,
    /// Microseconds spent on probes, plans and gathers.
    pub prune_us: AtomicU64,
    /// Times that the device was opened again after a failure.
    pub reopened: AtomicU64,
    /// Requests that were refused because the queue was full.
    pub refused: AtomicU64,
    /// Requests that were refused because their key had too many.
    pub limited: AtomicU64,
    finished: [AtomicU64; REASONS.len()],
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) request: Histogram,
    pub(super) queue: Histogram,
}

/// Why requests end, in the words of vLLM.
pub(super) const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// Upper bounds of the buckets, in seconds.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

/// Durations, counted in buckets.
#[derive(Debug, Default)]
pub(super) struct Histogram(Mutex<Counts>);

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    /// The number of durations in each bucket alone. The last entry counts those above the last bound.
    buckets: [u64; BUCKETS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// Counts `times` events that took `duration` each.
    pub fn observe(&self, duration: Duration, times: u64) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.buckets[bucket] += times;
        counts.sum += seconds * times as f64;
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        let counts = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} histogram");
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_string()]).zip(counts.buckets) {
            below += count;
            let _ = writeln!(out, "{PREFIX}{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{PREFIX}{name}_sum {}\n{PREFIX}{name}_count {below}", counts.sum);
    }
}

const PREFIX: &str = "secateur_";

/// Values that hold at the moment of reading.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gauges {
    /// Requests that have a place.
    pub running: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// Bytes of the cache that the running requests may need at most.
    pub reserved_bytes: u64,
    /// Bytes of the cache in use.
    pub used_bytes: u64,
    /// Bytes of the prompts of requests that have ended.
    pub kept_bytes: u64,
    /// Bytes of the cache that may be reserved.
    pub capacity_bytes: u64,
}

impl Metrics {
    /// Counts the end of a request, by one of [`REASONS`].
    pub fn count_end(&self, reason: &str) {
        if let Some(index) = REASONS.iter().position(|known| *known == reason) {
            self.finished[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All counters and gauges, in the text format 0.0.4.
    pub fn text(&self, now: Gauges) -> String {
        let mut out = String::new();
        let mut write = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            let _ = writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(out, "{PREFIX}{name}{labels} {value}");
            }
        };
        let one = |value: f64| [(String::new(), value)];
        let share = if now.capacity_bytes == 0 { 0.0 } else { now.reserved_bytes as f64 / now.capacity_bytes as f64 };
        write("num_requests_running", "gauge", "Requests that have a place.", &one(now.running as f64));
        write("num_requests_waiting", "gauge", "Requests that wait for a place.", &one(now.waiting as f64));
        write("kv_cache_usage_perc", "gauge", "Reserved share of the cache; 1 is all of it.", &one(share));
        write(
            "kv_cache_reserved_bytes",
            "gauge",
            "Bytes that running requests may need.",
            &one(now.reserved_bytes as f64),
        );
        write("kv_cache_used_bytes", "gauge", "Bytes of the cache in use.", &one(now.used_bytes as f64));
        let help = "Bytes of the prompts of requests that have ended, kept for requests that begin alike.";
        write("kv_cache_kept_bytes", "gauge", help, &one(now.kept_bytes as f64));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        for (name, help, counter) in [
            ("prompt_tokens_total", "Tokens of prompts of requests that were given a place.", &self.prompt_tokens),
            (
                "prefix_cache_queries_total",
                "Tokens of prompts of which a beginning may have been in the cache.",
                &self.prompt_tokens,
            ),
            ("prefix_cache_hits_total", "Tokens of prompts that were copied inside the cache.", &self.shared_tokens),
            ("generation_tokens_total", "Tokens that were generated.", &self.generation_tokens),
            ("evicted_slots_total", "Tokens evicted from the cache.", &self.evicted_slots),
            ("probes_total", "Probes made.", &self.probes),
            ("device_reopened_total", "Times that the device was opened again after a failure.", &self.reopened),
            ("requests_refused_total", "Requests refused because the queue was full.", &self.refused),
            ("requests_limited_total", "Requests refused because their key had too many.", &self.limited),
        ] {
            write(name, "counter", help, &one(count(counter)));
        }
        let seconds = one(count(&self.prune_us) / 1e6);
        write("prune_seconds_total", "counter", "Time spent on probes, plans and gathers.", &seconds);
        // Admission reserves the bound of each request, so no request ever loses its place to another one.
        write("num_preemptions_total", "counter", "Requests that lost their place to another.", &one(0.0));
        let ends: Vec<(String, f64)> = REASONS
            .iter()
            .zip(&self.finished)
            .map(|(reason, counter)| (format!("{{finished_reason=\"{reason}\"}}"), count(counter)))
            .collect();
        write("request_success_total", "counter", "Requests that ended, by reason.", &ends);
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "From a request's arrival to its first token.", &self.time_to_first_token),
            ("inter_token_latency_seconds", "From one token to the next.", &self.inter_token),
            ("e2e_request_latency_seconds", "From a request's arrival to its end.", &self.request),
            ("request_queue_time_seconds", "From a request's arrival to its place.", &self.queue),
        ] {
            histogram.write(name, help, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_scraping_resets_nothing() {
        let metrics = Metrics::default();
        metrics.request.observe(Duration::from_millis(3), 1);
        metrics.request.observe(Duration::from_secs(3), 2);
        metrics.request.observe(Duration::from_secs(10_000), 1);
        metrics.count_end("length");
        let gauges = Gauges { capacity_bytes: 100, reserved_bytes: 25, ..Gauges::default() };
        let text = metrics.text(gauges);
        for line in [
            "secateur_e2e_request_latency_seconds_bucket{le=\"0.0025\"} 0",
            "secateur_e2e_request_latency_seconds_bucket{le=\"0.005\"} 1",
            "secateur_e2e_request_latency_seconds_bucket{le=\"5\"} 3",
            "secateur_e2e_request_latency_seconds_bucket{le=\"+Inf\"} 4",
            "secateur_e2e_request_latency_seconds_count 4",
            "secateur_request_success_total{finished_reason=\"length\"} 1",
            "secateur_kv_cache_usage_perc 0.25",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert_eq!(text, metrics.text(gauges));
    }
}
