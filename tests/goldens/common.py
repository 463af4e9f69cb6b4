"""What every golden has in common: weights, token ids, pooling and the JSON that is written."""

import json
import platform
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def bf16_exact(array):
    """Rounds to the nearest bfloat16 and returns float32.

    Every weight of every golden is such a number, so that a checkpoint stored in f32 and one stored in
    bf16 hold the same model and share one golden.
    """
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


class Weights:
    """Named random tensors from one seed, in order of creation."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.tensors = {}

    def normal(self, name, shape, std):
        self.tensors[name] = bf16_exact(self.rng.normal(0.0, std, shape))

    def linear(self, name, n_out, n_in, gain=1.0, bias=False):
        """A matrix [n_out, n_in] whose outputs have the standard deviation of its inputs times `gain`."""
        self.normal(f"{name}.weight", (n_out, n_in), gain / np.sqrt(n_in))
        if bias:
            self.normal(f"{name}.bias", (n_out,), 0.1)

    def norm(self, name, dim, bias=True):
        self.tensors[f"{name}.weight"] = bf16_exact(self.rng.uniform(0.5, 1.5, dim))
        if bias:
            self.normal(f"{name}.bias", (dim,), 0.1)


def draw_sequences(rng, lengths, vocab_size, first_id, prefix=(), suffix=()):
    """Random ids in [first_id, vocab_size); `prefix` and `suffix` are the special tokens of the family."""
    sequences = []
    for length in lengths:
        ids = rng.integers(first_id, vocab_size, length)
        if length > len(prefix) + len(suffix):
            ids[: len(prefix)] = prefix
            if suffix:
                ids[-len(suffix):] = suffix
        sequences.append([int(i) for i in ids])
    return sequences


def unit(vector):
    vector = np.asarray(vector, dtype=np.float64)
    return vector / np.linalg.norm(vector)


def routing_margin(layers, top_k):
    """The smallest difference of router logits that would have to be bridged to change a choice or its order."""
    smallest = np.inf
    for logits in layers:
        ordered = -np.sort(-np.asarray(logits, dtype=np.float64), axis=-1)
        n_gaps = min(top_k, ordered.shape[-1] - 1)
        gaps = ordered[:, :n_gaps] - ordered[:, 1 : n_gaps + 1]
        smallest = min(smallest, gaps.min())
    return smallest


def sequence_entry(ids, hidden, routing=None, logits=None, probabilities=None, hidden_up_to=33, dimensions=None):
    """One entry of `sequences`; `hidden` is [n_tokens, d_model] after the last norm of the encoder."""
    hidden = np.asarray(hidden, dtype=np.float64)
    mean = hidden.mean(axis=0)
    entry = {
        "ids": ids,
        "hidden": hidden if len(ids) <= hidden_up_to else None,
        "mean_embedding": unit(mean),
        "cls_embedding": unit(hidden[0]),
        "last_embedding": unit(hidden[-1]),
        "routing": routing or [],
        "logits": logits,
        "probabilities": probabilities,
    }
    if dimensions is not None:
        entry["truncated_mean_embedding"] = unit(mean[:dimensions])
        entry["truncated_last_embedding"] = unit(hidden[-1][:dimensions])
    return entry


def routing_entry(layer, expert_idx, gate_weight):
    return {
        "layer": layer,
        "expert_idx": [[int(e) for e in row] for row in expert_idx],
        "gate_weight": np.asarray(gate_weight, dtype=np.float64),
    }


def made_with(script, source, seed, modules, **notes):
    versions = {module.__name__: module.__version__.split("+")[0] for module in modules}
    versions["numpy"] = np.__version__
    versions["python"] = platform.python_version()
    return {"script": script, "source": source, "seed": seed, "versions": versions, **notes}


def write_json(path, value, digits=8):
    """Plain decimals with `digits` significant digits, one innermost list a line."""
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(value, digits, "") + "\n")
    return path


def _render(value, digits, indent):
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (float, np.floating)):
        assert np.isfinite(value)
        return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="0")
    if isinstance(value, dict):
        inner = indent + " "
        items = [f"{inner}{json.dumps(key)}: {_render(item, digits, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + indent + "}"
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple, dict, np.ndarray)) for item in value):
            inner = indent + " "
            short = all(isinstance(item, (list, tuple)) and len(item) <= 2 for item in value)
            items = [_render(item, digits, inner) for item in value]
            return "[" + ",".join(items) + "]" if short else "[\n" + ",\n".join(inner + i for i in items) + "\n" + indent + "]"
        return "[" + ",".join(_render(item, digits, "") for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_config(case, config):
    path = HERE / case / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_pooling(case, d_model, mode, max_seq_length):
    """The files by which sentence-transformers knows pooling, normalisation and the length limit."""
    folder = HERE / case
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    pooling = {"word_embedding_dimension": d_model}
    for name in ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]:
        pooling[f"pooling_mode_{name}"] = name == mode
    pooling["include_prompt"] = True
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    limits = {"max_seq_length": max_seq_length, "do_lower_case": False}
    for name, value in [("1_Pooling/config.json", pooling), ("modules.json", modules), ("sentence_bert_config.json", limits)]:
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


def write_safetensors(case, tensors, name="model.safetensors"):
    from safetensors.numpy import save_file

    (HERE / case).mkdir(parents=True, exist_ok=True)
    save_file(tensors, HERE / case / name, metadata={"format": "pt"})
