//! Whom the kernel takes first when memory is short: the work, before the agent and before the host's own.

use rustix::{
    fs::{self, Mode, OFlags},
    io::Errno,
};

/// Out of 1000: this much of all memory is added to what a process uses when the kernel looks for one to end.
const OOM_SCORE: i32 = 300;
const OOM_SCORE_TEXT: &[u8] = b"300";

/// Makes this process go before the agent and before the host's own when memory is short. Raising the score is anybody's
/// right, lowering the agent's is not: a container engine without privileges of its own cannot do it. A score that is
/// higher already stays.
pub(crate) fn volunteer() -> Result<(), Errno> {
    let file = match fs::open("/proc/self/oom_score_adj", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        // A kernel without this setting prefers nobody.
        Err(Errno::NOENT) => return Ok(()),
        // Without privileges the score of this hidden process is not ours to read.
        Err(Errno::ACCESS) if !rustix::process::geteuid().is_root() => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut text = [0; 8];
    let length = rustix::io::read(&file, &mut text)?;
    let score: Option<i32> = str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
    match score {
        Some(score) if score < OOM_SCORE => rustix::io::write(&file, OOM_SCORE_TEXT).map(drop),
        _ => Ok(()),
    }
}
