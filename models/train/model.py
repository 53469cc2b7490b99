"""Qwen2 in plain PyTorch, weights named as in Hugging Face checkpoints. Small and fast on a CPU; `export.py` checks it
against transformers. Shapes: B sequences, T tokens, H heads, G key/value heads, D head size."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 448
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    def to_dict(self):
        return asdict(self)


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(cfg, positions):
    """cos, sin of shape (*positions.shape, D), computed in f64."""
    inv = 1.0 / cfg.rope_theta ** (torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim)
    a = positions.to(torch.float64)[..., None] * inv
    a = torch.cat((a, a), -1)
    return a.cos().float(), a.sin().float()


def rotate(x, cos, sin):
    h = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., h:], x[..., :h]), -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h, self.g, self.d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, self.h * self.d, bias=True)
        self.k_proj = nn.Linear(c.hidden_size, self.g * self.d, bias=True)
        self.v_proj = nn.Linear(c.hidden_size, self.g * self.d, bias=True)
        self.o_proj = nn.Linear(self.h * self.d, c.hidden_size, bias=False)

    def qkv(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.h, self.d).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.g, self.d).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.g, self.d).transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = self.qkv(x, cos, sin)
        r = self.h // self.g
        k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, self.h * self.d))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Inner(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Qwen2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config, self.model = c, Inner(c)
        self.tables = None  # cos, sin of the first positions
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = 0.1 if "embed" in name else 1 / math.sqrt(p.shape[1])
                if "o_proj" in name or "down_proj" in name:
                    std /= math.sqrt(2 * c.num_hidden_layers)
                nn.init.normal_(p, std=std)
            elif "bias" in name:
                nn.init.zeros_(p)

        self.look_back()

    @torch.no_grad()
    def look_back(self, scale=7.0, frequencies=6):
        """Starts head h of layer 0 as "the token h + 1 places back", through the query and key biases: RoPE turns two
        constant vectors into a score that depends on the distance alone. Recalling a value, or going on in a fact that
        is being restated, needs such heads, and from a random start a model of this size does not find them for long."""
        a, c = self.model.layers[0].self_attn, self.config
        d, half = c.head_dim, c.head_dim // 2
        inv = 1.0 / c.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float64) / d)[:frequencies]
        a.k_proj.weight *= 0.1
        a.q_proj.weight *= 0.1
        for head in range(c.num_key_value_heads):
            a.k_proj.bias[head * d : head * d + frequencies] = scale
        for head in range(c.num_attention_heads):
            # rotating the query by -(head + 1) makes the score largest at that distance
            angle = -(head + 1) * inv
            a.q_proj.bias[head * d : head * d + frequencies] = scale * torch.cos(angle).float()
            a.q_proj.bias[head * d + half : head * d + half + frequencies] = scale * torch.sin(angle).float()

    def hidden(self, ids):
        """ids (B, T) -> final hidden states (B, T, hidden)"""
        t = ids.shape[1]
        if self.tables is None or self.tables[0].shape[0] < t or self.tables[0].device != ids.device:
            self.tables = tuple(x.to(ids.device) for x in rope_tables(self.config, torch.arange(max(t, 512))))
        cos, sin = (x[:t] for x in self.tables)
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x, cos, sin)
        return self.model.norm(x)

    def head(self, x):
        return F.linear(x, self.model.embed_tokens.weight)  # tied

    def forward(self, ids):
        return self.head(self.hidden(ids))
