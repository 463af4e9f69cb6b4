"""What the peers of decentralized.sh train on: MNIST, and a set-up that all three share.

A set-up is a folder: `partition.csv` (which node has which example, as `--partition file:PATH`
reads it) and `topology.json`, which `moeshard train` writes.
"""

import gzip
import json
import resource
import time
from pathlib import Path

import numpy as np

N_TRAIN = 50_000
N_FEATURES, N_CLASSES = 784, 10
LEARNING_RATE = 0.1
# MNIST's mean and standard deviation, of pixels between 0 and 1.
MEAN, STD = 0.1307, 0.3081


def read_idx(folder, name):
    """The numbers of an IDX file, plain or gzipped."""
    path = Path(folder) / name
    raw = path.read_bytes() if path.exists() else gzip.open(f"{path}.gz").read()
    n_dims = raw[3]
    shape = np.frombuffer(raw, ">u4", n_dims, 4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * n_dims).reshape(shape)


def mnist(folder, split, n=None):
    """Features `[n, 784]` in float32 and labels `[n]`."""
    images = read_idx(folder, f"{split}-images-idx3-ubyte")[:n]
    labels = read_idx(folder, f"{split}-labels-idx1-ubyte")[:n].astype(np.int64)
    pixels = images.reshape(len(images), N_FEATURES).astype(np.float32) / np.float32(255)
    return (pixels - np.float32(MEAN)) / np.float32(STD), labels


def write_partition(path, labels, n_nodes, seed):
    """Two shards a node: examples sorted by label, cut into equal shards, dealt out at random."""
    shards = np.argsort(labels, kind="stable").reshape(2 * n_nodes, -1)
    dealt = np.random.default_rng(seed).permutation(2 * n_nodes)
    nodes = shards[dealt].reshape(n_nodes, -1)
    lines = [f"{example},{node}\n" for node, examples in enumerate(nodes) for example in examples]
    path.write_text("example,node\n" + "".join(lines))


def read_partition(path):
    """The examples of each node, `[n_nodes, n_examples]`."""
    rows = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.int64)
    return rows[:, 0].reshape(rows[-1, 1] + 1, -1)


def read_mixing(path):
    """W as lists of rows, columns and weights."""
    rows = json.loads(Path(path).read_text())["rounds"][0]
    entries = [(i, j, weight) for i, row in enumerate(rows) for j, weight in row]
    i, j, weights = zip(*entries)
    return np.array(i), np.array(j), np.array(weights, np.float32)


def initial(n_nodes, seed):
    """Weights and bias of each node, uniform within 1/28, `[n_nodes, 7850]`."""
    bound = 1 / N_FEATURES**0.5
    rng = np.random.default_rng(seed)
    return rng.uniform(-bound, bound, (n_nodes, N_CLASSES * (N_FEATURES + 1))).astype(np.float32)


def accuracy(models, features, labels):
    """The mean over nodes, and the worst and the best, of the share of right answers."""
    weights = models[:, : N_CLASSES * N_FEATURES].reshape(-1, N_CLASSES, N_FEATURES)
    biases = models[:, N_CLASSES * N_FEATURES :]
    right = [np.mean((features @ w.T + b).argmax(1) == labels) for w, b in zip(weights, biases)]
    return {"mean": float(np.mean(right)), "min": float(np.min(right)), "max": float(np.max(right))}


class Clock:
    """Seconds, and seconds of all cores together, of what runs between `start` and `stop`."""

    def start(self):
        self.began = time.perf_counter(), self.cpu()

    def stop(self):
        wall, cpu = self.began
        return {"train_s": time.perf_counter() - wall, "train_cpu_s": self.cpu() - cpu}

    @staticmethod
    def cpu():
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime


def peer(train):
    """The command line of a peer: `train(features, labels, nodes, mixing, models, args)`, which
    returns models and a stopped clock."""
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--setup", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    features, labels = mnist(args.data, "train", N_TRAIN)
    nodes = read_partition(args.setup / "partition.csv")
    mixing = read_mixing(args.setup / "topology.json")
    models, times = train(features, labels, nodes, mixing, initial(len(nodes), args.seed), args)
    print(json.dumps(times | {"accuracy": accuracy(models, *mnist(args.data, "t10k"))}))
