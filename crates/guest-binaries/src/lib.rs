//! The static guest programs, embedded: agent and conformance probe.
//!
//! `build.rs` builds both for musl in the profile `guest`, so one `stacyvm` file carries everything that a sandbox
//! needs. `STACYVM_AGENT_BINARY` and `STACYVM_PROBE_BINARY` name ready-made files to embed instead, for a packager who
//! has built them elsewhere.

/// The agent: an executable for Linux that needs no library and no file beside it.
pub static AGENT: &[u8] = include_bytes!(env!("STACYVM_EMBEDDED_AGENT"));

/// The conformance probe, of the same kind.
pub static PROBE: &[u8] = include_bytes!(env!("STACYVM_EMBEDDED_PROBE"));

/// SHA-256 of [`AGENT`] in lower-case hexadecimal digits: names the volume or file that holds a copy of it.
pub const fn agent_digest() -> &'static str {
    env!("STACYVM_EMBEDDED_AGENT_DIGEST")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// Types of the program headers of a 64-bit little-endian ELF file.
    fn program_headers(elf: &[u8]) -> Vec<u32> {
        let number = |at: usize, length: usize| {
            elf[at..at + length].iter().rev().fold(0, |n: usize, b| n << 8 | usize::from(*b))
        };
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        (0..count).map(|i| u32::try_from(number(table + i * size, 4)).unwrap()).collect()
    }

    #[test]
    fn both_run_without_an_interpreter() {
        const PT_INTERP: u32 = 3;
        for binary in [AGENT, PROBE] {
            assert_eq!(&binary[..5], b"\x7fELF\x02");
            let headers = program_headers(binary);
            assert!(!headers.is_empty() && !headers.contains(&PT_INTERP), "{headers:?}");
        }
    }

    #[test]
    fn the_digest_is_of_the_embedded_bytes() {
        let digest: String = Sha256::digest(AGENT).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(agent_digest(), digest);
    }
}
