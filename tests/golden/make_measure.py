#!/usr/bin/env python3
"""Writes what policies measure, as computed by transformers: `measure.safetensors` of every fixture in Hugging Face layout.
README.md describes its contents.

    python make_measure.py [NAME …]            writes the files, from the committed weights and goldens
    python make_measure.py --check [NAME …]    recomputes them and compares, writes nothing

Float32 arithmetic over the stored weights, eager attention, one thread, as `make.py`. Sums and means are taken in float64.
"""

import pathlib
import sys

import numpy as np
import safetensors.numpy
import torch
import transformers

import make

HERE = pathlib.Path(__file__).resolve().parent
WINDOWS = (8, 32)  # latest queries: r-kv's, snapkv's
ALIKE = 0.5  # cosine above which keys are look-alikes
TAIL = 8  # of a decode only the last logits are kept


def grouped(weights, kv_heads):
    """[layers, heads, …] → [layers, kv_heads, …]: the mean over each group of query heads."""
    layers, heads = weights.shape[:2]
    return weights.reshape(layers, kv_heads, heads // kv_heads, *weights.shape[2:]).astype(np.float64).mean(2)


def similarity(keys):
    """[layers, kv_heads, n, d] → [layers, kv_heads, n]: the mean cosine to the others, without each key's latest look-alike."""
    keys = keys.astype(np.float64)
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    cosine = unit @ unit.swapaxes(-1, -2)
    n = cosine.shape[-1]
    cosine[..., np.arange(n), np.arange(n)] = 0
    assert np.abs(cosine - ALIKE).min() > 1e-6, "a pair sits on the threshold"
    alike = cosine > ALIKE
    latest = np.where(alike.any(-1), n - 1 - alike[..., ::-1].argmax(-1), -1)
    spared = np.arange(n)[None, None, None, :] == latest[..., None]
    assert spared.any(), "no keys are alike: the threshold is not tested"
    return np.where(spared, 0, cosine).sum(-2) / n


class Measured:
    def __init__(self, folder):
        self.golden = make.Golden(folder)
        self.model = self.golden.model
        self.kv_heads = self.model.config.num_key_value_heads
        self.tensors = safetensors.numpy.load_file(folder / "golden.safetensors")

    def keys(self, ids):
        """The rotated keys of a plain forward, [layers, kv_heads, n, d]."""
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([ids]), use_cache=True)
        return np.stack([layer.keys[0].numpy() for layer in out.past_key_values.layers])

    def prompt(self, out):
        """The prompt of 64: nothing evicted."""
        ids = self.tensors["prompt.64.ids"].tolist()
        weights = grouped(self.golden(ids, attention=True)[1], self.kv_heads)
        out["prompt.64.sums"] = weights.sum(2)
        for w in WINDOWS:
            out[f"prompt.64.window.{w}"] = weights[:, :, -w:].mean(2)
        out["prompt.64.similarity"] = similarity(self.keys(ids))

    def oracle(self, out):
        """The schedule of make.py to its end: row q does not see what was evicted before it was forwarded."""
        ids = self.tensors["oracle.prompt.ids"].tolist() + self.tensors["oracle.ids"].tolist()
        n = len(ids)
        hidden, gone = np.zeros((n, n), bool), np.zeros(n, bool)
        for event, position in enumerate(make.EVENTS):
            evicted = self.tensors[f"oracle.{event}.evicted"]
            hidden[position + 1 :, evicted] = True
            gone[evicted] = True
        weights = self.golden(ids, hidden=hidden, attention=True)[1]
        out["oracle.sums"] = grouped(weights, self.kv_heads).sum(2)[:, :, ~gone]
        # The latest queries over what is cached now: rows from before the last eviction are brought to 1 again.
        raw = weights.astype(np.float64)[:, :, -max(WINDOWS) :][..., ~gone]
        raw = grouped(raw / raw.sum(-1, keepdims=True), self.kv_heads)
        for w in WINDOWS:
            out[f"oracle.window.{w}"] = raw[:, :, -w:].mean(2)

    def evictions(self, scope):
        """What each event evicts: [layer][KV head] → positions. Layers differ in number in scope `layer`, heads never do."""
        layers, gone = self.model.config.num_hidden_layers, {}
        for event, after in enumerate(make.EVENTS):
            for layer in range(layers):
                for head in range(self.kv_heads):
                    lost = gone.setdefault((layer, head), [])
                    count = len(self.tensors[f"oracle.{event}.evicted"]) - (2 * layer if scope == "layer" else 0)
                    if scope == "shared":
                        evicted = self.tensors[f"oracle.{event}.evicted"].tolist()
                    else:
                        own = layer * 8 + (head if scope == "head" else 0)
                        gone_before = {p for positions in lost for p in positions}
                        free = [p for p in range(make.QUESTION, after + 1 - make.WINDOW) if p not in gone_before]
                        evicted = sorted(sorted(free, key=lambda p: ((p * 7 + own * 13) % 31, p))[:count])
                    lost.append(evicted)
        return gone

    @torch.no_grad()
    def sets(self, out, scope, positions):
        """The schedule of make.py with other evictions for each set of a scope, out of transformers' own cache. Positions
        `compact`: the kept keys are rotated on to consecutive positions, in float64, and the next token follows them; layers that
        keep fewer end where the others do."""
        question, ids = self.tensors["oracle.prompt.ids"].tolist(), self.tensors["oracle.ids"].tolist()
        gone = self.evictions(scope)
        cache = transformers.DynamicCache(config=self.model.config)
        logical = {key: list(range(len(question))) for key in gone}  # of each set, the positions it caches
        stands = {key: list(range(len(question))) for key in gone}  # and where their keys stand
        after, rows = len(question), []

        def forward(tokens, at):
            # A lone token sees all that is cached: layers of unequal length need no mask, and get none.
            drop = lambda module, args, kwargs: (args, kwargs | {"attention_mask": None})
            layers = self.model.model.layers if len(tokens) == 1 else []
            hooks = [layer.self_attn.register_forward_pre_hook(drop, with_kwargs=True) for layer in layers]
            logits = self.model(
                input_ids=torch.tensor([tokens]),
                position_ids=torch.arange(at, at + len(tokens))[None],
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
            [hook.remove() for hook in hooks]
            return logits

        forward(question, 0)
        for i, token in enumerate(ids):
            rows.append(forward([token], after)[0].numpy())
            for key in gone:
                logical[key].append(len(question) + i)
                stands[key].append(after)
            after += 1
            if len(question) + i not in make.EVENTS:
                continue
            event = make.EVENTS.index(len(question) + i)
            kept = {k: [s for s, p in enumerate(logical[k]) if p not in set(gone[k][event])] for k in gone}
            end = max(len(slots) for slots in kept.values())
            for number, layer in enumerate(cache.layers):
                index = torch.tensor([kept[number, h] for h in range(self.kv_heads)])[None, :, :, None]
                index = index.expand(-1, -1, -1, layer.keys.shape[-1])
                layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
                rotates = getattr(self.model.config, "no_rope_layers", None)
                if positions == "compact" and (rotates is None or rotates[number]):
                    # Read after a forward: some scalings choose their frequencies by its length.
                    frequencies = self.model.model.rotary_emb.inv_freq.double()
                    count = index.shape[2]
                    old = torch.tensor([[stands[number, h][s] for s in kept[number, h]] for h in range(self.kv_heads)])
                    angle = (torch.arange(end - count, end)[None] - old).double()[..., None] * frequencies
                    cos, sin = angle.cos()[None], angle.sin()[None]
                    rotated, rest = layer.keys.double().tensor_split([2 * len(frequencies)], -1)
                    a, b = rotated.chunk(2, -1)
                    layer.keys = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).float()
            for key, slots in kept.items():
                logical[key] = [logical[key][s] for s in slots]
                compacted = list(range(end - len(slots), end))
                stands[key] = compacted if positions == "compact" else [stands[key][s] for s in slots]
            after = end if positions == "compact" else after
        logits = np.stack(rows[-TAIL:])
        plain = self.tensors["oracle.logits"][-TAIL:]
        if (scope, positions) == ("shared", "original"):
            # The masked forward of make.py, by another way.
            assert np.abs(logits - plain).max() < 2e-5 * np.abs(plain).max()
            return
        assert np.abs(logits - plain).max() > 1e-2 * np.abs(plain).max(), "it makes no difference"
        out[f"{scope}.{positions}.logits"] = logits
        if scope != "shared":
            most = max(len(e) for lost in gone.values() for e in lost)
            for event in range(len(make.EVENTS)):
                table = np.full((self.model.config.num_hidden_layers, self.kv_heads, most), -1, np.int32)
                for (layer, head), lost in gone.items():
                    table[layer, head, : len(lost[event])] = lost[event]
                out[f"{scope}.{event}.evicted"] = table

    def __call__(self):
        out = {}
        self.prompt(out)
        self.oracle(out)
        for scope in ("shared", "layer", "head"):
            for positions in ("original", "compact"):
                self.sets(out, scope, positions)
        for name, tensor in out.items():
            assert np.isfinite(tensor).all(), name
        flat = out["oracle.sums"]
        assert (flat.max(-1) > 3 * flat.mean(-1)).all(), "flat sums would make any policy right"
        tidy = lambda t: np.ascontiguousarray(t, t.dtype if t.dtype == np.int32 else np.float32)
        return {name: tidy(tensor) for name, tensor in out.items()}


def main():
    torch.set_num_threads(1)
    chosen = [argument for argument in sys.argv[1:] if argument != "--check"]
    for name, model in make.MODELS.items():
        if "gguf" in model or (chosen and name not in chosen):
            continue
        found, path = Measured(HERE / name)(), HERE / name / "measure.safetensors"
        if "--check" in sys.argv:
            stored = safetensors.numpy.load_file(path)
            assert stored.keys() == found.keys()
            worst = max(np.abs(stored[k] - found[k]).max() / np.abs(found[k]).max() for k in found)
            assert worst < 2e-5, f"{name}: off by {worst:.1e}"
            print(f"{name}: off by at most {worst:.1e} of the largest value")
        else:
            safetensors.numpy.save_file(found, path)
            print(f"{name}: {path.stat().st_size} bytes, {', '.join(found)}")


main()
