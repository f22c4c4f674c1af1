//! Builds the guest programs with a nested cargo, in a target directory of their own: sharing the outer one would wait for
//! ever for the lock that the outer cargo holds.

use sha2::{Digest, Sha256};
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Variables that the outer build sets for itself or for this script, and that would change what the nested one builds.
const CONFUSING: [&str; 14] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "TARGET",
];
/// The same by their beginning. Settings of registries, network and `CARGO_HOME` stay.
const CONFUSING_PREFIXES: [&str; 7] = [
    "CARGO_BUILD_",
    "CARGO_CFG_",
    "CARGO_FEATURE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_PRIMARY_",
];

fn main() -> Result<(), Box<dyn Error>> {
    let crate_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = crate_dir.ancestors().nth(2).ok_or("this crate is not in a workspace")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let sources = [
        "Cargo.toml",
        "Cargo.lock",
        "bin/stacyvm-agent",
        "bin/stacyvm-probe",
        "crates/guest",
        "crates/netlink",
        "crates/tar",
    ];
    for source in sources {
        watch(&workspace.join(source))?;
    }
    println!("cargo:rerun-if-changed=build.rs");

    let mut built = None;
    for (name, label) in [("stacyvm-agent", "AGENT"), ("stacyvm-probe", "PROBE")] {
        let variable = format!("STACYVM_{label}_BINARY");
        println!("cargo:rerun-if-env-changed={variable}");
        let source = match env::var_os(&variable) {
            Some(path) => {
                let path = workspace.join(path);
                println!("cargo:rerun-if-changed={}", path.display());
                path
            }
            None => {
                let directory = match built.take() {
                    Some(directory) => directory,
                    None => build(workspace, &out)?,
                };
                let path = directory.join(name);
                built = Some(directory);
                path
            }
        };
        // A copy of our own: the next nested build replaces the original at any time.
        let content = fs::read(&source).map_err(|e| format!("cannot read {}: {e}", source.display()))?;
        let copy = out.join(name);
        fs::write(&copy, &content)?;
        println!("cargo:rustc-env=STACYVM_EMBEDDED_{label}={}", copy.display());
        let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        println!("cargo:rustc-env=STACYVM_EMBEDDED_{label}_DIGEST={digest}");
    }
    Ok(())
}

/// Runs again when a source changes, but not when a test beside it does.
fn watch(path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        println!("cargo:rerun-if-changed={}", path.display());
        return Ok(());
    }
    for inner in ["Cargo.toml", "build.rs", "proto", "src"] {
        let inner = path.join(inner);
        if inner.try_exists()? {
            println!("cargo:rerun-if-changed={}", inner.display());
        }
    }
    Ok(())
}

/// Builds both programs and returns the directory that holds them.
fn build(workspace: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86_64-unknown-linux-musl",
        "aarch64" => "aarch64-unknown-linux-musl",
        other => return Err(format!("there is no guest target for the architecture {other}").into()),
    };
    let directory = target_directory(out).join("guest");

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args(["build", "--locked", "--profile", "guest", "--target", target])
        .args(["-p", "stacyvm-agent", "-p", "stacyvm-probe", "--target-dir"])
        .arg(&directory);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let flags_of_a_target = text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS");
        if CONFUSING.contains(&&*text)
            || CONFUSING_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
            || flags_of_a_target
        {
            cargo.env_remove(&name);
        }
    }
    let output = cargo.output().map_err(|e| format!("cannot run cargo for the guest programs: {e}"))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        if log.contains("target may not be installed") {
            return Err(format!(
                "the guest programs need the Rust target {target}, which is not installed. Install it with\n\n    \
                 rustup target add {target}\n"
            )
            .into());
        }
        return Err(format!("the guest programs do not build:\n{log}").into());
    }
    Ok(directory.join(target).join("guest"))
}

/// The target directory of the outer build: the outermost of the nearest ancestors that cargo tagged as its own.
fn target_directory(out: &Path) -> &Path {
    let tagged = |path: &&Path| path.join("CACHEDIR.TAG").is_file();
    let Some(nearest) = out.ancestors().find(tagged) else { return out };
    // With `--target`, cargo tags `<target directory>/<triple>` as well.
    nearest.parent().filter(tagged).unwrap_or(nearest)
}
