"""Prints tables with paired intervals from the results of `evaluate.py --out`.

    python table.py results.jsonl [...]

Each row: accuracy, and its difference to `random` and to `full` on the same problems (mean over seeds), with 95 % intervals
from 10,000 bootstrap draws over problems. Below, `think-clearly` against every other policy in the same way.
"""

import json
import sys
from pathlib import Path

import numpy as np


def load_runs(paths):
    """(split, ratio, policy) -> seed -> result"""
    runs = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            r = json.loads(line)
            runs.setdefault((r["split"], r["ratio"], r["policy"]), {})[r["seed"]] = r
    return runs


def correct(seeds):
    """Per problem: the share of seeds that got it right."""
    return np.mean([r["correct"] for r in seeds.values()], 0)


def interval(d):
    """95 % bootstrap interval of the mean over problems."""
    draws = np.random.default_rng(0).integers(0, len(d), (10000, len(d)))
    return np.percentile(d[draws].mean(1), [2.5, 97.5])


def shown(d, sign):
    low, high = interval(d)
    f = "{:+.1f}" if sign else "{:.1f}"
    return f"{f} [{f}, {f}]".format(100 * d.mean(), 100 * low, 100 * high)


def main():
    runs = load_runs(sys.argv[1:])
    for split in dict.fromkeys(k[0] for k in runs):
        full = runs[split, 1.0, "full"][0]
        base = np.array(full["correct"], float)
        print(
            f"\n**{split}**, {len(base)} problems. Full cache: {shown(base, False)} %, truncated "
            f"{100 * full['truncated']:.1f} %, {full['thinking']:.0f} thinking tokens, of them cached: {full['peak']:.0f} at the peak.\n"
        )
        print("| kept | policy | right, % | minus random | minus full | truncated, % | thinking tokens | peak cached | seeds |")
        print("|---|---|---|---|---|---|---|---|---|")
        for ratio in sorted({k[1] for k in runs if k[0] == split and k[1] < 1}, reverse=True):
            chance = runs.get((split, ratio, "random"))
            chance = correct(chance) if chance else None
            for (s, q, policy), seeds in runs.items():
                if s != split or q != ratio:
                    continue
                c = correct(seeds)
                assert len(c) == len(base), "runs are paired: same problems"
                mean = lambda k, runs=seeds: np.mean([r[k] for r in runs.values()])
                over = shown(c - chance, True) if chance is not None and policy != "random" else "–"
                print(
                    f"| {100 * ratio:.0f} % | {policy} | {shown(c, False)} | {over} | {shown(c - base, True)} | "
                    f"{100 * mean('truncated'):.1f} | {mean('thinking'):.0f} | {mean('peak'):.0f} | {len(seeds)} |"
                )

        against(runs, split)


def against(runs, split, ours="think-clearly"):
    ratios = sorted({k[1] for k in runs if k[0] == split and k[2] == ours}, reverse=True)
    print(f"\n| {ours} minus | " + " | ".join(f"{100 * r:.0f} % kept" for r in ratios) + " |")
    print("|---|" + "---|" * len(ratios))
    for name in dict.fromkeys(k[2] for k in runs if k[0] == split and k[1] < 1 and k[2] != ours):
        pairs = [(runs[split, r, ours], runs.get((split, r, name))) for r in ratios]
        print(f"| {name} | " + " | ".join(shown(correct(a) - correct(b), True) if b else "" for a, b in pairs) + " |")


if __name__ == "__main__":
    main()
