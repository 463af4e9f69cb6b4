"""STL-FW with ties broken by a fixed order, trained by moeshard on 100 nodes of one class.

Between equally good permutations moeshard draws by chance. SciPy's solver of the assignment problem
always takes the same one, and the graphs mix slowly or come apart. This learns the topologies of
table D with SciPy, for the classes that moeshard deals to the nodes, and has moeshard train on them:

    cargo build --release
    MOESHARD_DATA=DIR python3 benches/peer/stl_fw_ties.py

needs numpy and scipy (benches/peer/requirements.txt), and MNIST's files in DIR/mnist.
"""

import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

MOESHARD = "target/release/moeshard"
DATA = "--task mnist --train-examples 50000 --nodes 100 --partition one-class".split()
TRAIN = "--batch-size 128 --learning-rate 0.1 --epochs 100 --evaluate-every 100 --allow-disconnected".split()
LAMBDA = 0.1
N_CLASSES = 10


def moeshard(*args):
    done = subprocess.run([MOESHARD, *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return done.stdout + done.stderr


def classes_of_nodes(folder, seed):
    file = folder / "ring.json"
    moeshard("topology", "build", "--topology", "ring", *DATA, "--seed", seed, "--out", file)
    return np.array(json.loads(file.read_text())["classes"]).argmax(1)


def learn(classes, degree):
    """Algorithm 2 of arXiv:2204.04452, `degree` iterations from the identity."""
    n = len(classes)
    pi = np.eye(N_CLASSES)[classes]
    mean, j, w = pi.mean(0), np.full((n, n), 1 / n), np.eye(n)
    for _ in range(degree):
        gradient = (w @ pi - mean) @ pi.T + LAMBDA * (w - j)
        step = np.eye(n)[linear_sum_assignment(gradient)[1]] - w
        gain = ((mean - w @ pi) * (step @ pi)).sum() - LAMBDA * ((w - j) * step).sum()
        w = w + gain / (((step @ pi) ** 2).sum() + LAMBDA * (step**2).sum()) * step
    return w


def accuracy(folder, w, seed):
    """Percent, mean over nodes."""
    rows = [[[int(j), float(row[j])] for j in np.nonzero(row)[0]] for row in w]
    topology = folder / "fixed-ties.json"
    topology.write_text(json.dumps({"topology": "STL-FW, fixed ties", "rounds": [rows]}))
    out = moeshard(
        "train", *DATA, *TRAIN, "--topology", f"file:{topology}", "--seed", seed,
        "--out", folder / f"run-{len(list(folder.iterdir()))}",
    )
    return float(re.search(r"([\d.]+) % right", out).group(1))


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        classes = {seed: classes_of_nodes(folder, seed) for seed in ("1", "2", "3")}
        for degree in (9, 5, 3):
            learned = {seed: learn(classes[seed], degree) for seed in classes}
            parts = [connected_components(w)[0] for w in learned.values()]
            right = [accuracy(folder, w, seed) for seed, w in learned.items()]
            print(f"d {degree}: {statistics.mean(right):.2f} % ({right}), components {parts}", flush=True)


if __name__ == "__main__":
    main()
