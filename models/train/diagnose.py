"""Measures what `</think>` attends to: reads the attention row of every head at every probe of unpruned traces.

    python diagnose.py --model DIR --split hard --count 100 --out attention.json --figure maps.svg

Per head and for the mean over layer ranges: AUC of "this step holds a value that is still needed" (chance 0.5), the share
of the row that falls on prompt, thinking and probe, and the rank correlation of step length and importance.
"""

import argparse
import json

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

import policies
import task
from evaluate import Runner, load
from steps import segment, spans


def auc(positive, negative):
    if not len(positive) or not len(negative):
        return None
    r = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return (r - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", required=True)
    a.add_argument("--split", default="normal")
    a.add_argument("--count", type=int, default=100)
    a.add_argument("--out")
    args = a.parse_args()
    torch.set_num_threads(1)
    runner = Runner(load(args.model))
    problems = task.split(args.split, args.count)
    aucs, correlation, lengths, mass = {}, {}, [], []

    def on_probe(problem, number, pieces, cached, rows):
        """rows (L, H, thinking)"""
        if len(pieces) < 80:
            return
        step_spans = spans(segment(pieces))
        tail = policies.protected(len(pieces), step_spans, 16)
        _, needed = policies.oracle_keys(problem, pieces, step_spans)
        inside = [i for i, (_, b) in enumerate(step_spans) if b <= tail]
        pos = np.array([i in needed for i in inside])
        if not pos.any() or pos.all():
            return
        mass.append(rows.sum(-1))
        lens = np.array([step_spans[i][1] - step_spans[i][0] for i in inside])
        lengths.extend(lens.tolist())
        layers, heads, _ = rows.shape
        views = {f"layer {x} head {y}": rows[x, y] for x in range(layers) for y in range(heads)}
        views |= {f"layer {x}": rows[x].mean(0) for x in range(layers)}
        views["all"] = rows.mean((0, 1))
        views["all, per head"] = (rows / (rows.sum(-1, keepdims=True) + 1e-9)).mean((0, 1))
        for name, row in views.items():
            s = np.array([row[slice(*step_spans[i])].mean() for i in inside])
            aucs.setdefault(name, []).append(auc(s[pos], s[~pos]))
            if len(lens) > 4 and len(set(lens)) > 1:
                correlation.setdefault(name, []).append(spearmanr(lens, s).statistic)
        recency = np.array(inside, float)
        aucs.setdefault("recency alone", []).append(auc(recency[pos], recency[~pos]))
        short = -lens.astype(float)
        aucs.setdefault("shortness alone", []).append(auc(short[pos], short[~pos]))

    # ratio 1 keeps everything: the trace is the full cache's
    runner.run(problems, "think-clearly", 1.0, on_probe=on_probe)
    out = dict(
        split=args.split,
        probes=len(aucs["all"]),
        auc={k: round(float(np.mean(v)), 3) for k, v in aucs.items()},
        length_correlation={k: round(float(np.nanmean(v)), 3) for k, v in correlation.items()},
        thinking_share=np.mean(mass, 0).round(3).tolist(),
        short_steps=round(float(np.mean(np.array(lengths) <= 8)), 3),
        mean_step=round(float(np.mean(lengths)), 2),
    )
    print(json.dumps(out, indent=1))
    if args.out:
        with open(args.out, "w") as f:
            json.dump(out, f, indent=1)


if __name__ == "__main__":
    main()
