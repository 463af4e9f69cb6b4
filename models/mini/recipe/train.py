"""Distils the teacher into the student.

    python train.py --data DATA --teacher TEACHER_DIR --cache CACHE --model MODEL_DIR --minutes 45

Needs what corpus.py, teach.py and prune_vocab.py left in CACHE and MODEL_DIR/tokenizer.json. Writes CACHE/student.pt, the moving
average of the weights, every few minutes and at the end.

loss = sentence (1 - cos to the teacher's sentence) + similarity (squared error of the cosines of all pairs of the batch, and again
of the pairs of one group) + token (1 - cos of token states, fading out) + balance + z of the routers.
The rate follows the clock: linear warm-up, then cosine to zero at `--minutes`.
"""

import argparse
import copy
import csv
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from model import Encoder, Shape, mean_pool

HELD_OUT_GROUPS = 400


class Corpus:
    """Texts as student ids, with the teacher's targets. `aligned` says whether student and teacher tokens are the same."""

    def __init__(self, cache, tokenizer, dim):
        self.offsets, groups = np.load(cache / "offsets.npy"), np.load(cache / "groups.npy")
        n = int((cache / "done.txt").read_text())
        n = int(np.searchsorted(groups, groups[n - 1])) if n < len(groups) else n
        self.sentences = np.memmap(cache / "sentences.f32", np.float32, "r", shape=(len(groups), dim))
        self.tokens = np.memmap(cache / "tokens.f16", np.float16, "r", shape=(int(self.offsets[-1]), dim))
        self.ids, self.aligned = self._student_ids(cache, tokenizer, n)
        self.lengths = np.array([len(r) for r in self.ids])
        self.group = groups[:n]
        starts = np.flatnonzero(np.concatenate([[True], self.group[1:] != self.group[:-1]]))
        self.members = np.split(np.arange(n), starts[1:])

    def _student_ids(self, cache, tokenizer, n):
        flat, kept = np.load(cache / "ids.npy", mmap_mode="r"), np.load(cache / "kept.npy")
        table = np.full(30522, -1, np.int32)
        table[kept] = np.arange(len(kept))
        mapped = table[flat[:self.offsets[n]]]
        ids = [mapped[self.offsets[i]:self.offsets[i + 1]] for i in range(n)]
        aligned = np.array([(r >= 0).all() for r in ids])
        texts = [t for line in open(cache / "corpus.jsonl", encoding="utf-8") for t in json.loads(line)]
        for i in np.flatnonzero(~aligned):
            ids[i] = np.array(tokenizer.encode(texts[i]).ids, np.int32)
        return ids, aligned

    def batches(self, rng, groups, token_budget):
        """Lists of text indices: whole groups of similar length, in random order."""
        longest = np.array([self.lengths[self.members[g]].max() for g in groups])
        out, batch, count = [], [], 0
        for k in np.argsort(longest + rng.random(len(groups)) * 2, kind="stable"):
            members = self.members[groups[k]]
            if batch and (count + len(members)) * longest[k] > token_budget:
                out.append(np.concatenate(batch))
                batch, count = [], 0
            batch.append(members)
            count += len(members)
        out.append(np.concatenate(batch))
        rng.shuffle(out)
        return out

    def load(self, batch):
        length = int(self.lengths[batch].max())
        ids, valid = torch.zeros(len(batch), length, dtype=torch.long), torch.zeros(len(batch), length, dtype=torch.bool)
        for r, i in enumerate(batch):
            ids[r, :self.lengths[i]] = torch.from_numpy(self.ids[i])
            valid[r, :self.lengths[i]] = True
        return ids, valid, torch.from_numpy(self.sentences[batch])

    def token_targets(self, batch):
        """Teacher states of the aligned texts of the batch, in token order, and which texts those are."""
        use = self.aligned[batch]
        rows = [self.tokens[self.offsets[i]:self.offsets[i + 1]] for i in batch[use]]
        return torch.from_numpy(np.concatenate(rows)).float(), torch.from_numpy(use)


def initial_embeddings(teacher, kept, dim, seed):
    """The teacher's normalised input rows on their top `dim` directions, rotated at random: [len(kept), dim]."""
    w = load_file(teacher / "model.safetensors")
    rows = w["embeddings.word_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
    rows = rows + w["embeddings.position_embeddings.weight"][1:24].mean(0)
    rows = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    rows = (rows * w["embeddings.LayerNorm.weight"] + w["embeddings.LayerNorm.bias"])[kept]
    values, vectors = np.linalg.eigh(rows.T @ rows)
    print(f"kept energy of the input embeddings: {values[-dim:].sum() / values.sum():.4f}")
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    rows = rows @ (vectors[:, -dim:] @ rotation)
    return torch.from_numpy((rows / rows.std()).astype(np.float32))


def sentence_losses(pooled, target, group):
    vec = F.normalize(pooled, dim=-1)
    cosine = 1 - (vec * target).sum(-1).mean()
    error = (vec @ vec.T - target @ target.T).square()
    off = ~torch.eye(len(vec), dtype=torch.bool)
    same = off & (group[:, None] == group[None, :])
    near = error[same].mean() if same.any() else error.sum() * 0
    return cosine, error[off].mean() if len(vec) > 1 else error.sum() * 0, near


def token_loss(states, valid, corpus, batch):
    target, use = corpus.token_targets(batch)
    return 1 - F.cosine_similarity(states[use][valid[use]].float(), target, dim=-1).mean()


def losses(model, corpus, batch, args, progress):
    ids, valid, target = corpus.load(batch)
    with torch.autocast("cpu", torch.bfloat16):
        states = model(ids, valid)
    cosine, every, near = sentence_losses(mean_pool(states, valid), target, torch.from_numpy(corpus.group[batch]))
    token_weight = args.token * max(0.0, 1 - progress / 0.8)
    token = token_loss(states, valid, corpus, batch) if token_weight > 0 and corpus.aligned[batch].any() else cosine * 0
    balance = sum(m.aux[0] for m in model.mixtures())
    z = sum(m.aux[1] for m in model.mixtures())
    total = cosine + args.every * every + args.near * near + token_weight * token + args.balance * balance + args.z * z
    return total, {"cos": cosine, "every": every, "near": near, "token": token, "balance": balance}


@torch.inference_mode()
def embed(model, tokenizer, texts):
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [None] * len(texts)
    for start in range(0, len(order), 128):
        part = order[start:start + 128]
        rows = [tokenizer.encode(texts[i]).ids for i in part]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        valid = torch.zeros_like(ids, dtype=torch.bool)
        for r, row in enumerate(rows):
            ids[r, :len(row)], valid[r, :len(row)] = torch.tensor(row), True
        for i, v in zip(part, F.normalize(mean_pool(model(ids, valid), valid), dim=-1)):
            out[i] = v
    return torch.stack(out)


def dev_score(model, tokenizer, data):
    """Spearman on the STS-B *dev* split, printed to follow the run. Nothing is trained on it."""
    rows = list(csv.reader(open(data / "stsb" / "stsb-en-dev.csv", encoding="utf-8")))
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (embed(model, tokenizer, [r[k] for r in rows]) for k in (0, 1))
    return spearmanr((a * b).sum(-1).numpy(), [float(r[2]) for r in rows]).statistic


@torch.inference_mode()
def held_out_cosine(model, corpus, batches):
    values = []
    for batch in batches:
        ids, valid, target = corpus.load(batch)
        with torch.autocast("cpu", torch.bfloat16):
            states = model(ids, valid)
        values.append((F.normalize(mean_pool(states, valid), dim=-1) * target).sum(-1))
    return torch.cat(values).mean().item()


def parameter_groups(model, args):
    words = [model.embeddings.word_embeddings.weight]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and p is not words[0]]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices, "weight_decay": args.decay, "scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
            {"params": words, "weight_decay": 0.0, "scale": args.word_rate}]


def rate_at(progress, warmup):
    return progress / warmup if progress < warmup else 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def update_average(average, model, decay):
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


class Run:
    """One training run: the models, the optimiser and the clock."""

    def __init__(self, args):
        self.args, self.rng = args, np.random.default_rng(args.seed)
        torch.manual_seed(args.seed)
        self.tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        shape = Shape(vocab=self.tokenizer.get_vocab_size())
        self.corpus = Corpus(args.cache, self.tokenizer, shape.d_model)
        print(f"{len(self.corpus.ids)} texts, {self.corpus.lengths.sum()} tokens, aligned {self.corpus.aligned.mean():.3f}")
        self.model = Encoder(shape)
        kept = np.load(args.cache / "kept.npy")
        self.model.embeddings.word_embeddings.weight.data = initial_embeddings(args.teacher, kept, shape.d_model, args.seed)
        if args.resume:
            self.model.load_state_dict(torch.load(args.resume))
        print(f"{sum(p.numel() for p in self.model.parameters())} parameters", flush=True)
        self.average = copy.deepcopy(self.model)
        self.optimiser = torch.optim.AdamW(parameter_groups(self.model, args), lr=args.rate, betas=(0.9, 0.98), fused=True)
        self.step, self.seen, self.start, self.last_report = 0, 0, time.time(), 0.0

    def progress(self):
        return (time.time() - self.start) / (60 * self.args.minutes)

    def train_step(self, batch):
        progress = min(self.progress(), 1.0)
        for g in self.optimiser.param_groups:
            g["lr"] = self.args.rate * g["scale"] * rate_at(progress, self.args.warmup)
        total, parts = losses(self.model, self.corpus, batch, self.args, progress)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step, self.seen = self.step + 1, self.seen + int(self.corpus.lengths[batch].sum())
        if self.step % 8 == 0:
            update_average(self.average, self.model, min(0.96, self.step / (self.step + 100)))
        if self.step % 100 == 0:
            self.print_step(parts)

    def print_step(self, parts):
        spent = time.time() - self.start
        terms = " ".join(f"{k} {v.item():.4f}" for k, v in parts.items())
        loads = " | ".join(" ".join(f"{100 * x:.0f}" for x in m.load.tolist()) for m in self.model.mixtures())
        print(f"step {self.step} {terms} load% {loads} {self.seen / spent:.0f} tokens/s ETA {60 * self.args.minutes - spent:.0f} s", flush=True)

    def report(self, held):
        self.last_report = time.time()
        cosine = held_out_cosine(self.average, self.corpus, held)
        dev = dev_score(self.average, self.tokenizer, self.args.data)
        print(f"== {self.progress():.2f} of the run: held-out cosine {cosine:.4f}, STS-B dev {dev:.4f}", flush=True)
        torch.save(self.average.state_dict(), self.args.cache / self.args.name)

    def run(self):
        groups = self.rng.permutation(len(self.corpus.members))
        held = self.corpus.batches(self.rng, groups[:HELD_OUT_GROUPS], self.args.batch_tokens)
        while self.progress() < 1:
            for batch in self.corpus.batches(self.rng, groups[HELD_OUT_GROUPS:], self.args.batch_tokens):
                self.train_step(batch)
                if time.time() - self.last_report > 60 * self.args.report:
                    self.report(held)
                if self.progress() >= 1:
                    break
        self.report(held)
        print(f"{self.step} steps, {self.seen / self.corpus.lengths.sum():.1f} passes over the texts")


def arguments():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "teacher", "cache", "model"):
        args.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args.add_argument("--name", default="student.pt", help="checkpoint file in CACHE")
    args.add_argument("--resume", type=pathlib.Path, help="checkpoint to start from")
    args.add_argument("--minutes", type=float, default=45)
    args.add_argument("--report", type=float, default=4, help="minutes between two reports and checkpoints")
    args.add_argument("--batch-tokens", type=int, default=4096)
    args.add_argument("--rate", type=float, default=1.5e-3)
    args.add_argument("--word-rate", type=float, default=0.4, help="rate of the word embeddings, relative")
    args.add_argument("--warmup", type=float, default=0.04, help="share of the run")
    args.add_argument("--decay", type=float, default=0.02)
    args.add_argument("--every", type=float, default=10.0, help="weight of the cosines of all pairs")
    args.add_argument("--near", type=float, default=5.0, help="weight of the cosines within a group")
    args.add_argument("--token", type=float, default=1.0)
    args.add_argument("--balance", type=float, default=0.05)
    args.add_argument("--z", type=float, default=1e-4)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--seed", type=int, default=3)
    return args.parse_args()


if __name__ == "__main__":
    arguments_ = arguments()
    torch.set_num_threads(arguments_.threads)
    Run(arguments_).run()
