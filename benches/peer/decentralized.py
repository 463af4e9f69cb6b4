"""Decentralized SGD in moeshard, NumPy and PyTorch, in turns; see decentralized.sh."""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import decentralized_data as data

# Nodes, and examples of a batch.
ITEMS = {"100": (100, 128), "1000": (1000, 13)}
SEED = 1
PROGRAMS = ["moeshard", "numpy", "torch"]


def setup(args, n_nodes):
    """A folder with the partition; moeshard's first turn adds the topology."""
    folder = Path(args.dir) / f"decentralized-{n_nodes}"
    folder.mkdir(parents=True, exist_ok=True)
    labels = data.read_idx(args.data, "train-labels-idx1-ubyte")[: data.N_TRAIN]
    data.write_partition(folder / "partition.csv", labels, n_nodes, SEED)
    return folder


def moeshard(args, folder, batch):
    """What a run of `moeshard train` reports at its end."""
    n_nodes = len(data.read_partition(folder / "partition.csv"))
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        args.moeshard, "train", "--task", "mnist", "--classifier", "linear", "--data", args.data,
        "--train-examples", str(data.N_TRAIN), "--nodes", str(n_nodes),
        "--partition", f"file:{folder / 'partition.csv'}", "--topology", "d-cliques",
        "--learning-rate", str(data.LEARNING_RATE), "--batch-size", str(batch),
        "--epochs", str(args.epochs), "--evaluate-every", str(args.epochs),
        "--checkpoint-every", "0", "--seed", str(SEED), "--threads", str(args.threads),
        "--out", str(out),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    topology, = out.glob("*/topology.json")
    shutil.copy(topology, folder)
    lines = (topology.parent / "metrics.jsonl").read_text().splitlines()
    last = [record for record in map(json.loads, lines) if record["kind"] == "evaluation"][-1]
    accuracy = {which: last["accuracy"][which] for which in ["mean", "min", "max"]}
    return {"train_s": last["train_s"], "accuracy": accuracy}


def peer(name, args, folder, batch):
    command = [
        sys.executable, str(Path(__file__).parent / f"decentralized_{name}.py"),
        "--data", args.data, "--setup", str(folder), "--batch", str(batch),
        "--epochs", str(args.epochs), "--threads", str(args.threads), "--seed", str(SEED),
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def busy_s():
    """Seconds that the machine's cores have been at work, all together."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def turn(name, args, folder, batch):
    """One run of a program, the time of all cores that it took with loading and evaluation, and how
    many cores other programs used meanwhile."""
    own, before, start = children_s(), busy_s() - children_s(), time.perf_counter()
    run = moeshard if name == "moeshard" else lambda *rest: peer(name, *rest)
    found = run(args, folder, batch)
    found["process_cpu_s"] = children_s() - own
    found["others_cores"] = (busy_s() - children_s() - before) / (time.perf_counter() - start)
    return found


def compare(args):
    unknown = set(args.items) - set(ITEMS)
    if unknown:
        raise SystemExit(f"decentralized.py: no item {', '.join(sorted(unknown))} (see --help)")
    args.threads = args.threads or len(os.sched_getaffinity(0))
    results = []
    print(f"{'nodes':<6} {'program':<9} {'training s':>10} {'accuracy %':>10} {'ratio':>7} {'others':>7}")
    for item in args.items or ITEMS:
        n_nodes, batch = ITEMS[item]
        folder, rounds = setup(args, n_nodes), {name: [] for name in PROGRAMS}
        for _ in range(args.rounds):
            for name in PROGRAMS:
                rounds[name].append(turn(name, args, folder, batch))
        results.append(result(item, batch, rounds))
        for name in PROGRAMS:
            print(line(item, name, results[-1][name]), flush=True)
    if args.record:
        write(args, results)


def result(item, batch, rounds):
    found = {"n_nodes": int(item), "batch": batch}
    medians = {name: statistics.median(r["train_s"] for r in rounds[name]) for name in PROGRAMS}
    for name in PROGRAMS:
        found[name] = {
            "train_s": medians[name],
            "accuracy": statistics.mean(r["accuracy"]["mean"] for r in rounds[name]),
            "ratio": medians[name] / medians["moeshard"],
            "rounds": rounds[name],
        }
    return found


def line(item, name, found):
    others = statistics.mean(r["others_cores"] for r in found["rounds"])
    accuracy = 100 * found["accuracy"]
    return f"{item:<6} {name:<9} {found['train_s']:>10.2f} {accuracy:>10.2f} {found['ratio']:>6.2f}x {others:>7.2f}"


def write(args, results):
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    program = subprocess.run([args.moeshard, "--version"], check=True, stdout=subprocess.PIPE, text=True)
    made_with = {
        "processor": models[0].split(":")[1].strip() if models else "unknown",
        "n_threads": args.threads,
        "moeshard": program.stdout.split()[-1],
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "torch": version("torch"),
        "rounds": args.rounds,
        "epochs": args.epochs,
    }
    path = Path(args.record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made_with": made_with, "items": results}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moeshard", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--record", metavar="FILE")
    parser.add_argument("items", nargs="*", metavar="ITEM")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
