//! What the command line takes and what its help says.

use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn debug(line: &str) -> String {
    format!("{:?}", parse(line).unwrap().command)
}

/// Every command, with those below it.
fn commands(command: &clap::Command, prefix: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = format!("{prefix}{}", sub.get_name());
        visit(&name, sub);
        commands(sub, &format!("{name} "), visit);
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_there_with_examples() {
    let mut names = Vec::new();
    commands(&Cli::command(), "", &mut |name, command| {
        let help = command.clone().render_long_help().to_string();
        assert!(name == "config reference" || help.contains("Examples:\n  "), "{name}: no examples");
        names.push(name.to_owned());
    });
    assert_eq!(
        names,
        [
            "run",
            "serve",
            "spawn",
            "exec",
            "cp",
            "list",
            "pause",
            "resume",
            "kill",
            "logs",
            "image",
            "image ls",
            "image pull",
            "image import",
            "image inspect",
            "image rm",
            "image prune",
            "probe",
            "config",
            "config show",
            "config reference",
            "version",
            "completion",
            "ps",
            "attach",
            "signal",
            "stats",
            "events",
            "man",
            "watch",
            "du",
            "bench"
        ]
    );
}

#[test]
fn examples_of_the_help_parse() {
    let mut checked = 0;
    commands(&Cli::command(), "", &mut |name, command| {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter_map(|line| line.trim_start().strip_prefix("stacyvm ")) {
            // Up to what the shell would take away; comments stand behind several spaces.
            let line = line.split("  ").next().unwrap_or(line);
            let line = line.split([')', '|', '>']).next().unwrap_or(line);
            if line.contains('\'') {
                continue;
            }
            if let Err(error) = parse(&format!("stacyvm {line}")) {
                panic!("{name}: {line}: {error}");
            }
            checked += 1;
        }
    });
    assert!(checked > 15, "{checked}");
}

#[test]
fn a_command_keeps_its_own_flags() {
    for line in ["stacyvm run --cpus 2 -- sh -c exit --json -v", "stacyvm run --cpus 2 sh -c exit --json -v"]
    {
        let cli = parse(line).unwrap();
        assert!(!cli.global.json && cli.global.verbose == 0, "{line}");
        let Command::Run(run) = cli.command else { panic!("{line}") };
        assert!(format!("{run:?}").contains(r#"command: ["sh", "-c", "exit", "--json", "-v"]"#), "{run:?}");
    }
    assert!(debug("stacyvm exec sb-1 -- ls -l").contains(r#"id: "sb-1", shell: false"#));
}

#[test]
fn flags_of_earlier_releases() {
    assert!(
        debug("stacyvm spawn --image a --provider mock --ttl 1h --memory 512 --vcpus 2")
            .contains("memory: Some(512)")
    );
    assert!(matches!(parse("stacyvm ls").unwrap().command, Command::List(_)));
    let cli = parse("stacyvm list --server http://a:1 --api-key k").unwrap();
    assert_eq!((cli.global.named_server(), cli.global.api_key()), (Some("http://a:1"), Some("k")));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        parse(&format!("stacyvm completion {shell}")).unwrap();
    }
}

#[test]
fn mistakes_are_usage_errors() {
    for line in [
        "stacyvm nope",
        "stacyvm run",
        "stacyvm exec sb-1",
        "stacyvm kill",
        "stacyvm pause",
        "stacyvm resume a b",
        "stacyvm probe runsc",
        "stacyvm cp a",
        "stacyvm run --memory lots -- true",
        "stacyvm run --cpus 0 -- true",
        "stacyvm run --timeout 30 -- true",
        "stacyvm logs sb-1 --lines 0",
        "stacyvm list -q -v",
        "stacyvm serve --port 70000",
        "stacyvm completion tcsh",
        "stacyvm ps",
        "stacyvm attach sb-1",
        "stacyvm attach sb-1 p-1 --from then",
        "stacyvm signal sb-1 p-1 NOPE",
        "stacyvm stats --interval 1s",
        "stacyvm events --after x",
        "stacyvm events --since 1h --after evt-1",
        "stacyvm run --copy-in a -- true",
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn the_version_line() {
    let version = version();
    assert!(version.starts_with(env!("CARGO_PKG_VERSION")) && version.contains("(linux/"), "{version}");
}
