"""Makes switch/ (dropless and with capacity) and switch_bin/ with `transformers` 5.x, checked by encoders.switch."""

import json

import numpy as np
import torch
import transformers
from transformers import SwitchTransformersConfig, SwitchTransformersEncoderModel

import encoders
from common import (
    HERE, Weights, draw_sequences, made_with, routing_entry, routing_margin, sequence_entry, write_config, write_json,
    write_pooling, write_safetensors,
)

SEED, SEQUENCE_SEEDS = 20250101, 300
LENGTHS = [1, 2, 7, 33, 150]
EXPERT_CAPACITY = 3
# Far above any length: nothing is dropped.
DROPLESS = 1_000_000

CONFIG = {
    "architectures": ["SwitchTransformersForConditionalGeneration"],
    "model_type": "switch_transformers",
    "d_model": 40,
    "d_kv": 6,
    "d_ff": 37,
    "num_heads": 5,
    "num_layers": 4,
    "num_sparse_encoder_layers": 2,
    "encoder_sparse_step": 2,
    "num_decoder_layers": 4,
    "num_sparse_decoder_layers": 2,
    "decoder_sparse_step": 2,
    "num_experts": 6,
    "expert_capacity": 8,
    "router_bias": False,
    "router_dtype": "float32",
    "router_ignore_padding_tokens": False,
    "router_jitter_noise": 0.01,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dense_act_fn": "relu",
    "feed_forward_proj": "relu",
    "is_gated_act": False,
    "layer_norm_epsilon": 1e-06,
    "dropout_rate": 0.1,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "vocab_size": 97,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "torch_dtype": "float32",
}


def make_weights():
    c, w = CONFIG, Weights(SEED)
    d, inner = c["d_model"], c["num_heads"] * c["d_kv"]
    w.normal("shared.weight", (c["vocab_size"], d), 1.0)
    for i in range(c["num_layers"]):
        name = f"encoder.block.{i}.layer.0"
        for p in "qkv":
            w.linear(f"{name}.SelfAttention.{p}", inner, d)
        w.linear(f"{name}.SelfAttention.o", d, inner)
        if i == 0:
            shape = (c["relative_attention_num_buckets"], c["num_heads"])
            w.normal(f"{name}.SelfAttention.relative_attention_bias.weight", shape, 1.0)
        w.norm(f"{name}.layer_norm", d, bias=False)
        name = f"encoder.block.{i}.layer.1"
        w.norm(f"{name}.layer_norm", d, bias=False)
        if i % 2 == 1:
            w.linear(f"{name}.mlp.router.classifier", c["num_experts"], d, gain=1.5)
            # the gate is below one, so the experts speak up
            for e in range(c["num_experts"]):
                w.linear(f"{name}.mlp.experts.expert_{e}.wi", c["d_ff"], d, gain=1.5)
                w.linear(f"{name}.mlp.experts.expert_{e}.wo", d, c["d_ff"], gain=2.0)
        else:
            w.linear(f"{name}.mlp.wi", c["d_ff"], d)
            w.linear(f"{name}.mlp.wo", d, c["d_ff"], gain=1.5)
    w.norm("encoder.final_layer_norm", d, bias=False)
    return w.tensors


def load(tensors, expert_capacity):
    """A `transformers` encoder with exactly these tensors."""
    config = SwitchTransformersConfig.from_dict({**CONFIG, "expert_capacity": expert_capacity})
    config._attn_implementation = "eager"
    model = SwitchTransformersEncoderModel(config).eval()
    state = {name: torch.from_numpy(t) for name, t in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["encoder.embed_tokens.weight"] and not unexpected, (missing, unexpected)
    assert model.encoder.embed_tokens.weight is model.shared.weight or torch.equal(
        model.encoder.embed_tokens.weight, model.shared.weight
    )
    return model


def run(model, ids):
    """Hidden states and the routing as the model's own router modules return it."""
    seen, hooks = [], []
    for i, block in enumerate(model.encoder.block):
        router = getattr(block.layer[-1].mlp, "router", None)
        if router is not None:
            hooks.append(router.register_forward_hook(lambda _m, _i, out, i=i: seen.append((i, out))))
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    for hook in hooks:
        hook.remove()
    routing = []
    for layer, (one_hot, probs, logits) in seen:
        kept = one_hot[0].sum(-1, keepdim=True)
        routing.append({
            "layer": layer,
            "logits": logits[0].numpy(),
            "expert_idx": logits[0].argmax(-1, keepdim=True).numpy(),
            "gate_weight": (probs[0] * kept).numpy(),
        })
    return hidden, routing


def choose_sequences(tensors):
    """The seed whose ids leave the widest routing margin, dropless and under capacity alike."""
    best = None
    for seed in range(SEQUENCE_SEEDS):
        rng = np.random.default_rng([SEED, seed])
        sequences = draw_sequences(rng, LENGTHS, CONFIG["vocab_size"], first_id=2, suffix=[1])
        margin = np.inf
        for capacity in (DROPLESS, EXPERT_CAPACITY):
            MODELS[capacity] = MODELS.get(capacity) or load(tensors, capacity)
            for ids in sequences:
                logits = [r["logits"] for r in run(MODELS[capacity], ids)[1]]
                margin = min(margin, routing_margin(logits, top_k=1))
                if best and margin <= best[0]:
                    break
        if best is None or margin > best[0]:
            best = (margin, sequences)
    return best


MODELS = {}


def golden(tensors, sequences, expert_capacity, margin):
    entries, worst, n_dropped = [], 0.0, 0
    for ids in sequences:
        hidden, routing = run(MODELS[expert_capacity], ids)
        own, own_routing = encoders.switch(tensors, CONFIG, ids, expert_capacity)
        worst = max(worst, np.abs(own - hidden).max())
        for theirs, ours in zip(routing, own_routing, strict=True):
            assert theirs["layer"] == ours["layer"]
            assert (theirs["expert_idx"] == ours["expert_idx"]).all()
            assert ((theirs["gate_weight"] == 0) == (ours["gate_weight"] == 0)).all()
            n_dropped += int((theirs["gate_weight"] == 0).sum())
        entries.append(sequence_entry(
            ids, hidden, [routing_entry(r["layer"], r["expert_idx"], r["gate_weight"]) for r in routing]
        ))
    assert worst < 2e-5, worst
    assert (n_dropped > 0) == (expert_capacity != DROPLESS)
    print(f"capacity {expert_capacity}: worst difference {worst:.1e}, margin {margin:.4f}, dropped {n_dropped}")
    return {
        "case": "switch",
        "made_with": made_with(
            "make_switch.py", "transformers SwitchTransformersEncoderModel, f32, eager attention", SEED,
            [transformers, torch],
            check=f"encoders.switch (float64): same experts, same drops, largest difference of a hidden state {worst:.1e}",
        ),
        "pooling": "mean",
        "expert_capacity": None if expert_capacity == DROPLESS else expert_capacity,
        "n_dropped": n_dropped,
        "routing_margin": float(margin),
        "sequences": entries,
    }


def write_bin(tensors):
    """Two pickles and their index, as on the Hub: bf16, tied tensors stored once, some tensors of the decoder."""
    shards = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
    first, second = shards.values()
    for name, t in tensors.items():
        late = name.startswith(("encoder.block.2", "encoder.block.3", "encoder.final"))
        (second if late else first)[name] = torch.from_numpy(t).to(torch.bfloat16)
    for tied in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]:
        first[tied] = first["shared.weight"]
    second["decoder.final_layer_norm.weight"] = torch.ones(CONFIG["d_model"], dtype=torch.bfloat16)
    folder = HERE / "switch_bin"
    folder.mkdir(exist_ok=True)
    for file, state in shards.items():
        torch.save(state, folder / file)
    index = {
        "metadata": {"total_size": 2 * sum(t.size for t in tensors.values())},
        "weight_map": {name: file for file, state in shards.items() for name in sorted(state)},
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file, state in shards.items():
        for name, t in torch.load(folder / file, weights_only=True).items():
            if name in tensors:
                assert np.array_equal(t.float().numpy(), tensors[name]), name


def main():
    torch.set_num_threads(1)
    tensors = make_weights()
    margin, sequences = choose_sequences(tensors)
    write_config("switch", CONFIG)
    write_pooling("switch", CONFIG["d_model"], "mean_tokens", max(LENGTHS))
    write_safetensors("switch", tensors)
    dropless = golden(tensors, sequences, DROPLESS, margin)
    write_json("switch/golden.json", dropless)
    write_json("switch/golden_capacity.json", golden(tensors, sequences, EXPERT_CAPACITY, margin))
    write_config("switch_bin", {**CONFIG, "torch_dtype": "bfloat16"})
    write_pooling("switch_bin", CONFIG["d_model"], "mean_tokens", max(LENGTHS))
    write_bin(tensors)
    write_json("switch_bin/golden.json", {**dropless, "case": "switch_bin"})


main()
