"""Finds the first mistake in the thoughts that lead to a wrong answer.

    python errors.py --model ../tiny-reasoner --split hard --skip 1000 --count 100

The thoughts are compared with the problem sentence by sentence. A mistake that they correct ("Hold on, …") does
not count.
"""

import argparse
import re
from collections import Counter

import policies
import task

SENTENCE = re.compile(
    r"(?:Now|Let me apply) #(?P<restated>\d+): (?P<fact>[^.]*)\."
    r"|(?:So|First,|Then,) #(?P<label>\d+) gives (?P<letter>\w) = (?P<value>\d)\."
    r"|Remember (?P<recalls>[^.]*)\."
    r"|Compute (?P<left>\d) (?P<op>[+-]) (?P<right>\d) = (?P<result>\d)\."
    r"|(?P<back>Hold on)|(?P<aside>Maybe|Wait)|(?P<end>Therefore)"
)
# "x grows by y", "x is y plus z", word by word.
PARTS = {4: ("letter", "sign", "by", "operand of an update"), 5: ("letter", "is", "first operand", "sign", "second operand")}


def first_mistake(problem, text):
    """(kind, the sentence), or None if every fact was worked through correctly."""
    values, next_fact, pending, aside = {}, 0, None, False
    recalled = {}
    for m in SENTENCE.finditer(text):
        if m["back"]:
            pending = None
            continue
        begins = m["restated"] or (m["label"] and not m[0].startswith("So"))
        if pending and (begins or m["end"]):
            return pending
        if begins:
            aside = False
            number = int(m["restated"] or m["label"])
            if number > problem.last_fact() + 1:
                return "goes on after the last fact", m[0]
            if number != next_fact + 1:
                return "leaves a fact out" if number > next_fact + 1 else "goes back to an earlier fact", m[0]
        if m["aside"]:
            aside = True
        elif m["restated"]:
            fact = problem.facts[next_fact]
            want = task.canonical(fact)[:-1] if fact.left is not None else None
            recalled = {}
            if m["fact"] != want:
                a, b = m["fact"].split(), (want or "").split()
                if want is None or len(a) != len(b):
                    return "restates a fact as one of another form", m[0]
                wrong = next(i for i in range(len(a)) if a[i] != b[i])
                return f"restated fact: wrong {PARTS[len(a)][wrong]}", m[0]
        elif m["recalls"] and not aside:
            for letter, value in re.findall(r"(\w) = (\d)", m["recalls"]):
                if letter not in values:
                    pending = pending or ("recalls a letter without a value", m[0])
                elif int(value) != values[letter][-1]:
                    stale = int(value) in values[letter][:-1]
                    pending = pending or ("recalls a stale value" if stale else "recalls a wrong value", m[0])
                recalled[letter] = int(value)
        elif m["result"] and not aside:
            fact = problem.facts[next_fact]
            if fact.left is None:
                continue
            right = recalled.get(fact.right) if isinstance(fact.right, str) else fact.right
            left, op, result = int(m["left"]), m["op"], int(m["result"])
            if (left, op, int(m["right"])) != (recalled.get(fact.left), fact.op, right):
                pending = pending or ("computes with other operands than it remembered", m[0])
            elif (left + int(m["right"]) if op == "+" else left - int(m["right"])) % 10 != result:
                pending = pending or ("arithmetic", m[0])
        elif m["label"]:
            fact = problem.facts[next_fact]
            right = problem.values[next_fact][fact.letter]
            if begins and fact.left is not None:
                return "restates a fact as one of another form", m[0]
            if m["letter"] != fact.letter:
                return "gives another letter", m[0]
            if int(m["value"]) != right:
                pending = pending or ("constant misread" if fact.left is None else "gives another result than computed", m[0])
                if fact.left is not None:
                    continue  # "Hold on" may follow, and the right one
            values.setdefault(fact.letter, []).append(right)
            next_fact += 1
        elif m["end"] and next_fact <= problem.last_fact():
            return "ends before the last fact", m[0]
    return pending


def main():
    import torch

    from evaluate import Runner, load

    a = argparse.ArgumentParser()
    a.add_argument("--model", required=True)
    a.add_argument("--split", default="hard")
    a.add_argument("--skip", type=int, default=0)
    a.add_argument("--count", type=int, default=100)
    a.add_argument("--policy", choices=policies.POLICIES, default="full")
    a.add_argument("--ratio", type=float, default=0.5)
    a.add_argument("--max-tokens", type=int, default=900)
    a.add_argument("--show", action="store_true", help="the wrong thoughts whole")
    args = a.parse_args()
    torch.set_num_threads(1)
    problems = task.split(args.split, args.skip + args.count)[args.skip :]
    results = Runner(load(args.model), args.max_tokens).run(problems, args.policy, args.ratio)
    kinds = Counter()
    for r in results:
        problem = problems[r["problem"]]
        found = first_mistake(problem, r["text"])
        if r["correct"]:
            kinds["(right answers with a mistake in the thoughts)"] += found is not None
            continue
        kind, sentence = found or ("nothing found in the thoughts", "")
        kinds[kind] += 1
        print(f"{args.skip + r['problem']}: {kind}: {sentence}")
        if args.show:
            print(f"    {problem.text} ({problem.answer})\n    {r['text']}")
    print(f"\n{sum(r['correct'] for r in results)} of {len(results)} right")
    for kind, n in kinds.most_common():
        print(f"{n:4} {kind}")


if __name__ == "__main__":
    main()
