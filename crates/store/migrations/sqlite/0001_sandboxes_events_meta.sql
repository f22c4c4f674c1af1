-- Times are microseconds since 1970 UTC. JSON columns are the engine's business.
CREATE TABLE sandboxes (
    id              TEXT   PRIMARY KEY NOT NULL,
    state           TEXT   NOT NULL,
    reason          TEXT   NOT NULL DEFAULT '',
    provider        TEXT   NOT NULL,
    runtime_id      TEXT,
    image           TEXT   NOT NULL,
    spec            TEXT   NOT NULL,
    owner           TEXT   NOT NULL DEFAULT '',
    metadata        TEXT   NOT NULL DEFAULT '{}',
    created_at      BIGINT NOT NULL,
    running_at      BIGINT,
    updated_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    destroyed_at    BIGINT,
    idempotency_key TEXT,
    fingerprint     TEXT
);

-- What recovery reads; destroyed rows, which are most, stay out of it.
CREATE INDEX sandboxes_live ON sandboxes (created_at) WHERE destroyed_at IS NULL;
-- What retention reads.
CREATE INDEX sandboxes_destroyed ON sandboxes (destroyed_at) WHERE destroyed_at IS NOT NULL;
-- A key belongs to one sandbox until that begins to go.
CREATE UNIQUE INDEX sandboxes_idempotency ON sandboxes (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- The engine's one event writer numbers events itself, before it knows that they are stored; a number is never used twice
-- because pruning always leaves the newest row.
CREATE TABLE events (
    seq        BIGINT  PRIMARY KEY NOT NULL,
    kind       TEXT    NOT NULL,
    sandbox_id TEXT,
    ts         BIGINT  NOT NULL,
    data       TEXT    NOT NULL DEFAULT '{}'
);

CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);
