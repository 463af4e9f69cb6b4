"""D-SGD on all nodes at once in NumPy: models are one matrix with a row for each node.

Gradients are batched products over a few nodes whose batches fit in a core's cache, shared by as
many threads as there are cores. BLAS itself runs on one: with products so small its own threads
wait for each other more than they compute. See decentralized.sh.
"""

import os

# Before the import, which starts BLAS's threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from decentralized_data import LEARNING_RATE, N_CLASSES, N_FEATURES, Clock, peer

# Values of a batch of features that are worked on at a time: 512 KiB, half of a second-level cache.
CHUNK = 1 << 17
N_WEIGHTS = N_CLASSES * N_FEATURES


class Chunk:
    """Some nodes, and memory to compute their gradients in."""

    def __init__(self, nodes, batch):
        self.nodes, n = nodes, nodes.stop - nodes.start
        self.x = np.empty((n * batch, N_FEATURES), np.float32)
        self.y = np.empty((n * batch, N_CLASSES), np.float32)
        self.gradient = np.empty((n, N_CLASSES, N_FEATURES), np.float32)

    def step(self, features, one_hot, batch, models):
        """`θ = θ − η·g` of these nodes, in place; `batch` is `[n_nodes, batch_size]`."""
        batch, models = batch[self.nodes], models[self.nodes]
        n, size = batch.shape
        x, y, batch = self.x[: n * size], self.y[: n * size], batch.ravel()
        # In the default mode, `raise`, it would gather elsewhere and copy.
        np.take(features, batch, axis=0, out=x, mode="clip")
        np.take(one_hot, batch, axis=0, out=y, mode="clip")
        x, y = x.reshape(n, size, N_FEATURES), y.reshape(n, size, N_CLASSES)
        weights = models[:, :N_WEIGHTS].reshape(n, N_CLASSES, N_FEATURES)
        biases = models[:, N_WEIGHTS:]
        d = x @ weights.transpose(0, 2, 1)
        d += biases[:, None]
        d -= d.max(axis=2, keepdims=True)
        np.exp(d, out=d)
        d /= d.sum(axis=2, keepdims=True)
        d -= y
        d *= np.float32(LEARNING_RATE / size)
        np.matmul(d.transpose(0, 2, 1), x, out=self.gradient)
        weights -= self.gradient
        biases -= d.sum(axis=1)


def rows_of_matrix(mixing, rows, n_nodes):
    """A function of models and an output that writes these rows of `W · models`."""
    i, j, weights = mixing
    try:
        from scipy.sparse import csr_array
    except ImportError:
        lists = [(node, j[i == node], weights[i == node]) for node in range(rows.start, rows.stop)]

        def mix(models, out):
            for node, neighbors, weights in lists:
                np.dot(weights, models[neighbors], out=out[node])

        return mix
    part = csr_array((weights, (i, j)), shape=(n_nodes, n_nodes))[rows]

    def mix(models, out):
        out[rows] = part @ models

    return mix


def parts(n, n_parts):
    return [slice(i * n // n_parts, (i + 1) * n // n_parts) for i in range(n_parts)]


def train(features, labels, nodes, mixing, models, args):
    n_nodes, n_examples = nodes.shape
    one_hot = np.eye(N_CLASSES, dtype=np.float32)[labels]
    rng = np.random.default_rng(args.seed)
    at_once = max(1, CHUNK // (args.batch * N_FEATURES))
    chunks = [Chunk(nodes, args.batch) for nodes in parts(n_nodes, -(-n_nodes // at_once))]
    mixes = [rows_of_matrix(mixing, rows, n_nodes) for rows in parts(n_nodes, args.threads)]
    averaged = np.empty_like(models)
    clock = Clock()
    with ThreadPoolExecutor(args.threads) as pool:
        clock.start()
        for _ in range(args.epochs):
            order = rng.permuted(nodes, axis=1)
            for first in range(0, n_examples, args.batch):
                batch = order[:, first : first + args.batch]
                list(pool.map(lambda chunk: chunk.step(features, one_hot, batch, models), chunks))
                list(pool.map(lambda mix: mix(models, averaged), mixes))
                models, averaged = averaged, models
        times = clock.stop()
    return models, times


if __name__ == "__main__":
    peer(train)
