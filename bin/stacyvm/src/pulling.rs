//! A bar for an image that is being pulled, while a sandbox is waited for: on a terminal only, and only if there is a pull.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use stacyvm_client::Client;
use stacyvm_types::{Event, EventType};
use std::io::IsTerminal;

/// Waits for `work`, and shows pulls of `image` (of any image, if the server chooses it) meanwhile.
pub(crate) async fn shown<T>(client: &Client, image: Option<&str>, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut bar = Bar::default();
    let watched = async {
        // Without events there is no bar, and nothing else is missing.
        if let Ok(mut events) = client.events(None).await {
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

#[derive(Default)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn hear(&mut self, event: &Event, image: Option<&str>) {
        let text = |name: &str| event.data.get(name).and_then(|value| value.as_str()).unwrap_or_default();
        let number = |name: &str| event.data.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        if event.kind != EventType::ImagePull || image.is_some_and(|image| image != text("image")) {
            return;
        }
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
