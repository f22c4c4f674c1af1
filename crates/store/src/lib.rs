//! What must survive a crash: sandboxes, idempotency keys, events.
