#!/usr/bin/env bash
# One model over N processes, started by Open MPI's mpirun on this machine or on those of a host file:
#
#   deploy/mpirun.sh 4 --model DIR --port 3000
#   MPIRUN_FLAGS="--hostfile hosts --map-by ppr:1:node" deploy/mpirun.sh 4 --model DIR
#
# Rank 0, on the first host, serves HTTP. The program and the model must be in the same place on every host, and
# the program built with `--features mpi`.
set -euo pipefail

n=${1:?usage: deploy/mpirun.sh N [flags of moeshard serve]}
shift

# Threads are the program's own business: without --bind-to none every process would have one core.
# mpirun ends a job by SIGTERM, and kills after so many seconds: answers under way have this long.
# shellcheck disable=SC2086 # MPIRUN_FLAGS are words
exec "${MPIRUN:-mpirun}" ${MPIRUN_FLAGS:-} --bind-to none --mca odls_base_sigkill_timeout 5 \
    -n "$n" "${MOESHARD:-moeshard}" serve --device cpu "$@"
