//! Laws of the host side of the method: steps, protection, budgets, policies, trace. No GPU, no model.
use crate::common::files::{real, report};
use proptest::prelude::*;
use secateur::expert::text::{Detokenizer, Tokenizer};
use secateur::policy::{
    self, Budget, CURRENT_STEP_KEPT, CacheView, CachedToken, EvictionPolicy, KeepPlan, Measurement, Outcome, POLICIES,
    Role, Scope, Sets, StepInfo, ViewParts,
};
use secateur::steps::{
    Begin, Boundaries, BoundaryCounts, KEYWORDS, REACH, Segmenter, Step, Tail, assign, segment, segment_by,
};
use secateur::trace;
use secateur::{Position, Slot};

// --- steps

/// Text that mixes keywords, near misses, other scripts and odd spacing.
fn text() -> impl Strategy<Value = String> {
    let keyword = prop::sample::select(KEYWORDS.to_vec()).prop_map(str::to_string);
    let curly = prop::sample::select(KEYWORDS.to_vec()).prop_map(|k| k.replace('\'', "’"));
    let odd = [
        "Solve", "so", " ", " ", ". ", "\n\n", "_", "-", "'", "’", "θ", "é", "²", "思", "🙂", "e\u{301}", "x = 1",
        "\u{200b}",
    ];
    let other = prop::sample::select(odd.to_vec()).prop_map(str::to_string);
    let any = ".{0,6}".prop_map(|s| s);
    prop::collection::vec(prop_oneof![keyword, curly, other, any], 0..24).prop_map(|parts| parts.concat())
}

/// Longer text: sentences and paragraphs of several languages, with and without keywords, long enough for the
/// fallback.
fn prose() -> impl Strategy<Value = String> {
    let pieces = [
        "我们先考虑这个问题的条件。",
        "对吗？\n\n",
        "まず式を整理する！",
        "पहले हम x निकालते हैं। ",
        "هل هذا صحيح؟ ",
        "Wir suchen z. B. 3.14. ",
        "Das ist gut. ",
        "\n\n",
        "\n \n",
        ". ",
        ")",
        "” ",
        " ",
        "é",
        "… ",
        "So ",
        "Let me",
        " double-check",
        "Wait, ",
        "\n\nAnother",
        " angle",
        "x",
    ];
    let piece = (prop::sample::select(pieces.to_vec()), 1_usize..24);
    let repeated = piece.prop_map(|(piece, times)| piece.repeat(times));
    prop_oneof![text(), prop::collection::vec(repeated, 1..12).prop_map(|parts| parts.concat())]
}

fn rule() -> impl Strategy<Value = Boundaries> {
    prop::sample::select(Boundaries::NAMES).prop_map(|(_, rule)| rule)
}

/// The definition, written out slowly: a step begins at a keyword between word boundaries that text follows.
fn starts_by_definition(text: &str) -> Vec<usize> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let begins = |at: usize| {
        // Longer than any keyword and the character after it.
        let plain = text[at..].chars().take(30).collect::<String>().replace('’', "'");
        let free_before = !text[..at].ends_with(word);
        free_before
            && KEYWORDS
                .iter()
                .any(|k| plain.strip_prefix(k).is_some_and(|rest| !rest.is_empty() && !rest.starts_with(word)))
    };
    text.char_indices().map(|(at, _)| at).filter(|&at| at == 0 || begins(at)).collect()
}

fn assert_partition(steps: &[Step], len: usize) {
    assert_eq!(steps[0].start, 0);
    assert_eq!(steps.last().unwrap().end, len);
    assert!(steps.windows(2).all(|w| w[0].end == w[1].start && w[0].start < w[0].end && w[1].begin != Begin::Text));
    assert!(len == 0 || steps.iter().all(|s| s.start < s.end));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_partition_any_text_and_any_bytes(
        text in prose(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        rule in rule(),
    ) {
        for tail in [Tail::Open, Tail::Closed] {
            assert_partition(&segment_by(rule, &text, tail), text.len());
            assert_partition(&segment_by(rule, &bytes, tail), bytes.len());
        }
    }

    #[test]
    fn steps_begin_where_the_definition_says(text in text()) {
        let starts: Vec<usize> = segment(&text, Tail::Open).iter().map(|s| s.start).collect();
        if text.is_empty() {
            prop_assert_eq!(starts, [0]);
        } else {
            prop_assert_eq!(starts, starts_by_definition(&text));
        }
    }

    #[test]
    fn token_by_token_is_as_all_at_once_and_a_known_step_stays(
        text in prose(),
        cuts in prop::collection::vec(0_usize..9, 1..40),
        rule in rule(),
    ) {
        let bytes = text.as_bytes();
        let mut whole = Segmenter::with_boundaries(rule);
        let mut ends = Vec::new();
        let mut known: Vec<usize> = vec![0];
        let mut at = 0;
        // Tokens of 0 to 8 bytes, cut anywhere, even inside characters.
        for size in cuts.iter().cycle().take(4000) {
            let end = bytes.len().min(at + size);
            whole.push(&bytes[at..end]);
            ends.push(end);
            at = end;
            let steps = whole.steps(Tail::Open);
            prop_assert_eq!(&steps, &segment_by(rule, &bytes[..end], Tail::Open));
            prop_assert_eq!(whole.assign(&steps), assign(&ends, &steps));
            let starts: Vec<usize> = steps.iter().map(|s| s.start).collect();
            prop_assert!(known.iter().all(|k| starts.contains(k)), "a step vanished: {known:?}, {starts:?}");
            known = starts;
            if at == bytes.len() || cuts.iter().all(|&c| c == 0) {
                break;
            }
        }
        prop_assert_eq!(whole.tokens(), ends.len());
        prop_assert_eq!(whole.steps(Tail::Closed), segment_by(rule, &bytes[..at], Tail::Closed));
    }

    /// A probe at any time sees steps that later text neither moves nor splits, whatever the rule and wherever tokens
    /// are cut: all but the last [`REACH`] bytes are final.
    #[test]
    fn later_text_leaves_the_steps_of_earlier_text_alone(text in prose(), at in any::<prop::sample::Index>(), rule in rule()) {
        let all: Vec<usize> = segment_by(rule, &text, Tail::Open).iter().map(|s| s.start).collect();
        let at = at.index(text.len() + 1);
        let seen: Vec<usize> = segment_by(rule, &text.as_bytes()[..at], Tail::Open).iter().map(|s| s.start).collect();
        prop_assert!(seen.iter().all(|start| all.contains(start)), "a step vanished");
        let is_final = |start: &&usize| **start + REACH < at;
        prop_assert_eq!(
            seen.iter().filter(is_final).collect::<Vec<_>>(),
            all.iter().filter(is_final).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_token_lies_in_the_step_of_its_last_byte(text in text(), sizes in prop::collection::vec(1_usize..9, 1..40)) {
        let ends: Vec<usize> = sizes.iter().scan(0, |at, s| { *at += s; Some(*at) }).take_while(|&e| e <= text.len()).collect();
        let steps = segment(&text, Tail::Open);
        for (&end, &step) in ends.iter().zip(&assign(&ends, &steps)) {
            prop_assert!(steps[step].start < end && end <= steps[step].end);
        }
        // Every token is in exactly one step, in order.
        let counted = StepInfo::count(&steps, &assign(&ends, &steps));
        prop_assert_eq!(counted.iter().map(|s| s.tokens).sum::<usize>(), ends.len());
        prop_assert!(assign(&ends, &steps).is_sorted());
    }
}

// --- policies

/// Owned input for the view of one probe.
#[derive(Debug, Clone)]
struct Cache {
    tokens: Vec<CachedToken>,
    steps: Vec<StepInfo>,
    scores: Vec<f32>,
    /// By slot, like the scores; as cosines, from -1 to 1.
    similarity: Vec<f32>,
    budget: Budget,
    window: usize,
    seed: u64,
    probe: u64,
}

impl Cache {
    fn view(&self) -> CacheView<'_> {
        CacheView::new(ViewParts {
            tokens: &self.tokens,
            steps: &self.steps,
            current_step: self.steps.len() - 1,
            thinking_tokens: self.steps.iter().map(|s| s.tokens).sum(),
            scores: Some(&self.scores),
            similarity: Some(&self.similarity),
            value_range: Some(&self.similarity),
            received: Some(&self.similarity),
            budget: self.budget,
            window: self.window,
            seed: self.seed,
            probe: self.probe,
            set: 0,
        })
        .unwrap()
    }
}

fn budget() -> impl Strategy<Value = Budget> {
    prop_oneof![
        (0_usize..700).prop_map(Budget::Tokens),
        (0.0..=1.0).prop_map(Budget::Ratio),
        (0.0..=1.0).prop_map(Budget::Share),
        (0.0..20.0).prop_map(Budget::ScoreSum),
    ]
}

/// A cache after some gathers: a prompt, perhaps a generated `<think>`, steps with holes.
fn cache() -> impl Strategy<Value = Cache> {
    let step = prop_oneof![prop::collection::vec(any::<bool>(), 1..12), prop::collection::vec(any::<bool>(), 1..90)];
    // There are few distinct scores, so that ties are common.
    let score = prop_oneof![Just(0.0_f32), (0_u8..4).prop_map(|q| f32::from(q) / 8.0), 0.0_f32..1.0];
    let shape = (0_usize..8, any::<bool>(), prop::collection::vec(step, 1..14), 1_usize..300);
    let facts = (prop::collection::vec(score, 2000), budget(), 0_usize..100, any::<u64>(), any::<u64>());
    (shape, facts).prop_map(|((prompt, opened, holes, current), (scores, budget, window, seed, probe))| {
        let mut tokens: Vec<CachedToken> =
            (0..prompt as u32).map(|p| CachedToken::other(Position(p), Role::Prompt)).collect();
        if opened {
            tokens.push(CachedToken::other(Position(prompt as u32), Role::ThinkOpen));
        }
        let mut position = tokens.len() as u32;
        let mut steps: Vec<StepInfo> = Vec::new();
        // The step that is being written has no holes, because it was protected so far.
        for (step, cached) in holes.into_iter().chain([vec![true; current]]).enumerate() {
            steps.push(StepInfo { id: position as usize * 4, tokens: cached.len() });
            for cached in cached {
                if cached {
                    tokens.push(CachedToken::thinking(Position(position), step as u32));
                }
                position += 1;
            }
        }
        let scores = scores[..tokens.len()].to_vec();
        let similarity = scores.iter().rev().map(|s| 1.0 - 2.0 * s).collect();
        Cache { tokens, steps, scores, similarity, budget, window, seed, probe }
    })
}

/// Every policy with its plan. Policies that the budget does not fit are left out; only policies without scores may
/// be.
fn plans(view: &CacheView<'_>) -> Vec<(&'static dyn EvictionPolicy, KeepPlan)> {
    let all = POLICIES.iter().copied();
    all.filter_map(|policy| match policy.plan(view) {
        Ok(plan) => Some((policy, plan)),
        Err(e) => {
            assert!(view.budget().needs_scores() && policy.accepts(view.budget()).is_err(), "{}: {e}", policy.name());
            None
        }
    })
    .collect()
}

fn is_kept(plan: &KeepPlan, slots: usize) -> Vec<bool> {
    let mut kept = vec![false; slots];
    plan.slots(0, 0).iter().for_each(|s| kept[s.0 as usize] = true);
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_protected_survives_every_policy_and_budget(cache in cache()) {
        let view = cache.view();
        let n = cache.tokens.len();
        // Computed here a second time, from the definition of the method.
        let current = cache.steps.len() as u32 - 1;
        let of_current: Vec<usize> = (0..n).filter(|&s| cache.tokens[s].step == Some(current)).collect();
        let must_stay = |slot: usize| {
            cache.tokens[slot].role != Role::Thinking
                || slot + cache.window >= n
                || of_current.iter().rev().take(CURRENT_STEP_KEPT).any(|&s| s == slot)
        };
        for (policy, plan) in plans(&view) {
            let kept = is_kept(&plan, n);
            for (slot, kept) in kept.into_iter().enumerate() {
                prop_assert_eq!(view.protected()[slot], must_stay(slot));
                prop_assert!(kept || !must_stay(slot), "{} evicts slot {slot}", policy.name());
            }
        }
    }

    #[test]
    fn token_budgets_are_hit_exactly_where_protection_allows(cache in cache()) {
        let view = cache.view();
        let Some(target) = view.budget().token_target(view.thinking_tokens()) else { return Ok(()) };
        let protected = view.cached_thinking() - view.evictable().count();
        for (policy, plan) in plans(&view) {
            let kept = view.cached_thinking() - (plan.cached_before(0) - plan.slots(0, 0).len());
            let floor = match policy.name() {
                "full" => { prop_assert!(plan.keeps_all()); continue }
                "streaming-llm" => {
                    protected + view.evictable().filter(|s| cache.tokens[s.0 as usize].position.0 < 4).count()
                }
                _ => protected,
            };
            prop_assert_eq!(kept, target.clamp(floor.min(view.cached_thinking()), view.cached_thinking()), "{}", policy.name());
            let expected = if kept > target { Outcome::Infeasible { asked: target, kept } } else { Outcome::Met };
            prop_assert_eq!(plan.outcome(), expected);
        }
    }

    #[test]
    fn think_clearly_takes_whole_steps_from_below(cache in cache()) {
        let view = cache.view();
        let plan = policy::ThinkClearly.plan(&view).unwrap();
        let kept = is_kept(&plan, cache.tokens.len());
        let gone = |slots: &[Slot]| slots.iter().filter(|s| !kept[s.0 as usize]).count();
        let key = |step: usize| (view.step_importance(step).unwrap(), step);
        let steps: Vec<(usize, Vec<Slot>)> = view.evictable_steps().collect();
        let (touched, whole): (Vec<_>, Vec<_>) = steps.iter().partition(|(_, slots)| gone(slots) > 0);
        for (low, _) in &touched {
            prop_assert!(whole.iter().all(|(high, _)| key(*low) < key(*high)));
        }
        let partial: Vec<_> = touched.iter().filter(|(_, slots)| gone(slots) < slots.len()).collect();
        prop_assert!(partial.len() <= usize::from(!view.budget().needs_scores()));
        for (step, slots) in partial {
            prop_assert!(touched.iter().all(|(other, _)| key(*other) <= key(*step)));
            let lowest_kept = slots.iter().filter(|s| kept[s.0 as usize]).map(|s| cache.scores[s.0 as usize]);
            let highest_gone = slots.iter().filter(|s| !kept[s.0 as usize]).map(|s| cache.scores[s.0 as usize]);
            prop_assert!(highest_gone.fold(0.0, f32::max) <= lowest_kept.fold(f32::INFINITY, f32::min));
        }
    }

    #[test]
    fn sums_of_importance_stay_within_the_budget_and_are_used_up(cache in cache()) {
        let view = cache.view();
        let importances: Vec<f64> = view.evictable_steps().map(|(step, _)| view.step_importance(step).unwrap()).collect();
        let limit = match view.budget() {
            Budget::ScoreSum(k) => k,
            Budget::Share(f) => f * importances.iter().sum::<f64>(),
            _ => return Ok(()),
        };
        let kept = is_kept(&policy::ThinkClearly.plan(&view).unwrap(), cache.tokens.len());
        let (gone, stay): (Vec<_>, Vec<_>) =
            view.evictable_steps().partition(|(_, slots)| slots.iter().all(|s| !kept[s.0 as usize]));
        let sum: f64 = gone.iter().map(|(step, _)| view.step_importance(*step).unwrap()).sum();
        prop_assert!(sum <= limit + 1e-9, "{sum} > {limit}");
        let next = stay.iter().map(|(step, _)| view.step_importance(*step).unwrap()).fold(f64::INFINITY, f64::min);
        prop_assert!(sum + next > limit - 1e-9, "{sum} + {next} would fit in {limit}");
    }

    #[test]
    fn same_view_same_plan(cache in cache()) {
        let again = cache.clone();
        for ((policy, a), (_, b)) in plans(&cache.view()).into_iter().zip(plans(&again.view())) {
            prop_assert_eq!(a, b, "{}", policy.name());
        }
    }

    #[test]
    fn a_policy_that_measures_nothing_ignores_scores_and_one_that_draws_nothing_the_seed(cache in cache(), other in any::<u64>()) {
        let mut reseeded = cache.clone();
        reseeded.seed = other;
        let mut rescored = cache.clone();
        rescored.scores.reverse();
        for (policy, plan) in plans(&cache.view()) {
            let changed = match (policy.draws_lots(), policy.needs().scores()) {
                (false, _) => reseeded.view(),
                (true, false) => rescored.view(),
                (true, true) => continue,
            };
            prop_assert_eq!(policy.plan(&changed).unwrap(), plan, "{}", policy.name());
        }
    }

    #[test]
    fn a_plan_takes_ascending_unique_cached_slots_only(cache in cache(), at in any::<prop::sample::Index>(), mutant in 0..4) {
        let view = cache.view();
        let n = cache.tokens.len();
        let mut kept: Vec<Slot> = (0..n as u32).map(Slot).collect();
        prop_assert!(KeepPlan::new(&view, kept.clone(), Outcome::Unbudgeted).is_ok());
        let at = at.index(n);
        match mutant {
            0 => kept.insert(at, kept[at]),
            1 => kept[at] = Slot(n as u32),
            2 if n > 1 => kept.swap(at.saturating_sub(1), at.max(1)),
            _ => {
                // It is an error to drop a slot if and only if it is protected.
                kept.remove(at);
                prop_assert_eq!(KeepPlan::new(&view, kept, Outcome::Unbudgeted).is_err(), view.protected()[at]);
                return Ok(());
            }
        }
        prop_assert!(KeepPlan::new(&view, kept, Outcome::Unbudgeted).is_err());
    }

    #[test]
    fn a_recorded_probe_adds_up_and_survives_json(cache in cache()) {
        let view = cache.view();
        for (_, plan) in plans(&view) {
            let probe = trace::Probe::record(3, &Sets::SHARED, std::slice::from_ref(&view), &plan).unwrap();
            prop_assert_eq!(probe.cached_before, cache.tokens.len());
            prop_assert_eq!(probe.cached_after, plan.slots(0, 0).len());
            prop_assert_eq!(probe.steps.iter().map(|s| s.evicted).sum::<usize>(), probe.evicted.len());
            prop_assert_eq!(probe.steps.iter().map(|s| s.cached).sum::<usize>(), view.cached_thinking());
            prop_assert_eq!(probe.infeasible.is_some(), matches!(plan.outcome(), Outcome::Infeasible { .. }));
            // Evicted positions and kept slots are complements.
            let mut positions: Vec<u32> = cache.tokens.iter().map(|t| t.position.0).collect();
            plan.gather(0, 0, &mut positions).unwrap();
            positions.extend(&probe.evicted);
            positions.sort_unstable();
            prop_assert_eq!(positions, cache.tokens.iter().map(|t| t.position.0).collect::<Vec<_>>());
            let json = serde_json::to_string(&probe).unwrap();
            prop_assert_eq!(serde_json::from_str::<trace::Probe>(&json).unwrap(), probe);
        }
    }
}

/// Views of a cache for each set of a scope: the same tokens with other scores.
fn views(cache: &Cache, sets: &Sets) -> Vec<Cache> {
    let turned = |set: usize| {
        let mut own = cache.clone();
        let n = own.scores.len();
        own.scores.rotate_left(set * 7 % n.max(1));
        own
    };
    (0..sets.count()).map(turned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_set_of_every_scope_obeys_the_laws_of_one(cache in cache(), per_layer in any::<bool>()) {
        let scope = if per_layer { Scope::Layer } else { Scope::Head };
        let sets = Sets { scope, layers: 3, kv_heads: 2 };
        let own = views(&cache, &sets);
        let views: Vec<CacheView<'_>> = own.iter().map(Cache::view).collect();
        for entry in POLICIES {
            let policy = entry;
            if policy.accepts(cache.budget).is_err() {
                continue;
            }
            let alone: Vec<KeepPlan> = views.iter().map(|v| policy.plan(v).unwrap()).collect();
            let plan = KeepPlan::join(&sets, alone.clone()).unwrap();
            for (set, (view, alone)) in views.iter().zip(&alone).enumerate() {
                let (layer, head) = sets.place(set);
                let (layer, head) = (layer.unwrap(), head.unwrap_or(0));
                let kept = plan.slots(layer, head);
                prop_assert!(kept.windows(2).all(|w| w[0] < w[1]), "{}: not ascending", entry.name());
                prop_assert!(kept.last().is_none_or(|s| (s.0 as usize) < cache.tokens.len()));
                // A set keeps the tokens that its policy keeps. It keeps more only to be as long as the longest set
                // of its layer.
                prop_assert!(alone.slots(0, 0).iter().all(|s| kept.binary_search(s).is_ok()), "{}", entry.name());
                let protected = (0..).map(Slot).zip(view.protected()).filter(|(_, p)| **p);
                for (slot, _) in protected {
                    prop_assert!(kept.binary_search(&slot).is_ok(), "{} evicts {slot:?}", entry.name());
                }
                let longest = (0..2).map(|h| alone_len(&sets, &views, *policy, layer, h)).max().unwrap();
                prop_assert_eq!(kept.len(), if per_layer { alone.slots(0, 0).len() } else { longest }, "{}", entry.name());
            }
            // The record adds up, and JSON preserves it.
            let probe = trace::Probe::record(3, &sets, &views, &plan).unwrap();
            prop_assert_eq!(probe.sets.len(), sets.count());
            let everywhere = |p: &u32| probe.sets.iter().all(|s| s.evicted.contains(p));
            prop_assert!(probe.evicted.iter().all(everywhere));
            let (first, others) = probe.sets.split_first().unwrap();
            let common = first.evicted.iter().filter(|p| others.iter().all(|s| s.evicted.contains(p))).count();
            prop_assert_eq!(common, probe.evicted.len());
            prop_assert_eq!(probe.steps.iter().map(|s| s.evicted).sum::<usize>(), probe.evicted.len());
            let json = serde_json::to_string(&probe).unwrap();
            prop_assert_eq!(serde_json::from_str::<trace::Probe>(&json).unwrap(), probe);
        }
    }
}

fn alone_len(sets: &Sets, views: &[CacheView<'_>], policy: &dyn EvictionPolicy, layer: usize, head: usize) -> usize {
    policy.plan(&views[sets.of(layer, head)]).unwrap().slots(0, 0).len()
}

/// 4,000 thinking tokens with a probe every 200: the work of the engine, without a model.
#[test]
fn over_many_probes_the_cache_stays_within_its_bound_and_keeps_the_question() {
    const PROMPT: usize = 30;
    const EVERY: usize = 200;
    const TARGET: usize = 512;
    for entry in POLICIES.iter().filter(|e| e.evicts()) {
        let policy = entry;
        let mut tokens: Vec<CachedToken> =
            (0..PROMPT).map(|p| CachedToken::other(Position(p as u32), Role::Prompt)).collect();
        let mut steps: Vec<StepInfo> = Vec::new();
        let mut peak = 0;
        for generated in 0..4000_usize {
            // Steps of 1 to 60 tokens, and one of 700.
            let long = (1500..2200).contains(&generated);
            if steps.is_empty() || (!long && steps[steps.len() - 1].tokens > generated * 7 % 60) {
                steps.push(StepInfo { id: generated, tokens: 0 });
            }
            let step = steps.len() - 1;
            steps[step].tokens += 1;
            tokens.push(CachedToken::thinking(Position((PROMPT + generated) as u32), step as u32));
            peak = peak.max(tokens.len());
            if (generated + 1) % EVERY != 0 {
                continue;
            }
            let scores: Vec<f32> = (0..tokens.len()).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
            let view = CacheView::new(ViewParts {
                tokens: &tokens,
                steps: &steps,
                current_step: step,
                thinking_tokens: generated + 1,
                scores: Some(&scores),
                similarity: Some(&scores),
                value_range: Some(&scores),
                received: Some(&scores),
                budget: Budget::Tokens(TARGET),
                window: 64,
                seed: 1,
                probe: ((generated + 1) / EVERY) as u64,
                set: 0,
            })
            .unwrap();
            let plan = policy.plan(&view).unwrap();
            assert_eq!(plan.outcome(), Outcome::Met);
            assert_eq!(plan.cached_after(0), PROMPT + TARGET.min(view.cached_thinking()), "{}", entry.name());
            let mut kept = tokens.clone();
            plan.gather(0, 0, &mut kept).unwrap();
            tokens = kept;
            assert!((0..PROMPT).all(|p| tokens[p].position == Position(p as u32) && tokens[p].role == Role::Prompt));
        }
        assert!(peak <= PROMPT + TARGET.max(64 + 256) + EVERY, "{}: {peak}", entry.name());
    }
}

// --- tests of the tests: policies with bugs that other projects shipped, written outside the crate

#[derive(Debug)]
struct Broken(fn(&CacheView<'_>) -> Vec<Slot>);

impl EvictionPolicy for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn needs(&self) -> Measurement {
        Measurement::ProbeRow
    }

    fn plan(&self, view: &CacheView<'_>) -> secateur::Result<KeepPlan> {
        KeepPlan::new(view, (self.0)(view), Outcome::Met)
    }
}

/// The `n` best slots, best first.
fn top(view: &CacheView<'_>, n: usize) -> Vec<Slot> {
    let scores = view.scores().unwrap();
    let mut slots: Vec<Slot> = (0..scores.len() as u32).map(Slot).collect();
    slots.sort_by(|a, b| scores[b.0 as usize].total_cmp(&scores[a.0 as usize]));
    slots.truncate(n);
    slots
}

#[test]
fn shipped_bugs_do_not_pass() {
    let mut tokens: Vec<CachedToken> = (0..4).map(|p| CachedToken::other(Position(p), Role::Prompt)).collect();
    tokens.extend((4..14).map(|p| CachedToken::thinking(Position(p), (p - 4) / 5)));
    let steps = [StepInfo { id: 0, tokens: 5 }, StepInfo { id: 20, tokens: 5 }];
    let scores: Vec<f32> = (0..14).map(|i| i as f32).collect();
    let view = CacheView::new(ViewParts {
        tokens: &tokens,
        steps: &steps,
        current_step: 1,
        thinking_tokens: 10,
        scores: Some(&scores),
        budget: Budget::Tokens(7),
        window: 2,
        ..ViewParts::EMPTY
    })
    .unwrap();
    let rejected = |bug: fn(&CacheView<'_>) -> Vec<Slot>| Broken(bug).plan(&view).unwrap_err().to_string();
    let top_unsorted = |v: &CacheView<'_>| top(v, 14);
    let prompt_evicted = |v: &CacheView<'_>| {
        let mut best = top(v, 7);
        best.sort();
        best
    };
    let window_evicted = |_: &CacheView<'_>| (0..11).map(Slot).collect();
    let off_by_one = |_: &CacheView<'_>| (1..15).map(Slot).collect();
    let over_budget = |_: &CacheView<'_>| (0..14).map(Slot).collect();
    assert!(rejected(top_unsorted).contains("not ascending"));
    assert!(rejected(prompt_evicted).contains("slot 0"));
    assert!(rejected(window_evicted).contains("protected slot is evicted"));
    assert!(rejected(off_by_one).contains("not cached"));
    assert!(rejected(over_budget).contains("the plan does not do what it says"));
    // The correct plan of the same size passes.
    let sound = |_: &CacheView<'_>| (0..4).chain(7..14).map(Slot).collect();
    assert!(Broken(sound).plan(&view).is_ok());
}

// --- real traces

const TRACES: &str = "traces-r1-math500/pilot_math500_qwen7b.jsonl";

#[test]
fn real_r1_traces_are_cut_into_plausible_steps() {
    let Some(path) = real(TRACES) else { return };
    let file = std::fs::read_to_string(path).unwrap();
    let mut all: Vec<Step> = Vec::new();
    let mut counts = Vec::new();
    for line in file.lines() {
        let item: serde_json::Value = serde_json::from_str(line).unwrap();
        // The text of the model up to </think>. The template wrote <think>. One trace never closes it.
        let response = item["full_response"].as_str().unwrap();
        let thinking = response.split("</think>").next().unwrap();
        let steps = segment(thinking, Tail::Closed);
        assert_partition(&steps, thinking.len());
        // The default rule never falls back for English reasoning.
        assert_eq!(segment_by(Boundaries::Auto, thinking, Tail::Closed), steps);
        let starts: Vec<usize> = steps.iter().map(|s| s.start).collect();
        assert_eq!(starts, starts_by_definition(&format!("{thinking}\0")));
        for s in &steps {
            let shown = thinking[s.start..s.end].replace('’', "'");
            assert!(s.keyword().is_none_or(|k| shown.starts_with(k)));
        }
        // The text is pushed in pieces of 4 bytes, about a token each, and probed every 200 pieces.
        let mut pieces = Segmenter::new();
        for (i, piece) in thinking.as_bytes().chunks(4).enumerate() {
            pieces.push(piece);
            if i % 200 == 199 {
                assert_partition(&pieces.steps(Tail::Open), pieces.text().len());
            }
        }
        assert_eq!(pieces.steps(Tail::Closed), steps);
        counts.push(steps.len());
        all.extend(steps);
    }
    let mut lengths: Vec<usize> = all.iter().map(|s| s.end - s.start).collect();
    lengths.sort_unstable();
    let (median, longest) = (lengths[lengths.len() / 2], lengths[lengths.len() - 1]);
    report!("ran: {} real traces cut into steps", counts.len());
    println!("steps per trace {counts:?}; {} in all; bytes per step: median {median}, longest {longest}", all.len());
    let mut names: Vec<(usize, &str)> =
        KEYWORDS.iter().map(|k| (all.iter().filter(|s| s.keyword() == Some(k)).count(), *k)).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    println!("{names:?}");
    assert_eq!(counts.len(), 20);
    // The shortest is a derivation of 629 bytes with two keywords, read by eye; the longest a loop up to the length
    // limit.
    counts.sort_unstable();
    assert!(counts[0] >= 2 && (20..200).contains(&counts[10]), "a reasoning trace has some dozens of steps");
    assert!((20..400).contains(&median), "a step is about a sentence or a few");
    assert!(names.iter().filter(|n| n.0 > 0).count() >= 12, "many keywords occur");
}

/// The same traces in tokens of their own tokenizer: the numbers of docs/results. `--nocapture` prints the table;
/// `SECATEUR_TRACES=DIR` writes a trace of each there, for `secateur report`.
#[test]
fn real_r1_traces_in_tokens() {
    let (Some(traces), Some(tokenizer)) = (real(TRACES), real("tokenizer-r1-distill-qwen/tokenizer.json")) else {
        return;
    };
    let (traces, tokenizer) = (std::fs::read_to_string(traces).unwrap(), std::fs::read(tokenizer).unwrap());
    let tokenizer = Tokenizer::from_bytes(&tokenizer, "tokenizer-r1-distill-qwen").unwrap();
    let out = std::env::var_os("SECATEUR_TRACES").map(std::path::PathBuf::from);
    let share = |part: usize, of: usize| format!("{:.0} %", 100.0 * part as f64 / of as f64);
    let short = |sizes: &[usize]| sizes.iter().filter(|n| **n <= 8).count();
    let median = |sizes: &[usize]| sizes[sizes.len() / 2];
    let summary = |name: &str, sizes: &mut Vec<usize>| {
        sizes.sort_unstable();
        let at_most = |n: usize| share(sizes.iter().filter(|s| **s <= n).count(), sizes.len());
        let (tokens, steps) = (sizes.iter().sum::<usize>(), sizes.len());
        println!(
            "{name}: {tokens} tokens in {steps} steps; mean {:.1}, median {}, longest {}; at most 4 tokens {}, 8 {}, 16 {}, 64 {}",
            tokens as f64 / steps as f64,
            median(sizes),
            sizes[steps - 1],
            at_most(4),
            at_most(8),
            at_most(16),
            at_most(64),
        );
    };
    println!("| trace | thinking tokens | steps | different | median step | longest | of at most 8 tokens | closed |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut of_closed = Vec::new();
    let (mut all, mut names) = (Vec::new(), vec![0; KEYWORDS.len()]);
    for line in traces.lines() {
        let item: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| item[field].as_str().unwrap();
        let (thinking, answer) = text("full_response").split_once("</think>").unwrap_or((text("full_response"), ""));
        let closed = text("full_response").contains("</think>");
        let ids = tokenizer.encode(thinking).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), thinking, "the tokenizer gives the text back");
        let mut segmenter = Segmenter::new();
        ids.iter().for_each(|id| segmenter.push(tokenizer.token_bytes(*id).unwrap()));
        assert_eq!(segmenter.text(), thinking.as_bytes());
        let steps = segmenter.steps(Tail::Closed);
        let step_of = segmenter.assign(&steps);
        let sizes: Vec<usize> = StepInfo::count(&steps, &step_of).iter().map(|s| s.tokens).collect();
        assert_eq!(sizes.iter().sum::<usize>(), ids.len());
        for step in &steps {
            KEYWORDS.iter().zip(&mut names).for_each(|(k, n)| *n += usize::from(step.keyword() == Some(k)));
        }
        let mut texts: Vec<&str> = steps.iter().map(|s| thinking[s.start..s.end].trim()).collect();
        texts.sort_unstable();
        texts.dedup();
        let mut sorted = sizes.clone();
        sorted.sort_unstable();
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            text("item_id"),
            ids.len(),
            sizes.len(),
            texts.len(),
            median(&sorted),
            sorted[sorted.len() - 1],
            share(short(&sorted), sorted.len()),
            if closed { "yes" } else { "no" }
        );
        if closed {
            of_closed.extend(&sizes);
        }
        all.extend(sizes);
        if let Some(folder) = &out {
            let trace = bare_trace(&item, &tokenizer, &ids, &steps, &step_of, closed.then_some(answer));
            std::fs::write(folder.join(format!("{}.json", text("item_id"))), trace.to_json().unwrap()).unwrap();
        }
    }
    summary("all", &mut all);
    summary("closed", &mut of_closed);
    let mut named: Vec<_> = names.into_iter().zip(KEYWORDS).collect();
    named.sort_unstable_by(|a, b| b.cmp(a));
    println!("{}", named.iter().map(|(n, k)| format!("{k} {n}")).collect::<Vec<_>>().join(" · "));
    // Short steps have noisy means. They are a fifth of all steps, and most of them are from one loop.
    let rate = |sizes: &[usize]| short(sizes) as f64 / sizes.len() as f64;
    assert!((0.15..0.25).contains(&rate(&all)) && (0.04..0.1).contains(&rate(&of_closed)));
}

/// A trace of text that was generated elsewhere: tokens and steps, no probes.
fn bare_trace(
    item: &serde_json::Value,
    tokenizer: &Tokenizer,
    ids: &[u32],
    steps: &[Step],
    step_of: &[usize],
    answer: Option<&str>,
) -> trace::Trace {
    let text = |field: &str| item[field].as_str().unwrap_or("").to_string();
    let mut detokenizer = Detokenizer::new(tokenizer, false);
    let mut token = |id: u32, role: Role, step: Option<usize>| trace::Token {
        id,
        text: detokenizer.push(id).unwrap().to_string(),
        role,
        special: tokenizer.is_special(id),
        step,
        forced: false,
    };
    let mut tokens: Vec<_> =
        ids.iter().zip(step_of).map(|(id, step)| token(*id, Role::Thinking, Some(steps[*step].start))).collect();
    tokens.extend(
        tokenizer.encode(answer.unwrap_or_default()).unwrap().into_iter().map(|id| token(id, Role::Answer, None)),
    );
    let prompt_ids = tokenizer.encode(&text("prompt")).unwrap();
    trace::Trace {
        version: trace::VERSION,
        secateur: env!("CARGO_PKG_VERSION").into(),
        model: "DeepSeek-R1-Distill-Qwen-7B".into(),
        device: "text generated elsewhere".into(),
        settings: secateur::settings::Settings {
            policy: secateur::policy::Full.into(),
            window: 0,
            probe_every: 0,
            probe_text: String::new(),
            steps: Boundaries::Keywords,
            ..secateur::settings::Settings::default()
        },
        totals: trace::Totals {
            prompt_tokens: prompt_ids.len(),
            generated_tokens: tokens.len(),
            thinking_tokens: ids.len(),
            ..Default::default()
        },
        prompt_text: Some(text("prompt")),
        weights: None,
        slot_bytes: None,
        step_boundaries: Some(BoundaryCounts::new(steps)),
        prompt_ids,
        tokens,
        probes: Vec::new(),
        stop_reason: if answer.is_some() { trace::StopReason::Eos } else { trace::StopReason::MaxNewTokens },
    }
}
