"""Counts STS-B sentences that also occur among the training texts, and scores the test pairs without them.

    python overlap.py --model MODEL_DIR --teacher TEACHER_DIR --data DATA --cache CACHE

The teacher is scored on the same pairs, for a measure of how much easier the seen pairs are in themselves.
Two texts are the same here if they agree in lower case without punctuation and articles. No STS-B file was read to make training
texts; short captions such as "A man is playing a guitar." come out of templates.py by chance.
"""

import argparse
import csv
import json
import pathlib
import re

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from evaluate import Model
from teach import batches_by_length, hidden_states, load_teacher


def plain(text):
    return " ".join(w for w in re.findall(r"\w+", text.lower()) if w not in ("a", "an", "the"))


def training_texts(cache):
    """The labelled texts: the first done.txt ones of the corpus."""
    texts = [t for line in open(cache / "corpus.jsonl", encoding="utf-8") for t in json.loads(line)]
    return {plain(t) for t in texts[:int((cache / "done.txt").read_text())]}


class Teacher:
    def __init__(self, folder):
        self.tokenizer, model = load_teacher(folder)
        self.model = model.float()

    def pooled(self, texts):
        ids = [self.tokenizer.encode(t).ids for t in texts]
        out = [None] * len(ids)
        for batch in batches_by_length(ids, range(len(ids)), 6000):
            for i, states in zip(batch, hidden_states(self.model, [ids[i] for i in batch])):
                out[i] = torch.from_numpy(states.mean(0))
        return torch.stack(out)


def score(model, rows):
    a, b = (F.normalize(model.pooled([r[k] for r in rows]), dim=-1) for k in (0, 1))
    return spearmanr((a * b).sum(-1).numpy(), [float(r[2]) for r in rows]).statistic


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "teacher", "data", "cache"):
        args.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = args.parse_args()
    torch.set_num_threads(2)
    seen = training_texts(args.cache)
    rows = list(csv.reader(open(args.data / "stsb/stsb-en-test.csv", encoding="utf-8")))
    hits = [(plain(r[0]) in seen) + (plain(r[1]) in seen) for r in rows]
    clean = [r for r, h in zip(rows, hits) if h == 0]
    print(f"STS-B test: {len(rows)} pairs; one sentence seen in {hits.count(1)}, both in {hits.count(2)}; unseen pairs {len(clean)}")
    for name, model in (("student", Model(args.model)), ("teacher", Teacher(args.teacher))):
        print(f"{name}: Spearman on all pairs {score(model, rows):.4f}, on the unseen pairs {score(model, clean):.4f}")


if __name__ == "__main__":
    main()
