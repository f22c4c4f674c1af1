//! The docker provider against a real Docker Engine with runc and gVisor, as `scripts/setup-test-host.sh` sets it up.

mod conformance;
mod host;
mod network;
mod outside;
