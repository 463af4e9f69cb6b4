"""The student for training: a nomic-bert MoE encoder whose parameter names are those of the exported file.

Post-norm blocks, rotary attention (halves, whole head), exact GELU; every second block has a mixture of `n_experts` feed-forward
networks, top-2 by a softmax over all experts whose weights are not renormalised, plus one bias shared by the experts.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Shape:
    vocab: int = 23168
    d_model: int = 256
    n_heads: int = 8
    d_ff: int = 320
    n_layers: int = 4
    n_experts: int = 8
    top_k: int = 2
    eps: float = 1e-5
    rotary_base: float = 10000.0


def rotary_tables(length, head_dim, base):
    inverse = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    return angles.cos(), angles.sin()  # each [length, head_dim / 2]


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.n_heads, self.head_dim = s.n_heads, s.d_model // s.n_heads
        self.Wqkv = nn.Linear(s.d_model, 3 * s.d_model)
        self.out_proj = nn.Linear(s.d_model, s.d_model)

    def forward(self, x, mask, tables):
        n, length, d = x.shape
        qkv = self.Wqkv(x).view(n, length, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = rotate(qkv[0], *tables), rotate(qkv[1], *tables), qkv[2]
        # Plain products: for short texts on a CPU the backward pass of the fused kernel took a third of the step.
        scores = q @ k.transpose(-1, -2) * self.head_dim ** -0.5
        out = (scores if mask is None else scores + mask).softmax(-1).to(v.dtype) @ v
        return self.out_proj(out.transpose(1, 2).reshape(n, length, d))


class Dense(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(s.d_model, s.d_ff), nn.Linear(s.d_ff, s.d_model)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Router(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.layer = nn.Linear(s.d_model, s.n_experts, bias=False)


class ExpertWeights(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(s.n_experts * s.d_ff, s.d_model) * s.d_model ** -0.5)
        self.w2 = nn.Parameter(torch.randn(s.n_experts * s.d_ff, s.d_model) * s.d_ff ** -0.5)


class Experts(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.mlp = ExpertWeights(s)
        self.bias = nn.Parameter(torch.zeros(s.d_model))


class Mixture(nn.Module):
    """After each forward, `aux` holds (balance loss, z-loss) and `load` the share of assignments of each expert."""

    def __init__(self, s):
        super().__init__()
        self.n_experts, self.top_k, self.d_ff = s.n_experts, s.top_k, s.d_ff
        self.router, self.experts = Router(s), Experts(s)

    def forward(self, x):  # [n_tokens, d_model]
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(x.float(), self.router.layer.weight)
            gates = logits.softmax(-1)
        weight, expert = gates.topk(self.top_k, dim=-1)  # [n_tokens, top_k]
        order = expert.flatten().argsort()
        counts = torch.bincount(expert.flatten(), minlength=self.n_experts)
        self.load = counts / counts.sum()
        balance = self.n_experts * (self.load * gates.mean(0)).sum() - 1
        self.aux = balance, logits.logsumexp(-1).square().mean()
        token = order // self.top_k
        y = self._run(x[token], counts.tolist()) * weight.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x, dtype=torch.float32).index_add(0, token, y.float()) + self.experts.bias

    def _run(self, rows, counts):  # rows sorted by expert
        w1 = self.experts.mlp.w1.to(torch.bfloat16).view(self.n_experts, self.d_ff, -1)
        w2 = self.experts.mlp.w2.to(torch.bfloat16).view(self.n_experts, self.d_ff, -1)
        parts = rows.to(torch.bfloat16).split(counts)
        return torch.cat([F.gelu(p @ w1[e].T) @ w2[e] for e, p in enumerate(parts)])


class Block(nn.Module):
    def __init__(self, s, is_moe):
        super().__init__()
        self.attn = Attention(s)
        self.norm1, self.norm2 = nn.LayerNorm(s.d_model, s.eps), nn.LayerNorm(s.d_model, s.eps)
        self.mlp = Mixture(s) if is_moe else Dense(s)
        self.is_moe = is_moe

    def forward(self, x, mask, tables, valid):
        x = self.norm1(x + self.attn(x, mask, tables))
        if not self.is_moe:
            return self.norm2(x + self.mlp(x))
        out = torch.zeros_like(x).masked_scatter(valid.unsqueeze(-1), self.mlp(x[valid]).to(x.dtype))
        return self.norm2(x + out)


class Embeddings(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.word_embeddings = nn.Embedding(s.vocab, s.d_model)
        self.token_type_embeddings = nn.Embedding(1, s.d_model)
        nn.init.zeros_(self.token_type_embeddings.weight)


class Encoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.shape = s
        self.embeddings = Embeddings(s)
        self.emb_ln = nn.LayerNorm(s.d_model, s.eps)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Block(s, i % 2 == 1) for i in range(s.n_layers))
        self.apply(self._init)

    @staticmethod
    def _init(m):
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.02 if m.out_features == 8 else (2 / sum(m.weight.shape)) ** 0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def mixtures(self):
        return [b.mlp for b in self.encoder.layers if b.is_moe]

    def forward(self, ids, valid):  # both [n, length]; returns token states [n, length, d_model]
        tables = rotary_tables(ids.shape[1], self.shape.d_model // self.shape.n_heads, self.shape.rotary_base)
        mask = None if valid.all() else torch.zeros(valid.shape).masked_fill(~valid, -1e4)[:, None, None, :].bfloat16()
        x = self.emb_ln(self.embeddings.word_embeddings(ids) + self.embeddings.token_type_embeddings.weight[0])
        for block in self.encoder.layers:
            x = block(x, mask, tables, valid)
        return x


def mean_pool(states, valid):
    weight = valid.unsqueeze(-1).float()
    return (states.float() * weight).sum(1) / weight.sum(1)
