#!/usr/bin/env bash
# What `make test` runs. Every part runs even if an earlier one failed; the end says what was run and what was not.
#
# STACYVM_TEST_ONLY="unit sdk": only these parts.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"

report=$PWD/target/test-report
export STACYVM_TEST_REPORT=$report
export STACYVM_BIN=${STACYVM_BIN:-$PWD/target/debug/stacyvm}
rm -rf "$report"
mkdir -p "$report"

if [ "$(id -u)" != 0 ]; then
  echo "make test needs root: the native runtime is tested for real. Run: sudo env PATH=\"\$PATH\" make test" >&2
  exit 1
fi

failed=()
part() { # name, command…
  local name=$1
  shift
  if [ -n "${STACYVM_TEST_ONLY:-}" ] && [[ " $STACYVM_TEST_ONLY " != *" $name "* ]]; then
    return
  fi
  printf '\n== %s\n' "$name"
  local start=$SECONDS
  if "$@"; then
    printf '== %s: ok (%d s)\n' "$name" $((SECONDS - start))
  else
    printf '== %s: FAILED (%d s)\n' "$name" $((SECONDS - start))
    failed+=("$name")
  fi
}

sdk() {
  local venv=$PWD/target/sdk-venv
  if ! cmp -s tests/sdk/requirements.txt "$venv/requirements.txt"; then
    rm -rf "$venv"
    if ! python3 -m venv "$venv" 2>/dev/null; then
      apt-get install -y -qq --no-install-recommends python3-venv >/dev/null && python3 -m venv "$venv" || return 1
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/sdk/requirements.txt || return 1
    cp tests/sdk/requirements.txt "$venv/"
  fi
  "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/sdk
}

part build cargo build --quiet -p stacyvm
part unit cargo test --quiet --workspace --exclude stacyvm-e2e --no-fail-fast
part e2e cargo test --quiet -p stacyvm-e2e --no-fail-fast -- --test-threads=1
part sdk sdk
part smoke scripts/ci-smoke-deployment.sh
part leaks cargo run --quiet -p xtask -- leak-check
part report cargo run --quiet -p xtask -- test-report "$report"

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all parts passed"
