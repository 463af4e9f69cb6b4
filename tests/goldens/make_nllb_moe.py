"""Makes nllb_moe/ with `transformers` 4.46.3, checked by encoders.nllb_moe.

Not with 5.x: its file (read in 5.23) hands a 0/1 mask to the experts where indices are expected.
"""

import numpy as np
import torch
import transformers
from transformers.models.nllb_moe.configuration_nllb_moe import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeEncoder

import encoders
from common import (
    Weights, draw_sequences, made_with, routing_entry, routing_margin, sequence_entry, write_config, write_json,
    write_pooling, write_safetensors,
)

SEED, SEQUENCE_SEEDS, WEIGHT_SEEDS = 20250303, 200, 40
LENGTHS = [1, 2, 7, 33, 64]

CONFIG = {
    "architectures": ["NllbMoeForConditionalGeneration"],
    "model_type": "nllb-moe",
    "d_model": 32,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 52,
    "encoder_layerdrop": 0,
    "encoder_sparse_step": 2,
    "decoder_layers": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 52,
    "decoder_layerdrop": 0,
    "decoder_sparse_step": 2,
    "num_hidden_layers": 4,
    "num_experts": 5,
    "expert_capacity": 64,
    "moe_eval_capacity_token_fraction": 1.0,
    "moe_token_dropout": 0.2,
    "second_expert_policy": "all",
    "normalize_router_prob_before_dropping": False,
    "batch_prioritized_routing": False,
    "router_bias": False,
    "router_dtype": "float32",
    "router_ignore_padding_tokens": False,
    "activation_function": "relu",
    "scale_embedding": True,
    "max_position_embeddings": 64,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "is_encoder_decoder": True,
    "vocab_size": 97,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "torch_dtype": "float32",
}


def make_weights(seed):
    c, w = CONFIG, Weights(seed)
    d, ffn = c["d_model"], c["encoder_ffn_dim"]
    # times sqrt(d) as scale_embedding asks
    w.normal("shared.weight", (c["vocab_size"], d), d**-0.5)
    for i in range(c["encoder_layers"]):
        name = f"encoder.layers.{i}"
        for p in ["q_proj", "k_proj", "v_proj", "out_proj"]:
            w.linear(f"{name}.self_attn.{p}", d, d, gain=1.3, bias=True)
        w.norm(f"{name}.self_attn_layer_norm", d)
        w.norm(f"{name}.ff_layer_norm", d)
        if (i + 1) % c["encoder_sparse_step"] == 0:
            w.linear(f"{name}.ffn.router.classifier", c["num_experts"], d, gain=1.5)
            for e in range(c["num_experts"]):
                w.linear(f"{name}.ffn.experts.expert_{e}.fc1", ffn, d, gain=1.5, bias=True)
                w.linear(f"{name}.ffn.experts.expert_{e}.fc2", d, ffn, gain=1.5, bias=True)
        else:
            w.linear(f"{name}.ffn.fc1", ffn, d, bias=True)
            w.linear(f"{name}.ffn.fc2", d, ffn, gain=1.5, bias=True)
    w.norm("encoder.layer_norm", d)
    return w.tensors


def evenness(tensors):
    """Share of the least used expert minus that of the most used, at the worst layer."""
    ids = draw_sequences(np.random.default_rng(SEED), [50], CONFIG["vocab_size"], 3, prefix=[3], suffix=[2])[0]
    worst = np.inf
    for r in encoders.nllb_moe(tensors, CONFIG, ids)[1]:
        share = np.bincount(r["expert_idx"].ravel(), minlength=CONFIG["num_experts"]) / len(ids)
        worst = min(worst, share.min() - share.max())
    return worst


def load(tensors):
    config = NllbMoeConfig(**{k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type")})
    model = NllbMoeEncoder(config).eval()
    state = {name.removeprefix("encoder."): torch.from_numpy(t) for name, t in tensors.items()}
    state["embed_tokens.weight"] = state.pop("shared.weight")
    model.load_state_dict(state, strict=True)
    return model


def run(model, ids):
    """Hidden states, and the dense gates [n_tokens, n_experts] of each router as the model uses them."""
    gates, hooks = [], []
    for i, layer in enumerate(model.layers):
        if layer.is_sparse:
            hook = lambda _m, _i, out, i=i: gates.append((i, out[1].numpy()))
            hooks.append(layer.ffn.router.register_forward_hook(hook))
    with torch.no_grad():
        mask = torch.ones(1, len(ids), dtype=torch.long)
        hidden = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0].numpy()
    for hook in hooks:
        hook.remove()
    return hidden, gates


def choose_sequences(tensors):
    best = None
    for seed in range(SEQUENCE_SEEDS):
        rng = np.random.default_rng([SEED, seed])
        # source language, text, end of sequence
        sequences, margin = draw_sequences(rng, LENGTHS, CONFIG["vocab_size"], 3, prefix=[3], suffix=[2]), np.inf
        for ids in sequences:
            margin = min(margin, routing_margin([r["logits"] for r in encoders.nllb_moe(tensors, CONFIG, ids)[1]], 2))
            if best and margin <= best[0]:
                break
        else:
            best = (margin, sequences)
    return best


def main():
    assert transformers.__version__.startswith("4.46."), transformers.__version__
    torch.set_num_threads(1)
    seed = max(range(SEED, SEED + WEIGHT_SEEDS), key=lambda s: evenness(make_weights(s)))
    tensors = make_weights(seed)
    margin, sequences = choose_sequences(tensors)
    model, entries, worst = load(tensors), [], 0.0
    for ids in sequences:
        hidden, gates = run(model, ids)
        own, own_routing = encoders.nllb_moe(tensors, CONFIG, ids)
        worst, routing = max(worst, np.abs(own - hidden).max()), []
        for (layer, dense), ours in zip(gates, own_routing, strict=True):
            assert layer == ours["layer"] and ((dense > 0).sum(axis=-1) == 2).all(), "a token was dropped"
            expert_idx = np.argsort(-dense, axis=-1)[:, :2]
            gate_weight = np.take_along_axis(dense, expert_idx, axis=-1)
            assert (expert_idx == ours["expert_idx"]).all()
            worst = max(worst, np.abs(gate_weight - ours["gate_weight"]).max())
            routing.append(routing_entry(layer, expert_idx, gate_weight))
        entries.append(sequence_entry(ids, hidden, routing))
    assert worst < 2e-5, worst
    print(f"nllb_moe: seed {seed}, margin {margin:.4f}, worst difference {worst:.1e}")
    write_config("nllb_moe", CONFIG)
    write_pooling("nllb_moe", CONFIG["d_model"], "mean_tokens", max(LENGTHS))
    write_safetensors("nllb_moe", tensors)
    write_json("nllb_moe/golden.json", {
        "case": "nllb_moe",
        "made_with": made_with(
            "make_nllb_moe.py", "transformers NllbMoeEncoder, f32", seed, [transformers, torch],
            check=f"encoders.nllb_moe (float64): same experts, largest difference of a hidden state or gate {worst:.1e}",
        ),
        "pooling": "mean",
        "expert_capacity": None,
        "n_dropped": 0,
        "routing_margin": float(margin),
        "sequences": entries,
    })


main()
