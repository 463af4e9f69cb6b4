#!/usr/bin/env bash
# Decentralized SGD on MNIST in moeshard, in NumPy and in PyTorch, in turns, on the same partition
# and topology.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: benches/peer/decentralized.sh [--record FILE] [ITEM...]

Trains a linear classifier of MNIST on the nodes of a D-Cliques topology, two shards of 50,000
examples a node, learning rate 0.1, and prints the median time of training alone (evaluation is not
in it) and the accuracy of

  moeshard  `moeshard train`
  numpy     a script that computes all nodes at once: batched products, sparse mixing
  torch     a loop over nodes with a model and an optimiser each, as the papers' simulators do

with the ratios to moeshard. All have the same data, normalisation, partition, mixing matrix, batch
size and number of epochs, and float32 throughout. Rounds alternate between the three.

  ITEM           100 (batches of 128) or 1000 (batches of 13) nodes [default: both]
  --record FILE  write every round as JSON, for instance under benches/results

Environment:
  MOESHARD_DATA  folder with MNIST's IDX files, plain or gzipped, in mnist/
  ROUNDS         turns of each program [default: 3]
  EPOCHS         epochs of a turn [default: 100]
  THREADS        threads of each program [default: one a core]
  PYTHON         a Python with numpy, scipy and torch (benches/peer/requirements.txt)
                 [default: python3]
  MOESHARD       the program to use [default: built by cargo]

The machine should do nothing else meanwhile; how many cores others used is printed.
TEXT
}

case ${1:-} in -h | --help)
  usage
  exit 0
  ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}

"$python" -c 'import numpy, scipy, torch' || {
  echo "decentralized.sh: $python lacks packages: $python -m pip install -r $here/requirements.txt" >&2
  exit 1
}
if [[ -z ${MOESHARD_DATA:-} || ! -d $MOESHARD_DATA/mnist ]]; then
  echo "decentralized.sh: set MOESHARD_DATA to a folder with mnist/ in it" >&2
  exit 1
fi
if [[ -z ${MOESHARD:-} ]]; then
  (cd "$root" && cargo build --release --quiet --bin moeshard)
  MOESHARD=${CARGO_TARGET_DIR:-$root/target}/release/moeshard
fi
exec "$python" "$here/decentralized.py" \
  --moeshard "$MOESHARD" --data "$MOESHARD_DATA/mnist" --dir "$root/target/peer" \
  --rounds "${ROUNDS:-3}" --epochs "${EPOCHS:-100}" --threads "${THREADS:-0}" "$@"
