//! Test helpers: a real server under test, the leak checker.
