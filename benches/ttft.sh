#!/usr/bin/env bash
# Time to first result of a server at given request rates: starts a server (or takes one), loads
# it, prints the table, writes the JSON, and stops what it started.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: benches/ttft.sh [--json FILE] [URL] [-- OPTION...]

Prints TTFT (p50, p90, p99, max), requests/s and tokens/s at each rate. Arrivals are open loop,
every latency counts from the scheduled send. OPTIONs after `--` go to `moeshard loadtest`.

  URL            load this server; without it, one with the built-in model is started and stopped
  --json FILE    where the report goes [default: benches/results/ttft-<time>.json]

Environment:
  URL            the same as the argument
  RATES          requests per second, separated by spaces or commas [default: "2 10 50"]
  DURATION       seconds per rate [default: 20]
  READY_TIMEOUT  seconds until the server must be ready [default: 120]
  SERVE_ARGS     options for the server that is started, separated by spaces
  MOESHARD       the program to use [default: built by cargo]
EOF
}

die() {
  printf 'ttft.sh: %s\n' "$*" >&2
  exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
url=${URL:-}
json=
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --json)
      (($# >= 2)) || die "--json needs a file"
      json=$2
      shift 2
      ;;
    --json=*)
      json=${1#--json=}
      shift
      ;;
    --)
      shift
      break
      ;;
    -*) die "unknown option $1 (see --help)" ;;
    *)
      url=$1
      shift
      ;;
  esac
done

rates=${RATES:-2 10 50}
rates=$(tr -s ', \n' ',' <<<"$rates")
rates=${rates#,}
rates=${rates%,}
duration=${DURATION:-20}
ready_timeout=${READY_TIMEOUT:-120}
json=${json:-$root/benches/results/ttft-$(date -u +%Y%m%dT%H%M%SZ).json}

server_pid=
load_pid=
work=$(mktemp -d)

# SIGTERM lets the server finish what it accepted; it gets ten seconds for that.
stop_server() {
  [[ -n $server_pid ]] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true
  for _ in {1..100}; do
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$server_pid" 2>/dev/null || true
  wait "$server_pid" 2>/dev/null || true
  server_pid=
}

cleanup() {
  [[ -z $load_pid ]] || kill -TERM "$load_pid" 2>/dev/null || true
  stop_server
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

find_program() {
  if [[ -n ${MOESHARD:-} ]]; then
    printf '%s\n' "$MOESHARD"
    return
  fi
  (cd "$root" && cargo build --release --quiet -p moeshard) >&2
  local target=${CARGO_TARGET_DIR:-target}
  # A relative folder is meant from where cargo ran.
  [[ $target == /* ]] || target=$root/$target
  printf '%s\n' "$target/release/moeshard"
}

# Prints a port that nothing listens on. Another program may take it before the server binds it;
# the server then says so and ends, and so does this script.
free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      printf '%s\n' "$port"
      return
    fi
  done
  die "no free port found"
}

# Status of GET /ready, 000 without an answer.
ready_status() {
  curl --silent --output /dev/null --max-time 5 --write-out '%{http_code}' "$1/ready" || true
}

wait_ready() {
  local deadline=$((SECONDS + ready_timeout)) status
  while true; do
    status=$(ready_status "$1")
    [[ $status == 200 ]] && return
    if [[ -n $server_pid ]] && ! kill -0 "$server_pid" 2>/dev/null; then
      cat "$work/server.log" >&2
      die "the server ended before it was ready"
    fi
    if ((SECONDS >= deadline)); then
      [[ -z $server_pid ]] || tail -n 20 "$work/server.log" >&2
      die "$1/ready did not answer 200 within $ready_timeout s (last status: $status)"
    fi
    sleep 0.2
  done
}

start_server() {
  local port serve_args
  port=$(free_port)
  url=http://127.0.0.1:$port
  read -r -a serve_args <<<"${SERVE_ARGS:-}"
  "$program" serve --hostname 127.0.0.1 --port "$port" ${serve_args[@]+"${serve_args[@]}"} \
    >"$work/server.log" 2>&1 &
  server_pid=$!
}

command -v curl >/dev/null || die "curl is needed"
program=$(find_program)
[[ -x $(command -v "$program") ]] || die "no program at $program"
[[ -n $url ]] || start_server

# The health routes are at the root of the server, whatever route is loaded.
origin=$(sed -E 's|^(http://[^/]+).*|\1|' <<<"$url")
wait_ready "$origin"
# In the background, because the shell runs its traps only between foreground commands.
"$program" loadtest --url "$url" --request-rate "$rates" --duration "$duration" \
  --output "$json" "$@" &
load_pid=$!
status=0
wait "$load_pid" || status=$?
load_pid=
((status == 0)) || exit "$status"
printf 'report: %s\n' "$json"
