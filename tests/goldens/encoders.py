"""The encoders written down once more, in float64 numpy and as plainly as possible.

They share no code with `transformers` and none with moeshard. Each takes the tensors of a checkpoint under
their names on disk, its config, and the ids of one sequence; each returns the final hidden states
[n_tokens, d_model] and, for every MoE layer, a dict with `layer`, `logits`, `expert_idx` and `gate_weight`.
"""

import numpy as np
from scipy.special import erf


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def silu(x):
    return x / (1.0 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0.0)


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def heads(x, n_heads):
    """[n_tokens, n_heads * head_dim] -> [n_heads, n_tokens, head_dim]"""
    return x.reshape(len(x), n_heads, -1).transpose(1, 0, 2)


def attention(q, k, v, scale, bias=0.0):
    """q, k, v: [n_heads, n_tokens, head_dim]; returns [n_tokens, n_heads * head_dim]"""
    p = softmax(q @ k.transpose(0, 2, 1) * scale + bias)
    return (p @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def as_f64(tensors):
    return {name: np.asarray(t, dtype=np.float64) for name, t in tensors.items()}


def linear(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


# Switch Transformers ------------------------------------------------------------------------------------------------


def relative_bucket(n_tokens, n_buckets, max_distance):
    """Bidirectional T5 buckets of key - query, [query, key]."""
    half, exact = n_buckets // 2, n_buckets // 4
    buckets = np.empty((n_tokens, n_tokens), dtype=int)
    for query in range(n_tokens):
        for key in range(n_tokens):
            distance = abs(key - query)
            if distance < exact:
                bucket = distance
            else:
                # float32 as in every implementation, for distances on the edge of a bucket
                ratio = np.log(np.float32(distance / exact)) / np.float32(np.log(max_distance / exact))
                bucket = min(half - 1, exact + int(ratio * np.float32(half - exact)))
            buckets[query, key] = bucket + (half if key > query else 0)
    return buckets


def switch(tensors, config, ids, expert_capacity=None):
    """`expert_capacity` counts within the sequence, in token order; None drops nothing."""
    w, eps = as_f64(tensors), config["layer_norm_epsilon"]
    step = config["num_layers"] // config["num_sparse_encoder_layers"]
    bias_table = w["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    buckets = relative_bucket(
        len(ids), config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
    )
    position_bias = bias_table[buckets].transpose(2, 0, 1)
    x, routing = w["shared.weight"][ids], []
    for layer in range(config["num_layers"]):
        name = f"encoder.block.{layer}.layer.0"
        h = rms_norm(x, w[f"{name}.layer_norm.weight"], eps)
        q, k, v = (heads(linear(w, f"{name}.SelfAttention.{p}", h), config["num_heads"]) for p in "qkv")
        x = x + linear(w, f"{name}.SelfAttention.o", attention(q, k, v, 1.0, position_bias))

        name = f"encoder.block.{layer}.layer.1"
        h = rms_norm(x, w[f"{name}.layer_norm.weight"], eps)
        if not (step == 1 or layer % step == 1):
            x = x + linear(w, f"{name}.mlp.wo", relu(linear(w, f"{name}.mlp.wi", h)))
            continue
        logits = linear(w, f"{name}.mlp.router.classifier", h)
        probs = softmax(logits)
        expert_idx = probs.argmax(axis=-1)
        gate, used, y = probs.max(axis=-1), {}, np.zeros_like(x)
        for token, expert in enumerate(expert_idx):
            used[expert] = used.get(expert, 0) + 1
            if expert_capacity is not None and used[expert] > expert_capacity:
                gate[token] = 0.0
            expert_name = f"{name}.mlp.experts.expert_{expert}"
            y[token] = gate[token] * linear(w, f"{expert_name}.wo", relu(linear(w, f"{expert_name}.wi", h[token])))
        x = x + y
        routing.append(
            {"layer": layer, "logits": logits, "expert_idx": expert_idx[:, None], "gate_weight": gate[:, None]}
        )
    return rms_norm(x, w["encoder.final_layer_norm.weight"], eps), routing


# nomic-bert, dense and MoE ------------------------------------------------------------------------------------------


def rotary(x, base):
    """NeoX halves over the whole head: dimension j turns with j + head_dim/2. x: [n_heads, n_tokens, head_dim]"""
    n_tokens, head_dim = x.shape[1:]
    half = head_dim // 2
    angle = np.arange(n_tokens)[:, None] * base ** (-np.arange(half) * 2.0 / head_dim)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=-1
    )


def nomic_mlp(w, name, config, x):
    if config["activation_function"] == "swiglu":
        return linear(w, f"{name}.fc2", linear(w, f"{name}.fc11", x) * silu(linear(w, f"{name}.fc12", x)))
    return linear(w, f"{name}.fc2", gelu(linear(w, f"{name}.fc1", x)))


def nomic_moe(w, name, config, x):
    n_experts, n_inner, top_k = config["num_experts"], config["n_inner"], config["moe_top_k"]
    logits = x @ w[f"{name}.router.layer.weight"].T
    probs = softmax(logits)
    expert_idx = np.argsort(-probs, axis=-1, kind="stable")[:, :top_k]
    gate = np.take_along_axis(probs, expert_idx, axis=-1)
    if config["moe_normalize_expert_weights"]:
        gate = gate / gate.sum(axis=-1, keepdims=True)
    # both [n_experts, n_inner, d]: the second matrix is applied without a transposition
    w1 = w[f"{name}.experts.mlp.w1"].reshape(n_experts, n_inner, -1)
    w2 = w[f"{name}.experts.mlp.w2"].reshape(n_experts, n_inner, -1)
    y = np.tile(w[f"{name}.experts.bias"], (len(x), 1))
    for token in range(len(x)):
        for expert, weight in zip(expert_idx[token], gate[token]):
            y[token] += weight * (gelu(w1[expert] @ x[token]) @ w2[expert])
    return y, {"logits": logits, "expert_idx": expert_idx, "gate_weight": gate}


def nomic(tensors, config, ids):
    w, eps, n_heads = as_f64(tensors), config["layer_norm_epsilon"], config["n_head"]
    x = w["embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"] > 0:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x, routing = layer_norm(x, w["emb_ln.weight"], w["emb_ln.bias"], eps), []
    for layer in range(config["n_layer"]):
        name = f"encoder.layers.{layer}"
        q, k, v = (heads(part, n_heads) for part in np.split(linear(w, f"{name}.attn.Wqkv", x), 3, axis=-1))
        q, k = rotary(q, config["rotary_emb_base"]), rotary(k, config["rotary_emb_base"])
        a = linear(w, f"{name}.attn.out_proj", attention(q, k, v, q.shape[-1] ** -0.5))
        x = layer_norm(x + a, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], eps)
        every = config.get("moe_every_n_layers", 0)
        if every > 0 and layer % every == 1:
            y, route = nomic_moe(w, f"{name}.mlp", config, x)
            routing.append({"layer": layer, **route})
        else:
            y = nomic_mlp(w, f"{name}.mlp", config, x)
        x = layer_norm(x + y, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], eps)
    return x, routing


# NLLB-MoE -----------------------------------------------------------------------------------------------------------


def sinusoidal(n_tokens, d_model, pad_token_id):
    """Position of token t is t + pad + 1; sines first, cosines after."""
    half = d_model // 2
    position = np.arange(n_tokens)[:, None] + pad_token_id + 1
    angle = position * np.exp(-np.arange(half) * np.log(10000.0) / (half - 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def nllb_moe(tensors, config, ids):
    w, eps, d_model = as_f64(tensors), 1e-5, config["d_model"]
    scale = np.sqrt(d_model) if config["scale_embedding"] else 1.0
    x, routing = w["shared.weight"][ids] * scale + sinusoidal(len(ids), d_model, config["pad_token_id"]), []
    for layer in range(config["encoder_layers"]):
        name, n_heads = f"encoder.layers.{layer}", config["encoder_attention_heads"]
        h = layer_norm(x, w[f"{name}.self_attn_layer_norm.weight"], w[f"{name}.self_attn_layer_norm.bias"], eps)
        q, k, v = (heads(linear(w, f"{name}.self_attn.{p}_proj", h), n_heads) for p in "qkv")
        x = x + linear(w, f"{name}.self_attn.out_proj", attention(q, k, v, q.shape[-1] ** -0.5))

        h = layer_norm(x, w[f"{name}.ff_layer_norm.weight"], w[f"{name}.ff_layer_norm.bias"], eps)
        if (layer + 1) % config["encoder_sparse_step"] != 0:
            x = x + linear(w, f"{name}.ffn.fc2", relu(linear(w, f"{name}.ffn.fc1", h)))
            continue
        logits = linear(w, f"{name}.ffn.router.classifier", h)
        expert_idx = np.argsort(-logits, axis=-1, kind="stable")[:, :2]
        gate = np.take_along_axis(softmax(logits), expert_idx, axis=-1)
        gate = gate / gate.sum(axis=-1, keepdims=True)
        y = np.zeros_like(x)
        for token in range(len(x)):
            for expert, weight in zip(expert_idx[token], gate[token]):
                expert_name = f"{name}.ffn.experts.expert_{expert}"
                y[token] += weight * linear(
                    w, f"{expert_name}.fc2", relu(linear(w, f"{expert_name}.fc1", h[token]))
                )
        x = x + (1.0 - config["moe_token_dropout"]) * y
        routing.append({"layer": layer, "logits": logits, "expert_idx": expert_idx, "gate_weight": gate})
    return layer_norm(x, w["encoder.layer_norm.weight"], w["encoder.layer_norm.bias"], eps), routing


# BERT and XLM-RoBERTa -----------------------------------------------------------------------------------------------


def bert(tensors, config, ids, prefix="", first_position=0):
    """XLM-RoBERTa is the same with `first_position` = pad_token_id + 1."""
    w = as_f64({name.removeprefix(prefix): t for name, t in tensors.items()})
    eps, n_heads = config["layer_norm_eps"], config["num_attention_heads"]
    x = (
        w["embeddings.word_embeddings.weight"][ids]
        + w["embeddings.position_embeddings.weight"][first_position : first_position + len(ids)]
        + w["embeddings.token_type_embeddings.weight"][0]
    )
    x = layer_norm(x, w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"], eps)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (heads(linear(w, f"{name}.attention.self.{p}", x), n_heads) for p in ("query", "key", "value"))
        a = linear(w, f"{name}.attention.output.dense", attention(q, k, v, q.shape[-1] ** -0.5))
        norm = f"{name}.attention.output.LayerNorm"
        x = layer_norm(x + a, w[f"{norm}.weight"], w[f"{norm}.bias"], eps)
        y = linear(w, f"{name}.output.dense", gelu(linear(w, f"{name}.intermediate.dense", x)))
        norm = f"{name}.output.LayerNorm"
        x = layer_norm(x + y, w[f"{norm}.weight"], w[f"{norm}.bias"], eps)
    return x


def bert_logits(tensors, hidden, prefix=""):
    """The pooler belongs to the model and wears its prefix; the classifier does not."""
    w = as_f64(tensors)
    return linear(w, "classifier", np.tanh(linear(w, f"{prefix}pooler.dense", hidden[0])))


def xlm_roberta_logits(tensors, hidden):
    w = as_f64(tensors)
    return linear(w, "classifier.out_proj", np.tanh(linear(w, "classifier.dense", hidden[0])))
