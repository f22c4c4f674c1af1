#!/usr/bin/env bash
# Starts a server with an API key, and runs smoke-deployment.sh against it.
#
# STACYVM_SMOKE_PORT (17423), STACYVM_API_KEY, STACYVM_SMOKE_LOG, STACYVM_DATABASE_PATH, STACYVM_BIN,
# STACYVM_PROVIDERS_DEFAULT (mock)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

port=${STACYVM_SMOKE_PORT:-17423}
key=${STACYVM_API_KEY:-smoke-0123456789abcdef0123456789abcdef}
binary=${STACYVM_BIN:-target/debug/stacyvm}
provider=${STACYVM_PROVIDERS_DEFAULT:-mock}
work=$(mktemp -d)
log=${STACYVM_SMOKE_LOG:-$work/server.log}

STACYVM_DATA_DIR=$work/data STACYVM_DATABASE_PATH=${STACYVM_DATABASE_PATH:-$work/data/stacyvm.db} \
  STACYVM_SERVER_HOST=127.0.0.1 STACYVM_SERVER_PORT=$port STACYVM_AUTH_API_KEY=$key STACYVM_API_KEY= \
  STACYVM_PROVIDERS_DEFAULT=$provider STACYVM_PROVIDERS_MOCK_ENABLED=true STACYVM_PROVIDERS_NATIVE_ENABLED=false \
  STACYVM_PROVIDERS_DOCKER_SOCKET=${STACYVM_TEST_DOCKER_HOST:-} \
  "$binary" serve >"$log" 2>&1 </dev/null &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -rf "$work"' EXIT

for _ in $(seq 100); do
  if curl --silent --fail --max-time 1 --header "X-API-Key: $key" "http://127.0.0.1:$port/api/v1/live" >/dev/null; then
    STACYVM_API_KEY=$key scripts/smoke-deployment.sh "http://127.0.0.1:$port"
    exit 0
  fi
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
echo "the server did not come up:" >&2
cat "$log" >&2
exit 1
