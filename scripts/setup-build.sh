#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. Quiet and quick when nothing is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

need() { # command, package that brings it
  command -v "$1" >/dev/null && return
  if ! command -v apt-get >/dev/null; then
    echo "setup: $1 is missing; install it (Debian's package: $2) and try again" >&2
    exit 1
  fi
  echo "setup: installing $2"
  [ -n "${updated:-}" ] || { as_root apt-get update -qq; updated=1; }
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

need cc gcc
need curl curl
need python3 python3
need ip iproute2
need setpriv util-linux

# A toolchain that was installed a moment ago is not on PATH yet.
[ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
if ! command -v rustup >/dev/null; then
  need rustup rustup
fi
channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
target=$(uname -m)-unknown-linux-musl
if ! rustup target list --installed --toolchain "$channel" 2>/dev/null | grep -qx "$target"; then
  echo "setup: installing Rust $channel with $target"
  rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy --target "$target" >/dev/null
fi
