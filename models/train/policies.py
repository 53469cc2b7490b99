"""The policies: which thinking tokens stay. A policy gives every evictable token a rank key; the plan drops the tokens
with the lowest keys until the budget is met.

`plan` returns keep masks over the thinking tokens, (heads, tokens): heads is 1 for a shared set or L*G for sets per layer
and key/value head. The latest `window` tokens and the step being written (at most 256 of its tokens) always stay.
"""

import re
from dataclasses import dataclass

import numpy as np

from steps import segment, spans

NEEDS_PROBE = ("think-clearly", "think-token")


def protected(n, step_spans, window):
    """First token of the protected tail."""
    current = max(step_spans[-1][0], n - 256)
    return min(max(0, n - window), current)


def drop_tokens(key, cached, tail, budget):
    """Keep mask that drops the cached tokens with the lowest key, before `tail`, until at most `budget` stay."""
    keep = cached.copy()
    evictable = np.flatnonzero(cached[:tail])
    excess = int(cached.sum()) - budget
    if excess > 0:
        order = evictable[np.argsort(key[evictable], kind="stable")]
        keep[order[:excess]] = False
    return keep


def drop_steps(step_key, token_key, cached, tail, budget, step_spans):
    """As `drop_tokens`, whole steps in ascending order of `step_key`; of the last one only its lowest tokens."""
    keep = cached.copy()
    excess = int(cached.sum()) - budget
    for s in np.argsort(step_key, kind="stable"):
        if excess <= 0:
            break
        a, b = step_spans[s]
        tokens = np.flatnonzero(keep[a : min(b, tail)]) + a
        if not len(tokens):
            continue
        if len(tokens) > excess:
            tokens = tokens[np.argsort(token_key[tokens], kind="stable")[:excess]]
        keep[tokens] = False
        excess -= len(tokens)
    return keep


def step_means(scores, cached, step_spans):
    out = np.full(len(step_spans), np.inf)
    for i, (a, b) in enumerate(step_spans):
        c = cached[a:b]
        if c.any():
            out[i] = scores[a:b][c].mean()
    return out


_GIVES = re.compile(r"(#\d+) gives (\w) = (\d)\.")


def oracle_keys(problem, pieces, step_spans):
    """2 for the step that holds a needed letter's latest value, 1.5 for the latest label, else recency below 1."""
    text = "".join(pieces)
    offset = np.cumsum([0] + [len(p) for p in pieces])
    n = len(step_spans)
    key = np.arange(n) / max(1, n)
    found = [(m.start(3), int(m.group(1)[1:]), m.group(2)) for m in _GIVES.finditer(text)]
    if not found:
        return key, set()

    def step_at(char):
        token = int(np.searchsorted(offset, char, side="right")) - 1
        return next(i for i, (a, b) in enumerate(step_spans) if a <= token < b)

    done = min(max(k for _, k, _ in found), len(problem.facts))
    key[step_at(found[-1][0])] = 1.5
    needed = set()
    for letter in problem.needed(done):
        places = [c for c, _, x in found if x == letter]
        if places:
            needed.add(step_at(places[-1]))
    for s in needed:
        key[s] = 2.0
    return key, needed


@dataclass
class View:
    """What a policy sees of one set of cached tokens. `n` thinking tokens have been written, evicted ones included."""

    pieces: list  # the texts of the tokens
    cached: np.ndarray  # (n,) bool: which tokens the set still has
    scores: np.ndarray | None  # (n,) what the policy measures, where it measures
    step_spans: list
    tail: int  # first token of the protected tail
    budget: int  # how many tokens may stay
    rng: np.random.Generator
    problem: object

    def drop_tokens(self, key, tail=None):
        return drop_tokens(key, self.cached, self.tail if tail is None else tail, self.budget)

    def drop_steps(self, step_key, token_key):
        return drop_steps(step_key, token_key, self.cached, self.tail, self.budget, self.step_spans)


def by_step_score(view):
    return view.drop_steps(step_means(view.scores, view.cached, view.step_spans), view.scores)


def by_token_score(view):
    return view.drop_tokens(view.scores)


def by_chance(view):
    return view.drop_tokens(view.rng.random(len(view.pieces)))


def by_chance_in_steps(view):
    return view.drop_steps(view.rng.random(len(view.step_spans)), view.rng.random(len(view.pieces)))


def by_age(view):
    return view.drop_tokens(np.arange(len(view.pieces)))  # the sinks are in the prompt, which always stays


def by_received_attention(view):
    """Drops from the older tokens first, so that half of the budget is left to the latest; then, if necessary, from all."""
    recent = min(view.tail, len(view.pieces) - view.budget // 2)
    view.cached = view.drop_tokens(view.scores, recent)
    return view.drop_tokens(view.scores)


def by_need(view):
    key, _ = oracle_keys(view.problem, view.pieces, view.step_spans)
    return view.drop_steps(key, np.arange(len(view.pieces)))


# Each takes a `View` and returns the keep mask of its set, (n,) bool.
METHODS = {
    "think-clearly": by_step_score,
    "think-token": by_token_score,
    "last-attention": by_step_score,
    "random": by_chance,
    "random-step": by_chance_in_steps,
    "streaming-llm": by_age,
    "h2o": by_received_attention,
    "oracle": by_need,
}
POLICIES = ["full", *METHODS]


def plan(policy, ratio, window, pieces, cached, scores, rng, problem):
    """cached: (heads, n) bool. scores: (n,), or (heads, n) if every head keeps its own. Returns the new (heads, n) mask."""
    n = cached.shape[1]
    step_spans = spans(segment(pieces))
    out = []
    for h in range(cached.shape[0]):
        view = View(
            pieces=pieces,
            cached=cached[h],
            scores=scores[h] if scores is not None and scores.ndim == 2 else scores,
            step_spans=step_spans,
            tail=protected(n, step_spans, window),
            budget=int(ratio * n),
            rng=rng,
            problem=problem,
        )
        out.append(METHODS[policy](view))
    return np.stack(out)
