//! Tests of how sources go together.

use super::*;
use std::fs;

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn sources(&self, variables: &[(&str, &str)]) -> Sources {
        let mut variables: Vec<_> = variables.iter().map(|(n, v)| (n.into(), v.into())).collect();
        variables.push(("HOME".into(), self.0.path().join("home").into()));
        let cwd = self.0.path().join("cwd");
        fs::create_dir_all(&cwd).unwrap();
        Sources { variables, cwd, secrets: true, ..Sources::default() }
    }
}

fn origin(loaded: &Loaded, name: &str) -> String {
    loaded.settings.get(name).unwrap().origin.to_string()
}

#[test]
fn nothing_anywhere_is_a_working_configuration() {
    let host = Host::new();
    let loaded = load(&host.sources(&[])).unwrap();
    assert_eq!(loaded.config.server.host, "127.0.0.1");
    assert_eq!(loaded.config.server.port, 7423);
    assert_eq!(loaded.config.data_dir, host.0.path().join("home/.local/state/stacyvm"));
    assert_eq!(loaded.config.database.path, loaded.config.data_dir.join("stacyvm.db"));
    assert!(
        loaded.warnings.is_empty() && loaded.without_effect().is_empty() && loaded.check_serve().is_empty()
    );
    let root = Sources { root: true, ..host.sources(&[]) };
    assert_eq!(load(&root).unwrap().config.data_dir, Path::new("/var/lib/stacyvm"));
}

#[test]
fn flag_over_variable_over_file_over_default() {
    let host = Host::new();
    host.write("cwd/stacyvm.yaml", "server: {port: 1, host: '::1'}\ndefaults:\n  vcpus: 3\n");
    host.write("home/.stacyvm/config.yaml", "server: {port: 9}\nlogging: {level: error}\n");
    let mut sources = host.sources(&[("STACYVM_SERVER_PORT", "2"), ("STACYVM_DATA_DIR", "rel")]);
    sources.overrides.push(Override { key: "data_dir", flag: "--data-dir", text: "/flag".to_owned() });
    let loaded = load(&sources).unwrap();
    assert_eq!((loaded.config.server.port, loaded.config.defaults.vcpus), (2, 3));
    assert_eq!(origin(&loaded, "server.port"), "env STACYVM_SERVER_PORT");
    assert_eq!(origin(&loaded, "data_dir"), "flag --data-dir");
    let file = sources.cwd.join("stacyvm.yaml");
    assert_eq!(origin(&loaded, "defaults.vcpus"), format!("{}:3", file.display()));
    // Files are not merged.
    assert_eq!(origin(&loaded, "logging.level"), "default");
}

#[test]
fn the_home_file_is_read_when_there_is_none_here() {
    let host = Host::new();
    host.write("home/.stacyvm/config.yaml", "server: {port: 9}\n");
    assert_eq!(load(&host.sources(&[])).unwrap().config.server.port, 9);
}

#[test]
fn a_named_file_must_exist() {
    let host = Host::new();
    let sources = Sources { file: Some("none.yaml".into()), ..host.sources(&[]) };
    let problem = load(&sources).unwrap_err().problems.remove(0);
    assert_eq!(problem.place, Place::File(sources.cwd.join("none.yaml"), 0));
}

#[test]
fn every_problem_of_every_source_is_reported() {
    let host = Host::new();
    host.write("cwd/stacyvm.yaml", "server:\n  port: x\n  cors_allowed_origins: ['ftp://a']\n");
    let invalid =
        load(&host.sources(&[("STACYVM_DEFAULTS_TTL", "5"), ("STACYVM_NONSENSE", "1")])).unwrap_err();
    assert_eq!((invalid.problems.len(), invalid.warnings.len()), (3, 1), "{invalid}");
}

#[test]
fn signs_of_life_come_in_time_for_clients() {
    let host = Host::new();
    let loaded = |text| load(&host.sources(&[("STACYVM_SERVER_STREAM_HEARTBEAT", text)]));
    assert_eq!(loaded("100ms").unwrap().config.server.stream_heartbeat.as_millis(), 100);
    for text in ["99ms", "31s", "0s"] {
        let problems = loaded(text).unwrap_err().problems;
        assert!(problems[0].to_string().contains("100ms to 30s"), "{text}: {problems:?}");
    }
}

#[test]
fn secrets_come_from_files_trimmed() {
    let host = Host::new();
    let path = host.write("key", "  s3cret\n");
    let path = path.to_str().unwrap();
    let sources = host.sources(&[("STACYVM_AUTH_API_KEY_FILE", path)]);
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.config.auth.api_key.as_deref(), Some("s3cret"));
    // A key was set, so the listener may be open.
    assert_eq!(loaded.config.server.host, "0.0.0.0");
    let unread = load(&Sources { secrets: false, ..sources }).unwrap();
    assert_eq!((unread.config.auth.api_key, unread.config.server.host.as_str()), (None, "0.0.0.0"));

    let both = host.sources(&[("STACYVM_AUTH_API_KEY_FILE", path), ("STACYVM_AUTH_API_KEY", "x")]);
    let what = load(&both).unwrap_err().problems.remove(0).what;
    assert_eq!(what, "auth.api_key and auth.api_key_file cannot both be set");

    let empty = host.write("empty", " \n");
    let sources = host.sources(&[("STACYVM_AUTH_WORKER_TOKEN_FILE", empty.to_str().unwrap())]);
    assert!(load(&sources).unwrap_err().problems[0].what.ends_with("is empty"));
}

#[test]
fn files_of_earlier_releases_load_and_say_what_has_no_effect() {
    let host = Host::new();
    host.write(
        "cwd/stacyvm.yaml",
        "providers:\n  default: auto\n  docker: {enabled: true, runtime: runsc, tmpfs: {/tmp: 'size=64m'}}\n\
         auth: {worker_tokens: {Worker-A: t}}\nrate_limit: {enabled: false}\n",
    );
    let loaded = load(&host.sources(&[])).unwrap();
    let names: Vec<_> = loaded.without_effect().iter().map(|s| s.key.name).collect();
    assert_eq!(names, ["auth.worker_tokens"]);
}

#[test]
fn serving_openly_takes_a_key_or_a_word() {
    let host = Host::new();
    let problems = |variables: &[(&str, &str)]| load(&host.sources(variables)).unwrap().check_serve();
    for open in ["0.0.0.0", "::", "192.168.1.2", "example.org", "[::]"] {
        assert_eq!(problems(&[("STACYVM_SERVER_HOST", open)]).len(), 1, "{open}");
        let allowed = [("STACYVM_SERVER_HOST", open), ("STACYVM_AUTH_ALLOW_UNAUTHENTICATED", "true")];
        assert!(problems(&allowed).is_empty());
        assert!(problems(&[("STACYVM_SERVER_HOST", open), ("STACYVM_AUTH_API_KEY", "k")]).is_empty());
    }
    for closed in ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"] {
        assert!(problems(&[("STACYVM_SERVER_HOST", closed)]).is_empty(), "{closed}");
    }
    assert_eq!(problems(&[("STACYVM_AUTH_ENABLED", "true")]).len(), 1);
}

#[test]
fn directories_of_images_are_absolute() {
    let host = Host::new();
    let with = |value: &str| load(&host.sources(&[("STACYVM_PROVIDERS_NATIVE_IMAGE_DIRS", value)]));
    let dirs = |value: &str| with(value).unwrap().config.providers.native_image_dirs;
    assert_eq!(dirs("/srv/images,/opt/rootfs"), ["/srv/images", "/opt/rootfs"].map(std::path::PathBuf::from));
    assert!(load(&host.sources(&[])).unwrap().config.providers.native_image_dirs.is_empty());
    let error = with("/srv/images,images").unwrap_err().to_string();
    assert!(error.contains("providers.native.image_dirs holds \"images\""), "{error}");
}

#[test]
fn a_provider_that_is_not_there_is_named_with_those_that_are() {
    let host = Host::new();
    let fix = |variables: &[(&str, &str)]| {
        load(&host.sources(variables)).unwrap().check_serve().remove(0).to_string()
    };
    assert_eq!(
        fix(&[("STACYVM_PROVIDERS_DEFAULT", "firecracker")]),
        "STACYVM_PROVIDERS_DEFAULT: providers.default is firecracker, which this version does not have\n  \
         fix: use one that is enabled: docker, native, auto"
    );
    assert!(fix(&[("STACYVM_PROVIDERS_DEFAULT", "mock")]).contains("set providers.mock.enabled"));
    assert!(
        fix(&[("STACYVM_PROVIDERS_NATIVE_ENABLED", "false"), ("STACYVM_PROVIDERS_DOCKER_ENABLED", "false")])
            .contains("no provider is enabled")
    );
    assert!(
        fix(&[("STACYVM_DATABASE_DRIVER", "postgres"), ("STACYVM_DATABASE_DSN", "x")]).contains("sqlite")
    );
}
