//! A task for each of what is wanted, for as long as it is wanted.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Starts a task for each that comes to be wanted, and stops that of each that no longer is, until nobody can want anything any more. A task that has ended
/// is started again only when it was unwanted in between.
pub async fn run<K, T>(mut wanted: watch::Receiver<BTreeSet<K>>, task: impl Fn(K) -> T)
where
    K: Ord + Clone,
    T: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut started: BTreeMap<K, AbortHandle> = BTreeMap::new();
    loop {
        let now_wanted = wanted.borrow_and_update().clone();
        started.retain(|key, task| {
            let keep = now_wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for key in now_wanted {
            started.entry(key.clone()).or_insert_with(|| tasks.spawn(task(key)));
        }
        if wanted.changed().await.is_err() {
            return;
        }
        while tasks.try_join_next().is_some() {}
    }
}
