#!/usr/bin/env bash
# What `make test` runs. Every part runs even if an earlier one failed; the end says what was run and what was not.
#
# STACYVM_TEST_ONLY="unit sdk": only these parts.
# STACYVM_DOCKER_INTEGRATION: 1 fails where there can be no Docker Engine, 0 leaves the docker provider out; unset runs its
# tests where there can be one. It is an engine of the tests' own, stopped at the end unless it ran before.
# STACYVM_PROVIDERS_DEFAULT: provider of the smoke test's server (mock).
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
  if [ -n "${STACYVM_TEST_ONLY:-}" ] && [[ " $STACYVM_TEST_ONLY " != *" $name "* ]] && [ "$name" != engine ]; then
    return
  fi
  printf '\n== %s\n' "$name"
  local start=$SECONDS
  # In this shell and not in a pipe: a part may set variables for those behind it.
  if "$@" > >(tee "$report/$name.log") 2>&1; then
    printf '== %s: ok (%d s)\n' "$name" $((SECONDS - start))
  else
    printf '== %s: FAILED (%d s)\n' "$name" $((SECONDS - start))
    failed+=("$name")
  fi
}

# A Docker Engine of the tests' own. What it needs is installed.
engine() {
  local script=scripts/setup-test-host.sh code
  if [ "${STACYVM_DOCKER_INTEGRATION:-}" = 0 ]; then
    export STACYVM_TEST_DOCKER_WHY="STACYVM_DOCKER_INTEGRATION is 0"
    echo "docker: not run: $STACYVM_TEST_DOCKER_WHY"
    return 0
  fi
  $script status >/dev/null 2>&1 || stop_engine=$script
  $script up 2>&1 | tee "$report/engine.out"
  code=${PIPESTATUS[0]}
  if [ "$code" = 0 ]; then
    set -a
    # shellcheck disable=SC1090
    . <($script env)
    set +a
    return 0
  fi
  export STACYVM_TEST_DOCKER_WHY=$(sed -n 's/^docker: not available: //p' "$report/engine.out" | tail -n 1)
  # Only what a host cannot have may be left out, and nothing that was asked for.
  [ "$code" = 3 ] && [ "${STACYVM_DOCKER_INTEGRATION:-}" != 1 ]
}
trap '[ -z "${stop_engine:-}" ] || $stop_engine down >/dev/null' EXIT

docker_provider() {
  if [ -z "${STACYVM_TEST_DOCKER_HOST:-}" ]; then
    echo "docker: not run: ${STACYVM_TEST_DOCKER_WHY:-the engine was not started}"
    return 0
  fi
  cargo test --quiet -p stacyvm-e2e --features docker --test docker --no-fail-fast -- --test-threads=1
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
# What tests of single crates run beside us, such as a registry. They say what they did not find.
[ "${STACYVM_DOCKER_INTEGRATION:-}" = 0 ] || part packages scripts/setup-test-host.sh packages
part unit cargo test --quiet --workspace --exclude stacyvm-e2e --no-fail-fast
part e2e cargo test --quiet -p stacyvm-e2e --no-fail-fast -- --test-threads=1
part engine engine
part docker docker_provider
part sdk sdk
part smoke scripts/ci-smoke-deployment.sh
part leaks cargo run --quiet -p xtask -- leak-check
part report cargo run --quiet -p xtask -- test-report "$report"

echo
if [ ${#failed[@]} -gt 0 ]; then
  # Again at the end, where it is found: a part's own output may be thousands of lines up.
  for name in "${failed[@]}"; do
    printf '== the end of %s:\n' "$name"
    grep -vE '^(passed|not run) ' "$report/$name.log" | tail -n 40
  done
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all parts passed"
