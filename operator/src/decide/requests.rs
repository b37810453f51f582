//! Requests to the API server, which go on beside each other; their answers are taken one at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::Client;
use tokio::task::{JoinError, JoinSet};

use crate::cache::Revision;
use crate::leader::Leadership;
use crate::model_deployment::apply::{self, Answer, ApplyError, Found};
use crate::step::{Decision, Item, Target};

/// Most requests at once for those that have no place yet. Few: an API server that is busy answers no more of them a second when there are more, and what it
/// tells watches, by which users and this operator see what came of them, falls behind.
const MOST: usize = 8;
/// Likewise for all else.
const MOST_THAT_CAN_WAIT: usize = 2;

/// This process no longer leads.
#[derive(Debug, thiserror::Error)]
#[error("this process no longer leads")]
pub struct NotLeading;

/// What came of the request of an item.
pub struct Answered {
    pub item: Item,
    pub outcome: Outcome,
}

pub enum Outcome {
    Written(Arc<Decision>, Result<Answer, ApplyError>),
    Read(Revision, Result<Found, kube::Error>),
    /// It was not sent.
    NotLeading,
}

/// Those that go on; dropped, they are left to themselves: what arrives of them is held back by its version where another has written since.
pub struct Requests {
    client: Client,
    leadership: Leadership,
    sent: JoinSet<Answered>,
    /// Items of these that can wait.
    that_can_wait: BTreeSet<Item>,
}

impl Requests {
    pub fn new(client: Client, leadership: Leadership) -> Requests {
        Requests { client, leadership, sent: JoinSet::new(), that_can_wait: BTreeSet::new() }
    }

    /// Whether there is room for a request of an item that can wait, or can't.
    pub fn have_room(&self, can_wait: bool) -> bool {
        let that_can_wait = self.that_can_wait.len();
        match can_wait {
            true => that_can_wait < MOST_THAT_CAN_WAIT,
            false => self.sent.len() - that_can_wait < MOST,
        }
    }

    /// Notes that the next request of this item is one that can wait.
    pub fn can_wait(&mut self, item: &Item) {
        self.that_can_wait.insert(item.clone());
    }

    #[cfg(test)]
    pub fn are_none(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether this process leads is asked once more when the write's turn comes to be sent.
    pub fn write(&mut self, item: Item, decision: Arc<Decision>) -> Result<(), NotLeading> {
        let (client, leadership) = (self.client.clone(), self.leadership.clone());
        if !leadership.holds() {
            return Err(NotLeading);
        }
        self.sent.spawn(async move {
            let outcome = match leadership.holds() {
                true => {
                    let answer = apply::send(&client, &decision.write).await;
                    Outcome::Written(decision, answer)
                }
                false => Outcome::NotLeading,
            };
            Answered { item, outcome }
        });
        Ok(())
    }

    /// Reads past the cache; `as_of` is already known to be written.
    pub fn read(&mut self, item: Item, target: Target, as_of: Revision) {
        let client = self.client.clone();
        self.sent.spawn(async move {
            let outcome = Outcome::Read(as_of, apply::read(&client, target).await);
            Answered { item, outcome }
        });
    }

    /// The next answer; `None` where none is waited for.
    pub async fn next(&mut self) -> Option<Answered> {
        let ended = self.sent.join_next().await;
        ended.map(|ended| self.unwrapped(ended))
    }

    /// An answer that is there already.
    pub fn try_next(&mut self) -> Option<Answered> {
        let ended = self.sent.try_join_next();
        ended.map(|ended| self.unwrapped(ended))
    }

    fn unwrapped(&mut self, ended: Result<Answered, JoinError>) -> Answered {
        // A request is aborted only by dropping all, so what keeps one from its end is a panic.
        let answered = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        self.that_can_wait.remove(&answered.item);
        answered
    }
}
