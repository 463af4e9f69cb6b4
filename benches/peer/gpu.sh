#!/usr/bin/env bash
# The CUDA engine and PyTorch on the same GPU, one after the other.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: benches/peer/gpu.sh [FOLDER]

Checks the engine on this machine's first GPU, measures it and PyTorch on the same work, and writes
gpu-check.json, gpu-check.md, peer.json and http.json into FOLDER [default: target/gpu]; prints
both beside each other.

Environment:
  GPU_CHECK, MOESHARD  the programs to use [default: built by cargo; needs the kernels, see
                       `cargo xtask cuda`]
  MODELS               folder for two models by chance, some 9 GB [default: FOLDER/models]
  CUDA_LIBS            folder of cuBLASLt: the engine is measured once more with dense layers on it,
                       into FOLDER/cublaslt [default: left out]
  PYTHON               a Python with torch for CUDA and transformers; without one PyTorch is left
                       out [default: python3]
  PORT                 of the server that is asked over HTTP [default: 3917]
TEXT
}

case ${1:-} in -h | --help)
  usage
  exit 0
  ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$root/target/gpu}
models=${MODELS:-$out/models}
python=${PYTHON:-python3}
port=${PORT:-3917}
mkdir -p "$out"

if [[ -z ${GPU_CHECK:-} || -z ${MOESHARD:-} ]]; then
  (cd "$root" && cargo build --release --quiet -p moeshard -p moeshard-gpu-check)
  built=${CARGO_TARGET_DIR:-$root/target}/release
  GPU_CHECK=${GPU_CHECK:-$built/gpu-check} MOESHARD=${MOESHARD:-$built/moeshard}
fi

"$GPU_CHECK" --out "$out" --models "$models"
if [[ -n ${CUDA_LIBS:-} ]]; then
  mkdir -p "$out/cublaslt"
  "$GPU_CHECK" --out "$out/cublaslt" --models "$models" --cuda-libs "$CUDA_LIBS"
fi

# One text of 16 tokens at a time, over HTTP.
"$MOESHARD" serve --gpus 1 --model "$models/nomic-embed-text-v2-moe" --hostname 127.0.0.1 \
  --port "$port" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do
  kill -0 "$server"
  sleep 0.2
done
seq 0 199 | awk '{ line = ""; for (i = 1; i <= 16; i++) line = line " w" (($1 * 7 + i * 13) % 1000); print line }' \
  >"$out/texts.txt"
"$MOESHARD" loadtest --url "http://127.0.0.1:$port" --inputs "$out/texts.txt" \
  --request-rate inf --max-concurrency 1 --num-prompts 500 --json "$out/http.json"
kill "$server"
wait "$server" || true

if "$python" -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
  "$python" "$here/gpu.py" --out "$out"
else
  echo "gpu.sh: $python has no torch with CUDA and transformers: PyTorch was left out" >&2
fi
