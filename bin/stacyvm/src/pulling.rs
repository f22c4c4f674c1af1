//! A bar for an image that is being pulled, while a sandbox is waited for: on a terminal only, and only if there is a pull.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use stacyvm_client::{Client, EventQuery};
use stacyvm_image::Images;
use stacyvm_types::{Event, EventType};
use std::io::IsTerminal;
use tokio::sync::broadcast::error::RecvError;

/// Waits for `work`, and shows pulls of `image` (of any image, if the server chooses it) meanwhile.
pub(crate) async fn shown<T>(client: &Client, image: Option<&str>, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut bar = Bar::default();
    let watched = async {
        // Without events there is no bar, and nothing else is missing.
        if let Ok(mut events) = client.events(&EventQuery::default()).await {
            while let Ok(Some(event)) = events.next().await {
                bar.hear(&event, image);
            }
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        never = watched => match never {},
    };
    bar.finish();
    outcome
}

/// Waits for `work`, and shows what is pulled by this program meanwhile.
pub(crate) async fn shown_here<T>(images: &Images, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut bar = Bar::default();
    let mut notices = images.notices();
    let watched = async {
        loop {
            match notices.recv().await {
                Ok(notice) => bar.show(|name| notice.data.get(name)),
                Err(RecvError::Lagged(_)) => {}
                // Not while the images are there, which the caller has.
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        never = watched => match never {},
    };
    bar.finish();
    outcome
}

#[derive(Default)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn hear(&mut self, event: &Event, image: Option<&str>) {
        let pulled = event.data.get("image").and_then(|value| value.as_str());
        if event.kind == EventType::ImagePull && image.is_none_or(|image| pulled == Some(image)) {
            self.show(|name| event.data.get(name));
        }
    }

    /// Shows the progress of a pull, whose fields are those of an event `image.pull`.
    fn show<'a>(&mut self, field: impl Fn(&str) -> Option<&'a Value>) {
        let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| field(name).and_then(Value::as_u64).unwrap_or(0);
        if text("status") != "pulling" {
            return self.finish();
        }
        let bar = self.0.get_or_insert_with(|| {
            let template = "{msg}  {bar:30}  {bytes} of {total_bytes}  {bytes_per_sec}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_message(format!(
            "pulling {} ({} of {} layers)",
            text("image"),
            number("layers_done"),
            number("layers")
        ));
        bar.set_length(number("bytes"));
        bar.set_position(number("bytes_done"));
    }

    fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
