//! The static guest programs, embedded: agent and conformance probe.
