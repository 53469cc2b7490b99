"""Draws curves of the training, maps of the attention of `</think>`, and accuracy over the kept share.

python figures.py curves LOG.csv OUT.svg
python figures.py maps --model DIR --split hard OUT.svg
python figures.py policies RESULTS.jsonl OUT.svg
"""

import argparse
import csv
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

import policies
import task
from evaluate import Runner, load
from steps import segment, spans
from table import correct, interval, load_runs

matplotlib.rcParams["svg.hashsalt"] = "secateur"


def curves(log, out):
    with open(log) as f:
        rows = list(csv.DictReader(f))
    x = np.array([float(r["tokens"]) for r in rows]) / 1e6
    fig, axes = plt.subplots(1, 3, figsize=(12, 3))
    for ax, key, title in zip(
        axes,
        ("loss", "recall_error", "probe_loss"),
        ("loss, nats per token", "wrong recalls, teacher-forced", "loss of the token after the probe's </think>"),
    ):
        y = np.array([float(r[key]) for r in rows])
        y[y == 0] = np.nan  # no wrong answer, or no question yet
        ax.plot(x, y, lw=1)
        ax.set_yscale("log")
        ax.set_xlabel("million tokens")
        ax.set_title(title, fontsize=9)
        ax.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(out, metadata={"Date": None})


def maps(model, split, out, count=60):
    torch.set_num_threads(1)
    runner = Runner(load(model))
    problems = task.split(split, count)
    seen = {}

    def on_probe(problem, number, pieces, cached, rows):
        seen[number] = (pieces, rows)  # the last probe of each trace stays

    results = runner.run(problems, "think-clearly", 1.0, on_probe=on_probe)
    right = next(r["problem"] for r in results if r["correct"] and r["problem"] in seen)
    wrong = next((r["problem"] for r in results if not r["correct"] and r["problem"] in seen), None)
    shown = [(n, t) for n, t in ((right, "right"), (wrong, "wrong")) if n is not None]
    fig, axes = plt.subplots(len(shown), 1, figsize=(14, 5 * len(shown)), squeeze=False)
    for ax, (n, title) in zip(axes[:, 0], shown):
        pieces, rows = seen[n]
        step_spans = spans(segment(pieces))
        _, needed = policies.oracle_keys(problems[n], pieces, step_spans)
        grid = np.stack([rows[:, :, a:b].mean(-1).reshape(-1) for a, b in step_spans], 1)
        grid = grid / grid.max(1, keepdims=True)
        ax.imshow(grid, aspect="auto", cmap="magma")
        heads = rows.shape[1]
        ax.set_yticks(range(len(grid)), [f"layer {i // heads} head {i % heads}" for i in range(len(grid))], fontsize=6)
        labels = ["".join(pieces[a:b]).strip() for a, b in step_spans]
        ax.set_xticks(
            range(len(labels)),
            [("● " if i in needed else "") + x[:34] for i, x in enumerate(labels)],
            rotation=60,
            ha="right",
            fontsize=6,
        )
        ax.set_title(
            f"{title}: problem {n} of the {split} split, last probe; each head's row over its own maximum; "
            "● = a value still needed",
            fontsize=8,
        )
    fig.tight_layout()
    fig.savefig(out, metadata={"Date": None})


def over_ratios(results, out):
    """Accuracy with 95 % bootstrap intervals over problems, from `evaluate.py --out`."""
    runs = load_runs([results])
    splits = list(dict.fromkeys(k[0] for k in runs))
    # One order for all panels: a policy has the same colour in each, and the legend holds for all.
    names = list(dict.fromkeys(k[2] for k in runs if k[1] < 1))
    fig, axes = plt.subplots(1, len(splits), figsize=(6.5 * len(splits), 4), squeeze=False, sharey=True)
    for ax, split in zip(axes[0], splits):
        base = correct(runs[split, 1.0, "full"])
        low, high = interval(base)
        ax.axhspan(100 * low, 100 * high, color="0.9")
        ax.axhline(100 * base.mean(), color="0.4", lw=1, label="full")
        for i, name in enumerate(names):
            ratios = sorted(k[1] for k in runs if k[0] == split and k[2] == name)
            each = [correct(runs[split, r, name]) for r in ratios]
            mean = np.array([c.mean() for c in each])
            bars = np.abs(np.array([interval(c) for c in each]).T - mean)
            x = 100 * np.array(ratios) + 0.5 * (i - len(names) / 2)  # side by side, or the bars hide each other
            ax.errorbar(x, 100 * mean, 100 * bars, marker="o", ms=3, lw=1, capsize=2, label=name)
        ax.set_xticks([25, 50, 75])
        ax.set_xlabel("thinking tokens kept, %")
        ax.set_title(f"{split} split, {len(base)} problems", fontsize=9)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("right answers, %")
    axes[0, -1].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1] == "curves":
        curves(*sys.argv[2:4])
    elif sys.argv[1] == "policies":
        over_ratios(*sys.argv[2:4])
    else:
        a = argparse.ArgumentParser()
        a.add_argument("what")
        a.add_argument("out")
        a.add_argument("--model", required=True)
        a.add_argument("--split", default="hard")
        args = a.parse_args()
        maps(args.model, args.split, args.out)
