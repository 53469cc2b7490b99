"""Who stays. A policy gives every evictable thinking token a rank key; the plan drops the lowest keys until the budget holds.

`plan` returns keep masks over the thinking tokens, (heads, tokens): heads is 1 for a shared set or L*G for sets per layer
and key/value head. The latest `window` tokens and the step being written (at most 256 of its tokens) always stay.
"""

import re

import numpy as np
from steps import segment, spans

POLICIES = ["full", "think-clearly", "think-token", "last-attention", "random", "random-step", "streaming-llm", "h2o", "oracle"]
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


def plan(policy, ratio, window, pieces, cached, scores, rng, problem):
    """cached: (heads, n) bool. scores: (n,), or (heads, n) where every head keeps its own. Returns the new (heads, n) mask."""
    n = cached.shape[1]
    step_spans = spans(segment(pieces))
    tail = protected(n, step_spans, window)
    budget = int(ratio * n)
    out = []
    for h in range(cached.shape[0]):
        c, own = cached[h], scores
        if scores is not None and scores.ndim == 2:
            own = scores[h]
        if policy in ("think-clearly", "last-attention"):
            keep = drop_steps(step_means(own, c, step_spans), own, c, tail, budget, step_spans)
        elif policy == "think-token":
            keep = drop_tokens(own, c, tail, budget)
        elif policy == "random":
            keep = drop_tokens(rng.random(n), c, tail, budget)
        elif policy == "random-step":
            keep = drop_steps(rng.random(len(step_spans)), rng.random(n), c, tail, budget, step_spans)
        elif policy == "streaming-llm":
            keep = drop_tokens(np.arange(n), c, tail, budget)  # the sinks are in the prompt, which always stays
        elif policy == "h2o":
            recent = min(tail, n - budget // 2)
            keep = drop_tokens(own, c, recent, budget)
            keep = drop_tokens(own, keep, tail, budget)
        elif policy == "oracle":
            key, _ = oracle_keys(problem, pieces, step_spans)
            keep = drop_steps(key, np.arange(n), c, tail, budget, step_spans)
        else:
            raise ValueError(f"unknown policy {policy}")
        out.append(keep)
    return np.stack(out)
