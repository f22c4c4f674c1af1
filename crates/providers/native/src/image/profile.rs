//! Who works in a sandbox, and where: what an image says of it, as far as it can be taken over.

use super::layers::Layers;
use serde::{Deserialize, Serialize};
use stacyvm_image::ImageConfig;
use stacyvm_provider::{Error, Result};

/// The sandbox user's number, where an image names none.
pub(crate) const USER: u32 = 1000;
/// Where the sandbox user is at home, where the image does not say.
pub(crate) const HOME: &str = "/home/sandbox";
/// Where processes start, where the image does not say.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Longest list of users or groups that is read, in bytes.
pub(crate) const MAX_DATABASE: u64 = 1 << 20;
/// Longest environment, in bytes.
const MAX_ENVIRONMENT: usize = 32 << 10;
/// Highest number that a user of a sandbox can have: sandboxes have so many.
const HIGHEST: u32 = 65_535;

/// The user that processes run as unless they ask for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) name: String,
    pub(crate) home: String,
}

/// What the processes of a sandbox find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) user: SandboxUser,
    pub(crate) workdir: String,
    /// `NAME=value`
    pub(crate) environment: Vec<String>,
}

impl Default for SandboxUser {
    fn default() -> Self {
        Self { uid: USER, gid: USER, name: "sandbox".to_owned(), home: HOME.to_owned() }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self { user: SandboxUser::default(), workdir: WORKSPACE.to_owned(), environment: Vec::new() }
    }
}

impl Profile {
    /// What the configuration of the image `image` says. Its user is not taken over where sandboxes have `one_user` only.
    ///
    /// # Errors
    /// `InvalidArgument`: its user is nobody that a sandbox can have, or its environment is too long.
    pub(crate) fn of(image: &str, config: &ImageConfig, layers: &Layers, one_user: bool) -> Result<Self> {
        let said = config.user.as_deref().unwrap_or_default();
        let user = if one_user { SandboxUser::default() } else { find_user(image, said, layers)? };
        let environment = environment(image, config)?;
        let workdir = config.working_dir.as_deref().unwrap_or_default();
        // Builders make the directory. Where it is missing after all, processes could not start there.
        let has =
            workdir.starts_with('/') && workdir != "/" && layers.has_directory(workdir).unwrap_or(false);
        let workdir = if has { workdir } else { WORKSPACE };
        Ok(Self { user, workdir: workdir.to_owned(), environment })
    }
}

/// The image's variables. What no process could have is left out.
fn environment(image: &str, config: &ImageConfig) -> Result<Vec<String>> {
    let legal = |variable: &&String| {
        variable.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !variable.contains('\0')
    };
    let environment: Vec<_> = config.env.iter().filter(legal).cloned().collect();
    if environment.iter().map(String::len).sum::<usize>() > MAX_ENVIRONMENT {
        return Err(Error::invalid_argument(format!(
            "image {image}: its environment has more than {} KiB; build it with a shorter one",
            MAX_ENVIRONMENT >> 10
        )));
    }
    Ok(environment)
}

/// The image's user, `name` or `name:group`, each of them perhaps a number. Images that say nothing, or root, are made for
/// root because nobody thought about it: they get the sandbox user, and root is there for who asks.
fn find_user(image: &str, said: &str, layers: &Layers) -> Result<SandboxUser> {
    let (user, group) = said.split_once(':').map_or((said, None), |(user, group)| (user, Some(group)));
    if matches!(user, "" | "0" | "root") {
        return Ok(SandboxUser::default());
    }
    let database = |path: &str| {
        let text = layers.read(path, MAX_DATABASE).ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    };
    let number = user.parse::<u32>().ok();
    let users = database("etc/passwd");
    let known = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        let uid = fields.get(2).and_then(|uid| uid.parse().ok());
        fields.first() == Some(&user) || (number.is_some() && uid == number)
    });
    let field = |n: usize| known.as_ref().and_then(|fields| fields.get(n).copied());
    let unknown = |what: &str| {
        let shown: String = said.chars().filter(|c| !c.is_control()).take(80).collect();
        Error::invalid_argument(format!(
            "image {image}: it wants to run as {shown:?}, {what}; build it with another USER"
        ))
    };
    let uid: u32 = field(2)
        .and_then(|uid| uid.parse().ok())
        .or(number)
        .ok_or_else(|| unknown("whom its /etc/passwd does not know"))?;
    let gid = match group {
        None => field(3).and_then(|gid| gid.parse().ok()).unwrap_or(uid),
        Some(group) => group
            .parse()
            .ok()
            .or_else(|| find_group(&database("etc/group"), group))
            .ok_or_else(|| unknown("whose group its /etc/group does not know"))?,
    };
    if uid > HIGHEST || gid > HIGHEST {
        return Err(unknown("and sandboxes have the users and groups 0 to 65535"));
    }
    if uid == 0 {
        return Ok(SandboxUser::default());
    }
    let default = SandboxUser::default();
    Ok(SandboxUser {
        uid,
        gid,
        name: field(0).map_or(default.name, str::to_owned),
        home: field(5).filter(|home| home.starts_with('/')).map_or(default.home, str::to_owned),
    })
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name))?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{super::layers::open_lower, *};
    use rustix::fd::AsFd;
    use std::fs;

    fn profile(user: &str, workdir: &str) -> Result<Profile> {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("etc")).unwrap();
        fs::create_dir_all(tmp.path().join("srv/app")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\nwww:x:33:34::srv:/bin/sh\nadmin:x:0:0::/:/bin/sh\nbig:x:70000:1::/:\n";
        fs::write(tmp.path().join("etc/passwd"), passwd).unwrap();
        fs::write(tmp.path().join("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
        let layers = Layers::open(open_lower(tmp.path()).unwrap().as_fd(), &[]).unwrap();
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let config = ImageConfig {
            user: text(user),
            working_dir: text(workdir),
            env: ["A=b", "=c", "none", "NUL=\0"].map(str::to_owned).to_vec(),
            ..ImageConfig::default()
        };
        Profile::of("i", &config, &layers, false)
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let user = |said: &str| {
            let user = profile(said, "").unwrap().user;
            (user.uid, user.gid, user.name, user.home)
        };
        let is = |uid, gid, name: &str, home: &str| (uid, gid, name.to_owned(), home.to_owned());
        assert_eq!(user("node"), is(1000, 1000, "node", "/home/node"));
        assert_eq!(user("1000"), is(1000, 1000, "node", "/home/node"));
        assert_eq!(user("www"), is(33, 34, "www", HOME));
        assert_eq!(user("www:staff"), is(33, 50, "www", HOME));
        assert_eq!(user("33:7"), is(33, 7, "www", HOME));
        assert_eq!(user("4711"), is(4711, 4711, "sandbox", HOME));
        for root in ["", "0", "root", "root:staff", "0:0", "admin"] {
            assert_eq!(user(root), is(1000, 1000, "sandbox", HOME), "{root}");
        }
    }

    #[test]
    fn nobody_and_those_whom_no_sandbox_has_are_refused() {
        for (said, part) in [
            ("nobody-knows", "/etc/passwd"),
            ("www:nobody", "/etc/group"),
            ("70000", "65535"),
            ("big", "65535"),
            ("33:70000", "65535"),
            ("-1", "/etc/passwd"),
        ] {
            let error = profile(said, "").unwrap_err();
            assert!(error.message().contains(part) && error.message().contains("USER"), "{said}: {error}");
        }
    }

    #[test]
    fn processes_start_where_the_image_says_if_it_has_that() {
        let workdir = |said: &str| profile("", said).unwrap().workdir;
        assert_eq!(workdir("/srv/app"), "/srv/app");
        for other in ["", "/", "srv/app", "/none", "/etc/passwd"] {
            assert_eq!(workdir(other), WORKSPACE, "{other}");
        }
        assert_eq!(profile("", "").unwrap().environment, ["A=b"]);
    }
}
