//! Pulling images: one pull for all who wait for the same image, its progress for whoever listens, and its failures told
//! apart, since each has another remedy.

use crate::{
    auth,
    failure::{failed, is_missing, words},
    reference,
};
use bollard::{
    Docker, errors::Error as Failure, models::CreateImageInfo, query_parameters::CreateImageOptions,
};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
use stacyvm_provider::{Error, Notice, NoticeKind, Result};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::broadcast;

/// Longest silence of a pull.
const SILENCE: Duration = Duration::from_secs(300);
/// Time between two words about a pull's progress.
const EVERY: Duration = Duration::from_millis(500);

type Running = Shared<BoxFuture<'static, Result<()>>>;

/// The pulls under way.
#[derive(Debug)]
pub(crate) struct Pulls {
    running: Arc<Mutex<HashMap<String, Running>>>,
    notices: broadcast::Sender<Notice>,
    auth_file: Option<PathBuf>,
    platform: Option<String>,
}

impl Pulls {
    pub(crate) fn new(
        notices: broadcast::Sender<Notice>,
        auth_file: Option<PathBuf>,
        platform: Option<String>,
    ) -> Self {
        Self { running: Arc::default(), notices, auth_file, platform }
    }

    /// Pulls `image`, or waits for the pull that somebody else began. It goes on when the caller goes away.
    ///
    /// # Errors
    /// `NotFound` for an image or a tag that does not exist, `InvalidArgument` for refused credentials or a platform that
    /// the image has not, `Unavailable` for a registry that cannot be reached, `ResourceLimit` for a full disk.
    pub(crate) async fn pull(&self, client: &Docker, image: &str) -> Result<()> {
        let running = {
            let mut pulls = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || self.begin(client.clone(), image.to_owned());
            pulls.entry(image.to_owned()).or_insert_with(begin).clone()
        };
        running.await
    }

    fn begin(&self, client: Docker, image: String) -> Running {
        let (running, notices) = (Arc::clone(&self.running), self.notices.clone());
        let (auth_file, platform) = (self.auth_file.clone(), self.platform.clone());
        let task = tokio::spawn(async move {
            let credentials = auth::credentials(auth_file.as_deref(), &image).await;
            let has_credentials = credentials.is_some();
            let options = CreateImageOptions {
                from_image: Some(reference::tagged(&image)),
                platform: platform.unwrap_or_default(),
                ..CreateImageOptions::default()
            };
            let mut progress = Progress::new(&image, notices);
            let mut answers = client.create_image(Some(options), None, credentials);
            let outcome = loop {
                match tokio::time::timeout(SILENCE, answers.next()).await {
                    Ok(Some(Ok(answer))) => progress.hear(&answer),
                    Ok(Some(Err(error))) => break Err(explain(&image, has_credentials, error)),
                    Ok(None) => break Ok(()),
                    Err(_) => {
                        break Err(Error::unavailable(format!(
                            "pulling {image} made no progress for {} s: look at the registry {} and the daemon's network",
                            SILENCE.as_secs(),
                            reference::registry(&image)
                        )));
                    }
                }
            };
            progress.end(&outcome);
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
            outcome
        });
        let ended = async move {
            task.await.unwrap_or_else(|error| Err(Error::unavailable("the pull was given up").because(error)))
        };
        ended.boxed().shared()
    }
}

/// What a pull has come to.
struct Progress {
    image: String,
    notices: broadcast::Sender<Notice>,
    /// Bytes done and in all of each layer; equal when it is complete.
    layers: BTreeMap<String, (u64, u64)>,
    complete: usize,
    said: Option<Instant>,
}

impl Progress {
    fn new(image: &str, notices: broadcast::Sender<Notice>) -> Self {
        let progress =
            Self { image: image.to_owned(), notices, layers: BTreeMap::new(), complete: 0, said: None };
        progress.say("pulling", None);
        progress
    }

    fn hear(&mut self, answer: &CreateImageInfo) {
        let (Some(layer), Some(status)) = (&answer.id, &answer.status) else { return };
        let detail = answer.progress_detail.as_ref();
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        match status.as_str() {
            "Pulling fs layer" | "Waiting" => {
                self.layers.entry(layer.clone()).or_default();
            }
            "Downloading" => {
                let amount = (number(detail.and_then(|d| d.current)), number(detail.and_then(|d| d.total)));
                self.layers.insert(layer.clone(), amount);
            }
            "Download complete" => {
                let amount = self.layers.entry(layer.clone()).or_default();
                amount.0 = amount.1;
            }
            "Pull complete" | "Already exists" => {
                let amount = self.layers.entry(layer.clone()).or_default();
                amount.0 = amount.1;
                self.complete += 1;
            }
            _ => return,
        }
        if self.said.is_none_or(|said| said.elapsed() >= EVERY) {
            self.said = Some(Instant::now());
            self.say("pulling", None);
        }
    }

    fn end(&self, outcome: &Result<()>) {
        match outcome {
            Ok(()) => self.say("done", None),
            Err(error) => self.say("failed", Some(error.message())),
        }
    }

    fn say(&self, status: &str, error: Option<&str>) {
        let sum = |part: fn(&(u64, u64)) -> u64| self.layers.values().map(part).sum::<u64>();
        let mut data = BTreeMap::from([
            ("image".to_owned(), self.image.clone().into()),
            ("status".to_owned(), status.into()),
            ("layers".to_owned(), self.layers.len().into()),
            ("layers_done".to_owned(), self.complete.into()),
            ("bytes".to_owned(), sum(|layer| layer.1).into()),
            ("bytes_done".to_owned(), sum(|layer| layer.0).into()),
        ]);
        if let Some(error) = error {
            data.insert("error".to_owned(), error.into());
        }
        // Nobody may be listening.
        let _ = self.notices.send(Notice { kind: NoticeKind::ImagePull, sandbox: None, data });
    }
}

/// Why a pull failed, and what to do.
fn explain(image: &str, has_credentials: bool, error: Failure) -> Error {
    let said = words(&error);
    let says = |any: &[&str]| any.iter().any(|text| said.contains(text));
    let registry = reference::registry(image);
    if says(&["no basic auth credentials", "unauthorized", "authentication required", "incorrect username"]) {
        let what = if has_credentials {
            format!(
                "the registry {registry} refused the credentials for {image}: log in again with `docker login {registry}`"
            )
        } else {
            format!(
                "the registry {registry} wants credentials for {image}: log in with `docker login {registry}`, or set providers.docker.auth_file"
            )
        };
        return Error::invalid_argument(what).because(error);
    }
    if says(&["no matching manifest for"]) {
        let what = format!(
            "the image {image} does not exist for the daemon's platform: set providers.docker.platform, or name another image"
        );
        return Error::invalid_argument(what).because(error);
    }
    if says(&["manifest unknown", "manifest for"]) {
        return Error::not_found(format!(
            "the image {image} exists, its tag or digest does not: name one that the registry {registry} has"
        ))
        .because(error);
    }
    if says(&[
        "pull access denied",
        "repository does not exist",
        "name unknown",
        "repository name not known",
        "requested access to the resource is denied",
    ]) || (is_missing(&error) && !says(&["page not found"]))
    {
        return Error::not_found(format!("the registry {registry} has no image {image}, or keeps it from this server: see its name, and for a private one log in with `docker login {registry}`"))
            .because(error);
    }
    if says(&["toomanyrequests", "too many requests"]) {
        return Error::unavailable(format!("the registry {registry} takes no more requests now: try again later, or log in with `docker login {registry}`"))
            .because(error);
    }
    if says(&[
        "connection refused",
        "no such host",
        "i/o timeout",
        "server misbehaving",
        "x509",
        "tls:",
        "http response to https",
        "no route to host",
        "network is unreachable",
        "connection reset",
        "deadline exceeded",
        "client.timeout",
        ": eof",
        "temporary failure in name resolution",
        "bad gateway",
        "service unavailable",
    ]) {
        return Error::unavailable(format!("the docker daemon cannot reach the registry {registry} for {image}: see that the name is right, that the daemon's host has a way to it, and for one without TLS that it is in the daemon's insecure-registries"))
            .because(error);
    }
    if says(&["invalid reference format"]) {
        return Error::invalid_argument(format!("{image} is no name of an image")).because(error);
    }
    failed(&format!("pull {image}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_provider::ErrorKind;

    #[test]
    fn every_failure_has_its_own_remedy() {
        let told = |status_code, message: &str, known| {
            let message = message.to_owned();
            let error =
                explain("r.example/a:1", known, Failure::DockerResponseServerError { status_code, message });
            (error.kind(), error.message().to_owned())
        };
        let cases = [
            (
                500,
                "Get \"https://r.example/v2/a/manifests/1\": no basic auth credentials",
                false,
                ErrorKind::InvalidArgument,
                "wants credentials",
            ),
            (
                500,
                "Head: unauthorized: authentication required",
                true,
                ErrorKind::InvalidArgument,
                "refused the credentials",
            ),
            (
                404,
                "manifest for r.example/a:1 not found: manifest unknown: manifest unknown",
                false,
                ErrorKind::NotFound,
                "tag or digest",
            ),
            (
                404,
                "pull access denied for a, repository does not exist or may require 'docker login'",
                false,
                ErrorKind::NotFound,
                "has no image",
            ),
            (
                500,
                "Get \"http://r.example/v2/\": dial tcp: lookup r.example: no such host",
                false,
                ErrorKind::Unavailable,
                "cannot reach",
            ),
            (
                500,
                "dial tcp 127.0.0.1:1: connect: connection refused",
                false,
                ErrorKind::Unavailable,
                "cannot reach",
            ),
            (500, "write /var/lib: no space left on device", false, ErrorKind::ResourceLimit, "disk is full"),
            (
                404,
                "no matching manifest for linux/s390x in the manifest list entries",
                false,
                ErrorKind::InvalidArgument,
                "platform",
            ),
        ];
        for (status, message, known, kind, part) in cases {
            let (seen, text) = told(status, message, known);
            assert_eq!(seen, kind, "{message}");
            assert!(text.contains(part), "{message}: {text}");
        }
    }

    #[test]
    fn progress_adds_up() {
        let (notices, mut heard) = broadcast::channel(16);
        let mut progress = Progress::new("a:1", notices);
        let answer = |text: &str| serde_json::from_str::<CreateImageInfo>(text).unwrap();
        progress.hear(&answer(
            r#"{"id":"l1","status":"Downloading","progressDetail":{"current":10,"total":100}}"#,
        ));
        progress.hear(&answer(r#"{"id":"l2","status":"Already exists","progressDetail":{}}"#));
        progress.hear(&answer(r#"{"id":"l1","status":"Pull complete","progressDetail":{}}"#));
        progress.end(&Ok(()));
        let mut last = None;
        while let Ok(notice) = heard.try_recv() {
            last = Some(notice.data);
        }
        let last = last.unwrap();
        assert_eq!(
            (&last["status"], &last["layers_done"], &last["bytes_done"]),
            (&"done".into(), &2.into(), &100.into())
        );
    }
}
