//! Registry of fault points: named places in create, pause, destroy and recovery where a test can kill the process.
//!
//! A point is dormant unless the environment variable `STACYVM_FAULT` names it (`engine.create.stored=kill`) when the
//! process starts; then reaching it for the first time ends the process at once, as `kill -9` would. Tests walk
//! [`Point::ALL`], so a point that no test reaches is a failing test, and one that is not here cannot be written.

use std::sync::OnceLock;

/// Variable that arms a point.
pub const VARIABLE: &str = "STACYVM_FAULT";

macro_rules! points {
    ($($variant:ident = $name:literal, $phase:ident, $doc:literal;)+) => {
        /// A place where the process can be made to die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {$(#[doc = $doc] $variant,)+}

        impl Point {
            /// Every point there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in [`VARIABLE`].
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What has to be done to reach it.
            pub fn phase(self) -> Phase {
                match self { $(Self::$variant => Phase::$phase,)+ }
            }
        }
    };
}

/// What a test has to do to reach a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Create a sandbox.
    Create,
    /// Pause one.
    Pause,
    /// Destroy one.
    Destroy,
}

points! {
    CreateStored = "engine.create.stored", Create, "The row `creating` is stored, the runtime was not asked yet.";
    CreateMade = "engine.create.made", Create, "The runtime made it, the row still says `creating`.";
    CreateRunning = "engine.create.running", Create, "The row says `running`, the caller has no answer.";
    PauseMade = "engine.pause.made", Pause, "The runtime froze it, the row still says `running`.";
    DestroyStored = "engine.destroy.stored", Destroy, "The row says `destroying`, the runtime was not asked yet.";
    DestroyUnmade = "engine.destroy.unmade", Destroy, "The runtime removed it, the row still says `destroying`.";
    DestroyDone = "engine.destroy.done", Destroy, "The row says `destroyed`, the caller has no answer.";
    NativeDirMade = "native.create.directory", Create, "Its directory exists, nothing runs.";
    NativeDiskMade = "native.create.disk", Create, "The limit of its disk exists, nothing runs.";
    NativeCgroupMade = "native.create.cgroup", Create, "Its cgroups exist, nothing runs.";
    NativeCloned = "native.create.cloned", Create, "Its first process exists and is not recorded.";
    NativeRecorded = "native.create.recorded", Create, "Its first process is recorded and waits to go on.";
    NativeReleased = "native.create.released", Create, "Its agent is starting.";
    NativePauseJoined = "native.pause.joined", Pause, "Its processes are where they can be frozen, and run.";
    NativePauseFrozen = "native.pause.frozen", Pause, "Its processes are frozen, nobody was told.";
    DockerCreated = "docker.create.created", Create, "Its container exists and was not started.";
    DockerStarted = "docker.create.started", Create, "Its container runs, its agent may not answer yet.";
    DockerRemoved = "docker.destroy.removed", Destroy, "Its container is gone, nobody was told.";
    NativeKilled = "native.destroy.killed", Destroy, "Its processes are dead, all else is left.";
    NativeCgroupGone = "native.destroy.cgroup", Destroy, "Its cgroups are gone, its directory is left.";
    NativeFilesMoved = "native.destroy.moved", Destroy, "Its directory is renamed for deletion and not deleted yet.";
}

static ARMED: OnceLock<Option<Point>> = OnceLock::new();

fn armed() -> Option<Point> {
    *ARMED.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok()?;
        let name = value.strip_suffix("=kill").unwrap_or(&value);
        Point::ALL.iter().copied().find(|p| p.name() == name)
    })
}

/// Marks that `point` is reached. Costs one load when nothing is armed.
pub fn hit(point: Point) {
    if armed() == Some(point) {
        tracing::warn!(point = point.name(), "fault point reached");
        die();
    }
}

#[expect(unsafe_code, reason = "the only way to die as if killed by somebody else")]
fn die() -> ! {
    // SAFETY: a signal to ourselves, no memory is involved; SIGKILL cannot be caught, so nothing runs behind it.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
