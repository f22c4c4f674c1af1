//! The configuration of an image: what to start, as whom and with what, and the layers it is made of.

use super::{LARGEST, Platform, document};
use crate::Digest;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use stacyvm_provider::{Error, Result};
use std::collections::BTreeMap;

/// The configuration of an image, as far as a runtime needs it.
///
/// What an image leaves out is empty. No text that becomes an argument, a variable or a path has a NUL in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Operating system, in the words of [`Platform`].
    pub os: String,
    /// Processor architecture.
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// When it was made, as the builder wrote it.
    pub created: Option<String>,
    /// User, or user and group, by name or number: `app`, `1000:1000`.
    pub user: Option<String>,
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Directory in which commands start.
    pub working_dir: Option<String>,
    /// What is started in any case.
    pub entrypoint: Vec<String>,
    /// Arguments of it, or the command if there is none.
    pub cmd: Vec<String>,
    /// Ports on which it serves, as in `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Directories that it keeps data in.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to end, by name or number.
    pub stop_signal: Option<String>,
    /// Digests of the layers' uncompressed archives, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(deserialize_with = "or_default")]
    architecture: String,
    #[serde(deserialize_with = "or_default")]
    os: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(deserialize_with = "or_default")]
    config: Process,
    #[serde(deserialize_with = "or_default")]
    rootfs: Rootfs,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    exposed_ports: Map<String, Value>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    volumes: Map<String, Value>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Rootfs {
    #[serde(rename = "type", deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

impl Default for Rootfs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// Builders write `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A list of words; old builders wrote a single one without a list.
fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::deserialize(from)? {
        None => Vec::new(),
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
    })
}

impl ImageConfig {
    /// Reads a configuration. `image` is its name in messages.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no configuration, `ResourceLimit` for one of more than [`LARGEST`] bytes.
    pub fn parse(bytes: &[u8], image: &str) -> Result<Self> {
        let file: File = document(bytes, "configuration", image)?;
        if file.architecture.is_empty() || file.os.is_empty() {
            return Err(Error::invalid_argument(format!(
                "the configuration of the image {image} names no architecture or no operating system: build it anew"
            )));
        }
        let Process { user, env, working_dir, entrypoint, cmd, exposed_ports, volumes, labels, stop_signal } =
            file.config;
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let config = Self {
            os: file.os,
            architecture: file.architecture,
            variant: filled(file.variant),
            created: filled(file.created),
            user: filled(user),
            env,
            working_dir: filled(working_dir),
            entrypoint,
            cmd,
            exposed_ports: exposed_ports.into_iter().map(|(port, _)| port).collect(),
            volumes: volumes.into_iter().map(|(path, _)| path).collect(),
            labels,
            stop_signal: filled(stop_signal),
            diff_ids: file.rootfs.diff_ids,
        };
        let single = [&config.user, &config.working_dir, &config.stop_signal].into_iter().flatten();
        let lists = [&config.env, &config.entrypoint, &config.cmd, &config.volumes].into_iter().flatten();
        let has_nul = single.chain(lists).any(|text| text.contains('\0'));
        if has_nul {
            return Err(Error::invalid_argument(format!(
                "the configuration of the image {image} has a NUL in a variable, an argument or a path: build it anew"
            )));
        }
        Ok(config)
    }

    /// The platform it is built for.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// Refuses an image that does not run where `wanted` is wanted.
    ///
    /// # Errors
    /// `InvalidArgument` with both platforms.
    pub fn runs_on(&self, wanted: &Platform, image: &str) -> Result<()> {
        let is = self.platform();
        if wanted.rank(&is).is_some() {
            return Ok(());
        }
        Err(Error::invalid_argument(format!(
            "the image {image} is for {}, {wanted} is needed: name an image that is built for it",
            super::shown(&is.to_string())
        )))
    }

    /// The configuration as a file of an image, for one that is made here. The same configuration gives the same bytes.
    ///
    /// # Errors
    /// `ResourceLimit` if it has more than [`LARGEST`] bytes.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let names =
            |list: &[String]| list.iter().map(|name| (name.clone(), Value::Object(Map::new()))).collect();
        let file = File {
            created: self.created.clone(),
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            config: Process {
                user: self.user.clone(),
                env: self.env.clone(),
                working_dir: self.working_dir.clone(),
                entrypoint: self.entrypoint.clone(),
                cmd: self.cmd.clone(),
                exposed_ports: names(&self.exposed_ports),
                volumes: names(&self.volumes),
                labels: self.labels.clone(),
                stop_signal: self.stop_signal.clone(),
            },
            rootfs: Rootfs { diff_ids: self.diff_ids.clone(), ..Rootfs::default() },
        };
        let bytes = serde_json::to_vec(&file).map_err(|error| {
            Error::internal("the configuration of an image cannot be written").because(error)
        })?;
        if bytes.len() > LARGEST {
            return Err(Error::resource_limit(format!(
                "the configuration of an image has {} bytes, {LARGEST} are allowed: give it fewer labels and variables",
                bytes.len()
            )));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stacyvm_provider::ErrorKind;

    #[test]
    fn what_builders_write_is_read() {
        let id = Digest::of(b"layer");
        let text = format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","created":"2024-01-02T03:04:05Z","author":"x",
            "container_config":{{"Cmd":["/bin/sh"]}},"history":[{{"created_by":"x","empty_layer":true}}],
            "config":{{"Hostname":"","User":"app:app","ExposedPorts":{{"80/tcp":{{}}}},"Env":["PATH=/bin","X="],
            "Entrypoint":["/e"],"Cmd":["a","b"],"Volumes":{{"/data":{{}}}},"WorkingDir":"/w","Labels":{{"k":"v"}},
            "StopSignal":"SIGQUIT","OnBuild":null}},"rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        );
        let config = ImageConfig::parse(text.as_bytes(), "x").unwrap();
        let one = |text: &str| vec![text.to_owned()];
        let expected = ImageConfig {
            os: "linux".to_owned(),
            architecture: "arm64".to_owned(),
            variant: Some("v8".to_owned()),
            created: Some("2024-01-02T03:04:05Z".to_owned()),
            user: Some("app:app".to_owned()),
            env: vec!["PATH=/bin".to_owned(), "X=".to_owned()],
            working_dir: Some("/w".to_owned()),
            entrypoint: one("/e"),
            cmd: vec!["a".to_owned(), "b".to_owned()],
            exposed_ports: one("80/tcp"),
            volumes: one("/data"),
            labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            stop_signal: Some("SIGQUIT".to_owned()),
            diff_ids: vec![id],
        };
        assert_eq!(config, expected);
        config.runs_on(&"linux/arm64".parse().unwrap(), "x").unwrap();
        let error = config.runs_on(&"linux/amd64".parse().unwrap(), "some:1").unwrap_err();
        let message = error.message();
        assert!(
            ["some:1", "linux/arm64", "linux/amd64"].iter().all(|part| message.contains(part)),
            "{message}"
        );
    }

    #[test]
    fn null_is_empty_and_a_word_is_a_list() {
        let text = r#"{"architecture":"amd64","os":"linux","variant":"","created":null,"config":{"User":"","Env":null,
            "Cmd":null,"Entrypoint":"/e x","ExposedPorts":null,"Volumes":null,"Labels":null,"WorkingDir":""},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ImageConfig::parse(text.as_bytes(), "x").unwrap();
        let bare = ImageConfig {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            entrypoint: vec!["/e x".to_owned()],
            ..ImageConfig::default()
        };
        assert_eq!(config, bare);
        for text in [
            r#"{"architecture":"amd64","os":"linux"}"#,
            r#"{"architecture":"amd64","os":"linux","config":null,"rootfs":null}"#,
        ] {
            assert!(ImageConfig::parse(text.as_bytes(), "x").unwrap().cmd.is_empty());
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_the_image_named() {
        for text in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"architecture":"amd64"}"#,
            r#"{"architecture":"amd64","os":1}"#,
            r#"{"architecture":"amd64","os":"linux","config":{"Env":"A=b"}}"#,
            r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=\u0000"]}}"#,
            r#"{"architecture":"amd64","os":"linux","config":{"User":"\u0000"}}"#,
            r#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["sha256:../../x"]}}"#,
        ] {
            let error = ImageConfig::parse(text.as_bytes(), "some:1").expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
            assert!(error.message().contains("some:1"), "{error}");
        }
        let error = ImageConfig::parse(&vec![b' '; LARGEST + 1], "some:1").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceLimit);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            texts in prop::collection::vec("[^\\x00]{1,6}", 6),
            list in prop::collection::vec("[^\\x00]{0,6}", 0..4),
            keys in prop::collection::btree_map("\\PC{0,6}", "\\PC{0,6}", 0..4),
            layers in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let some = |at: usize| Some(texts[at].clone());
            let names: Vec<String> = keys.keys().cloned().collect();
            let config = ImageConfig {
                os: texts[0].clone(), architecture: texts[1].clone(), variant: some(2), created: some(3), user: some(4),
                env: list.clone(), working_dir: some(5), entrypoint: list.clone(), cmd: list, exposed_ports: names.clone(),
                volumes: names, labels: keys, stop_signal: some(2),
                diff_ids: layers.iter().map(|byte| Digest::of(&[*byte])).collect(),
            };
            let bytes = config.to_json().unwrap();
            prop_assert_eq!(ImageConfig::parse(&bytes, "x").unwrap(), config);
        }
    }
}
