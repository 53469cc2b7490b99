//! A policy of your own, used from outside the crate: it evicts the longest reasoning steps first and measures nothing.
//!
//!     cargo run --release --example custom_policy                         the built-in model, on the CPU
//!     cargo run --release --example custom_policy -- MODEL vulkan
use secateur::policy::{CacheView, Group, KeepPlan, Measurement, budget};
use secateur::{
    ComputeDevice, Engine, Event, EvictionPolicy, LoadOptions, ModelSource, PolicyRef, Request, Result, builtin,
};

/// Long steps take most of the cache, whatever they are worth. Direction: the step with the most evictable tokens goes
/// first; of equal steps the earlier one.
#[derive(Debug)]
struct LongestStep;

impl EvictionPolicy for LongestStep {
    fn name(&self) -> &'static str {
        "longest-step"
    }

    fn needs(&self) -> Measurement {
        // No probe is forwarded. A plan is made at each point at which a probe is due.
        Measurement::Nothing
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        // The view gives only slots that may go: the prompt, the window and the current step are protected.
        let groups = view.evictable_steps().map(|(_step, slots)| Group { importance: None, slots });
        let mut groups: Vec<Group> = groups.collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.slots.len()));
        // The budget says how many of them go.
        budget::evict(view, &groups)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (source, name) = match args.next() {
        Some(path) => (ModelSource::open(&path)?, path),
        None => (builtin::source(), builtin::NAME.into()),
    };
    let device = pollster::block_on(ComputeDevice::open(&args.next().unwrap_or_else(|| "cpu".into())))?;
    let mut engine = Engine::load(&source, name, &device, &LoadOptions::default(), &mut |_done, _of| ())?;

    for policy in [PolicyRef::new(LongestStep), PolicyRef::default()] {
        let request = Request { policy: Some(policy), ..Request::prompting(builtin::EXAMPLE) };
        let resolved = engine.resolve(&request)?;
        let mut quiet = |_event: Event<'_>| ();
        let result = pollster::block_on(engine.run(&resolved.prompt, &resolved.settings, &mut quiet))?;
        println!("{}: {} tokens evicted", resolved.settings.policy, result.trace.totals.evicted_tokens);
        println!("    {}", result.answer.trim());
    }
    Ok(())
}
