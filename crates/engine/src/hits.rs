//! Limits that a sandbox hit: told by whoever learns of it, counted by the sandbox's own task, which stores them and makes
//! events of them. However fast a sandbox hits its limits, that is one write and a few events in a second.

use crate::{admission::now, sandbox::Actor};
use stacyvm_provider::Limit;
use stacyvm_store::SandboxChange;
use stacyvm_types::{EventType, LimitHits};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Shortest time between two countings.
const EVERY: Duration = Duration::from_secs(1);
/// Events of one limit in one counting; what is beyond is counted all the same.
const EVENTS: usize = 8;
/// Processes and limits that are remembered as told: more than a guest has processes.
const TOLD: usize = 1024;
/// Longest process id, in bytes. The engine makes no longer ones; a guest might.
const PROCESS_ID: usize = 64;

/// What was told and not counted yet.
#[derive(Debug, Default)]
pub(crate) struct Hits {
    gathered: Mutex<Gathered>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Gathered {
    fresh: BTreeMap<Limit, Fresh>,
    /// Each process counts once for each limit, however often and by whomever it is told.
    told: VecDeque<(String, Limit)>,
}

/// Hits of one limit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fresh {
    count: u64,
    /// Whose the first ones were.
    by: Vec<Option<String>>,
}

impl Hits {
    /// That `process`, or a file operation, hit `limits`.
    pub(crate) fn add(&self, process: Option<&str>, limits: &[Limit]) {
        let mut news = false;
        let mut gathered = self.gathered();
        for limit in limits {
            news |= gathered.add(process, *limit);
        }
        drop(gathered);
        if news {
            self.news.notify_one();
        }
    }

    fn take(&self) -> BTreeMap<Limit, Fresh> {
        std::mem::take(&mut self.gathered().fresh)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    /// False if that was known.
    fn add(&mut self, process: Option<&str>, limit: Limit) -> bool {
        let process = process.map(|id| id[..id.floor_char_boundary(PROCESS_ID)].to_owned());
        if let Some(id) = &process {
            if self.told.iter().any(|(told, of)| told == id && *of == limit) {
                return false;
            }
            if self.told.len() >= TOLD {
                self.told.pop_front();
            }
            self.told.push_back((id.clone(), limit));
        }
        let fresh = self.fresh.entry(limit).or_default();
        fresh.count += 1;
        if fresh.by.len() < EVENTS {
            fresh.by.push(process);
        }
        true
    }
}

/// When to count.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Pace {
    /// Returns when there is something to count and it is time for it. May be dropped and called again.
    pub(crate) async fn turn(&mut self, hits: &Hits) {
        let due = match self.due {
            Some(due) => due,
            None => {
                hits.news.notified().await;
                let now = Instant::now();
                *self.due.insert(self.last.map_or(now, |last| now.max(last + EVERY)))
            }
        };
        tokio::time::sleep_until(due).await;
        self.due = None;
        self.last = Some(Instant::now());
    }
}

impl Actor {
    /// Counts what was told since the last time, stores it and makes events of it.
    pub(crate) async fn count_hits(&mut self) {
        let taken = self.hits.take();
        if taken.is_empty() {
            return;
        }
        let at = now();
        for (limit, fresh) in taken {
            let hits = self.record.limits_hit.entry(limit).or_insert(LimitHits { count: 0, last_at: at });
            let before = hits.count;
            hits.count = before.saturating_add(fresh.count);
            hits.last_at = at;
            for (count, process) in (before.saturating_add(1)..).zip(fresh.by) {
                let pairs = [
                    ("limit", limit.as_str().into()),
                    ("process_id", process.into()),
                    ("count", count.into()),
                ];
                self.emit(EventType::SandboxLimit, pairs);
            }
        }
        self.publish();
        let text = serde_json::to_string(&self.record.limits_hit).unwrap_or_default();
        let change = SandboxChange { limits_hit: Some(text), ..SandboxChange::default() };
        if let Err(error) = self.store(&change).await {
            tracing::warn!(sandbox = %self.id, %error, "the limits that were hit could not be stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_counts_once_for_each_limit_and_file_operations_each_time() {
        let hits = Hits::default();
        hits.add(Some("p-1"), &[Limit::Oom]);
        hits.add(Some("p-1"), &[Limit::Oom, Limit::Pids]);
        hits.add(None, &[Limit::DiskFull]);
        hits.add(None, &[Limit::DiskFull]);
        let taken = hits.take();
        let counts: Vec<_> = taken.iter().map(|(limit, fresh)| (limit.as_str(), fresh.count)).collect();
        assert_eq!(counts, [("oom", 1), ("disk_full", 2), ("pids", 1)]);
        assert_eq!(taken[&Limit::Oom].by, [Some("p-1".to_owned())]);
        hits.add(Some("p-1"), &[Limit::Oom]);
        assert!(hits.take().is_empty(), "it was told before the last counting");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_counted_is_not() {
        let hits = Hits::default();
        for n in 0..3 * TOLD {
            hits.add(Some(&format!("p-{n}")), &[Limit::Pids]);
        }
        hits.add(Some(&"ä".repeat(1000)), &[Limit::Oom]);
        assert_eq!(hits.gathered().told.len(), TOLD);
        let taken = hits.take();
        assert_eq!((taken[&Limit::Pids].count, taken[&Limit::Pids].by.len()), (3 * TOLD as u64, EVENTS));
        assert_eq!(taken[&Limit::Oom].by[0].as_ref().unwrap().len(), PROCESS_ID);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_counted_at_once_and_the_next_after_a_while() {
        let (hits, mut pace) = (Hits::default(), Pace::default());
        let started = Instant::now();
        hits.add(None, &[Limit::Oom]);
        pace.turn(&hits).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        hits.add(None, &[Limit::Oom]);
        // Given up in the middle, as a select does.
        assert!(tokio::time::timeout(EVERY / 2, pace.turn(&hits)).await.is_err());
        pace.turn(&hits).await;
        assert!(started.elapsed() >= EVERY, "{:?}", started.elapsed());
    }
}
