#!/usr/bin/env python3
"""Writes the model that decoding speed is measured with: a random-weight Qwen2 of 28 M parameters, in f16 (57 MB, not committed).

    python make_bench.py DIR [--no-tokenizer] [--kind qwen2|experts|dense]

Hidden 512, 8 layers, 8 heads, 2 KV heads, intermediate 1536, vocabulary 8192, tied. Random weights of the same kind as the golden
models' (make.py), so that attention peaks and nothing overflows. Special tokens are never the most likely ones: greedy decoding
runs until the token limit. The tokenizer covers the whole vocabulary. The same seed gives the same bytes.

`--kind experts` writes a Qwen3-MoE of the same size, but with 64 experts in each layer, of which a token has 8: together they are
as wide as the feed-forward layer of the others. `--kind dense` writes the same without experts, to compare it with.
"""

import argparse
import pathlib

import torch

import make

MODEL = dict(
    dtype=torch.float16, spelling=4, vocab=8192, hidden=512, layers=8, heads=8, kv_heads=2, head_dim=64, intermediate=1536,
    theta=1e6, eps=1e-6, tied=True, context=32768,
)  # fmt: skip
EXPERTS = dict(arch="Qwen3Moe", experts=64, chosen=8, expert_intermediate=192, normalised=True)
KINDS = {"qwen2": {}, "experts": EXPERTS | {"dense": []}, "dense": EXPERTS | {"dense": list(range(MODEL["layers"]))}}
SEED = 28


def letter_pairs():
    """Merge rules for two visible characters (or a space and one), enough to fill the vocabulary."""
    visible = [chr(c) for c in range(33, 127)]
    return [(a, b) for a in ["Ġ", *visible] for b in visible]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, metavar="DIR", help="folder to write, created where missing")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave out tokenizer.json and tokenizer_config.json")
    parser.add_argument("--kind", choices=KINDS, default="qwen2", help="the architecture (default: qwen2)")
    arguments = parser.parse_args()
    model = MODEL | KINDS[arguments.kind]
    tokenizer = make.build_tokenizer(model["vocab"], letter_pairs())
    specials = [tokenizer.token_to_id(token) for token in make.SPECIALS]
    make.write_model(arguments.dir, model, SEED, tokenizer, quiet_ids=specials)
    if not arguments.no_tokenizer:
        make.write_tokenizer(arguments.dir, tokenizer, model["context"])
    for file in sorted(arguments.dir.iterdir()):
        print(f"{file.stat().st_size:12,} {file.name}")


if __name__ == "__main__":
    main()
