-- Limits of the sandbox that were hit, how often and when last, by name: JSON, the engine's business.
ALTER TABLE sandboxes ADD COLUMN limits_hit TEXT NOT NULL DEFAULT '{}';
