"""What gpu-check measures, on PyTorch: see gpu.sh.

Experts by `torch._grouped_mm` (tokens sorted by expert, two products, and put back), a dense
product by cuBLAS, transformers' Switch encoder, and an encoder of the shape of
nomic-embed-text-v2-moe that runs its experts one after the other, as its authors' code does.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

N_ROUNDS = 7
N_PASSES = 10
DTYPE = torch.bfloat16


def timed(run, args):
    """Median over rounds of the milliseconds of one pass."""
    for _ in range(3):
        run()
    times = []
    for _ in range(1 if args.tiny else N_ROUNDS):
        synchronize(args)
        start = time.perf_counter()
        for _ in range(1 if args.tiny else N_PASSES):
            run()
        synchronize(args)
        times.append(1e3 * (time.perf_counter() - start) / (1 if args.tiny else N_PASSES))
    return statistics.median(times)


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


def routed(n_tokens, n_experts, skew, device):
    """As gpu-check: all experts alike, or 60 % of the tokens to a tenth of the experts."""
    expert = torch.randint(n_experts, (n_tokens,), device=device)
    if skew:
        n_popular = max(1, -(-n_experts // 10))
        popular = torch.randint(n_popular, (n_tokens,), device=device)
        other = torch.randint(min(n_popular, n_experts - 1), n_experts, (n_tokens,), device=device)
        is_popular = torch.rand(n_tokens, device=device) < 0.6
        expert = torch.where(is_popular, popular, other)
    return expert


def experts(x, expert, w_in, w_out):
    """Sorts, multiplies, sorts back."""
    order = torch.argsort(expert, stable=True)
    ends = torch.bincount(expert, minlength=w_in.shape[0]).cumsum(0).to(torch.int32)
    hidden = F.relu(torch._grouped_mm(x[order], w_in.transpose(1, 2), offs=ends))
    y = torch._grouped_mm(hidden, w_out.transpose(1, 2), offs=ends)
    return torch.empty_like(y).index_copy_(0, order, y)


def rows_of_experts(args):
    n_tokens, d, f = (40, 16, 32) if args.tiny else (30_000, 768, 3072)
    x = torch.randn(n_tokens, d, device=args.device, dtype=DTYPE)
    for n_experts in [4] if args.tiny else [8, 64]:
        for part, width in [("", f), (", one of 4 ranks", f // 4)]:
            w_in = torch.randn(n_experts, width, d, device=args.device, dtype=DTYPE) * 0.02
            w_out = torch.randn(n_experts, d, width, device=args.device, dtype=DTYPE) * 0.02
            for name in ["uniform", "skewed"]:
                expert = routed(n_tokens, n_experts, name == "skewed", args.device)
                ms = timed(lambda: experts(x, expert, w_in, w_out), args)
                yield f"experts, E = {n_experts}, {name}{part}", ms
    w = torch.randn(f, d, device=args.device, dtype=DTYPE) * 0.02
    yield f"dense, {d} → {f}", timed(lambda: F.relu(F.linear(x, w)), args)


def rows_of_switch(args):
    from transformers import SwitchTransformersConfig, SwitchTransformersEncoderModel

    shape = (
        {"d_model": 32, "d_kv": 32, "d_ff": 32, "num_heads": 1, "num_layers": 2,
         "num_sparse_encoder_layers": 1, "num_experts": 3, "vocab_size": 50}
        if args.tiny
        else {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 12,
              "num_sparse_encoder_layers": 6, "num_experts": 128, "vocab_size": 32_128}
    )
    # Above any length: nothing is dropped.
    config = SwitchTransformersConfig(expert_capacity=1_000_000, router_dtype="float32", **shape)
    torch.set_default_dtype(DTYPE)
    with torch.device(args.device):
        model = SwitchTransformersEncoderModel(config).eval()
    torch.set_default_dtype(torch.float32)
    name = "Switch" if args.tiny else "Switch-base-128"
    for batch, length in [(2, 3)] if args.tiny else [(250, 120), (10, 120), (1, 16)]:
        ids = torch.randint(shape["vocab_size"], (batch, length), device=args.device)
        run = lambda: model(input_ids=ids).last_hidden_state.mean(1).float().cpu()
        yield f"{name}, {batch} × {length} tokens", timed(run, args)


class NomicLayer(torch.nn.Module):
    """Post-norm; every second layer has eight experts, two a token."""

    def __init__(self, d, f, n_heads, n_experts):
        super().__init__()
        self.n_heads, self.top_k = n_heads, 2
        self.qkv, self.out = torch.nn.Linear(d, 3 * d), torch.nn.Linear(d, d)
        self.norm1, self.norm2 = torch.nn.LayerNorm(d), torch.nn.LayerNorm(d)
        self.router = torch.nn.Linear(d, n_experts, bias=False) if n_experts else None
        n = max(1, n_experts)
        self.up = torch.nn.ModuleList(torch.nn.Linear(d, f) for _ in range(n))
        self.down = torch.nn.ModuleList(torch.nn.Linear(f, d) for _ in range(n))

    def forward(self, x, cos, sin):
        batch, length, d = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        turn = lambda t: t * cos + torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * sin
        heads = F.scaled_dot_product_attention(turn(q), turn(k), v)
        x = self.norm1(x + self.out(heads.transpose(1, 2).reshape(batch, length, d)))
        return self.norm2(x + self.ffn(x.view(-1, d)).view_as(x))

    def ffn(self, x):
        if self.router is None:
            return self.down[0](F.gelu(self.up[0](x)))
        weights, chosen = self.router(x).float().softmax(-1).topk(self.top_k, -1)
        y = torch.zeros_like(x)
        for e, (up, down) in enumerate(zip(self.up, self.down)):
            token, slot = torch.where(chosen == e)
            gate = weights[token, slot, None].to(x.dtype)
            y.index_add_(0, token, down(F.gelu(up(x[token]))) * gate)
        return y


def rows_of_nomic(args):
    d, f, n_heads, n_layers, n_experts, vocab = (
        (32, 32, 1, 2, 3, 50) if args.tiny else (768, 3072, 12, 12, 8, 250_048)
    )
    with torch.device(args.device):
        words = torch.nn.Embedding(vocab, d).to(DTYPE)
        layers = [NomicLayer(d, f, n_heads, n_experts * (i % 2)).to(DTYPE) for i in range(n_layers)]
        half = torch.arange(d // n_heads // 2, dtype=torch.float32) / (d // n_heads // 2)
    name = "nomic" if args.tiny else "nomic-embed-text-v2-moe"
    batches = [(2, 3)] if args.tiny else [(1, 16), (16, 128), (128, 128), (256, 128)]
    for batch, length in batches:
        ids = torch.randint(vocab, (batch, length), device=args.device)
        angle = torch.arange(length, device=args.device)[:, None] * 10_000.0**-half
        cos, sin = (torch.cat([t, t], -1).to(DTYPE) for t in (angle.cos(), angle.sin()))

        def run():
            x = words(ids)
            for layer in layers:
                x = layer(x, cos, sin)
            return x.mean(1).float().cpu()

        yield f"{name}, {batch} × {length} tokens", timed(run, args)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: whether it runs")
    args = parser.parse_args()
    torch.manual_seed(1)
    found = {}
    with torch.inference_mode():
        for rows in [rows_of_experts, rows_of_switch, rows_of_nomic]:
            found.update(rows(args))
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    record = {"torch": torch.__version__, "device": device, "ms": found}
    (args.out / "peer.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    ours = json.loads((args.out / "gpu-check.json").read_text())
    print("| work | moeshard ms | PyTorch ms | ratio |\n|---|---|---|---|")
    for row in ours["rows"]:
        if row["name"] in found:
            ms = found[row["name"]]
            print(f"| {row['name']} | {row['ms']:.3f} | {ms:.3f} | {ms / row['ms']:.2f} |")


if __name__ == "__main__":
    main()
