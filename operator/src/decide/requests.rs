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
/// All else has what those leave of it, and so many of its own.
const LEAST_THAT_CAN_WAIT: usize = 2;

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
            true => self.sent.len() < MOST || that_can_wait < LEAST_THAT_CAN_WAIT,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Request, Response};
    use kube::client::Body;
    use tokio::sync::watch;
    use tokio::time::Instant;
    use tower_test::mock::{self, Handle};

    use super::*;
    use crate::cache::Key;
    use crate::step::Write;

    fn removal(name: &str) -> (Item, Arc<Decision>) {
        let key = Key::new("default", name);
        let write = Write::RemoveSlice { key: key.clone(), uid: "u".into(), version: "7".into() };
        (Item::Endpoints(key), Arc::new(Decision { write, notices: Vec::new(), refusals: Vec::new() }))
    }

    type Server = Handle<Request<Body>, Response<Body>>;

    fn requests() -> (Requests, watch::Sender<Option<Instant>>, Server) {
        let (service, handle) = mock::pair();
        let (leads, until) = watch::channel(Some(Instant::now() + Duration::from_secs(60)));
        (Requests::new(Client::new(service, "default"), Leadership::until(until)), leads, handle)
    }

    fn write(requests: &mut Requests, name: &str) -> Result<(), NotLeading> {
        let (item, decision) = removal(name);
        requests.write(item, decision)
    }

    #[tokio::test]
    async fn a_write_that_is_not_answered_keeps_no_other_from_its_answer() {
        let (mut requests, _leads, mut server) = requests();
        write(&mut requests, "slow").unwrap();
        write(&mut requests, "quick").unwrap();
        let (slow, later) = server.next_request().await.unwrap();
        assert!(slow.uri().path().ends_with("/slow"));
        let (_, reply) = server.next_request().await.unwrap();
        reply.send_response(Response::new(Body::from(b"{\"status\": \"Success\"}".to_vec())));
        let answered = requests.next().await.unwrap();
        assert_eq!(answered.item, removal("quick").0);
        assert!(matches!(answered.outcome, Outcome::Written(_, Ok(_))));
        later.send_response(Response::builder().status(503).body(Body::from(b"{\"code\": 503}".to_vec())).unwrap());
        assert!(matches!(requests.next().await.unwrap().outcome, Outcome::Written(_, Err(_))));
        assert!(requests.are_none());
    }

    #[tokio::test]
    async fn once_the_leadership_is_lost_nothing_is_sent_not_even_what_was_decided_before() {
        let (mut requests, leads, mut server) = requests();
        write(&mut requests, "decided").unwrap();
        // Before its turn came to be sent.
        leads.send_replace(None);
        assert!(matches!(requests.next().await.unwrap().outcome, Outcome::NotLeading));
        assert!(write(&mut requests, "late").is_err());
        drop(requests);
        assert!(server.next_request().await.is_none(), "a request came");
    }

    fn fill(requests: &mut Requests, can_wait: bool) -> usize {
        let name = |index| format!("{can_wait}-{index}");
        (0..)
            .take_while(|index| {
                let has_room = requests.have_room(can_wait);
                if has_room {
                    write(requests, &name(*index)).unwrap();
                }
                if has_room && can_wait {
                    requests.can_wait(&removal(&name(*index)).0);
                }
                has_room
            })
            .count()
    }

    #[tokio::test]
    async fn what_can_wait_has_what_others_leave_and_a_little_of_its_own_and_never_keeps_them_out() {
        let (mut busy, _leads, _server) = requests();
        assert_eq!((fill(&mut busy, false), fill(&mut busy, true)), (MOST, LEAST_THAT_CAN_WAIT));
        let (mut idle, _leads, _server) = requests();
        assert_eq!((fill(&mut idle, true), fill(&mut idle, false)), (MOST, MOST));
    }
}
