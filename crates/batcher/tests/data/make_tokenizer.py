"""Writes tokenizer.json: a BERT-like WordPiece tokenizer small enough to read.

Python's standard library only. The truncation and padding sections are there to be ignored.
"""

import json
import pathlib
import string

special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
words = "hello world a the cat sat on mat bank card my is lost query search document :".split()
letters = [c for c in string.ascii_lowercase if c not in words]
pieces = ["##" + c for c in string.ascii_lowercase] + ["##s", "##ed"]
vocab = {}
for token in special + words + letters + pieces + list("0123456789.,!?") + ["漢", "字"]:
    vocab.setdefault(token, len(vocab))


def one(name, type_id):
    kind = "SpecialToken" if name.startswith("[") else "Sequence"
    return {kind: {"id": name, "type_id": type_id}}


document = {
    "version": "1.0",
    "truncation": {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    },
    "padding": {
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    },
    "added_tokens": [
        {"id": vocab[token], "content": token, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for token in special
    ],
    "normalizer": {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [one("[CLS]", 0), one("A", 0), one("[SEP]", 0)],
        "pair": [one("[CLS]", 0), one("A", 0), one("[SEP]", 0), one("B", 1), one("[SEP]", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
            for token in ["[CLS]", "[SEP]"]
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab,
    },
}
target = pathlib.Path(__file__).with_name("tokenizer.json")
target.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
print(len(vocab), {k: vocab[k] for k in ["hello", "world", "cat", "query", ":"]})
