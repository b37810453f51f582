//! When each agent was last heard: by this process's clock, for an agent's own may be wrong.
//!
//! A renewal counts from the moment at which its Lease was seen to change. The one that a Lease holds when it is first seen may be old, so it counts from the
//! time that it gives itself, or from now where that lies ahead. Without this an agent whose clock is a minute slow would be taken for dead, and a dead
//! one whose clock was an hour fast for alive.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use stowage_crds::names;

use crate::cache::{Cache, Key};
use crate::clock::after;

/// The heartbeats of the agents whose Leases there are.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    heard: BTreeMap<Key, Heard>,
}

#[derive(Clone, Debug)]
struct Heard {
    /// As the agent wrote it.
    renewed: Timestamp,
    /// By our clock.
    at: Timestamp,
}

impl Heartbeats {
    /// Listens to the Leases as they are known now.
    pub fn listen(&mut self, leases: &Cache<Lease>, now: Timestamp) {
        self.heard.retain(|key, _| leases.get(key).is_some_and(|lease| renewed(lease).is_some()));
        for (key, lease) in leases.iter() {
            let Some(renewed) = renewed(lease) else { continue };
            let first = Heard { renewed, at: renewed.min(now) };
            let heard = self.heard.entry(key.clone()).or_insert(first);
            if heard.renewed != renewed {
                *heard = Heard { renewed, at: now };
            }
        }
    }

    /// Until when the agent counts as alive if it is not heard again; `None` for one that was never heard.
    pub fn alive_until(&self, lease: &Lease, key: &Key) -> Option<Timestamp> {
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(names::NODE_LEASE_SECONDS);
        self.heard.get(key).map(|heard| after(heard.at, seconds.into()))
    }
}

fn renewed(lease: &Lease) -> Option<Timestamp> {
    Some(lease.spec.as_ref()?.renew_time.as_ref()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Key;
    use crate::testing::{lease, listed, now};

    /// Seconds from now until the agent of n1 counts as silent.
    fn alive_for(heartbeats: &Heartbeats, leases: &Cache<Lease>) -> i64 {
        let key = Key::of(leases.iter().next().unwrap().1.as_ref());
        heartbeats.alive_until(leases.get(&key).unwrap(), &key).unwrap().duration_since(now()).as_secs()
    }

    fn heard(seconds_ago: i64) -> (Heartbeats, Cache<Lease>) {
        let (mut heartbeats, leases) = (Heartbeats::default(), listed([lease("n1", seconds_ago)]));
        heartbeats.listen(&leases, now());
        (heartbeats, leases)
    }

    #[test]
    fn what_a_lease_says_when_it_is_first_seen_counts_but_for_times_that_lie_ahead() {
        for (seconds_ago, alive) in [(0, 40), (15, 25), (3600, -3560), (-3600, 40)] {
            let (heartbeats, leases) = heard(seconds_ago);
            assert_eq!(alive_for(&heartbeats, &leases), alive, "renewed {seconds_ago} s ago");
        }
    }

    #[test]
    fn an_agent_with_a_slow_clock_is_alive_once_it_was_heard_to_renew() {
        let (mut heartbeats, _) = heard(3600);
        let leases = listed([lease("n1", 3590)]);
        heartbeats.listen(&leases, after(now(), 5));
        assert_eq!(alive_for(&heartbeats, &leases), 45);
        heartbeats.listen(&leases, after(now(), 30));
        assert_eq!(alive_for(&heartbeats, &leases), 45, "hearing the same again is no renewal");
    }

    #[test]
    fn an_agent_whose_lease_is_gone_was_never_heard() {
        let (mut heartbeats, leases) = heard(0);
        heartbeats.listen(&listed([]), now());
        let key = Key::of(leases.iter().next().unwrap().1.as_ref());
        assert_eq!(heartbeats.alive_until(leases.get(&key).unwrap(), &key), None);
    }
}
