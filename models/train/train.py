"""Trains the reasoner on samples drawn on the fly. Resumes from its checkpoint when started again with the same command.

    python train.py --out DIR

Made for one GPU and several CPU cores, on which other processes draw the samples. Without a GPU it runs on the CPU, the same way
and about a hundred times as slowly.
"""

import argparse
import functools
import math
import multiprocessing
import os
import random
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, TimeoutError
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import task
import tokenizer
from model import Config, Qwen2

SEED = 1_000_000  # of training sample 0
HELD_OUT = 2000  # the first problems of each split are never trained on
POOL = 8  # batches drawn at once, and sorted by length
PATIENCE = 600  # seconds that a pool may take
FREE = ("out", "device", "workers", "minutes", "save_every")  # arguments that may change from one start to the next
HEADER = "step,tokens,seconds,lr,loss,recall_error,probe_loss"
M = 1_000_000


def rate(seen, last):
    """The learning rate's share of its maximum: held for 40 % of the tokens, then falling to zero."""
    return min(1.0, max(0.0, (last - seen) / (0.6 * last)))


def lengths(seen, rng):
    """Number of facts and of updates of the next training problem: short ones first."""
    if seen < 8 * M:
        n = rng.randint(2, 4)
    elif seen < 13 * M:
        n = rng.randint(3, 7)
    else:
        n = rng.choices(range(2, 13), (3, 5, 12, 14, 16, 14, 12, 10, 6, 4, 4))[0]
    updates = rng.choice((0, 0, 1, 2)) if n >= 4 else rng.choice((0, 0, 1)) if n == 3 else 0
    return n, updates + (n >= 9) * rng.randint(0, 2)


def drills(seen):
    """Share of drills among the samples, and of sums among the drills."""
    if seen < 18 * M:
        return (1.0 if seen < 5 * M else 0.4 if seen < 10 * M else 0.15), 0.0
    return (0.3 if seen < 30 * M else 0.05), 0.5


class Pools:
    """Draws the pools of the training stream."""

    def __init__(self):
        self.encode = tokenizer.encoder(tokenizer.build())
        self.held_out = {p.text for name in task.SPLITS for p in task.split(name, HELD_OUT)}

    def draw(self, index, batch_tokens):
        """Pool `index` of the training stream: batches of whole samples of similar length, a list of (ids, weights, tokens). ids
        (B, T) and weights (B, T) are padded with zeros, which `tokens` does not count. It depends on the arguments only, so
        that pools can be drawn in any order by any number of processes."""
        seen = index * POOL * batch_tokens  # about as many, for the curriculum
        rng = random.Random(SEED + index)
        share, sums = drills(seen)
        samples, total = [], 0
        while total < POOL * batch_tokens:
            n, updates = lengths(seen, rng)
            if rng.random() < share:
                parts = task.drill_compute(rng) if rng.random() < sums else task.drill(rng)
            else:
                problem = task.make_problem(rng, n, updates, rng.random() < 0.45)
                if problem.text in self.held_out:
                    continue
                parts = task.weigh_operands(task.sample(rng, problem))
            samples.append(([self.encode(x) for x, _ in parts], [w for _, w in parts]))
            total += len(parts)
        samples.sort(key=lambda s: len(s[0]))
        cuts, begun = [], 0
        for i, (ids, _) in enumerate(samples):
            if i > begun and (i + 1 - begun) * len(ids) > batch_tokens:
                cuts.append(samples[begun:i])
                begun = i
        cuts.append(samples[begun:])
        rng.shuffle(cuts)
        out = []
        for batch in cuts:
            t = (max(len(s) for s, _ in batch) + 31) // 32 * 32 + 1  # few shapes
            ids = np.zeros((len(batch), t), np.int64)
            weights = np.zeros((len(batch), t), np.float32)
            for i, (s, w) in enumerate(batch):
                ids[i, : len(s)], weights[i, : len(s)] = s, w
            out.append((ids, weights, sum(len(s) for s, _ in batch)))
        return out


@functools.cache
def pools():
    """This process's `Pools`: building the tokenizer and the held-out problems takes seconds."""
    return Pools()


def draw(index, batch_tokens):
    """`Pools.draw` for another process, which cannot be sent a `Pools`."""
    return pools().draw(index, batch_tokens)


def begin_worker():
    """Runs once in each process that does nothing but draw pools."""
    torch.set_num_threads(1)
    pools()


def stream(first, batch_tokens, workers):
    """(index, pool) from pool `first` on, drawn by `workers` processes, or by this one if that is 0."""
    if workers == 0:
        index = first
        while True:
            yield index, draw(index, batch_tokens)
            index += 1
    ahead = 4 * workers
    others = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin_worker)
    try:
        waiting = [others.submit(draw, first + i, batch_tokens) for i in range(ahead)]
        index = first
        while True:
            yield index, waiting.pop(0).result(PATIENCE)
            waiting.append(others.submit(draw, index + ahead, batch_tokens))
            index += 1
    except (BrokenExecutor, TimeoutError) as e:
        why = "one was killed" if isinstance(e, BrokenExecutor) else f"nothing came for {PATIENCE} s"
        raise SystemExit(f"the processes that draw samples have failed: {why}. Start again to resume") from e
    finally:
        others.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()


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
                shapes.setdefault(tuple(p.shape), []).append((p, buf))
            for (rows, cols), items in shapes.items():
                params, bufs = [p for p, _ in items], [b for _, b in items]
                grads = [p.grad for p in params]
                torch._foreach_lerp_(bufs, grads, 1 - group["momentum"])
                x = torch.stack(torch._foreach_lerp(grads, bufs, group["momentum"]))
                if rows > cols:
                    x = x.transpose(1, 2)
                x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
                for _ in range(5):
                    a = x @ x.transpose(1, 2)
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = (x.transpose(1, 2) if rows > cols else x).float()
                scale = max(1.0, rows / cols) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(x.unbind()), alpha=-group["lr"] * scale)


def changed(before, now):
    """The arguments that differ from those of the training that is resumed, a line each."""
    differ = sorted(k for k in now if k not in FREE and before.get(k) != now[k])
    return [f"--{k.replace('_', '-')} was {before.get(k)}, is {now[k]}" for k in differ]


def cut_log(path, step):
    """Keeps the header and the rows up to `step`: the rows after the checkpoint will be written again."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        n = line.split(",")
        if len(n) == HEADER.count(",") + 1 and n[0].isdigit() and int(n[0]) <= step:
            rows.append(line)
    path.write_text("\n".join([HEADER, *rows]) + "\n")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True, help="checkpoint directory")
    a.add_argument("--tokens", type=float, default=50e6, help="at which the learning rate reaches zero")
    a.add_argument("--batch-tokens", type=int, default=16384)
    a.add_argument("--lr", type=float, default=1.5e-3, help="AdamW: embedding, norms, biases")
    a.add_argument("--muon-lr", type=float, default=0.02)
    a.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2), help="processes that write samples")
    a.add_argument("--minutes", type=float, default=1e9, help="stop (with a checkpoint) after this long")
    a.add_argument("--save-every", type=float, default=60, help="seconds")
    args = a.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    cfg = Config(vocab_size=(tokenizer.build().get_vocab_size() + 31) // 32 * 32)
    model = Qwen2(cfg).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, args.muon_lr, weight_decay=0.01)
    adam = torch.optim.AdamW(others, args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type != "cpu")
    seen, step, seconds, next_pool = 0, 0, 0.0, 0

    path = out / "checkpoint.pt"
    if path.exists():
        c = torch.load(path, weights_only=False, map_location=device)
        if differ := changed(c["args"], vars(args)):
            raise SystemExit(f"{path} is of another training: {'; '.join(differ)}. Resume with the same, or choose another --out")
        model.load_state_dict(c["model"])
        muon.load_state_dict(c["muon"])
        adam.load_state_dict(c["adam"])
        seen, step, seconds, next_pool = c["seen"], c["step"], c["seconds"], c["next_pool"]
        print(f"resumed at {seen} tokens, step {step}", flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {cfg.vocab_size}, on {name}, torch "
        f"{torch.__version__}, {args.workers} processes for samples",
        flush=True,
    )

    def save():
        log.flush()
        cpu = {k: v.cpu() for k, v in model.state_dict().items()}
        c = dict(
            model=cpu,
            muon=muon.state_dict(),
            adam=adam.state_dict(),
            seen=seen,
            step=step,
            seconds=seconds,
            next_pool=next_pool,
            config=cfg.to_dict(),
            args=vars(args),
        )
        torch.save(c, str(path) + ".tmp")
        os.replace(str(path) + ".tmp", path)

    cut_log(out / "log.csv", step)
    log = open(out / "log.csv", "a")  # noqa: SIM115 (open for the whole training; `save` flushes it)
    started = last_save = before = time.time()
    sums = torch.zeros(8, dtype=torch.float64, device=device)
    for index, batches in stream(next_pool, args.batch_tokens, args.workers):
        for ids, weights, count in batches:
            scale = min((step + 1) / 100, rate(seen, args.tokens))
            for group in muon.param_groups:
                group["lr"] = args.muon_lr * scale
            for group in adam.param_groups:
                group["lr"] = args.lr * scale
            # Tokens without loss get no logits. They are chosen here, because on the GPU this would cost a wait.
            take = np.flatnonzero(weights[:, 1:])
            host = [ids[:, :-1], take, ids[:, 1:].reshape(-1)[take], weights[:, 1:].reshape(-1)[take]]
            inputs, take, target, tw = [torch.from_numpy(np.ascontiguousarray(x)).to(device, non_blocking=True) for x in host]
            with torch.autocast(device.type, torch.bfloat16):
                logits = model.head(model.hidden(inputs).flatten(0, 1).index_select(0, take))
            logits = logits.float()
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
            with torch.no_grad():
                wrong = (logits.argmax(-1) != target).double()
                recall, first, operand = tw == task.RECALL, tw == task.FIRST, tw == task.OPERAND
                losses = losses.double()
                sums += torch.stack(
                    [
                        losses.sum(),
                        torch.ones_like(losses).sum(),
                        (wrong * recall).sum(),
                        recall.sum(),
                        (losses * first).sum(),
                        first.sum(),
                        (wrong * operand).sum(),
                        operand.sum(),
                    ]
                )
            if step % 50 == 0:
                s = sums.tolist()
                now = time.time()
                seconds, before = seconds + now - before, now
                log.write(
                    f"{step},{seen},{seconds:.1f},{scale:.3f},{s[0] / s[1]:.4f},{s[2] / max(s[3], 1):.5f},"
                    f"{s[4] / max(s[5], 1):.4f}\n"
                )
                if step % 500 == 0:
                    log.flush()
                    print(
                        f"step {step} tokens {seen / 1e6:.2f}M {seen / seconds:.0f} tok/s loss {s[0] / s[1]:.4f} "
                        f"recalls wrong {s[2] / max(s[3], 1):.5f} probe {s[4] / max(s[5], 1):.3f} "
                        f"operands wrong {s[6] / max(s[7], 1):.5f}",
                        flush=True,
                    )
                sums.zero_()
                if not math.isfinite(s[0]):
                    raise SystemExit("loss is not finite")
        # A checkpoint is written between two pools.
        next_pool = index + 1
        ended = seen >= args.tokens or time.time() - started > 60 * args.minutes
        if ended or time.time() - last_save > args.save_every:
            seconds, before = seconds + time.time() - before, time.time()
            save()
            last_save = time.time()
        if ended:
            break
    log.close()
    print(f"stopped at {seen} tokens, step {step}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
