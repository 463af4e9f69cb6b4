"""Shrinks the teacher's WordPiece vocabulary and writes the student's tokenizer.json.

    python prune_vocab.py --teacher TEACHER_DIR --cache CACHE --out MODEL_DIR

Kept, in the teacher's order: special tokens; single ASCII characters, so that any ASCII word still splits into pieces; some
punctuation; pieces that the original (not the synthetic) texts use at least twice; then the most frequent others, since the
teacher's vocabulary is sorted by frequency, up to `--size`. A subset keeps greedy longest-match consistent: a text all of whose
teacher pieces are kept is tokenised as before. Writes CACHE/kept.npy, the teacher ids of the student's tokens.
"""

import argparse
import json
import pathlib

import numpy as np

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PUNCTUATION = "–—‘’“”…€£¥§°·½²³×→™©®"


def is_basic(piece):
    body = piece.removeprefix("##")
    return len(body) == 1 and (body.isascii() or body in PUNCTUATION)


def is_latin(piece):
    return all(c.isascii() or c in PUNCTUATION or "à" <= c <= "ž" for c in piece)


def counts_in_originals(cache, n_vocab):
    """How often the first text of each group uses each teacher id."""
    ids, offsets, groups = (np.load(cache / f"{n}.npy") for n in ("ids", "offsets", "groups"))
    first = np.concatenate([[True], groups[1:] != groups[:-1]])
    per_token = np.repeat(first, np.diff(offsets))
    return np.bincount(ids[per_token], minlength=n_vocab)


def choose(vocab, counts, size):
    must = [i for i, p in enumerate(vocab) if p in SPECIAL or is_basic(p) or (counts[i] >= 2 and is_latin(p))]
    rest = [i for i, p in enumerate(vocab) if i not in set(must) and is_latin(p) and not p.startswith("[unused")]
    return sorted(must + rest[:size - len(must)])


def shrink(tokenizer, kept, vocab):
    tokenizer["truncation"] = tokenizer["padding"] = None
    new = {vocab[i]: n for n, i in enumerate(kept)}
    tokenizer["model"]["vocab"] = new
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["content"]]
    for name, token in tokenizer["post_processor"]["special_tokens"].items():
        token["ids"] = [new[name]]
    return tokenizer


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--teacher", type=pathlib.Path, required=True)
    args.add_argument("--cache", type=pathlib.Path, required=True)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args.add_argument("--size", type=int, default=23168)
    args = args.parse_args()
    tokenizer = json.loads((args.teacher / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = [p for p, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda kv: kv[1])]
    counts = counts_in_originals(args.cache, len(vocab))
    kept = choose(vocab, counts, args.size)
    assert len(kept) == args.size, (len(kept), args.size)
    np.save(args.cache / "kept.npy", np.array(kept))
    tokenizer = shrink(tokenizer, kept, vocab)
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lost = counts.sum() - counts[kept].sum()
    print(f"{len(vocab)} -> {len(kept)} pieces; {lost} of {counts.sum()} tokens of the original texts split further")


if __name__ == "__main__":
    main()
