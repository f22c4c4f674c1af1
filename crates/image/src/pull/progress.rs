//! What a pull has come to, for whoever listens.

use crate::Reference;
use stacyvm_provider::{Error, Notice, NoticeKind, Result};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::broadcast, time::MissedTickBehavior};

/// Time between two words about a pull.
const EVERY: Duration = Duration::from_millis(500);

/// What a layer has come to. Shared by all pulls that wait for it.
#[derive(Debug, Default)]
pub(super) struct Amount {
    /// Bytes that were fetched.
    pub(super) fetched: AtomicU64,
    /// Whether the layer is there.
    pub(super) done: AtomicBool,
}

/// A layer in one pull.
#[derive(Debug)]
struct Part {
    size: u64,
    amount: Mutex<Arc<Amount>>,
}

/// A layer in one pull, to say whose amount it has.
#[derive(Debug, Clone)]
pub(super) struct Handle(Arc<Part>);

impl Handle {
    /// The layer is brought, by this pull or another, and this is what it comes to.
    pub(super) fn is(&self, amount: &Arc<Amount>) {
        *self.0.amount.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(amount);
    }
}

/// What a pull has come to.
#[derive(Debug)]
pub(super) struct Progress {
    image: String,
    notices: broadcast::Sender<Notice>,
    parts: Mutex<Vec<Arc<Part>>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    layers: usize,
    layers_done: usize,
    bytes: u64,
    bytes_done: u64,
}

impl Progress {
    pub(super) fn new(reference: &Reference, notices: broadcast::Sender<Notice>) -> Self {
        Self { image: reference.to_string(), notices, parts: Mutex::default() }
    }

    /// A layer of so many bytes.
    pub(super) fn layer(&self, size: u64) -> Handle {
        let part = Arc::new(Part { size, amount: Mutex::default() });
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&part));
        Handle(part)
    }

    /// Tells how far `pull` is while it runs.
    pub(super) async fn while_it_runs<T>(&self, pull: impl Future<Output = Result<T>>) -> Result<T> {
        let mut pull = std::pin::pin!(pull);
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tokio::select! {
                biased;
                outcome = &mut pull => return outcome,
                _ = every.tick() => {
                    let sum = self.sum();
                    if told.as_ref() != Some(&sum) {
                        self.say("pulling", &sum, None);
                        told = Some(sum);
                    }
                }
            }
        }
    }

    /// Tells how it ended.
    pub(super) fn end<T>(&self, outcome: &Result<T>) {
        match outcome {
            Ok(_) => self.say("done", &self.sum(), None),
            Err(error) => self.say("failed", &self.sum(), Some(error)),
        }
    }

    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for part in self.parts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let amount = part.amount.lock().unwrap_or_else(PoisonError::into_inner);
            let done = amount.done.load(Relaxed);
            sum.layers += 1;
            sum.layers_done += usize::from(done);
            sum.bytes = sum.bytes.saturating_add(part.size);
            let here = if done { part.size } else { amount.fetched.load(Relaxed).min(part.size) };
            sum.bytes_done = sum.bytes_done.saturating_add(here);
        }
        sum
    }

    fn say(&self, status: &str, sum: &Sum, error: Option<&Error>) {
        let mut data = BTreeMap::from([
            ("image".to_owned(), self.image.clone().into()),
            ("status".to_owned(), status.into()),
            ("layers".to_owned(), sum.layers.into()),
            ("layers_done".to_owned(), sum.layers_done.into()),
            ("bytes".to_owned(), sum.bytes.into()),
            ("bytes_done".to_owned(), sum.bytes_done.into()),
        ]);
        if let Some(error) = error {
            data.insert("error".to_owned(), error.message().into());
        }
        // Nobody may be listening.
        let _ = self.notices.send(Notice { kind: NoticeKind::ImagePull, sandbox: None, data });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(heard: &mut broadcast::Receiver<Notice>) -> Vec<(String, u64, u64, u64)> {
        let mut all = Vec::new();
        while let Ok(notice) = heard.try_recv() {
            let number = |key: &str| notice.data[key].as_u64().unwrap();
            let status = notice.data["status"].as_str().unwrap().to_owned();
            all.push((status, number("layers_done"), number("bytes_done"), number("bytes")));
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn words_are_few_and_add_up() {
        let (notices, mut heard) = broadcast::channel(64);
        let progress = Progress::new(&"a:1".parse().unwrap(), notices);
        let amount = Arc::new(Amount::default());
        let outcome = progress
            .while_it_runs(async {
                progress.layer(1000).is(&amount);
                let there = Arc::new(Amount::default());
                there.done.store(true, Relaxed);
                progress.layer(50).is(&there);
                for step in 0..1000 {
                    amount.fetched.store(step, Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // Nothing happens: nothing is said.
                tokio::time::sleep(Duration::from_secs(60)).await;
                amount.done.store(true, Relaxed);
                Ok(())
            })
            .await;
        progress.end(&outcome);
        let said = said(&mut heard);
        assert!((5..=6).contains(&said.len()), "{said:?}");
        assert!(
            said.iter().all(|(_, done, bytes, all)| *done >= 1 && *bytes >= 50 && *all == 1050),
            "{said:?}"
        );
        assert_eq!(said.last(), Some(&("done".to_owned(), 2, 1050, 1050)));
    }

    #[test]
    fn a_failure_is_told_with_its_reason() {
        let (notices, mut heard) = broadcast::channel(4);
        let progress = Progress::new(&"a:1".parse().unwrap(), notices);
        progress.end::<()>(&Err(Error::not_found("no such image").because("the registry's own words")));
        let notice = heard.try_recv().unwrap();
        let text = |key: &str| notice.data[key].as_str().unwrap();
        assert_eq!((text("image"), text("status"), text("error")), ("a:1", "failed", "no such image"));
    }
}
