//! Checks that every provider must pass, as data.
