"""Reasoning steps: where one of the paper's keywords begins, at word boundaries, longest match first, case-sensitive."""

import re

KEYWORDS = (
    "Wait|Alternatively|Another angle|Another approach|But wait|Hold on|Hmm|Maybe|Looking back|Okay|Let me|First|Then|"
    "Alright|Compute|Correct|Good|Got it|I don't see any errors|I don’t see any errors|I think|Let me double-check|"
    "Let's see|Let’s see|Now|Remember|Seems solid|Similarly|So|Starting|That's correct|That’s correct|"
    "That seems right|Therefore|Thus"
).split("|")
_START = re.compile(r"(?<!\w)(?:" + "|".join(sorted(map(re.escape, KEYWORDS), key=len, reverse=True)) + r")(?!\w)")


def segment(pieces):
    """Step index of every token. `pieces`: the tokens' texts. A token belongs to the step that holds its last character;
    a keyword at the very end is undecided and stays with the step before it."""
    text = "".join(pieces)
    starts = [m.start() for m in _START.finditer(text) if m.end() < len(text)]
    out, end, step, i = [], 0, 0, 0
    if starts and not text[: starts[0]].strip():
        i = 1  # the first keyword opens step 0
    for p in pieces:
        end += len(p)
        while i < len(starts) and starts[i] < end:
            step += 1
            i += 1
        out.append(step)
    return out


def spans(step_of):
    """[(first token, one past last token)] of every step."""
    out = []
    for i, s in enumerate(step_of):
        if not out or s != step_of[i - 1]:
            out.append([i, i])
        out[-1][1] = i + 1
    return [tuple(s) for s in out]
