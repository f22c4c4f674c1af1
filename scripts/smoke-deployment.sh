#!/usr/bin/env bash
# Checks a deployed server from outside: alive, healthy, ready, exporting metrics.
#
#   scripts/smoke-deployment.sh [url] [api-key]
#   STACYVM_SMOKE_URL=https://stacyvm.example.com STACYVM_API_KEY=… scripts/smoke-deployment.sh
#
# STACYVM_SMOKE_TIMEOUT: seconds for each request (5). Ends with 0 if all is well, at the first failure with 1.
set -euo pipefail

url=${1:-${STACYVM_SMOKE_URL:-http://127.0.0.1:7423}}
key=${2:-${STACYVM_API_KEY:-}}
timeout=${STACYVM_SMOKE_TIMEOUT:-5}
url=${url%/}

# The key goes through a file descriptor, so that it never shows in a process list.
fetch() {
  if [ -n "$key" ]; then
    curl --silent --show-error --fail-with-body --max-time "$timeout" --header @- "$url/api/v1/$1" <<<"X-API-Key: $key"
  else
    curl --silent --show-error --fail-with-body --max-time "$timeout" "$url/api/v1/$1"
  fi
}

check() { # path, text that the answer must hold
  local body
  printf 'Checking %s … ' "$url/api/v1/$1"
  if ! body=$(fetch "$1" 2>&1); then
    printf 'failed\n%s\n' "$body" >&2
    exit 1
  fi
  case $body in
    *"$2"*) printf 'ok\n' ;;
    *) printf 'failed: the answer does not hold %s\n%s\n' "$2" "${body:0:500}" >&2; exit 1 ;;
  esac
}

command -v curl >/dev/null || { echo "smoke-deployment.sh needs curl" >&2; exit 1; }
check live '"status":"alive"'
check health '"status":"ok"'
check ready '"status":"ready"'
check metrics/prometheus stacyvm_uptime_seconds
echo "$url: all checks passed"
