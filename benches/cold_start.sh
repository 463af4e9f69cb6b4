#!/usr/bin/env bash
# How long a server takes from its start to `/ready` with a 2 GB checkpoint that is not in the page
# cache, against a plain sequential read of the same file. Rounds alternate between the two.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: benches/cold_start.sh [SERVE OPTION...]

Makes a checkpoint of 1.9 GB (nomic-embed-text-v2-moe's shape in f32, meaningless weights) under
target/cold-start, and prints the time of `dd`, the time until the server is ready, and their ratio.

Environment:
  ROUNDS     how often each is measured [default: 5]
  MEMORY     `backed`: memory is used and freed before each measurement, so that a virtual machine
             has it at hand; `fresh`: 5 s of rest in the place of it, in which a host may take free
             memory back [default: backed]
  MOESHARD   the program to use [default: built by cargo]

Emptying the page cache takes root; otherwise only this file is asked to leave it.
TEXT
}

case ${1:-} in -h | --help)
  usage
  exit 0
  ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$root/target/cold-start
weights=$dir/model.safetensors
port=${PORT:-3917}

# Names and shapes of the tensors, one a line.
tensors() {
  local d=768 f=3072 e=8
  echo "embeddings.word_embeddings.weight 250048,$d"
  echo "embeddings.token_type_embeddings.weight 1,$d"
  echo "emb_ln.weight $d"
  echo "emb_ln.bias $d"
  local layer p
  for layer in {0..11}; do
    p=encoder.layers.$layer
    echo "$p.attn.Wqkv.weight $((3 * d)),$d"
    echo "$p.attn.Wqkv.bias $((3 * d))"
    echo "$p.attn.out_proj.weight $d,$d"
    echo "$p.attn.out_proj.bias $d"
    for norm in norm1 norm2; do
      echo "$p.$norm.weight $d"
      echo "$p.$norm.bias $d"
    done
    if ((layer % 2)); then
      echo "$p.mlp.router.layer.weight $e,$d"
      echo "$p.mlp.experts.mlp.w1 $((e * f)),$d"
      echo "$p.mlp.experts.mlp.w2 $((e * f)),$d"
      echo "$p.mlp.experts.bias $d"
    else
      echo "$p.mlp.fc1.weight $f,$d"
      echo "$p.mlp.fc1.bias $f"
      echo "$p.mlp.fc2.weight $d,$f"
      echo "$p.mlp.fc2.bias $d"
    fi
  done
}

# The safetensors header and, in `n_bytes`, the size of the data behind it.
make_header() {
  local name shape n at=0 entries=()
  while read -r name shape; do
    n=$((${shape//,/*} * 4))
    entries+=("\"$name\":{\"dtype\":\"F32\",\"shape\":[$shape],\"data_offsets\":[$at,$((at + n))]}")
    at=$((at + n))
  done < <(tensors)
  n_bytes=$at
  local IFS=,
  header="{${entries[*]}}"
  while ((${#header} % 8)); do header+=' '; done
}

# Eight little-endian bytes.
little_endian() {
  local n=$1 i
  for i in {1..8}; do
    # shellcheck disable=SC2059
    printf "\\x$(printf %02x $((n & 255)))"
    n=$((n >> 8))
  done
}

make_model() {
  make_header
  [[ -f $weights && $(stat -c %s "$weights") -eq $((8 + ${#header} + n_bytes)) ]] && return
  echo "making $weights" >&2
  mkdir -p "$dir"
  cp "$root/models/mini/tokenizer.json" "$dir/"
  cat >"$dir/config.json" <<'TEXT'
{"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": 768, "n_head": 12,
 "n_inner": 3072, "n_layer": 12, "n_positions": 512, "vocab_size": 250048, "type_vocab_size": 1,
 "activation_function": "gelu", "prenorm": false, "rotary_emb_fraction": 1.0,
 "rotary_emb_base": 10000, "rotary_emb_interleaved": false, "qkv_proj_bias": true,
 "mlp_fc1_bias": true, "mlp_fc2_bias": true, "layer_norm_epsilon": 1e-5, "pad_token_id": 1,
 "num_experts": 8, "moe_top_k": 2, "moe_every_n_layers": 2}
TEXT
  # Digits, read as f32, are small finite numbers: below 2e-5.
  { little_endian ${#header} && printf %s "$header" && yes 0123456 | head -c "$n_bytes"; } \
    >"$weights.part" || true
  mv "$weights.part" "$weights"
  sync "$weights"
}

# What free memory costs is the same for both: see MEMORY above.
prepare_memory() {
  case ${MEMORY:-backed} in
    backed)
      # Three times the file: its pages, the packed weights, and room.
      local filler=/dev/shm/moeshard-cold-start
      head -c $((3 * $(stat -c %s "$weights"))) /dev/zero >$filler || true
      rm -f $filler
      ;;
    fresh) sleep 5 ;;
    *)
      echo "MEMORY is $MEMORY, expected backed or fresh" >&2
      exit 2
      ;;
  esac
}

evict() {
  prepare_memory
  if [[ $(id -u) -eq 0 ]] && echo 3 2>/dev/null >/proc/sys/vm/drop_caches; then return; fi
  dd if="$weights" iflag=nocache count=0 status=none
}

now_ms() { date +%s%3N; }

time_dd() {
  evict
  local start
  start=$(now_ms)
  dd if="$weights" of=/dev/null bs=16M status=none
  echo $(($(now_ms) - start))
}

time_serve() {
  evict
  # The program itself is warm: its own pages are not what is measured.
  "$program" --version >/dev/null
  local start pid
  start=$(now_ms)
  "$program" serve --model "$dir" --hostname 127.0.0.1 --port "$port" "$@" >"$dir/log" 2>&1 &
  pid=$!
  until curl -sf -o /dev/null "http://127.0.0.1:$port/ready"; do
    if ! kill -0 $pid 2>/dev/null; then
      cat "$dir/log" >&2
      exit 1
    fi
    sleep 0.01
  done
  echo $(($(now_ms) - start))
  kill $pid
  wait $pid || true
}

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

program=${MOESHARD:-}
if [[ -z $program ]]; then
  (cd "$root" && cargo build --release --quiet)
  program=$root/target/release/moeshard
fi
make_model
dd_ms=() serve_ms=()
for ((round = 1; round <= ${ROUNDS:-5}; round++)); do
  dd_ms+=("$(time_dd)")
  serve_ms+=("$(time_serve "$@")")
  echo "round $round: dd ${dd_ms[-1]} ms, ready after ${serve_ms[-1]} ms"
done
a=$(printf '%s\n' "${dd_ms[@]}" | median)
b=$(printf '%s\n' "${serve_ms[@]}" | median)
best_a=$(printf '%s\n' "${dd_ms[@]}" | sort -n | head -1)
best_b=$(printf '%s\n' "${serve_ms[@]}" | sort -n | head -1)
ratio() { awk "BEGIN { printf \"%.2f\", $2 / $1 }"; }
echo "median: dd $a ms, ready after $b ms, ratio $(ratio "$a" "$b")"
echo "best: dd $best_a ms, ready after $best_b ms, ratio $(ratio "$best_a" "$best_b")"
