#!/usr/bin/env python3
"""Writes sampling.json: what transformers' logits processors leave of one row of logits, for several settings.

    python make_sampling.py            # needs torch and transformers

The order is that of `generate`: repetition penalty, temperature, top-k, top-p, min-p. Each entry lists the tokens that can
be drawn, with their probabilities; all others are impossible.
"""

import json
import pathlib

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCABULARY = 301
SETTINGS = [
    dict(temperature=1.0, top_k=40),
    dict(temperature=0.6, top_k=0, top_p=0.95),
    dict(temperature=0.7, top_k=20, top_p=0.8),
    dict(temperature=1.5, top_k=100, min_p=0.05),
    dict(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    dict(temperature=1.0, top_k=1),
    dict(temperature=0.3, top_k=0, top_p=0.5),
]


def main():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, VOCABULARY, generator=generator) * 2.5
    # The likeliest tokens were seen, those below zero as well: the penalty must show.
    order = logits[0].argsort(descending=True).tolist()
    prompt = order[:6:2] + order[-5:] + order[100:110]
    cases = []
    for s in SETTINGS:
        steps = LogitsProcessorList()
        if s.get("repetition_penalty", 1.0) != 1.0:
            steps.append(RepetitionPenaltyLogitsProcessor(s["repetition_penalty"]))
        if s["temperature"] != 1.0:
            steps.append(TemperatureLogitsWarper(s["temperature"]))
        if s["top_k"]:
            steps.append(TopKLogitsWarper(s["top_k"]))
        if s.get("top_p", 1.0) < 1.0:
            steps.append(TopPLogitsWarper(s["top_p"]))
        if s.get("min_p", 0.0) > 0.0:
            steps.append(MinPLogitsWarper(s["min_p"]))
        left = steps(torch.tensor([prompt]), logits.clone())[0]
        p = left.double().softmax(-1).tolist()
        allowed = [[i, p[i]] for i in range(VOCABULARY) if left[i] > -float("inf")]
        assert len(allowed) <= 128, "more than the device's candidates"
        cases.append(dict(settings=s, allowed=allowed))
        print(s, len(allowed), "tokens")
    out = dict(logits=logits[0].tolist(), prompt=prompt, cases=cases)
    path = pathlib.Path(__file__).with_name("sampling.json")
    path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
