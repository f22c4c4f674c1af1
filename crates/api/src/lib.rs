//! The HTTP faces of the engine: /api/v1, auth, metrics; no life-cycle logic.
