"""Measures the exported model with a plain forward pass that shares no code with the training.

    python evaluate.py --model MODEL_DIR --data DATA            # metrics and expert use
    python evaluate.py --model MODEL_DIR --golden               # writes MODEL_DIR/expected.json

Reads model.safetensors (bf16, widened to f32) and computes everything in f32. Texts run in batches of equal length, so there is
no padding and no mask.
"""

import argparse
import collections
import csv
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.stats import spearmanr
from tokenizers import Tokenizer

GOLDEN_TEXTS = [
    "hello",
    "",
    "   ",
    ".",
    "?!... --- (##) @@ 100% $5.99 & more",
    "A man is playing a guitar.",
    "I lost my card and need a new one, what should I do?",
    "Why was I charged a fee when I withdrew cash abroad?",
    "The Treasury's 10-year yield fell to 3.42 percent, its lowest since 1958.",
    "Crème brûlée à Zürich — naïve café; ÅNGSTRÖM ﬁne ½ №5",
    "你好，世界 Привет мир مرحبا नमस्ते 🙂👍🏽 e\u0301 \u200bzero\u00adwidth",
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze antidisestablishmentarianism " + "x" * 101,
    " ".join(["It was a bright cold day in spring, and the clocks of the town were striking one after the other while people"
              " hurried home with bread, letters and umbrellas;"] * 12),
]


class Model:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.w = {k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()}
        limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(limit)
        self.experts_used = collections.defaultdict(lambda: torch.zeros(self.config["num_experts"], dtype=torch.long))

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.config["layer_norm_epsilon"])

    def attention(self, x, name):
        n, length, d = x.shape
        heads = self.config["n_head"]
        q, k, v = self.linear(x, f"{name}.Wqkv").view(n, length, 3, heads, d // heads).unbind(2)  # [n, length, heads, head_dim]
        q, k, v = self.rotary(q).transpose(1, 2), self.rotary(k).transpose(1, 2), v.transpose(1, 2)
        scores = (q @ k.transpose(-1, -2)) / (d // heads) ** 0.5
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, d), f"{name}.out_proj")

    def rotary(self, x):
        length, dim = x.shape[1], x.shape[3]
        angle = torch.arange(length)[:, None] / self.config["rotary_emb_base"] ** (torch.arange(0, dim, 2) / dim)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., :dim // 2], x[..., dim // 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def dense(self, x, name):
        return self.linear(F.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def mixture(self, x, name):
        """Every expert on its own tokens, one after the other."""
        rows, n_experts = x.reshape(-1, x.shape[-1]), self.config["num_experts"]
        gates, chosen = self.linear(rows, f"{name}.router.layer").softmax(-1).topk(self.config["moe_top_k"], -1)
        self.experts_used[name] += torch.bincount(chosen.flatten(), minlength=n_experts)
        w1, w2 = (self.w[f"{name}.experts.mlp.{w}"].view(n_experts, -1, rows.shape[-1]) for w in ("w1", "w2"))
        out = torch.zeros_like(rows) + self.w[f"{name}.experts.bias"]
        for e in range(n_experts):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            out[token] += gates[token, slot, None] * (F.gelu(rows[token] @ w1[e].T) @ w2[e])
        return out.view_as(x)

    def hidden(self, ids):
        x = self.w["embeddings.word_embeddings.weight"][ids] + self.w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "emb_ln")
        for i in range(self.config["n_layer"]):
            name = f"encoder.layers.{i}"
            x = self.norm(x + self.attention(x, f"{name}.attn"), f"{name}.norm1")
            is_moe = i % self.config["moe_every_n_layers"] == 1
            x = self.norm(x + (self.mixture if is_moe else self.dense)(x, f"{name}.mlp"), f"{name}.norm2")
        return x

    @torch.inference_mode()
    def pooled(self, texts):
        """Mean of the token states, not normalised: [n_texts, d_model]."""
        ids = [self.tokenizer.encode(t).ids for t in texts]
        by_length = collections.defaultdict(list)
        for i, row in enumerate(ids):
            by_length[len(row)].append(i)
        out = torch.zeros(len(texts), self.config["n_embd"])
        for rows in by_length.values():
            for start in range(0, len(rows), 256):
                part = rows[start:start + 256]
                out[part] = self.hidden(torch.tensor([ids[i] for i in part])).mean(1)
        return out

    def probabilities(self, pooled):
        return self.linear(pooled, "classifier").softmax(-1)


def stsb(model, path):
    rows = list(csv.reader(open(path, encoding="utf-8")))
    a, b = (F.normalize(model.pooled([r[k] for r in rows]), dim=-1) for k in (0, 1))
    return spearmanr((a * b).sum(-1).numpy(), [float(r[2]) for r in rows]).statistic


def banking77(model, path):
    rows = list(csv.DictReader(open(path, encoding="utf-8")))
    best = model.probabilities(model.pooled([r["text"] for r in rows])).argmax(-1)
    return np.mean([model.config["id2label"][str(int(i))] == r["category"] for i, r in zip(best, rows)])


def expert_table(model):
    print("share of token-expert assignments on the STS-B test texts, %")
    for name, counts in model.experts_used.items():
        print(f"{name}: " + " ".join(f"{100 * x:.1f}" for x in (counts / counts.sum()).tolist()))


def golden(model):
    pooled = model.pooled(GOLDEN_TEXTS)
    top = model.probabilities(pooled).topk(3, -1)
    out = []
    for i, text in enumerate(GOLDEN_TEXTS):
        intents = [{"label": model.config["id2label"][str(k)], "probability": round(p, 7)}
                   for k, p in zip(top.indices[i].tolist(), top.values[i].tolist())]
        vector = F.normalize(pooled[i], dim=-1).tolist()
        out.append({"text": text, "token_ids": model.tokenizer.encode(text).ids,
                    "embedding": [round(v, 7) for v in vector], "top3": intents})
    return out


def write_golden(model, path):
    entries = ",\n".join(json.dumps(e) for e in golden(model))
    path.write_text(f"[\n{entries}\n]\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=pathlib.Path, required=True)
    args.add_argument("--data", type=pathlib.Path, help="folder with stsb/ and banking77/")
    args.add_argument("--golden", action="store_true", help="write expected.json")
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    model = Model(args.model)
    if args.golden:
        return write_golden(model, args.model / "expected.json")
    size = (args.model / "model.safetensors").stat().st_size
    print(f"{sum(v.numel() for v in model.w.values())} parameters, model.safetensors {size} bytes")
    print(f"STS-B English test, Spearman of cosine: {stsb(model, args.data / 'stsb/stsb-en-test.csv'):.4f}")
    expert_table(model)
    print(f"STS-B English dev, Spearman of cosine: {stsb(model, args.data / 'stsb/stsb-en-dev.csv'):.4f}")
    print(f"Banking77 test accuracy: {banking77(model, args.data / 'banking77/test.csv'):.4f}")


if __name__ == "__main__":
    main()
