"""Switch encoders on PyTorch and on moeshard, in turns; see switch_torch.sh.

`compare` prints the table. It starts `make` once for each checkpoint, and for each dtype one
`serve`, which runs PyTorch on request and sleeps while moeshard runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

# google/switch-base-8's config.json, as far as it tells of the encoder.
SHAPE = {
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_heads": 12,
    "num_layers": 12,
    "num_sparse_encoder_layers": 6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "router_bias": False,
    "router_dtype": "float32",
    "dense_act_fn": "relu",
    "feed_forward_proj": "relu",
    # Above any length: nothing is dropped.
    "expert_capacity": 1_000_000,
}

# Number of experts, dtype, batch, length.
ITEMS = [(8, "bf16", 16, 128), (8, "f32", 16, 128), (64, "bf16", 1, 128), (8, "bf16", 1, 16)]

N_WARM_UP = 2
LEAST_ROUNDS = 3


def name_of(item):
    n_experts, dtype, batch, length = item
    return f"base-{n_experts}-{dtype}-{batch}x{length}"


def make(folder, n_experts):
    """Writes a checkpoint with random weights in bf16."""
    import torch
    from transformers import SwitchTransformersConfig, SwitchTransformersEncoderModel

    torch.manual_seed(n_experts)
    torch.set_default_dtype(torch.bfloat16)
    model = SwitchTransformersEncoderModel(SwitchTransformersConfig(num_experts=n_experts, **SHAPE))
    model.save_pretrained(folder, max_shard_size="100GB")


def random_ids(n):
    """The ids that `moeshard bench` runs: a linear congruential generator (Knuth's MMIX)."""
    state, ids = 1, []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append((state >> 33) % SHAPE["vocab_size"])
    return ids


def serve(dtype, n_threads):
    """Answers each request (a line of JSON) with the median time of a forward pass."""
    import torch
    from transformers import SwitchTransformersEncoderModel

    torch.set_num_threads(n_threads)
    torch_dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    loaded, model = None, None
    for line in sys.stdin:
        request = json.loads(line)
        if request["folder"] != loaded:
            model = None
            loaded = request["folder"]
            model = SwitchTransformersEncoderModel.from_pretrained(loaded, dtype=torch_dtype).eval()
        batch, length = request["batch"], request["length"]
        ids = torch.tensor(random_ids(batch * length)).reshape(batch, length)
        with torch.inference_mode():
            answer = {"forward_ms": time_forwards(lambda: model(input_ids=ids), request["seconds"])}
        print(json.dumps(answer), flush=True)


def time_forwards(forward, seconds):
    for _ in range(N_WARM_UP):
        forward()
    times, end = [], time.perf_counter() + seconds
    while len(times) < LEAST_ROUNDS or time.perf_counter() < end:
        start = time.perf_counter()
        forward()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


class Torch:
    """The processes that run PyTorch, one a dtype, started when first needed."""

    def __init__(self, n_threads):
        self.n_threads = n_threads
        self.processes = {}

    def forward_ms(self, folder, item, seconds):
        _, dtype, batch, length = item
        process = self.processes.get(dtype) or self.start(dtype)
        request = {"folder": str(folder), "batch": batch, "length": length, "seconds": seconds}
        print(json.dumps(request), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit("switch_torch.py: PyTorch's process ended")
        return json.loads(answer)["forward_ms"]

    def start(self, dtype):
        command = [sys.executable, __file__, "serve", "--dtype", dtype, "--threads", str(self.n_threads)]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.processes[dtype] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | quiet
        )
        return self.processes[dtype]

    def stop(self):
        for process in self.processes.values():
            process.stdin.close()
            process.wait()


def moeshard(args, folder, item):
    """What `moeshard bench` reports of a shape, and on what."""
    _, dtype, batch, length = item
    command = [
        args.moeshard, "bench", "--json", "--model", str(folder), "--dtype", dtype, "--threads", str(args.threads),
        "--shape", f"{batch}x{length}", "--seconds", str(args.seconds),
    ]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return report, report["shapes"][0]["forward_ms"]


def checkpoint(args, n_experts):
    """The folder of a checkpoint, made if it is not there."""
    folder = Path(args.dir) / f"switch-base-{n_experts}"
    if not folder.exists():
        print(f"making {folder}", file=sys.stderr)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(
            [sys.executable, __file__, "make", "--dir", str(partial), "--experts", str(n_experts)],
            check=True, stdout=sys.stderr,
        )
        partial.rename(folder)
    return folder


def compare(args):
    unknown = set(args.items) - {name_of(item) for item in ITEMS}
    if unknown:
        raise SystemExit(f"switch_torch.py: no item {', '.join(sorted(unknown))} (see --help)")
    args.threads = args.threads or len(os.sched_getaffinity(0))
    items = [item for item in ITEMS if not args.items or name_of(item) in args.items]
    folders = {n_experts: checkpoint(args, n_experts) for n_experts in {item[0] for item in items}}
    torch, results, report = Torch(args.threads), [], {}
    print(f"{'item':<20} {'PyTorch':>26} {'moeshard':>26} {'ratio':>7}")
    for item in items:
        folder, rounds = folders[item[0]], {"torch": [], "moeshard": []}
        for _ in range(args.rounds):
            rounds["torch"].append(torch.forward_ms(folder, item, args.seconds))
            report, forward_ms = moeshard(args, folder, item)
            rounds["moeshard"].append(forward_ms)
        results.append(result(item, rounds))
        print(line(results[-1]), flush=True)
    torch.stop()
    if args.record:
        write(args, report, results)


def result(item, rounds):
    n_experts, dtype, batch, length = item
    found = {"item": name_of(item), "n_experts": n_experts, "dtype": dtype, "batch": batch, "length": length}
    for name, times in rounds.items():
        forward_ms = statistics.median(times)
        found[name] = {
            "forward_ms": forward_ms,
            "tokens_per_s": batch * length / forward_ms * 1e3,
            "rounds_forward_ms": times,
        }
    found["ratio"] = found["torch"]["forward_ms"] / found["moeshard"]["forward_ms"]
    return found


def line(found):
    def cell(one):
        return f"{one['tokens_per_s']:,.0f} tok/s {one['forward_ms']:,.1f} ms"

    return f"{found['item']:<20} {cell(found['torch']):>26} {cell(found['moeshard']):>26} {found['ratio']:>6.2f}x"


def write(args, report, results):
    from importlib.metadata import version

    made_with = {
        "processor": report["processor"],
        "n_threads": args.threads,
        "moeshard": report["version"],
        "kernels": report["kernels"],
        "torch": version("torch"),
        "transformers": version("transformers"),
        "rounds": args.rounds,
        "seconds": args.seconds,
    }
    path = Path(args.record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made_with": made_with, "items": results}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("make")
    action.add_argument("--dir", required=True)
    action.add_argument("--experts", type=int, required=True)
    action = actions.add_parser("serve")
    action.add_argument("--dtype", choices=["bf16", "f32"], required=True)
    action.add_argument("--threads", type=int, required=True)
    action = actions.add_parser("compare")
    action.add_argument("--moeshard", required=True)
    action.add_argument("--dir", required=True)
    action.add_argument("--rounds", type=int, default=5)
    action.add_argument("--seconds", type=float, default=3.0)
    action.add_argument("--threads", type=int, default=0)
    action.add_argument("--record", metavar="FILE")
    action.add_argument("items", nargs="*", metavar="ITEM")
    args = parser.parse_args()
    if args.action == "make":
        make(args.dir, args.experts)
    elif args.action == "serve":
        serve(args.dtype, args.threads)
    else:
        compare(args)


if __name__ == "__main__":
    main()
