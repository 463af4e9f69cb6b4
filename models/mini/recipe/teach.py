"""Labels the corpus with the teacher: projected token states and sentence vectors.

    python teach.py --teacher TEACHER_DIR --cache CACHE --dim 256

The teacher's last hidden states (384 wide) are projected on the top `dim` directions of its sentence embeddings, then turned by a
fixed random rotation, so that every coordinate of the target has about the same variance: the student ends in a LayerNorm, which
assumes just that. Mean pooling is linear, so the sentence target is the mean of the token targets.

Writes to CACHE: ids.npy (teacher token ids, flat), offsets.npy, tokens.f16 (flat [n_tokens, dim]), sentences.f32 [n_texts, dim]
(unit norm), basis.npy [384, dim], groups.npy (group index of each text), done.txt (texts labelled so far).
"""

import argparse
import json
import pathlib
import time

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

MAX_LENGTH = 256


def load_teacher(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer, AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().bfloat16()


def batches_by_length(ids, indices, token_budget):
    """Index lists of texts of similar length, each at most `token_budget` padded tokens."""
    batch, longest = [], 0
    for i in sorted(indices, key=lambda i: len(ids[i])):
        longest = len(ids[i])
        if batch and longest * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def hidden_states(model, rows):
    """Unpadded last hidden states of each row of token ids, f32."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, :len(row)] = torch.tensor(row)
        mask[r, :len(row)] = 1
    out = model(input_ids=ids, attention_mask=None if mask.all() else mask).last_hidden_state.float()
    return [out[r, :len(row)].numpy() for r, row in enumerate(rows)]


def fit_basis(model, ids, dim, seed, sample=12000):
    """Top directions of the second moment of unit sentence embeddings, then a random rotation: [384, dim]."""
    means = []
    for batch in batches_by_length(ids, range(min(sample, len(ids))), 6000):
        means += [h.mean(0) for h in hidden_states(model, [ids[i] for i in batch])]
    means = np.stack(means)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(means.T @ means)
    print(f"kept energy of the embeddings: {values[-dim:].sum() / values.sum():.4f}", flush=True)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return (vectors[:, -dim:] @ rotation).astype(np.float32)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--teacher", type=pathlib.Path, required=True)
    args.add_argument("--cache", type=pathlib.Path, required=True)
    args.add_argument("--dim", type=int, default=256)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--chunk", type=int, default=20000, help="texts between two progress lines")
    args.add_argument("--limit", type=int, help="label only the first texts; the corpus is in random order")
    args.add_argument("--seed", type=int, default=2)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    groups = [json.loads(l) for l in open(args.cache / "corpus.jsonl", encoding="utf-8")]
    texts = [t for g in groups for t in g]
    np.save(args.cache / "groups.npy", np.repeat(np.arange(len(groups)), [len(g) for g in groups]))
    tokenizer, model = load_teacher(args.teacher)
    ids = [e.ids for e in tokenizer.encode_batch(texts)]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in ids])])
    np.save(args.cache / "ids.npy", np.concatenate([np.array(r, np.int32) for r in ids]))
    np.save(args.cache / "offsets.npy", offsets)
    print(f"{len(texts)} texts, {offsets[-1]} tokens", flush=True)
    basis = fit_basis(model, ids, args.dim, args.seed)
    np.save(args.cache / "basis.npy", basis)
    label(args, model, ids, offsets, basis)


def label(args, model, ids, offsets, basis):
    tokens = np.memmap(args.cache / "tokens.f16", np.float16, "w+", shape=(int(offsets[-1]), args.dim))
    sentences = np.memmap(args.cache / "sentences.f32", np.float32, "w+", shape=(len(ids), args.dim))
    start = time.time()
    n = min(args.limit, len(ids)) if args.limit else len(ids)
    for first in range(0, n, args.chunk):
        last = min(first + args.chunk, n)
        for batch in batches_by_length(ids, range(first, last), 6000):
            for i, states in zip(batch, hidden_states(model, [ids[i] for i in batch])):
                projected = states @ basis
                tokens[offsets[i]:offsets[i + 1]] = projected
                mean = projected.mean(0)
                sentences[i] = mean / np.linalg.norm(mean)
        (args.cache / "done.txt").write_text(str(last))
        spent = time.time() - start
        print(f"{last}/{n} texts, {offsets[last] / spent:.0f} tokens/s, ETA {spent * (n / last - 1):.0f} s", flush=True)


if __name__ == "__main__":
    main()
