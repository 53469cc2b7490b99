"""The task: numbered facts about letters, worked through in sentences.

A problem is a list of facts, each giving a letter a value modulo 10: a constant, a sum or difference, or an update of a
letter that already has a value. The question asks for one letter. The thoughts go through the facts in order. They need
the values that earlier thoughts found, and nothing but thoughts holds those values: this is what pruning can destroy.

The thoughts carry redundancy on purpose, most of it on visible triggers, so that greedy decoding writes it too:
  a sum past 9 or a difference below 0   -> "Wait, let me double-check ..."
  a result of 3 or 8 without a wrap      -> a slip, one too high, noticed at once: "Hold on, ..."
  a result of 0 or 5                     -> a detour into a sum that is not needed
  after fact 3 and fact 6                -> "Looking back, ..." restates the latest values
  a few random mistakes                  -> noticed and corrected; the wrong digit itself carries no loss
Facts that the question does not depend on are worked through as well.

Everything is drawn from `random.Random(seed)`: the same seed gives the same problem on any machine.
"""

import random
import re
from dataclasses import dataclass, field

LETTERS = "a b c d e f g h k m n p r s t w".split()
PROBE = (
    "Time is up. Given the time I've spent and the approaches I've tried, I should stop thinking and now write "
    "summarization in one sentence.</think>"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
END, USER, ASSISTANT, THINK, END_THINK = range(5)
RECALL = 3.0  # loss weight of a recalled value, because the lookup is hard to learn
OPERAND = 2.0  # loss weight, late in the training, of the operands of a restated fact: see `weigh_operands`
FIRST = 4.0  # loss weight of what `</think>` itself predicts after the probe
INTRO = "We count modulo 10."

# Pre-tokenizer: letters and digits take their leading space along (as in GPT-2); a fact's label is one token, and so is
# " = 7": the value then follows its letter directly, so that recalling it is one lookup of "what came after this letter".
PATTERN = r" ?#[0-9]+| = [0-9]+|'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}#]+|\s+(?!\S)|\s+"
_SPECIAL = re.compile("(" + "|".join(re.escape(s) for s in SPECIAL) + ")")
_SPLIT = re.compile(r" ?#[0-9]+| = [0-9]+|'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?[0-9]+| ?[^\s\w#]+|\s+(?!\S)|\s+")


def pieces(text):
    """Splits text as the tokenizer does (`tokenizer.py` checks it)."""
    out = []
    for part in _SPECIAL.split(text):
        if part in SPECIAL:
            out.append(part)
        else:
            out += _SPLIT.findall(part)
    return out


@dataclass
class Fact:
    """`letter` := left `op` right. `left` is None for a constant; `update` when `left` is the letter itself."""

    letter: str
    op: str  # "", "+" or "-"
    left: str | None
    right: str | int
    update: bool = False

    def operands(self):
        return [x for x in (self.left, self.right) if isinstance(x, str)]

    def value(self, values):
        right = values[self.right] if isinstance(self.right, str) else self.right
        if self.left is None:
            return right
        return (values[self.left] + (right if self.op == "+" else -right)) % 10


@dataclass
class Problem:
    facts: list
    target: str
    text: str = ""
    answer: int = 0
    values: list = field(default_factory=list)  # after each fact: dict letter -> value

    def last_fact(self):
        """Index of the fact that settles the target; facts after it are never worked through."""
        return max(i for i, f in enumerate(self.facts) if f.letter == self.target)

    def needed(self, done):
        """Letters whose value after `done` facts is read by a later fact that matters, and the target."""
        need = {self.target}
        for f in reversed(self.facts[done : self.last_fact() + 1]):
            if f.letter in need:
                need.discard(f.letter)
                need.update(f.operands())
        known = {f.letter for f in self.facts[:done]}
        return need & known

    def read_later(self, done):
        """Letters whose value after `done` facts is read by any later fact, whether it matters or not."""
        need = {self.target}
        for f in reversed(self.facts[done : self.last_fact() + 1]):
            need.discard(f.letter)
            need.update(f.operands())
        known = {f.letter for f in self.facts[:done]}
        return need & known


def wording(rng, f):
    """The parts of a fact have the same places in every wording: letter, one word, operand, one word, operand."""
    x, y, z, up = f.letter, f.left, f.right, f.op == "+"
    if f.left is None:
        return rng.choice([f"{x} is {z}.", f"{x} starts at {z}.", f"{x} equals {z}."])
    if f.update:
        return f"{x} {rng.choice(['grows', 'rises'] if up else ['drops', 'falls'])} by {z}."
    op = "plus" if up else "minus"
    return rng.choice([f"{x} is {y} {op} {z}.", f"{x} equals {y} {op} {z}.", f"{x} {'exceeds' if up else 'trails'} {y} by {z}."])


def canonical(f):
    """The fact as the thoughts restate it."""
    if f.update:
        return f"{f.letter} {'grows' if f.op == '+' else 'drops'} by {f.right}."
    return f"{f.letter} is {f.left} {'plus' if f.op == '+' else 'minus'} {f.right}."


def make_problem(rng, n, updates=0, far=False):
    """`n` facts, about `updates` of them updates. `far` draws operands from anywhere, not mostly from nearby facts."""
    while True:
        letters = rng.sample(LETTERS, len(LETTERS))
        facts, known, left_updates = [], [], updates
        givens = 1 if n <= 3 else 2 if n <= 8 else 3
        given_at = {0} | set(rng.sample(range(1, max(2, n - 1)), min(givens - 1, max(1, n - 2))))
        for i in range(n):

            def operand(exclude=()):
                pool = [k for k in known if k not in exclude]  # noqa: B023 (called in this turn of the loop only)
                if not far and len(pool) > 3 and rng.random() < 0.6:
                    pool = pool[-3:]
                return rng.choice(pool)

            if i in given_at:
                f = Fact(letters.pop(), "", None, rng.randrange(10))
            elif left_updates and i >= 2 and rng.random() < left_updates / (n - i):
                x = operand()
                right = operand((x,)) if len(known) > 1 and rng.random() < 0.3 else rng.randrange(1, 10)
                f = Fact(x, rng.choice("+-"), x, right, True)
                left_updates -= 1
            else:
                y = operand()
                right = operand((y,)) if len(known) > 1 and rng.random() < 0.5 else rng.randrange(1, 10)
                f = Fact(letters.pop(), rng.choice("+-"), y, right)
            facts.append(f)
            if f.letter in known:
                known.remove(f.letter)
            known.append(f.letter)
        p = Problem(facts, facts[-1].letter)
        if n > 4 and rng.random() < 0.15:
            p.target = facts[-2].letter
        if p.facts[p.last_fact()].left is None:
            continue
        # Most of the facts must matter, or a short path would answer a long problem.
        matter, need = 0, {p.target}
        for f in reversed(p.facts[: p.last_fact() + 1]):
            if f.letter in need:
                matter += 1
                need.discard(f.letter)
                need.update(f.operands())
        if matter < 0.6 * n:
            continue
        values = {}
        for f in facts:
            values[f.letter] = f.value(values)
            p.values.append(dict(values))
        p.answer = p.values[p.last_fact()][p.target]
        body = " ".join(f"#{i + 1} {wording(rng, f)}" for i, f in enumerate(facts))
        p.text = f"{INTRO} {body} What is {p.target}?"
        return p


class Thoughts:
    """Collects text with a loss weight per piece."""

    def __init__(self):
        self.parts = []  # (text, weight)
        self.ends = []  # (number of parts, facts done) at each end of a thought

    def say(self, text, weight=1.0):
        self.parts.append((text, weight))

    def end(self, done):
        self.ends.append((len(self.parts), done))


def think(rng, p, mistakes=0.05):
    """The chain of thought, and where it can be cut."""
    t = Thoughts()
    t.say(f"Okay, I need {p.target}.")
    t.end(0)
    values = {}
    for i, f in enumerate(p.facts[: p.last_fact() + 1]):
        tag = f"#{i + 1}"
        if f.left is None:
            values[f.letter] = f.right
            t.say(f" {'First' if i == 0 else 'Then'}, {tag} gives {f.letter} = {f.right}.")
            t.end(i + 1)
        else:
            if f.update:
                t.say(f" Let me apply {tag}: {canonical(f)}")
            else:
                t.say(f" Now {tag}: {canonical(f)}")
            t.end(i)
            names = f.operands()
            if rng.random() < mistakes / 2:
                x = rng.choice(names)
                wrong = rng.choice([v for v in range(10) if v != values[x]])
                known = ", ".join(f"{y} = {values[y]}" for y in names[: names.index(x)])
                t.say(f" Remember {known + ', ' if known else ''}{x}")
                t.say(f" = {wrong}", 0.0)
                t.say(f". Hold on, {x} is not {wrong}.")
                t.end(i)
            t.say(" Remember")
            for x in names:
                t.say(f"{',' if x != names[0] else ''} {x}")
                t.say(f" = {values[x]}", RECALL)
            t.say(".")
            t.end(i)
            left = values[f.left]
            right = values[f.right] if isinstance(f.right, str) else f.right
            raw = left + right if f.op == "+" else left - right
            result, wrap = raw % 10, not 0 <= raw <= 9
            slip = not wrap and result in (3, 8) and rng.random() < 0.9
            chance = not slip and rng.random() < mistakes
            if slip or chance:
                wrong = result + 1 if slip else rng.choice([v for v in range(10) if v != result])
                t.say(f" Compute {left} {f.op} {right}")
                t.say(f" = {wrong}", 1.0 if slip else 0.0)
                t.say(".")
                if slip or rng.random() < 0.5:
                    t.say(f" So {tag} gives {f.letter} = {wrong}.")
                t.say(f" Hold on, {left} {f.op} {right} is not {wrong}.")
                t.end(i)
            t.say(f" Compute {left} {f.op} {right} = {result}.")
            t.end(i)
            t.say(f" So {tag} gives {f.letter} = {result}.")
            values[f.letter] = result
            t.end(i + 1)
            if wrap:
                t.say(f" Wait, let me double-check {tag}.")
                t.say(f" Compute {left} {f.op} {right} = {result}. That's correct.")
                t.end(i + 1)
            elif result in (0, 5):
                t.say(f" Maybe {f.left} + {f.letter} matters.")
                t.say(f" Compute {values[f.left]} + {result} = {(values[f.left] + result) % 10}.")
                t.say(" Alternatively, nobody asks for it.")
                t.end(i + 1)
        if i in (2, 5) and i < p.last_fact():
            seen = list(dict.fromkeys(g.letter for g in p.facts[i - 2 : i + 1]))
            t.say(" Looking back, " + ", ".join(f"{x} = {values[x]}" for x in seen) + ".")
            t.end(i + 1)
    t.say(f" Therefore {p.target} = {p.answer}.")
    return t


def prompt_text(text):
    """The chat template, as `tokenizer_config.json` renders it: it opens the thinking, as R1-Distill's does."""
    return f"<|user|>{text}<|assistant|><think>\n"


def answer_text(p):
    return f"</think> {p.answer} is {p.target}. The answer is \\boxed{{{p.answer}}}.<|end|>"


def summary_text(rng, p, done):
    """One sentence on the values that later facts still read, in random order: what `</think>` must look for."""
    live = sorted(p.read_later(done))
    rng.shuffle(live)
    if not live:
        return " Nothing is known yet."
    values = p.values[done - 1]
    return " " + ", ".join(f"{values[x]} is {x}" for x in live) + "."


def sample(rng, p, cut=0.3):
    """One training sample: list of (piece, loss weight), prompt included with weight 0."""
    t = think(rng, p)
    out = [(x, 0.0) for x in pieces(prompt_text(p.text))]
    if rng.random() >= cut:
        for text, w in t.parts:
            out += [(x, w) for x in pieces(text)]
        out += [(x, 1.0) for x in pieces(answer_text(p))]
        return out
    count, done = rng.choice(t.ends)
    for text, w in t.parts[:count]:
        out += [(x, w) for x in pieces(text)]
    if rng.random() < 0.5 and count < len(t.parts):
        # Decoding is probed every p tokens, mid-thought as well.
        more = pieces(t.parts[count][0])
        k = rng.randrange(len(more))
        out += [(x, t.parts[count][1]) for x in more[:k]]
    out += [(x, 0.0) for x in pieces(PROBE)]
    summary = pieces(summary_text(rng, p, done))
    out.append((summary[0], FIRST))  # what `</think>` itself predicts
    out += [(x, 1.0) for x in summary[1:]]
    out.append(("<|end|>", 1.0))
    return out


def weigh_operands(parts):
    """`sample`'s pieces with `OPERAND` as the weight of what a restated fact reads (" Now #3: x is y plus z.", both y and
    z): after 11 million tokens nearly all wrong answers began with such an operand."""
    out, restating = list(parts), False
    for i, (text, weight) in enumerate(parts):
        if text == ":" and weight > 0:
            restating = True
        elif text == ".":
            restating = False
        elif restating and parts[i - 1][0] != ":" and (text.strip() in LETTERS or text.strip().isdigit()):
            out[i] = (text, OPERAND)
    return out


def drill(rng):
    return drill_recall(rng) if rng.random() < 0.5 else drill_restate(rng)


def drill_compute(rng):
    """Sums and differences, more densely than in thoughts."""
    out = [(x, 0.0) for x in pieces(prompt_text(INTRO))]
    for _ in range(40):
        x, y, op = rng.randrange(10), rng.randrange(10), rng.choice("+-")
        result = (x + y if op == "+" else x - y) % 10
        out += [(" Compute", 0.0), (f" {x}", 0.0), (f" {op}", 0.0), (f" {y}", 0.0), (f" = {result}", 1.0), (".", 0.0)]
    return out


def drill_restate(rng):
    """The facts of a problem, asked for in any order, in the words of the thoughts. It trains the model to find a fact by
    its label, and in the fact what comes next. Without this drill, the first operand stayed a guess for 7 million tokens."""
    n = rng.randint(3, 9)
    p = make_problem(rng, n, rng.randint(0, 2) if n > 3 else 0, rng.random() < 0.5)
    out = [(x, 0.0) for x in pieces(prompt_text(p.text))]
    for _ in range(rng.randint(10, 16)):
        i = rng.randrange(n)
        f = p.facts[i]
        if f.left is None:
            out += [(" Then", 0.0), (",", 0.0), (f" #{i + 1}", 0.0), (" gives", 1.0)]
            out += [(f" {f.letter}", 1.0), (f" = {f.right}", 1.0), (".", 1.0)]
        else:
            out += [(x, 0.0) for x in pieces(f" {'Let me apply' if f.update else 'Now'} #{i + 1}")]
            out += [(":", 1.0)] + [(x, 1.0) for x in pieces(" " + canonical(f))]
    return out


def drill_recall(rng):
    """Recall only: letters get values, sometimes a new one, and their values are asked for again and again.

    Whole samples ask for a value once in fifty tokens, so the lookup is learned very late; here every third token asks."""
    letters = rng.sample(LETTERS, rng.randint(2, 8))
    values, told = {}, {}
    out = [(x, 0.0) for x in pieces(prompt_text(INTRO))]
    pending = list(letters)
    for _ in range(rng.randint(12, 30)):
        if pending or (len(told) < 14 and rng.random() < 0.2):
            x = pending.pop() if pending else rng.choice(letters)
            told = {k: y for k, y in told.items() if y != x}
            number = rng.choice([k for k in range(1, 15) if k not in told])
            values[x], told[number] = rng.randrange(10), x
            out += [(" So", 0.0), (f" #{number}", 0.0), (" gives", 1.0), (f" {x}", 0.2), (f" = {values[x]}", 0.2), (".", 1.0)]
        elif rng.random() < 0.5:
            number = rng.choice(sorted(told))
            x = told[number]
            out += [(" Now", 0.0), (f" #{number}", 0.0), (" gives", 1.0), (f" {x}", 1.0), (f" = {values[x]}", 1.0), (".", 1.0)]
        if rng.random() < 0.7:
            asked = rng.sample(sorted(values), min(len(values), rng.randint(1, 4)))
            out.append((" Remember", 0.0))
            for i, x in enumerate(asked):
                out += [(",", 0.0)] * (i > 0) + [(f" {x}", 0.2), (f" = {values[x]}", 1.0)]
            out.append((".", 0.0))
    return out


SPLITS = {
    # seeds are far from the training stream's (train.py: 1_000_000 and up, one per pool)
    "normal": dict(seed=11_000, n=(4, 6), updates=(0, 1), far=False),
    "hard": dict(seed=77_000, n=(10, 12), updates=(1, 3), far=True),
}


def split(name, count):
    """The first `count` problems of a split. "n12" has 12 facts and is otherwise like the hard split; it shows what
    a model does at each length. Training holds out only the problems of SPLITS: that it never saw one of "n12" is likely, but
    not certain."""
    s = SPLITS[name] if name in SPLITS else dict(SPLITS["hard"], n=(int(name[1:]), int(name[1:])))
    out = []
    for i in range(count):
        rng = random.Random(f"{name}-{s['seed'] + i}")
        out.append(make_problem(rng, rng.randint(*s["n"]), rng.randint(*s["updates"]), s["far"]))
    return out


if __name__ == "__main__":
    rng = random.Random(0)
    for name in SPLITS:
        for p in split(name, 2):
            t = think(rng, p)
            print(name, "|", prompt_text(p.text) + "".join(x for x, _ in t.parts) + answer_text(p), "\n")
    for name in SPLITS:
        lens = []
        for p in split(name, 300):
            lens.append((len(pieces(p.text)), len(pieces("".join(x for x, _ in think(rng, p).parts)))))
        a, b = zip(*lens)
        print(name, "prompt", sum(a) / len(a), max(a), "thinking", sum(b) / len(b), min(b), max(b))
    x = sample(rng, make_problem(rng, 5, 1), cut=1.0)
    print("".join(p for p, _ in x))
