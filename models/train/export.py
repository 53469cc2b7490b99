"""Writes a checkpoint as a Hugging Face directory (bf16), then checks it with transformers and records golden answers.

    python export.py CHECKPOINT.pt DIR [--golden 20]

`golden.json`: problems of the normal split with the rendered prompt, its ids, and the greedy ids that transformers gives on
the stored weights in f32 arithmetic, with the smallest gap between the best two logits along the way.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import task
import tokenizer
from evaluate import load


def main():
    a = argparse.ArgumentParser()
    a.add_argument("checkpoint")
    a.add_argument("dir")
    a.add_argument("--golden", type=int, default=20)
    args = a.parse_args()
    torch.set_num_threads(1)
    out = Path(args.dir)
    tokenizer.main(out)
    tok = tokenizer.build()
    c = torch.load(args.checkpoint, weights_only=False, map_location="cpu")
    cfg = c["config"]
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in c["model"].items()}
    save_file(state, str(out / "model.safetensors"), metadata={"format": "pt", "trained_tokens": str(c["seen"])})
    end = tok.token_to_id("<|end|>")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **cfg,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "torch_dtype": "bfloat16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": end, "pad_token_id": end, "max_new_tokens": 700}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    # Not AutoTokenizer: transformers 5 gives every qwen2 tokenizer its own splitting and ignores that of tokenizer.json.
    hf_tok = PreTrainedTokenizerFast.from_pretrained(out)
    ours = load(out)
    golden, worst = [], 0.0
    for p in task.split("normal", args.golden):
        chat = [{"role": "user", "content": p.text}]
        prompt = hf_tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert prompt == task.prompt_text(p.text), prompt
        ids = hf_tok(prompt, add_special_tokens=False)["input_ids"]
        assert ids == tok.encode(prompt, add_special_tokens=False).ids
        with torch.no_grad():
            full = hf.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, max_new_tokens=600
            )[0]
            logits = hf(full[None]).logits[0]
            worst = max(worst, (ours(full[None])[0] - logits).abs().max().item())
        best = logits[len(ids) - 1 : -1].topk(2).values
        golden.append(
            {
                "problem": p.text,
                "answer": p.answer,
                "prompt": prompt,
                "prompt_ids": ids,
                "greedy_ids": full[len(ids) :].tolist(),
                "text": tok.decode(full[len(ids) :].tolist(), skip_special_tokens=False),
                "smallest_margin": round((best[:, 0] - best[:, 1]).min().item(), 4),
            }
        )
    import transformers

    (out / "golden.json").write_text(
        json.dumps(
            {
                "source": f"transformers {transformers.__version__}, torch {torch.__version__}, f32 arithmetic over the stored bf16 weights",
                "problems": golden,
            },
            indent=1,
        )
        + "\n"
    )
    right = sum(f"\\boxed{{{g['answer']}}}" in g["text"] for g in golden)
    print(
        f"exported at {c['seen']} tokens; golden {right}/{len(golden)} right; "
        f"largest logit difference to transformers {worst:.2e}; smallest margin {min(g['smallest_margin'] for g in golden)}"
    )


if __name__ == "__main__":
    main()
