"""Fits the Banking77 head on the frozen encoder and writes the model folder.

    python export.py --data DATA --cache CACHE --model MODEL_DIR

Reads CACHE/student.pt. The head is a multinomial logistic regression on the mean-pooled, not normalised vectors of the Banking77
training texts, computed with the weights rounded to bf16 as they are stored. The penalty is chosen on a tenth of the training
texts. Writes model.safetensors, config.json and the small files around them; tokenizer.json comes from prune_vocab.py.
"""

import argparse
import csv
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from evaluate import Model
from model import Shape


def config(shape, labels):
    return {
        "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "vocab_size": shape.vocab, "n_embd": shape.d_model,
        "n_head": shape.n_heads, "n_inner": shape.d_ff, "n_layer": shape.n_layers, "n_positions": 256,
        "activation_function": "gelu", "prenorm": False, "rotary_emb_fraction": 1.0, "rotary_emb_base": 10000,
        "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "qkv_proj_bias": True, "mlp_fc1_bias": True,
        "mlp_fc2_bias": True, "layer_norm_epsilon": shape.eps, "use_rms_norm": False, "causal": False, "type_vocab_size": 1,
        "pad_token_id": 0, "num_experts": shape.n_experts, "moe_top_k": shape.top_k, "moe_every_n_layers": 2,
        "moe_normalize_expert_weights": False, "torch_dtype": "bfloat16", "problem_type": "single_label_classification",
        "id2label": {str(i): l for i, l in enumerate(labels)}, "label2id": {l: i for i, l in enumerate(labels)},
    }


SMALL_FILES = {
    "tokenizer_config.json": {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True,
        "model_max_length": 256, "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]"},
    "1_Pooling/config.json": {
        "word_embedding_dimension": 256, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False},
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}],
    "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
    "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fit(features, labels, penalty, n_classes):
    """Logistic regression on centred, scaled features, folded back to the raw ones: (weight, bias)."""
    mean, scale = features.mean(0), features.std()
    model = LogisticRegression(C=penalty, max_iter=400).fit((features - mean) / scale, labels)
    assert len(model.classes_) == n_classes
    weight = model.coef_ / scale
    return weight, model.intercept_ - weight @ mean


def choose_penalty(features, labels, n_classes, seed):
    order = np.random.default_rng(seed).permutation(len(labels))
    held, rest = order[:len(order) // 10], order[len(order) // 10:]
    scores = {}
    for penalty in (0.01, 0.03, 0.1, 0.3, 1.0):
        weight, bias = fit(features[rest], labels[rest], penalty, n_classes)
        scores[penalty] = float(np.mean((features[held] @ weight.T + bias).argmax(-1) == labels[held]))
    print("penalty -> accuracy on a tenth of the training texts:", scores, flush=True)
    return max(scores, key=scores.get)


def write_weights(path, weights):
    save_file(weights, str(path), metadata={"format": "pt"})
    path.chmod(0o644)
    assert path.stat().st_size <= 20_000_000, path.stat().st_size


def add_head(model_dir, weights, data, labels, seed):
    write_weights(model_dir / "model.safetensors", weights)
    rows = list(csv.DictReader(open(data / "banking77/train.csv", encoding="utf-8")))
    features = Model(model_dir).pooled([r["text"] for r in rows]).numpy()
    target = np.array([labels.index(r["category"]) for r in rows])
    penalty = choose_penalty(features, target, len(labels), seed)
    weight, bias = fit(features, target, penalty, len(labels))
    weights["classifier.weight"] = torch.from_numpy(weight).to(torch.bfloat16).contiguous()
    weights["classifier.bias"] = torch.from_numpy(bias).to(torch.bfloat16).contiguous()
    write_weights(model_dir / "model.safetensors", weights)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "model"):
        args.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args.add_argument("--name", default="student.pt")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--seed", type=int, default=4)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    state = torch.load(args.cache / args.name)
    labels = json.loads((args.data / "banking77/categories.json").read_text())
    vocab = state["embeddings.word_embeddings.weight"].shape[0]
    write_json(args.model / "config.json", config(Shape(vocab=vocab), labels))
    for name, value in SMALL_FILES.items():
        write_json(args.model / name, value)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}
    add_head(args.model, weights, args.data, labels, args.seed)


if __name__ == "__main__":
    main()
