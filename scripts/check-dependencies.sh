#!/usr/bin/env bash
# Dependency policy (deny.toml): licences, bans, sources. In CI cargo-deny is installed when it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v cargo-deny >/dev/null; then
  if [ -z "${CI:-}" ]; then
    echo "dependency policy: not run: cargo-deny is missing (cargo install --locked cargo-deny)"
    exit 0
  fi
  cargo install --quiet --locked cargo-deny
fi
# Crates of other platforms, which no build fetched, are fetched here. Advisories want a database of their own: `cargo deny check advisories`.
cargo deny --log-level error check bans licenses sources
