#!/usr/bin/env bash
# The main job on real input: a Python program in an isolated sandbox, a file it wrote read back, everything gone after.
#
#   scripts/demo.sh [path to the stacyvm binary]
set -euo pipefail

stacyvm=$(realpath "${1:-target/release/stacyvm}")
if [ "$(id -u)" != 0 ]; then
  echo "The native runtime needs root; asking sudo."
  exec sudo --preserve-env=PATH "$0" "$stacyvm"
fi

work=$(mktemp -d)
data=$work/data
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export STACYVM_SERVER=http://127.0.0.1:$port
unset STACYVM_API_KEY
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ stacyvm %s\n' "$*"; "$stacyvm" "$@"; }

STACYVM_DATA_DIR=$data STACYVM_SERVER_HOST=127.0.0.1 STACYVM_SERVER_PORT=$port "$stacyvm" serve >"$work/server.log" 2>&1 </dev/null &
server=$!
cleanup() {
  kill "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
for _ in $(seq 100); do
  "$stacyvm" list >/dev/null 2>&1 && break
  kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
  sleep 0.05
done

cat >"$work/primes.py" <<'PYTHON'
import os, pathlib, platform

primes = [n for n in range(2, 60) if all(n % d for d in range(2, n))]
pathlib.Path("/workspace/primes.txt").write_text(" ".join(map(str, primes)) + "\n")
network = sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else "only its own loopback"
print(f"host name {platform.node()}, uid {os.getuid()}, {len([p for p in os.listdir('/proc') if p.isdigit()])} processes visible, network: {network}")
print(f"found {len(primes)} primes")
PYTHON

say "1. A sandbox: its own processes, files, network, no daemon, no image download"
start=$(date +%s%N)
show spawn --image host --ttl 5m
id=$("$stacyvm" list --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["id"])')

say "2. A Python program goes in and runs"
show cp "$work/primes.py" "$id:/workspace/primes.py"
show exec "$id" -- python3 primes.py

say "3. The file that it wrote comes back"
show cp "$id:/workspace/primes.txt" "$work/primes.txt"
cat "$work/primes.txt"

say "4. Gone: processes, mounts, cgroups, files"
show kill "$id"
show list
left=$({ grep -l -- "$id" /proc/[0-9]*/mountinfo /proc/[0-9]*/cmdline 2>/dev/null || true
  find /sys/fs/cgroup "$data" -name "*$id*" 2>/dev/null || true; } | wc -l)
[ "$left" = 0 ] || { echo "something of $id is left" >&2; exit 1; }
echo "nothing of $id is left on this host"
printf '\nDone in %d ms, from spawn to nothing left.\n' $((($(date +%s%N) - start) / 1000000))

say "Or all of it in one command"
command_start=$(date +%s%N)
printf "\$ stacyvm run -- python3 -c 'print(40+2)'\n"
env -u STACYVM_SERVER STACYVM_DATA_DIR="$data" "$stacyvm" run -- python3 -c 'print(40+2)'
printf 'in %d ms\n' $((($(date +%s%N) - command_start) / 1000000))
