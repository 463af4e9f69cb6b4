#!/usr/bin/env bash
# Switch encoders of the published sizes on PyTorch and on moeshard, in turns, on the same
# checkpoint with the same token ids.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: benches/peer/switch_torch.sh [--record FILE] [ITEM...]

Makes checkpoints of Switch-base-8 and Switch-base-64 encoders (google/switch-base-8's shape,
meaningless weights in bf16, 0.6 and 3.9 GB) under target/peer, and prints the median time and rate
of a forward pass on PyTorch (transformers' SwitchTransformersEncoderModel, inference mode, nothing
dropped) and in `moeshard bench`, with the ratio. Rounds alternate between the two.

  ITEM           base-8-bf16-16x128, base-8-f32-16x128, base-64-bf16-1x128 or base-8-bf16-1x16
                 [default: all]
  --record FILE  write every round as JSON, for instance under benches/results

Environment:
  ROUNDS        turns of each program [default: 5]
  SECONDS_EACH  seconds of a turn, at least three forward passes [default: 3]
  THREADS       threads of each program [default: one a core]
  PYTHON        a Python with the packages of benches/peer/requirements.txt: torch, transformers,
                safetensors [default: python3]
  MOESHARD      the program to use [default: built by cargo]

The machine should do nothing else meanwhile.
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

"$python" -c 'import torch, transformers, safetensors' || {
  echo "switch_torch.sh: $python lacks packages: $python -m pip install -r $here/requirements.txt" >&2
  exit 1
}
if [[ -z ${MOESHARD:-} ]]; then
  (cd "$root" && cargo build --release --quiet --bin moeshard)
  MOESHARD=${CARGO_TARGET_DIR:-$root/target}/release/moeshard
fi
exec "$python" "$here/switch_torch.py" compare \
  --moeshard "$MOESHARD" --dir "$root/target/peer" \
  --rounds "${ROUNDS:-5}" --seconds "${SECONDS_EACH:-3}" --threads "${THREADS:-0}" "$@"
