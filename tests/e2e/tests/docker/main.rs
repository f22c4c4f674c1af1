//! The docker provider against a real Docker Engine with runc and gVisor, as `scripts/setup-test-host.sh` sets it up.

mod behind_our_back;
mod conformance;
mod cycles;
mod daemon_restarts;
mod hardening;
mod host;
mod images;
mod inside;
mod limits;
mod native_images;
mod network;
mod outside;
mod probe;
mod row;
mod runtimes;
mod server_restarts;
