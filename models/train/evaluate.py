"""Greedy generation with a KV cache and exact, time-dependent masks: a query sees what was cached when it was forwarded.

    python evaluate.py --model DIR --split normal --count 1000                       accuracy of the full cache
    python evaluate.py --model DIR --split hard --count 400 --policy all --ratio 0.75 0.5 0.25 --out results.jsonl

Eviction is a mask here; the Rust engine frees the memory. Nothing else differs: positions are the original ones.
"""

import argparse
import functools
import json
import multiprocessing
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import policies
import task
import tokenizer
from model import Config, Qwen2, rope_tables


def load(path):
    """A training checkpoint (.pt) or an exported model directory."""
    path = Path(path)
    if path.suffix == ".pt":
        c = torch.load(path, weights_only=False, map_location="cpu")
        cfg, state = Config(**c["config"]), c["model"]
    else:
        from safetensors.torch import load_file

        raw = json.loads((path / "config.json").read_text())
        cfg = Config(**{k: raw[k] for k in Config().to_dict() if k in raw})
        state = {k: v.float() for k, v in load_file(path / "model.safetensors").items()}
    # The stored weights are bf16, and they are what is evaluated; arithmetic is f32.
    state = {k: v.to(torch.bfloat16).float() for k, v in state.items()}
    model = Qwen2(cfg)
    model.load_state_dict(state)
    return model.eval()


class Cache:
    """K, V of B sequences in shared slots: sequence b has position slot - pad[b]. `alive` (L, B, G, slots) is the mask."""

    def __init__(self, model, prompts, room):
        c = model.config
        self.model, self.c = model, c
        b, t = len(prompts), max(map(len, prompts))
        self.pad = torch.tensor([t - len(p) for p in prompts])
        self.start, self.len = t, 0
        shape = (c.num_hidden_layers, b, c.num_key_value_heads, t + room, c.head_dim)
        self.k, self.v = torch.zeros(shape), torch.zeros(shape)
        self.alive = torch.ones(shape[:-1], dtype=torch.bool)
        self.alive &= torch.arange(t + room)[None, None, None] >= self.pad[None, :, None, None]
        ids = torch.zeros(b, t, dtype=torch.long)
        for i, p in enumerate(prompts):
            ids[i, t - len(p) :] = torch.tensor(p)
        self.sums = None
        self.first = ids

    def forward(self, ids, store=True, rows=None, sums=None):
        """ids (B, T) at the next slots -> logits of the last one (B, V). `rows`: list that receives, per layer, the last
        query's attention weights (B, H, slots). `sums` (L, B, G, slots): running sums of all queries' weights."""
        c, m = self.c, self.model
        b, t = ids.shape
        n = self.len
        slots = torch.arange(n, n + t)
        cos, sin = rope_tables(c, (slots[None] - self.pad[:, None]).clamp(min=0))
        cos, sin = cos[:, None], sin[:, None]
        causal = torch.arange(n + t)[None] <= slots[:, None]
        g, r, d = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads, c.head_dim
        x = m.model.embed_tokens(ids)
        for i, block in enumerate(m.model.layers):
            q, k, v = block.self_attn.qkv(block.input_layernorm(x), cos, sin)
            if store:
                self.k[i, :, :, n : n + t], self.v[i, :, :, n : n + t] = k, v
                keys, values = self.k[i, :, :, : n + t], self.v[i, :, :, : n + t]
                alive = self.alive[i, :, :, : n + t]
            else:
                keys = torch.cat((self.k[i, :, :, :n], k), 2)
                values = torch.cat((self.v[i, :, :, :n], v), 2)
                alive = torch.cat((self.alive[i, :, :, :n], torch.ones(b, g, t, dtype=torch.bool)), 2)
            a = q.reshape(b, g, r * t, d) @ keys.transpose(2, 3) * d**-0.5
            seen = alive[:, :, None, None, :] & causal[None, None, None]
            a = a.view(b, g, r, t, n + t).masked_fill(~seen, -1e30).softmax(-1)
            if rows is not None:
                rows.append(a[:, :, :, -1].reshape(b, g * r, n + t))
            if sums is not None:
                valid = (slots[None] >= self.pad[:, None])[:, None, None, :, None]
                sums[i, :, :, : n + t] += (a * valid).sum((2, 3))
            o = (a.view(b, g, r * t, n + t) @ values).view(b, g * r, t, d).transpose(1, 2).reshape(b, t, g * r * d)
            x = x + block.self_attn.o_proj(o)
            x = x + block.mlp(block.post_attention_layernorm(x))
        if store:
            self.len += t
        return m.head(m.model.norm(x[:, -1]))

    def select(self, rows):
        b, n = len(rows), self.len
        for x in (*self.k, *self.v):  # in place: new buffers for every sequence that ends cost more than the attention
            x[:b, :, :n] = x[rows, :, :n]
        self.k, self.v, self.alive = self.k[:, :b], self.v[:, :b], self.alive[:, rows]
        self.pad = self.pad[rows]


@dataclass
class Settings:
    """How a run prunes: the arguments of `main` of the same names."""

    policy: str = "full"
    ratio: float = 1.0
    p: int = 40
    window: int = 16
    seed: int = 0
    layers: list | None = None
    heads: list | None = None  # (layer, head)
    per_head: bool = False
    own_sets: bool = False

    def probes(self):
        return self.policy in policies.NEEDS_PROBE

    def scores(self, weights, kv_heads):
        """What the policy ranks by, (B, n), or (B, sets, n) with sets of their own. weights: (L, B, H, n)."""
        if self.per_head:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
        if self.own_sets:  # a query head votes on the set of its key/value head only
            return weights.unflatten(2, (kv_heads, -1)).mean(3).transpose(0, 1).flatten(1, 2)
        if self.heads is not None:
            return torch.stack([weights[x, :, y] for x, y in self.heads]).mean(0)
        return (weights if self.layers is None else weights[self.layers]).mean((0, 2))


class Runner:
    def __init__(self, model, max_tokens=700):
        self.model, self.max_tokens = model, max_tokens
        self.tok = tokenizer.build()
        self.end = self.tok.token_to_id("<|end|>")
        self.end_think = self.tok.token_to_id("</think>")
        self.probe = self.encode(task.PROBE)
        self.piece = [self.tok.decode([i], skip_special_tokens=False) for i in range(model.config.vocab_size)]

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def run(self, problems, policy="full", ratio=1.0, *, batch=128, on_probe=None, **settings):
        """Greedy answers of all problems, `batch` at a time: a dict for each problem, in order. `settings`: see `Settings`."""
        settings = Settings(policy, ratio, **settings)
        out = [None] * len(problems)
        order = sorted(range(len(problems)), key=lambda i: len(problems[i].text))
        for a in range(0, len(order), batch):
            part = order[a : a + batch]
            for i, answer in zip(part, self._batch([problems[i] for i in part], part, settings, on_probe)):
                out[i] = answer
        return out

    def _batch(self, problems, numbers, settings, on_probe):
        policy, p = settings.policy, settings.p
        prompts = [self.encode(task.prompt_text(q.text)) for q in problems]
        cache = Cache(self.model, prompts, self.max_tokens + 1)
        c = self.model.config
        n_heads = c.num_hidden_layers * c.num_key_value_heads
        sums = torch.zeros(cache.alive.shape) if policy == "h2o" else None
        rngs = [np.random.default_rng([settings.seed, 7919, i]) for i in numbers]
        ids = [[] for _ in problems]
        stats = [dict(kept=[], thinking=None, cached_sum=0) for _ in problems]
        live = list(range(len(problems)))  # row -> problem
        start = cache.start
        last = [] if policy == "last-attention" else None
        logits = cache.forward(cache.first, sums=sums)
        for step in range(self.max_tokens):
            # `step` thinking tokens are cached here, and `logits` are the held ones.
            if policy != "full" and step and step % p == 0:
                thinking = [r for r, i in enumerate(live) if self.end_think not in ids[i]]
                if thinking:
                    rows = []
                    if settings.probes() or on_probe:
                        cache.forward(torch.tensor([self.probe] * len(live)), store=False, rows=rows)
                    elif policy == "last-attention":
                        rows = last
                    s = None
                    if rows:
                        full = torch.stack(rows)[..., start : start + step]  # (L, B, H, thinking)
                        s = settings.scores(full, c.num_key_value_heads).numpy()
                    for r in thinking:
                        i = live[r]
                        shared = policy != "h2o" and not settings.own_sets
                        alive = cache.alive[:, r, :, start : start + step].reshape(n_heads, step).numpy()
                        cached = alive[:1] if shared else alive
                        scores = s[r] if s is not None else None
                        if policy == "h2o":
                            scores = sums[:, r, :, start : start + step].reshape(n_heads, step).numpy()
                        pieces = [self.piece[t] for t in ids[i]]
                        if on_probe:
                            on_probe(problems[i], numbers[i], pieces, cached[0].copy(), full[:, r].numpy())
                        keep = policies.plan(
                            policy, settings.ratio, settings.window, pieces, cached, scores, rngs[i], problems[i]
                        )
                        stats[i]["kept"].append(int(keep[0].sum()))
                        keep = torch.from_numpy(keep)
                        keep = keep.expand(n_heads, step) if shared else keep
                        cache.alive[:, r, :, start : start + step] = keep.view(c.num_hidden_layers, -1, step)
            best = logits.argmax(-1).tolist()
            for r, i in enumerate(live):
                ids[i].append(best[r])
                if best[r] == self.end_think and stats[i]["thinking"] is None:
                    stats[i]["thinking"] = step
            done = [r for r, i in enumerate(live) if ids[i][-1] == self.end]
            if done:
                gone = set(done)
                rows = [r for r in range(len(live)) if r not in gone]
                live = [live[r] for r in rows]
                if not live:
                    break
                cache.select(rows)
                if sums is not None:
                    sums = sums[:, rows]
            tokens = torch.tensor([[ids[i][-1]] for i in live])
            last = [] if policy == "last-attention" else None
            logits = cache.forward(tokens, sums=sums, rows=last)
            if step % 8 == 0:
                counts = cache.alive[0, :, 0, start : start + step + 1].sum(-1).tolist()
                for r, i in enumerate(live):
                    if stats[i]["thinking"] is None:
                        stats[i].setdefault("cached", []).append(counts[r])
        out = []
        for i, q in enumerate(problems):
            text = "".join(self.piece[t] for t in ids[i])
            m = re.findall(r"\\boxed\{(\d)\}", text.split("</think>")[-1]) if "</think>" in text else []
            cached = stats[i].get("cached", [0])
            out.append(
                dict(
                    problem=int(numbers[i]),
                    correct=bool(m) and int(m[-1]) == q.answer,
                    answer=m[-1] if m else None,
                    expected=q.answer,
                    truncated=ids[i][-1] != self.end,
                    thinking=stats[i]["thinking"] if stats[i]["thinking"] is not None else len(ids[i]),
                    peak=max(cached),
                    mean=sum(cached) / len(cached),
                    kept=stats[i]["kept"],
                    text=text,
                    ids=ids[i],
                )
            )
        return out


@functools.cache
def runner(model, max_tokens):
    """This process's runner: loaded at its first run and kept for the others."""
    torch.set_num_threads(1)
    return Runner(load(model), max_tokens)


def evaluate(work):
    """One run: (its line, what `--show` prints)"""
    split, name, ratio, seed, args = work
    problems = task.split(split, args.skip + args.count)[args.skip :]
    heads = [tuple(map(int, h.split(":"))) for h in args.heads] if args.heads else None
    t = time.time()
    r = runner(args.model, args.max_tokens).run(
        problems,
        name,
        ratio,
        batch=args.batch,
        p=args.p,
        window=args.window,
        seed=seed,
        layers=args.layers,
        heads=heads,
        per_head=args.per_head,
        own_sets=args.own_sets,
    )
    mean = lambda k, digits: round(float(np.mean([x[k] for x in r])), digits)
    line = dict(
        split=split,
        policy=name + args.label,
        ratio=ratio,
        seed=seed,
        accuracy=mean("correct", 4),
        truncated=mean("truncated", 4),
        thinking=mean("thinking", 1),
        peak=mean("peak", 1),
        mean=mean("mean", 1),
        seconds=round(time.time() - t, 1),
        p=args.p,
        window=args.window,
        correct=[int(x["correct"]) for x in r],
        answers=[x["answer"] for x in r],
        kept=[x["kept"] for x in r],
        tokens=[x["thinking"] for x in r],
        truncations=[int(x["truncated"]) for x in r],
    )
    return line, [f"{problems[x['problem']].text} \n {x['text']} {x['correct']}\n" for x in r[: args.show]]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", required=True)
    a.add_argument("--split", nargs="+", default=["normal"])
    a.add_argument("--count", type=int, default=1000)
    a.add_argument("--skip", type=int, default=0, help="begin so far into the split: problems to choose settings by")
    a.add_argument("--policy", nargs="+", default=["full"])
    a.add_argument("--ratio", nargs="+", type=float, default=[0.75, 0.5, 0.25])
    a.add_argument("--seeds", nargs="+", type=int, default=[0], help="for random and random-step")
    a.add_argument("--p", type=int, default=40)
    a.add_argument("--window", type=int, default=16)
    a.add_argument("--layers", nargs="+", type=int)
    a.add_argument("--heads", nargs="+", help="layer:head, e.g. 2:1 3:0")
    a.add_argument("--per-head", action="store_true", help="renormalise each head over the thinking tokens")
    a.add_argument("--own-sets", action="store_true", help="each key/value head keeps its own, by its own queries' scores")
    a.add_argument("--max-tokens", type=int, default=700)
    a.add_argument("--batch", type=int, default=128)
    a.add_argument("--label", default="", help="added to the policy's name in the output")
    a.add_argument("--jobs", type=int, default=1, help="processes, each of one thread")
    a.add_argument("--show", type=int, default=0)
    a.add_argument("--out")
    args = a.parse_args()
    names = policies.POLICIES if args.policy == ["all"] else args.policy
    work = [
        (split, name, ratio, seed, args)
        for split in args.split
        for name in names
        for ratio in ([1.0] if name == "full" else args.ratio)
        for seed in (args.seeds if name.startswith("random") else [0])
    ]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for line, shown in pool.imap(evaluate, work):
            print(json.dumps({k: v for k, v in line.items() if not isinstance(v, list)}), flush=True)
            for text in shown:
                print(text)
            if args.out:
                with open(args.out, "a") as f:
                    f.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
