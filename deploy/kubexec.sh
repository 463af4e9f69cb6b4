#!/bin/sh
# Stands in for ssh where mpirun starts processes in other pods: `kubexec.sh POD.SERVICE COMMAND …`.
# mpirun is told to use it by `--mca plm_rsh_agent`.
set -eu
host=$1
shift
exec kubectl exec "${host%%.*}" --container moeshard -- /bin/sh -c "$*"
