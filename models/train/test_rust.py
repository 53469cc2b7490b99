"""The scripts and the Rust engine use the same step keywords and the same probe text: both are read from the Rust source."""

import ast
import re
from pathlib import Path

import steps
import task

SOURCE = Path(__file__).parents[2] / "src"
# A Rust string literal. In the constants read here, its escapes mean what they mean in Python.
STRING = r'"(?:[^"\\]|\\.)*"'


def literal(text):
    """The value of a Rust string literal, in which a backslash at the end of a line skips the blanks that follow."""
    return ast.literal_eval(re.sub(r"\\\n\s*", "", text))


def keywords(source):
    """The elements of `KEYWORDS`, and the length that its type states."""
    length, items = re.search(r"pub const KEYWORDS: \[&str; (\d+)\] = \[(.*?)\];", source, re.DOTALL).groups()
    return [literal(item) for item in re.findall(STRING, items)], int(length)


def probe_text(source):
    return literal(re.search(rf"pub const DEFAULT_PROBE_TEXT: &str = ({STRING});", source, re.DOTALL)[1])


def differences(steps_rs, probe_rs):
    """What the scripts and the given Rust sources say differently: a list that is empty when they agree."""
    rust, length = keywords(steps_rs)
    assert len(rust) == length, "the test does not read every keyword of steps.rs"
    # Rust takes the straight and the curly apostrophe for the same; here both spellings are listed.
    python = {keyword.replace("’", "'") for keyword in steps.KEYWORDS}
    found = sorted(python.symmetric_difference(rust))
    if probe_text(probe_rs) != task.PROBE:
        found.append(task.PROBE)
    return found


def sources():
    return (SOURCE / "steps.rs").read_text(), (SOURCE / "probe.rs").read_text()


def test_keywords_and_probe_text_are_those_of_rust():
    steps_rs, probe_rs = sources()
    assert differences(steps_rs, probe_rs) == []
    assert len(keywords(steps_rs)[0]) == 32


def test_every_keyword_is_matched_with_either_apostrophe():
    for keyword in keywords(sources()[0])[0]:
        for spelling in {keyword, keyword.replace("'", "’")}:
            assert spelling in steps.KEYWORDS, spelling


def test_a_difference_is_noticed():
    steps_rs, probe_rs = sources()
    assert differences(steps_rs.replace('"Hmm"', '"Hm"'), probe_rs) == ["Hm", "Hmm"]
    assert differences(steps_rs.replace('    "Wait",\n', "").replace("&str; 32]", "&str; 31]"), probe_rs) == ["Wait"]
    assert differences(steps_rs, probe_rs.replace("Time is up.", "Time's up.")) == [task.PROBE]
