"""Makes the nomic_*/ folders with encoders.nomic (float64).

No released `transformers` runs the MoE (its native `nomic_bert` silently drops the experts), so the whole encoder is
checked by the dense case against `transformers`, and each MoE layer by a second formula below.
"""

import json

import numpy as np
import scipy
import torch
import transformers
from safetensors.torch import save_file
from transformers import NomicBertConfig, NomicBertModel

import encoders
from common import (
    HERE, Weights, draw_sequences, made_with, routing_entry, routing_margin, sequence_entry, write_config, write_json,
    write_pooling, write_safetensors,
)

SEED, SEQUENCE_SEEDS = 20250202, 200
LENGTHS = [1, 2, 7, 33, 64]
DIMENSIONS = 17

COMMON = {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "n_embd": 48,
    "n_head": 4,
    "n_inner": 40,
    "n_layer": 4,
    "n_positions": 64,
    "max_trained_positions": 64,
    "prenorm": False,
    "parallel_block": False,
    "causal": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "use_rms_norm": None,
    "pad_vocab_size_multiple": 1,
    "vocab_size": 97,
    "torch_dtype": "float32",
}
MOE = {
    **COMMON,
    "activation_function": "gelu",
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "rotary_emb_base": 10000,
    "layer_norm_epsilon": 1e-05,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "num_experts": 5,
    "num_shared_experts": 0,
    "expert_choice_router": False,
    "moe_top_k": 2,
    "moe_every_n_layers": 2,
    "moe_normalize_expert_weights": False,
}
DENSE = {
    **COMMON,
    "activation_function": "swiglu",
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_base": 1000,
    "layer_norm_epsilon": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


CLASSIFY = {
    **MOE,
    "architectures": ["NomicBertForSequenceClassification"],
    "torch_dtype": "bfloat16",
    "problem_type": "single_label_classification",
    "id2label": {"0": "negative", "1": "neutral", "2": "positive"},
    "label2id": {"negative": 0, "neutral": 1, "positive": 2},
}


def make_weights(config, seed):
    c, w = config, Weights(seed)
    d, inner = c["n_embd"], c["n_inner"]
    w.normal("embeddings.word_embeddings.weight", (c["vocab_size"], d), 1.0)
    w.normal("embeddings.token_type_embeddings.weight", (c["type_vocab_size"], d), 0.2)
    w.norm("emb_ln", d)
    for i in range(c["n_layer"]):
        name = f"encoder.layers.{i}"
        w.linear(f"{name}.attn.Wqkv", 3 * d, d, gain=1.3, bias=c["qkv_proj_bias"])
        w.linear(f"{name}.attn.out_proj", d, d, bias=c["qkv_proj_bias"])
        w.norm(f"{name}.norm1", d)
        w.norm(f"{name}.norm2", d)
        if c["activation_function"] == "swiglu":
            w.linear(f"{name}.mlp.fc11", inner, d)
            w.linear(f"{name}.mlp.fc12", inner, d)
            w.linear(f"{name}.mlp.fc2", d, inner, gain=1.5)
        elif i % c["moe_every_n_layers"] == 1:
            w.linear(f"{name}.mlp.router.layer", c["num_experts"], d, gain=1.5)
            # [n_experts * n_inner, d] both; the gate is below one, so the experts speak up
            w.normal(f"{name}.mlp.experts.mlp.w1", (c["num_experts"] * inner, d), 1.5 / np.sqrt(d))
            w.normal(f"{name}.mlp.experts.mlp.w2", (c["num_experts"] * inner, d), 2.0 / np.sqrt(inner))
            w.normal(f"{name}.mlp.experts.bias", (d,), 0.2)
        else:
            w.linear(f"{name}.mlp.fc1", inner, d, bias=True)
            w.linear(f"{name}.mlp.fc2", d, inner, gain=1.5, bias=True)
    if "id2label" in c:
        w.linear("pooler.dense", d, d, bias=True)
        w.linear("classifier", len(c["id2label"]), d, gain=2.0, bias=True)
    return w.tensors


def choose_sequences(tensors, config):
    """The seed whose ids leave the widest routing margin (none to mind without experts)."""
    top_k, best = config.get("moe_top_k", 0), None
    for seed in range(SEQUENCE_SEEDS if top_k else 1):
        rng = np.random.default_rng([SEED, seed])
        sequences, margin = draw_sequences(rng, LENGTHS, config["vocab_size"], 3, prefix=[0], suffix=[2]), np.inf
        for ids in sequences:
            logits = [r["logits"] for r in encoders.nomic(tensors, config, ids)[1]]
            margin = min(margin, routing_margin(logits, top_k)) if logits else margin
            if best and margin <= best[0]:
                break
        else:
            best = (margin, sequences)
    return best


def check_moe_layers(tensors, config):
    """Another formula for the layer: every expert on every token, weighted by the gates scattered over all experts."""
    x = np.random.default_rng(SEED).normal(size=(50, config["n_embd"]))
    worst = 0.0
    for layer in range(1, config["n_layer"], config["moe_every_n_layers"]):
        name = f"encoder.layers.{layer}.mlp"
        w = {key.removeprefix(f"{name}."): torch.from_numpy(t).double() for key, t in tensors.items() if name in key}
        shape, t = (config["num_experts"], config["n_inner"], config["n_embd"]), torch.from_numpy(x)
        top = (t @ w["router.layer.weight"].T).softmax(-1).topk(config["moe_top_k"])
        values = top.values / top.values.sum(-1, keepdim=True) if config["moe_normalize_expert_weights"] else top.values
        gates = torch.zeros(len(t), shape[0], dtype=torch.float64).scatter_(1, top.indices, values)
        h = torch.nn.functional.gelu(torch.einsum("td,eid->tei", t, w["experts.mlp.w1"].view(shape)))
        y = torch.einsum("te,tei,eid->td", gates, h, w["experts.mlp.w2"].view(shape)) + w["experts.bias"]
        own, _ = encoders.nomic_moe(encoders.as_f64(tensors), name, config, x)
        worst = max(worst, np.abs(own - y.numpy()).max())
    assert worst < 1e-10, worst
    return f"a second formula of the MoE layer (torch, float64): largest difference {worst:.1e}"


def check_dense(config, sequences, answers):
    native = NomicBertConfig(
        vocab_size=config["vocab_size"], hidden_size=config["n_embd"], num_hidden_layers=config["n_layer"],
        num_attention_heads=config["n_head"], intermediate_size=config["n_inner"], hidden_act="silu",
        max_position_embeddings=config["n_positions"], type_vocab_size=config["type_vocab_size"],
        layer_norm_eps=config["layer_norm_epsilon"], pad_token_id=config["pad_token_id"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rotary_emb_base"]},
    )
    model, info = NomicBertModel.from_pretrained(
        HERE / "nomic_dense", config=native, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    worst = 0.0
    for ids, own in zip(sequences, answers):
        with torch.no_grad():
            theirs = model.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        worst = max(worst, np.abs(own - theirs).max())
    assert worst < 2e-5, worst
    return f"transformers NomicBertModel (f32, native, dense): largest difference of a hidden state {worst:.1e}"


def write_bf16_shards(case, tensors):
    """bf16 in two safetensors files with an index."""
    shards = {f"model-{i}-of-00002.safetensors": {} for i in ("00001", "00002")}
    first, second = shards.values()
    for name, t in tensors.items():
        late = name.startswith(("encoder.layers.2", "encoder.layers.3"))
        (second if late else first)[name] = torch.from_numpy(t).to(torch.bfloat16)
    for file, state in shards.items():
        save_file(state, HERE / case / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 2 * sum(t.size for t in tensors.values())},
        "weight_map": {name: file for file, state in shards.items() for name in sorted(state)},
    }
    (HERE / case / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_classifier(case, tensors):
    """bf16 in one file; `bert.` before everything but the classifier, as the upstream class names its parts."""
    named = {name if name.startswith("classifier.") else f"bert.{name}": t for name, t in tensors.items()}
    state = {name: torch.from_numpy(t).to(torch.bfloat16) for name, t in named.items()}
    save_file(state, HERE / case / "model.safetensors", metadata={"format": "pt"})


def make(case, config, seed, store):
    tensors, labels = make_weights(config, seed), list(config.get("id2label", {}).values())
    write_config(case, config)
    if not labels:
        write_pooling(case, config["n_embd"], "mean_tokens", max(LENGTHS))
    store(case, tensors)
    margin, sequences = choose_sequences(tensors, config)
    answers = [encoders.nomic(tensors, config, ids) for ids in sequences]
    if "num_experts" in config:
        check = check_moe_layers(tensors, config)
    else:
        check = check_dense(config, sequences, [hidden for hidden, _ in answers])
    print(f"{case}: margin {margin:.4f}; {check}")
    dimensions = DIMENSIONS if case == "nomic_moe" else None
    entries = []
    for ids, (hidden, routing) in zip(sequences, answers):
        logits = encoders.bert_logits(tensors, hidden) if labels else None
        entries.append(sequence_entry(
            ids, hidden, [routing_entry(r["layer"], r["expert_idx"], r["gate_weight"]) for r in routing],
            logits, encoders.softmax(logits) if labels else None, dimensions=dimensions,
        ))
    write_json(f"{case}/golden.json", {
        "case": case,
        "made_with": made_with("make_nomic.py", "encoders.nomic, float64", seed, [scipy, torch, transformers], check=check),
        "pooling": None if labels else "mean",
        "expert_capacity": None,
        "n_dropped": 0,
        "routing_margin": float(margin) if np.isfinite(margin) else None,
        **({"dimensions": dimensions} if dimensions else {}),
        **({"problem_type": config["problem_type"], "labels": labels} if labels else {}),
        "sequences": entries,
    })


def main():
    torch.set_num_threads(1)
    # The seeds of the weights are those of 40 tried that load the experts most evenly.
    make("nomic_moe", MOE, SEED + 7, write_safetensors)
    make("nomic_moe_top1", {**MOE, "moe_top_k": 1, "torch_dtype": "bfloat16"}, SEED + 20, write_bf16_shards)
    normalized = {**MOE, "moe_normalize_expert_weights": True, "torch_dtype": "bfloat16"}
    make("nomic_moe_normalized", normalized, SEED + 8, write_bf16_shards)
    make("nomic_moe_classify", CLASSIFY, SEED + 36, write_classifier)
    make("nomic_dense", DENSE, SEED, write_safetensors)


main()
