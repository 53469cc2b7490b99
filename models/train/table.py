"""Tables with paired intervals from `evaluate.py --out`.

    python table.py results.jsonl [...]

Each row: accuracy, the difference to `random` and to `full` on the same problems (mean over seeds), with 95 % intervals from
10,000 bootstrap draws over problems.
"""

import json
import sys

import numpy as np


def main():
    runs = {}
    for path in sys.argv[1:]:
        for line in open(path):
            r = json.loads(line)
            runs.setdefault((r["split"], r["ratio"], r["policy"]), {})[r["seed"]] = r
    splits = list(dict.fromkeys(k[0] for k in runs))
    for split in splits:
        full = runs.get((split, 1.0, "full"))
        base = np.array(full[0]["correct"], float) if full else None
        n = len(base)
        draws = np.random.default_rng(0).integers(0, n, (10000, n))

        def interval(d):
            m = d[draws].mean(1)
            lo, hi = np.percentile(m, [2.5, 97.5])
            return f"{100 * d.mean():+.1f} [{100 * lo:+.1f}, {100 * hi:+.1f}]"

        m = base[draws].mean(1)
        print(f"\n**{split}**, {n} problems. Full cache: {100 * base.mean():.1f} % "
              f"[{100 * np.percentile(m, 2.5):.1f}, {100 * np.percentile(m, 97.5):.1f}], truncated "
              f"{100 * full[0]['truncated']:.1f} %, {full[0]['thinking']:.0f} thinking tokens.\n")
        print("| kept | policy | accuracy % | minus random | minus full | truncated % | thinking tokens | peak cached | mean cached | seeds |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for ratio in sorted({k[1] for k in runs if k[0] == split and k[1] < 1}, reverse=True):
            rnd = runs.get((split, ratio, "random"))
            rnd = np.mean([r["correct"] for r in rnd.values()], 0) if rnd else None
            for (s, q, policy), seeds in runs.items():
                if s != split or q != ratio:
                    continue
                c = np.mean([r["correct"] for r in seeds.values()], 0)
                assert len(c) == n, "runs are paired: same problems"
                f = lambda k: np.mean([r[k] for r in seeds.values()])
                print(f"| {100 * ratio:.0f} % | {policy} | {100 * c.mean():.1f} | "
                      f"{interval(c - rnd) if rnd is not None and policy != 'random' else '–'} | {interval(c - base)} | "
                      f"{100 * f('truncated'):.1f} | {f('thinking'):.0f} | {f('peak'):.0f} | {f('mean'):.0f} | {len(seeds)} |")


if __name__ == "__main__":
    main()
