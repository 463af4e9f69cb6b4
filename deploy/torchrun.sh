#!/usr/bin/env bash
# One model over N processes of this machine, started by PyTorch's torchrun:
#
#   deploy/torchrun.sh 4 --model DIR --port 3000
#   deploy/torchrun.sh 8 --device cuda --model DIR          # a GPU each
#
# or over several machines, on each of which it is called with its number:
#
#   TORCHRUN_FLAGS="--nnodes 2 --node-rank 0 --master-addr node-1 --master-port 29500" deploy/torchrun.sh 4 --model DIR
#
# Rank 0, on the machine 0, serves HTTP, and meets the others at the port behind torchrun's (29501 above).
set -euo pipefail

n=${1:?usage: deploy/torchrun.sh N [flags of moeshard serve]}
shift

# Threads are the program's own business; torchrun would set OMP_NUM_THREADS, which moeshard does not read.
# shellcheck disable=SC2086 # TORCHRUN_FLAGS are words
exec "${TORCHRUN:-torchrun}" ${TORCHRUN_FLAGS:---standalone} --nproc-per-node "$n" --no-python \
    "${MOESHARD:-moeshard}" serve "$@"
