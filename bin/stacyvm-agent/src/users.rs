//! Users and groups by name, from the sandbox's own `/etc/passwd` and `/etc/group`: files that whoever is in the sandbox
//! may have written.

use crate::{
    args::Config,
    fail::{Fail, Result},
    files::resolve::Root,
};

/// Most bytes read of either file.
const FILE: usize = 1 << 20;
/// Most additional groups.
const GROUPS: usize = 64;

/// Whom a process runs as, or a file belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Additional groups, for processes.
    pub(crate) groups: Vec<u32>,
    /// Name, or the number in digits.
    pub(crate) name: String,
    pub(crate) home: String,
}

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Numbers that mean "nobody in particular" to the kernel cannot be asked for.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

fn passwd(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let (_gecos, home) = (fields.next()?, fields.next()?);
        (!name.is_empty()).then_some(Entry { name, uid, gid, home })
    })
}

/// Groups of `/etc/group` that list `user` as a member.
fn groups_of(text: &str, user: &str) -> Vec<u32> {
    let member = |line: &str| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?;
        fields.next()?.split(',').any(|name| name == user).then(|| id(gid))?
    };
    text.lines().filter_map(member).take(GROUPS).collect()
}

fn sandbox_user(config: &Config) -> Account {
    Account {
        uid: config.uid,
        gid: config.gid,
        groups: vec![config.gid],
        name: config.user_name.clone(),
        home: config.home.clone(),
    }
}

/// Finds `user`: empty for the sandbox user, a name, a uid, or `uid:gid`.
///
/// # Errors
/// `InvalidArgument` for nobody, `Unsupported` where nobody can change user.
pub(crate) fn find(config: &Config, root: &Root, user: &str) -> Result<Account> {
    let default = sandbox_user(config);
    let own = [config.user_name.clone(), config.uid.to_string(), format!("{}:{}", config.uid, config.gid)];
    if user.is_empty() || own.iter().any(|name| name == user) {
        return Ok(default);
    }
    if config.root.is_some() || config.single_user {
        return Err(Fail::unsupported(format!(
            "user {user}: this runtime has only the user {}",
            default.name
        )));
    }
    let passwd_text = root.read_small("/etc/passwd", FILE);
    let group_text = || root.read_small("/etc/group", FILE);
    lookup(user, &passwd_text, group_text)
}

fn lookup(user: &str, passwd_text: &str, group_text: impl Fn() -> String) -> Result<Account> {
    let (uid, gid) = match user.split_once(':') {
        Some((uid, gid)) => match (id(uid), id(gid)) {
            (Some(uid), Some(gid)) => (Some(uid), Some(gid)),
            _ => return Err(Fail::invalid(format!("user {user}: with a colon, both parts must be numbers"))),
        },
        None => (id(user), None),
    };
    let entry = match uid {
        Some(uid) => passwd(passwd_text).find(|entry| entry.uid == uid),
        None => passwd(passwd_text).find(|entry| entry.name == user),
    };
    match (entry, uid) {
        (Some(entry), _) => {
            let gid = gid.unwrap_or(entry.gid);
            let mut groups = groups_of(&group_text(), entry.name);
            groups.retain(|group| *group != gid);
            groups.insert(0, gid);
            let home = if entry.home.starts_with('/') { entry.home } else { "/" };
            Ok(Account { uid: entry.uid, gid, groups, name: entry.name.to_owned(), home: home.to_owned() })
        }
        (None, Some(uid)) => {
            let gid = gid.unwrap_or(uid);
            Ok(Account { uid, gid, groups: vec![gid], name: uid.to_string(), home: "/".to_owned() })
        }
        // Every kernel knows root, also where no file names it.
        (None, None) if user == "root" => {
            Ok(Account { uid: 0, gid: 0, groups: vec![0], name: user.to_owned(), home: "/root".to_owned() })
        }
        (None, None) => Err(Fail::invalid(format!("user {user} is not in the sandbox's /etc/passwd"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken:x:1\nminus:x:4294967295:1::/:\n\
                          web:x:33:34:Web,,,:/var/www:/usr/sbin/nologin\nodd:x:50:50::relative:/bin/sh";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,root\nweb:x:34:\nmail:x:8:web\nbad:x:y:web\nnear:x:9:webby";

    fn find(user: &str) -> Result<Account> {
        lookup(user, PASSWD, || GROUP.to_owned())
    }

    fn account(uid: u32, groups: &[u32], name: &str, home: &str) -> Account {
        Account { uid, gid: groups[0], groups: groups.to_vec(), name: name.to_owned(), home: home.to_owned() }
    }

    #[test]
    fn names_and_numbers_find_the_same_entry() {
        let web = account(33, &[34, 4, 8], "web", "/var/www");
        assert_eq!(find("web").unwrap(), web);
        assert_eq!(find("33").unwrap(), web);
        assert_eq!(find("33:8").unwrap(), account(33, &[8, 4], "web", "/var/www"));
        assert_eq!(find("odd").unwrap().home, "/");
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(find("777").unwrap(), account(777, &[777], "777", "/"));
        assert_eq!(find("777:5").unwrap(), account(777, &[5], "777", "/"));
    }

    #[test]
    fn root_needs_no_entry() {
        let root = lookup("root", "", String::new).unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
    }

    #[test]
    fn nobody_is_refused() {
        for user in ["nobody-here", "broken", "minus", "web:web", "4294967295", "-1", "+1", "1:"] {
            assert!(find(user).is_err(), "{user}");
        }
    }

    proptest! {
        #[test]
        fn any_files_are_survived(user in ".{0,12}", passwd_text in "([a-z0-9:,]{0,20}\n){0,8}", group_text in ".{0,99}") {
            let _ = lookup(&user, &passwd_text, || group_text.clone());
        }

        #[test]
        fn every_written_entry_is_found(name in "[a-z_][a-z0-9_-]{0,8}", uid in 0..u32::MAX, gid in 0..u32::MAX) {
            let text = format!("{name}:x:{uid}:{gid}:a b:/home/{name}:/bin/sh\n");
            let found = lookup(&name, &text, String::new).unwrap();
            prop_assert_eq!(found, account(uid, &[gid], &name, &format!("/home/{name}")));
        }
    }
}
