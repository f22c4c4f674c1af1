//! One lock per sandbox, so that a runtime's life-cycle calls for one sandbox take turns and those for others do not wait.

use crate::SandboxId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Entries of which nobody holds a lock any more are swept when there are this many.
const SWEEP: usize = 256;

/// Locks by sandbox, made when asked for.
#[derive(Debug, Default)]
pub struct Locks(Mutex<HashMap<SandboxId, Weak<AsyncMutex<()>>>>);

impl Locks {
    /// Waits for the turn of this sandbox.
    pub async fn lock(&self, id: &SandboxId) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mutex) = locks.get(id).and_then(Weak::upgrade) {
                mutex
            } else {
                if locks.len() >= SWEEP {
                    locks.retain(|_, mutex| mutex.strong_count() > 0);
                }
                let mutex = Arc::new(AsyncMutex::new(()));
                locks.insert(id.clone(), Arc::downgrade(&mutex));
                mutex
            }
        };
        mutex.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn one_sandbox_takes_turns_and_another_does_not_wait() {
        let locks = Locks::default();
        let (a, b) = ("sb-a".parse().unwrap(), "sb-b".parse().unwrap());
        let held = locks.lock(&a).await;
        let _other = locks.lock(&b).await;
        let wait = Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, locks.lock(&a)).await.is_err());
        drop(held);
        let _again = locks.lock(&a).await;
    }

    #[tokio::test]
    async fn locks_that_nobody_holds_do_not_pile_up() {
        let locks = Locks::default();
        for n in 0..3 * SWEEP {
            drop(locks.lock(&format!("sb-{n}").parse().unwrap()).await);
        }
        assert!(locks.0.lock().unwrap().len() <= SWEEP);
    }
}
