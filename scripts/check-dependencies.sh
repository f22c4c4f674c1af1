#!/usr/bin/env bash
# Dependency policy (deny.toml): licences, bans, sources. Installs cargo-deny when it is missing and CI asks for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v cargo-deny >/dev/null; then
  echo "dependency policy: not run: cargo-deny is not installed (cargo install --locked cargo-deny)"
  exit 0
fi
# Advisories need a download of their own; `cargo deny check advisories` runs where that is possible.
cargo deny --offline check bans licenses sources
