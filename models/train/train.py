"""Trains the reasoner on samples drawn on the fly. Resumes from its checkpoint when started again with the same command.

    python train.py --out DIR

The learning rate falls to zero three times: see `rate`.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import task
import tokenizer
from model import Config, Qwen2

SEED = 1_000_000
FIRST_FALL = 8.8e6  # tokens after which the learning rate has fallen to zero for the first time
SECOND_FALL = 11e6  # and for the second time
HOLD = 18e6  # the third fall begins here


def rate(seen, last):
    """The learning rate's share of its maximum: falls to zero at `FIRST_FALL`, from 0.35 at `SECOND_FALL`, and from 0.6
    (held until `HOLD`) at `last`."""
    if seen < FIRST_FALL:
        return min(1.0, (FIRST_FALL - seen) / 4.2e6)
    if seen < SECOND_FALL:
        return 0.35 * (SECOND_FALL - seen) / (SECOND_FALL - FIRST_FALL)
    return 0.6 * min((seen - SECOND_FALL) / 2e5 + 0.01, 1.0, max(0.0, (last - seen) / (last - HOLD)))


def lengths(tokens_seen, rng):
    """Number of facts and updates of the next training problem: short ones first."""
    if tokens_seen < 1.6e6:
        n = rng.randint(2, 4)
    elif tokens_seen < 2.6e6:
        n = rng.randint(3, 7)
    elif tokens_seen < FIRST_FALL:
        n = rng.choice((3, 4, 4, 5, 5, 5, 6, 6, 6, 7, 8, 9))
    elif tokens_seen < SECOND_FALL:
        n = rng.choice((4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 8, 9))
    else:
        n = rng.choice((4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 9))
    updates = rng.choice((0, 0, 1, 2)) if n >= 4 else rng.choice((0, 0, 1)) if n == 3 else 0
    return n, updates + (n >= 9) * rng.randint(0, 2)


class Stream:
    """Batches of whole samples of similar length. Sample i depends on i and on the tokens seen before its pool only."""

    def __init__(self, encode, batch_tokens, index=0):
        self.encode, self.batch_tokens, self.index, self.pool = encode, batch_tokens, index, []

    def refill(self, tokens_seen):
        # Half a batch from there on: more steps, while the falling learning rate takes care of the noise.
        size = self.batch_tokens if tokens_seen < 5.26e6 else self.batch_tokens // 2
        samples = []
        while sum(len(s) for s, _ in samples) < 8 * size:
            rng = random.Random(SEED + self.index)
            self.index += 1
            n, updates = lengths(tokens_seen, rng)
            if tokens_seen < 3.73e6:
                share = 1.0 if tokens_seen < 1e6 else 0.4 if tokens_seen < 2e6 else 0.15
            else:
                share = 0.3 if tokens_seen < 6e6 else 0.04 if tokens_seen < SECOND_FALL else 0.08
            if rng.random() < share:
                compute = tokens_seen >= 3.73e6 and rng.random() < 0.5
                parts = task.drill_compute(rng) if compute else task.drill(rng)
            else:
                late = tokens_seen >= SECOND_FALL
                parts = task.sample(rng, task.make_problem(rng, n, updates, rng.random() < (0.45 if late else 0.3)))
                if late:
                    parts = task.weigh_operands(parts)
            samples.append(([self.encode(x) for x, _ in parts], [w for _, w in parts]))
        samples.sort(key=lambda s: len(s[0]))
        batch, out = [], []
        for s in samples:
            if batch and (len(batch) + 1) * len(s[0]) > size:
                out.append(batch)
                batch = []
            batch.append(s)
        out.append(batch)
        random.Random(self.index).shuffle(out)
        self.pool = out

    def next(self, tokens_seen):
        if not self.pool:
            self.refill(tokens_seen)
        batch = self.pool.pop()
        t = (max(len(s) for s, _ in batch) + 31) // 32 * 32 + 1  # few shapes: the CPU library keeps a plan per shape
        ids = torch.zeros(len(batch), t, dtype=torch.long)
        w = torch.zeros(len(batch), t)
        for i, (s, weights) in enumerate(batch):
            ids[i, : len(s)] = torch.tensor(s)
            w[i, : len(s)] = torch.tensor(weights)
        return ids, w, sum(len(s) for s, _ in batch)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps (Jordan et al. 2024), for the matrices inside the blocks."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                buf = self.state[p].setdefault("m", torch.zeros_like(p))
                buf.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(buf, group["momentum"])
                shapes.setdefault(tuple(p.shape), []).append((p, g))
            for (rows, cols), items in shapes.items():
                x = torch.stack([g for _, g in items])
                if rows > cols:
                    x = x.transpose(1, 2)
                x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
                for _ in range(5):
                    a = x @ x.transpose(1, 2)
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = (x.transpose(1, 2) if rows > cols else x).float()
                scale = max(1.0, rows / cols) ** 0.5
                for (p, _), u in zip(items, x):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * scale)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True, help="checkpoint directory")
    a.add_argument("--tokens", type=float, default=42e6, help="of which the last bring the learning rate to zero")
    a.add_argument("--batch-tokens", type=int, default=4096)
    a.add_argument("--lr", type=float, default=1.5e-3, help="AdamW: embedding, norms, biases")
    a.add_argument("--muon-lr", type=float, default=0.02)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--minutes", type=float, default=1e9, help="stop (with a checkpoint) after this long")
    a.add_argument("--save-every", type=float, default=120, help="seconds")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    tok = tokenizer.build()
    encode = tokenizer.encoder(tok)
    cfg = Config(vocab_size=(tok.get_vocab_size() + 31) // 32 * 32)
    model = Qwen2(cfg)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, args.muon_lr, weight_decay=0.01)
    adam = torch.optim.AdamW(others, args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    stream = Stream(encode, args.batch_tokens)
    seen, step, seconds = 0, 0, 0.0

    path = out / "checkpoint.pt"
    if path.exists():
        c = torch.load(path, weights_only=False)
        model.load_state_dict(c["model"])
        muon.load_state_dict(c["muon"])
        adam.load_state_dict(c["adam"])
        seen, step, seconds = c["seen"], c["step"], c["seconds"]
        stream.index, stream.pool = c["index"], c["pool"]
        print(f"resumed at {seen} tokens, step {step}", flush=True)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {cfg.vocab_size}", flush=True)

    def save():
        c = dict(model=model.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(), seen=seen, step=step,
                 seconds=seconds, index=stream.index, pool=stream.pool, config=cfg.to_dict(), args=vars(args))
        torch.save(c, str(path) + ".tmp")
        os.replace(str(path) + ".tmp", path)

    log = open(out / "log.csv", "a")
    if step == 0:
        log.write("step,tokens,seconds,lr,loss,recall_error,probe_loss\n")
    started = last_save = time.time()
    sums = torch.zeros(8, dtype=torch.float64)
    while seen < args.tokens and time.time() - started < 60 * args.minutes:
        t0 = time.time()
        scale = min((step + 1) / 100, rate(seen, args.tokens))
        for group in muon.param_groups:
            group["lr"] = args.muon_lr * scale
        for group in adam.param_groups:
            group["lr"] = args.lr * scale
        ids, w, count = stream.next(seen)
        target, tw = ids[:, 1:], w[:, 1:]
        take = tw > 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.head(model.hidden(ids[:, :-1])[take])
        logits = logits.float()
        target, tw = target[take], tw[take]
        losses = F.cross_entropy(logits, target, reduction="none")
        loss = (losses * tw).sum() / tw.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        seen += count
        step += 1
        seconds += time.time() - t0
        with torch.no_grad():
            d = tw == task.RECALL
            probe = tw == task.FIRST
            wrong = (logits[d].argmax(-1) != target[d]).sum()
            operand = tw == task.OPERAND
            missed = (logits[operand].argmax(-1) != target[operand]).sum()
            sums += torch.tensor([losses.sum(), len(losses), wrong, d.sum(), losses[probe].sum(), probe.sum(), missed,
                                  operand.sum()])
        if step % 20 == 0:
            s = sums.tolist()
            log.write(f"{step},{seen},{seconds:.0f},{scale:.3f},{s[0] / s[1]:.4f},{s[2] / max(s[3], 1):.4f},"
                      f"{s[4] / max(s[5], 1):.4f}\n")
            log.flush()
            if step % 100 == 0:
                print(f"step {step} tokens {seen / 1e6:.2f}M {seen / seconds:.0f} tok/s loss {s[0] / s[1]:.4f} "
                      f"recalls wrong {s[2] / max(s[3], 1):.4f} probe {s[4] / max(s[5], 1):.3f} "
                      f"operands wrong {s[6] / max(s[7], 1):.4f}", flush=True)
            sums.zero_()
            if not math.isfinite(s[0]):
                raise SystemExit("loss is not finite")
        if time.time() - last_save > args.save_every:
            save()
            last_save = time.time()
    save()
    print(f"stopped at {seen} tokens, step {step}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
