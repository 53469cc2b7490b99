"""Builds the tokenizer: word-level vocabulary in a byte-level BPE file without merges, so that `tokenizer.json` loads in
transformers and in the Rust `tokenizers` crate, and any other text falls back to single bytes.

    python tokenizer.py DIR      writes DIR/tokenizer.json and DIR/tokenizer_config.json and checks them
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import task

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'].split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def words():
    """Every piece that the task can write, in a fixed order."""
    seen = set(task.pieces(task.PROBE)) | {f" {x}" for x in task.LETTERS}
    seen |= {f" #{i}" for i in range(1, 21)} | {str(i) for i in range(10)} | {f" {i}" for i in range(10)}
    seen |= {f" = {i}" for i in range(10)}
    for i in range(4000):
        rng = random.Random(f"vocabulary-{i}")
        p = task.make_problem(rng, rng.randint(2, 12), rng.randint(0, 3))
        seen.update(x for x, _ in task.sample(rng, p))
    return sorted(seen - set(task.SPECIAL))


def build():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {c: i for i, c in enumerate(alphabet)}
    for w in words():
        piece = "".join(x for x, _ in byte.pre_tokenize_str(w))
        vocab.setdefault(piece, len(vocab))
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(task.PATTERN), behavior="isolated"), byte])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in task.SPECIAL[:3]])
    # Text that the reader sees: not "special", as in R1-Distill's tokenizer.
    tok.add_tokens([AddedToken(s, special=False, normalized=False) for s in task.SPECIAL[3:]])
    return tok


def encoder(tok):
    """piece -> id, for the training stream (much faster than the tokenizer itself)."""
    table = {}

    def encode(piece):
        i = table.get(piece)
        if i is None:
            ids = tok.encode(piece, add_special_tokens=False).ids
            assert len(ids) == 1, (piece, ids)
            table[piece] = i = ids[0]
        return i

    return encode


def check(tok, n=300):
    encode = encoder(tok)
    for i in range(n):
        rng = random.Random(f"check-{i}")
        p = task.make_problem(rng, rng.randint(2, 12), rng.randint(0, 3))
        parts = task.sample(rng, p, cut=0)  # the probe is encoded on its own, so a cut may join words in the text
        text = "".join(x for x, _ in parts)
        ids = tok.encode(text, add_special_tokens=False).ids
        assert ids == [encode(x) for x, _ in parts], text
        assert tok.decode(ids, skip_special_tokens=False) == text
    probe = tok.encode(task.PROBE, add_special_tokens=False).ids
    assert probe[-1] == tok.token_to_id("</think>") and probe.count(probe[-1]) == 1
    odd = "Zürich — 12 ≠ 13?\n"
    assert tok.decode(tok.encode(odd).ids) == odd
    return len(probe)


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tok = build()
    tok.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print("vocabulary", tok.get_vocab_size(), "probe tokens", check(tok))


if __name__ == "__main__":
    main(sys.argv[1])
