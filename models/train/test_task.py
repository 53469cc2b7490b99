"""Tests of the problems, the thoughts and the plans of the policies. They need no torch."""

import random

import numpy as np

import errors
import policies
import task
from steps import segment, spans


def test_steps_partition_and_boundaries():
    pieces = ["Okay", ",", " Solve", " it", ".", " So", " it", " is", ".", " Hold", " on", ",", " So"]
    assert segment(pieces) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]  # the last "So" is undecided
    assert spans(segment(pieces)) == [(0, 5), (5, 9), (9, 13)]
    assert segment(["\n", "It", " is", " So", "."]) == [0, 0, 0, 1, 1]


def test_the_first_mistake_is_found():
    for name in task.SPLITS:
        for p in task.split(name, 50):
            # The thoughts themselves have slips, which they correct.
            assert errors.first_mistake(p, "".join(x for x, _ in task.think(random.Random(0), p).parts)) is None
    p = task.split("normal", 1)[0]  # #1 f is 5. #2 d starts at 7. #3 k is d minus f. #4 g is k plus d.
    begin = "Okay, I need g. First, #1 gives f = 5. Then, #2 gives d = 7."
    third = " Now #3: k is d minus f. Remember d = 7, f = 5. Compute 7 - 5 = 2. So #3 gives k = 2."
    for text, kind in [
        (begin + " Therefore d = 7.", "ends before the last fact"),
        (begin + " Now #4: g is k plus d.", "leaves a fact out"),
        (begin + third.replace("d minus", "f minus"), "restated fact: wrong first operand"),
        (begin + third.replace("f = 5", "f = 6") + " Now", "recalls a wrong value"),
        (begin + third.replace("= 2", "= 3") + " Now", "arithmetic"),
    ]:
        found = errors.first_mistake(p, text.removesuffix(" Now") + " Therefore g = 9." * text.endswith("Now"))
        assert found[0] == kind, (text, found)


def test_problems_answer_themselves():
    for name in task.SPLITS:
        for p in task.split(name, 50):
            values = {}
            for f in p.facts[: p.last_fact() + 1]:
                values[f.letter] = f.value(values)
            assert values[p.target] == p.answer
            text = "".join(x for x, _ in task.think(random.Random(0), p).parts)
            assert text.endswith(f"Therefore {p.target} = {p.answer}.")
            assert p.needed(0) == set() and p.needed(p.last_fact() + 1) == {p.target}


def test_plan_holds_budget_window_and_current_step():
    traces = [(p, task.pieces("".join(x for x, _ in task.think(random.Random(0), p).parts))) for p in task.split("hard", 20)]
    p, pieces = next((p, pieces[:200]) for p, pieces in traces if len(pieces) >= 200)
    for policy in policies.POLICIES[1:]:
        heads = 8 if policy == "h2o" else 1
        cached = np.ones((heads, 200), bool)
        cached[:, 20:30] = False
        scores = np.random.default_rng(0).random((heads, 200) if policy == "h2o" else 200)
        keep = policies.plan(policy, 0.5, 16, pieces, cached, scores, np.random.default_rng(0), p)
        assert (keep.sum(1) == 100).all(), policy
        assert keep[:, -16:].all() and not (keep & ~cached).any(), policy
