"""Builds the training texts: sentences of open corpora, and synthetic variants of them.

    python corpus.py --data DATA --teacher TEACHER_DIR --out CACHE

DATA holds tatoeba/, gutenberg/, inaugural/ and banking77/. Writes CACHE/corpus.jsonl: one *group* a line, a JSON list whose
first text is the original and whose other texts are near variants. No text carries a label; the teacher embeds them all.

Variants exist because a small corpus leaves most of the vocabulary unseen, and because similarity is learnt from pairs that are
close: a word is replaced by one of its neighbours in the teacher's input embeddings or by any word, dropped, or moved.
"""

import argparse
import csv
import json
import pathlib
import random
import re

import numpy as np
from safetensors.numpy import load_file

import templates

WORD = re.compile(r"[A-Za-z]+")


def read_lines(path):
    return [l.strip() for l in open(path, encoding="utf-8") if l.strip()]


def tatoeba(folder):
    texts = read_lines(folder / "english-all.txt")
    for path in sorted(folder.glob("*.eng")):
        texts += read_lines(path)
    return list(dict.fromkeys(texts))


def split_sentences(text):
    """Sentences of 3 to 45 words; longer ones are cut at commas and semicolons."""
    text = re.sub(r"\s+", " ", text.replace("--", " - ").replace("_", ""))
    for sentence in re.split(r"(?<=[.!?])[\"']?\s+(?=[A-Z\"'])", text):
        parts = [sentence] if len(sentence.split()) <= 45 else re.split(r"(?<=[;:,])\s", sentence)
        yield from (p.strip() for p in parts if 3 <= len(p.split()) <= 45)


def books(folder):
    out = []
    for path in sorted(folder.glob("*.txt")):
        raw = path.read_text(encoding="latin-1")
        for paragraph in re.split(r"\n\s*\n", raw):
            out += split_sentences(paragraph)
    return list(dict.fromkeys(out))


def banking(folder):
    return [row["text"].strip() for row in csv.DictReader(open(folder / "train.csv", encoding="utf-8"))]


class Variants:
    """Makes a near variant of a text. Words come from the teacher's own vocabulary."""

    def __init__(self, teacher):
        vocab = read_vocab(teacher)
        self.words = [w for w in vocab[2000:] if w.isascii() and w.isalpha() and len(w) >= 3]
        rank = {w: i for i, w in enumerate(vocab)}
        table = load_file(teacher / "model.safetensors")["embeddings.word_embeddings.weight"]
        rows = np.stack([table[rank[w]] for w in self.words]).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.neighbours = {}
        for start in range(0, len(rows), 2000):
            near = np.argpartition(-(rows[start:start + 2000] @ rows.T), 16, axis=1)[:, :16]
            for word, ids in zip(self.words[start:start + 2000], near):
                self.neighbours[word] = [self.words[i] for i in ids if self.words[i] != word]
        self.common = set(vocab[1996:2100])  # function words are left alone

    def replacement(self, word):
        if random.random() < 0.6 and word.lower() in self.neighbours:
            return random.choice(self.neighbours[word.lower()])
        return random.choice(self.words)

    def substitute(self, text):
        spots = [m for m in WORD.finditer(text) if len(m[0]) >= 3 and m[0].lower() not in self.common]
        if not spots:
            return f"{text} {random.choice(self.words)}"
        chosen = random.sample(spots, min(len(spots), random.choice([1, 1, 2, 3])))
        for spot in sorted(chosen, key=lambda m: -m.start()):
            text = text[:spot.start()] + self.replacement(spot[0]) + text[spot.end():]
        return text

    def rearrange(self, text):
        """Drops words, swaps halves or keeps a span."""
        words = text.split()
        if len(words) < 4:
            return self.substitute(text)
        kind, cut = random.randrange(3), random.randint(1, len(words) - 1)
        if kind == 0:
            return " ".join(w for w in words if random.random() > 0.2) or text
        if kind == 1:
            return " ".join(words[cut:] + words[:cut])
        return " ".join(words[:max(cut, 2)])

    def of(self, text):
        return self.substitute(text) if random.random() < 0.8 else self.rearrange(text)

    def phrase(self):
        return " ".join(random.choices(self.words, k=random.choice([1, 1, 2, 2, 3, 4, 5])))


def read_vocab(teacher):
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    return [w for w, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda kv: kv[1])]


def spliced(texts):
    a, b = random.sample(texts, 2)
    a, b = a.split(), b.split()
    return " ".join(a[:max(1, len(a) // 2)] + b[len(b) // 2:])


def long_text(ordered):
    """Consecutive sentences of a book, 40 to 220 words."""
    start, words, goal = random.randrange(len(ordered)), [], random.randint(40, 220)
    for sentence in ordered[start:start + 60]:
        words += sentence.split()
        if len(words) >= goal:
            break
    return " ".join(words[:goal])


def build(data, teacher):
    variants = Variants(teacher)
    short, prose, speeches = tatoeba(data / "tatoeba"), books(data / "gutenberg"), books(data / "inaugural")
    queries = banking(data / "banking77")
    groups = [[t] + [variants.of(t) for _ in range(2)] for t in short]
    groups += [[t, variants.of(t)] for t in random.sample(prose, min(40000, len(prose))) + speeches + queries]
    groups += [[spliced(short), spliced(short + queries)] for _ in range(5000)]
    groups += [[variants.phrase() for _ in range(3)] for _ in range(9000)]
    groups += [[long_text(prose + speeches)] for _ in range(3500)]
    groups += templates.groups(34000, 3)
    random.shuffle(groups)
    return groups


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--teacher", type=pathlib.Path, required=True, help="folder of all-MiniLM-L6-v2")
    args.add_argument("--out", type=pathlib.Path, required=True)
    args.add_argument("--seed", type=int, default=1)
    args = args.parse_args()
    random.seed(args.seed)
    groups = build(args.data, args.teacher)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "corpus.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(g, ensure_ascii=False) + "\n" for g in groups)
    texts = [t for g in groups for t in g]
    print(f"{len(groups)} groups, {len(texts)} texts, {sum(len(t.split()) for t in texts)} words")


if __name__ == "__main__":
    main()
