"""Makes the bert_*/ and xlm_roberta*/ folders with `transformers` 5.x, checked by encoders.bert."""

import numpy as np
import torch
import transformers
from transformers import (
    BertForSequenceClassification, BertModel, XLMRobertaForSequenceClassification, XLMRobertaModel,
)

import encoders
from common import (
    HERE, Weights, draw_sequences, made_with, sequence_entry, write_config, write_json, write_pooling,
    write_safetensors,
)

SEED = 20250404
LENGTHS = [1, 2, 7, 33, 48]
DIMENSIONS = 17

BASE = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "position_embedding_type": "absolute",
    "initializer_range": 0.02,
    "vocab_size": 97,
    "torch_dtype": "float32",
}
BERT = {
    "architectures": ["BertModel"], "model_type": "bert", **BASE,
    "max_position_embeddings": 48, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}
XLM_ROBERTA = {
    "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", **BASE,
    "max_position_embeddings": 50, "type_vocab_size": 1, "layer_norm_eps": 1e-05,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}


def with_labels(config, architecture, labels, problem_type=None):
    return {
        **config,
        "architectures": [architecture],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        **({"problem_type": problem_type} if problem_type else {}),
    }


def make_weights(config, seed, prefix, head):
    c, w = config, Weights(seed)
    d, ffn = c["hidden_size"], c["intermediate_size"]
    w.normal(f"{prefix}embeddings.word_embeddings.weight", (c["vocab_size"], d), 1.0)
    w.normal(f"{prefix}embeddings.position_embeddings.weight", (c["max_position_embeddings"], d), 0.5)
    w.normal(f"{prefix}embeddings.token_type_embeddings.weight", (c["type_vocab_size"], d), 0.2)
    w.norm(f"{prefix}embeddings.LayerNorm", d)
    for i in range(c["num_hidden_layers"]):
        name = f"{prefix}encoder.layer.{i}"
        for p in ["self.query", "self.key", "self.value", "output.dense"]:
            w.linear(f"{name}.attention.{p}", d, d, gain=1.3, bias=True)
        w.norm(f"{name}.attention.output.LayerNorm", d)
        w.linear(f"{name}.intermediate.dense", ffn, d, gain=1.5, bias=True)
        w.linear(f"{name}.output.dense", d, ffn, gain=1.5, bias=True)
        w.norm(f"{name}.output.LayerNorm", d)
    n_labels = len(c.get("id2label", ()))
    if head == "bert":
        w.linear(f"{prefix}pooler.dense", d, d, bias=True)
        if n_labels:
            w.linear("classifier", n_labels, d, gain=2.0, bias=True)
    elif head == "roberta":
        w.linear("classifier.dense", d, d, bias=True)
        w.linear("classifier.out_proj", n_labels, d, gain=2.0, bias=True)
    return w.tensors


def make(case, model_class, config, offset, prefix="", head=None, pooling=None, extra=(), dimensions=None):
    seed, labels = SEED + offset, list(config.get("id2label", {}).values())
    tensors = make_weights(config, seed, prefix, head)
    write_config(case, config)
    if pooling:
        mode = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}[pooling]
        write_pooling(case, config["hidden_size"], mode, max(LENGTHS))
    write_safetensors(case, {**tensors, **dict(extra)})
    model, info = model_class.from_pretrained(HERE / case, attn_implementation="eager", output_loading_info=True)
    missing = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    assert not missing and not info["mismatched_keys"], info
    model.eval()

    roberta = config["model_type"] == "xlm-roberta"
    first_position = config["pad_token_id"] + 1 if roberta else 0
    special = dict(prefix=[0], suffix=[2]) if roberta else dict(prefix=[1], suffix=[2])
    sequences = draw_sequences(np.random.default_rng(seed), LENGTHS, config["vocab_size"], 3, **special)
    multi_label = config.get("problem_type") == "multi_label_classification"
    worst, entries = 0.0, []
    for ids in sequences:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        hidden = out.hidden_states[-1][0].numpy()
        own = encoders.bert(tensors, config, ids, prefix, first_position)
        worst, logits, probabilities = max(worst, np.abs(own - hidden).max()), None, None
        if labels:
            own_logits = (
                encoders.xlm_roberta_logits(tensors, own) if roberta else encoders.bert_logits(tensors, own, prefix)
            )
            logits = out.logits[0].numpy()
            worst = max(worst, np.abs(own_logits - logits).max())
            probabilities = (torch.sigmoid(out.logits) if multi_label else out.logits.softmax(-1))[0].numpy()
        entries.append(sequence_entry(ids, hidden, [], logits, probabilities, dimensions=dimensions))
    assert worst < 2e-5, worst
    print(f"{case}: worst difference {worst:.1e}")
    write_json(f"{case}/golden.json", {
        "case": case,
        "made_with": made_with(
            "make_bert.py", f"transformers {model_class.__name__}, f32, eager attention", seed, [transformers, torch],
            check=f"encoders.bert (float64): largest difference of a hidden state or logit {worst:.1e}",
        ),
        "pooling": pooling,
        "expert_capacity": None,
        "n_dropped": 0,
        "routing_margin": None,
        **({"dimensions": dimensions} if dimensions else {}),
        **({
            "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
            "labels": labels,
        } if labels else {}),
        "sequences": entries,
    })


def main():
    torch.set_num_threads(1)
    # Checkpoints of the age of all-MiniLM hold this buffer among the weights.
    position_ids = {"embeddings.position_ids": np.arange(BERT["max_position_embeddings"], dtype=np.int64)[None]}
    make("bert_cls", BertModel, BERT, 0, head="bert", pooling="cls", extra=position_ids)
    make("bert_last", BertModel, BERT, 1, pooling="last", dimensions=DIMENSIONS)
    three = with_labels(
        BERT, "BertForSequenceClassification", ["negative", "neutral", "positive"], "single_label_classification"
    )
    make("bert_classify", BertForSequenceClassification, three, 2, prefix="bert.", head="bert")
    many = with_labels(
        BERT, "BertForSequenceClassification", ["sport", "politics", "art", "science", "weather"],
        "multi_label_classification",
    )
    make("bert_multi_label", BertForSequenceClassification, many, 3, head="bert")
    make("xlm_roberta", XLMRobertaModel, XLM_ROBERTA, 4, pooling="mean")
    # No problem_type, as in most checkpoints: several labels mean softmax.
    four = with_labels(XLM_ROBERTA, "XLMRobertaForSequenceClassification", ["a", "b", "c", "d"])
    make("xlm_roberta_classify", XLMRobertaForSequenceClassification, four, 5, prefix="roberta.", head="roberta")


main()
