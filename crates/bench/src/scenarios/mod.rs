//! What is measured. `--list` and the document say of each from where to where the clock runs.

mod create;
mod exec;
mod images;
mod load;
mod memory;
mod recovery;
mod transfer;

use crate::{
    Options,
    context::{Context, Provider, Target},
    samples::Comparison,
};
use anyhow::Result;
use futures::future::LocalBoxFuture;
use serde::Serialize;

/// What a scenario is, in words.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct About {
    /// Name for `--only`.
    pub name: &'static str,
    /// A few words.
    pub title: &'static str,
    /// What is timed, from where to where.
    pub timed: &'static str,
}

/// All scenarios, in the order of the report.
pub fn list() -> impl Iterator<Item = About> {
    ALL.iter().map(|scenario| scenario.about)
}

/// What a scenario makes sense for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Each provider and each runtime of an engine.
    EveryRuntime,
    /// Each provider; of an engine's runtimes its usual one.
    EveryProvider,
    /// The native runtime.
    Native,
}

type Run = for<'a> fn(&'a Context, &'a Target) -> LocalBoxFuture<'a, Result<Vec<Comparison>>>;

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) about: About,
    makes_sense: For,
    /// It needs a server that it may kill or configure, or none.
    own_server: bool,
    pub(crate) run: Run,
}

impl Scenario {
    /// Whether it was asked for and makes sense for this target.
    pub(crate) fn is_for(&self, options: &Options, target: &Target) -> bool {
        let sensible = match self.makes_sense {
            For::EveryRuntime => true,
            For::EveryProvider => target.runtime.is_none_or(|runtime| runtime == "runc"),
            For::Native => target.provider == Provider::Native,
        };
        sensible && options.only.as_ref().is_none_or(|only| only == self.about.name)
    }

    /// Why it is left out.
    pub(crate) fn why_not(&self, context: &Context) -> Option<String> {
        (self.own_server && context.foreign.is_some()).then(|| "it needs a server of its own".to_owned())
    }
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    scenario(
        "create",
        "create → first output",
        "from asking for a sandbox until the output of its first command, `echo`, is here",
        For::EveryRuntime,
        false,
        |context, target| Box::pin(create::create(context, target)),
    ),
    scenario(
        "run",
        "one command, start to finish",
        "from starting `stacyvm run -- echo` without a server until it has ended and its sandbox is gone; rivals likewise",
        For::Native,
        true,
        |context, target| Box::pin(create::run(context, target)),
    ),
    scenario(
        "exec",
        "warm exec",
        "from asking for `/bin/true` in a sandbox that runs until its exit code is here",
        For::EveryRuntime,
        false,
        |context, target| Box::pin(exec::exec(context, target)),
    ),
    scenario(
        "burst",
        "burst",
        "from the first of many requests for a sandbox, all at once, until the last has answered a command; all must",
        For::EveryProvider,
        false,
        |context, target| Box::pin(load::burst(context, target)),
    ),
    scenario(
        "sustained",
        "sustained, 4 at once",
        "create, one command and destroy, again and again, four at a time: operations in a second, and one cycle from start \
         to finish",
        For::EveryProvider,
        false,
        |context, target| Box::pin(load::sustained(context, target)),
    ),
    scenario(
        "stream",
        "exec output",
        "from asking for a command that writes much until its last byte is here",
        For::EveryRuntime,
        false,
        |context, target| Box::pin(transfer::stream(context, target)),
    ),
    scenario(
        "files",
        "file upload and download",
        "one large file: from the first byte sent until the answer, and from asking until the last byte is here",
        For::EveryRuntime,
        false,
        |context, target| Box::pin(transfer::files(context, target)),
    ),
    scenario(
        "idle",
        "idle memory",
        "MemAvailable of the host before and after making many sandboxes that then do nothing, for each of them",
        For::EveryRuntime,
        true,
        |context, target| Box::pin(memory::idle(context, target)),
    ),
    scenario(
        "recovery",
        "recovery",
        "from `kill -9` of a server with busy sandboxes, started again at once, until it lists all of them as running",
        For::EveryProvider,
        true,
        |context, target| Box::pin(recovery::recovery(context, target)),
    ),
    scenario(
        "unpack",
        "unpack an image",
        "from starting `stacyvm image import` until the image is stored; of `tar -x`, until it is synced to disk",
        For::Native,
        true,
        |context, _| Box::pin(images::unpack(context)),
    ),
    scenario(
        "pull",
        "pull an image",
        "from starting to pull from a registry on this host until sandboxes can be made from the image",
        For::Native,
        true,
        |context, _| Box::pin(images::pull(context)),
    ),
];

const fn scenario(
    name: &'static str,
    title: &'static str,
    timed: &'static str,
    makes_sense: For,
    own_server: bool,
    run: Run,
) -> Scenario {
    Scenario { about: About { name, title, timed }, makes_sense, own_server, run }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_descriptions_are_one_line() {
        let names: std::collections::BTreeSet<_> = list().map(|about| about.name).collect();
        assert_eq!(names.len(), ALL.len());
        for about in list() {
            assert!(!about.timed.contains('\n') && !about.timed.ends_with('.'), "{}", about.name);
        }
    }

    #[test]
    fn only_one_and_only_where_it_makes_sense() {
        let options = |only: &str| Options {
            binary: "stacyvm".into(),
            server: None,
            provider: None,
            only: Some(only.to_owned()),
            samples: 1,
        };
        let target = |provider, runtime| Target { provider, runtime, why_not: None };
        let names = |only: &str, target: &Target| -> Vec<_> {
            let all = ALL.iter().filter(|scenario| scenario.is_for(&options(only), target));
            all.map(|scenario| scenario.about.name).collect()
        };
        let native = target(Provider::Native, None);
        let (runc, runsc) = (target(Provider::Docker, Some("runc")), target(Provider::Docker, Some("runsc")));
        assert_eq!(names("exec", &native), ["exec"]);
        assert_eq!(names("exec", &runsc), ["exec"]);
        assert_eq!(names("burst", &runc), ["burst"]);
        assert!(names("burst", &runsc).is_empty() && names("pull", &runc).is_empty());
        assert!(names("exe", &native).is_empty());
    }
}
