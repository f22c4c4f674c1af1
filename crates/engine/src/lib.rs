//! Life cycle of sandboxes: one task owns one sandbox.
