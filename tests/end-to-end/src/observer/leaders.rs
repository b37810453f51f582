//! Which operator wrote while another held the Lease, by the API server's audit log.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use stowage_crds::names;

/// What operators say they are, before their name in brackets.
const USER_AGENT: &str = "stowage-operator/";

/// Of `audit.k8s.io/v1`, what is needed of an Event.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    user_agent: Option<String>,
    verb: String,
    object_ref: Option<Object>,
    response_status: Option<Status>,
    request_object: Option<Lease>,
    /// When the request came.
    request_received_timestamp: Timestamp,
    /// When the answer was sent.
    stage_timestamp: Timestamp,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    resource: String,
    namespace: String,
    name: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Status {
    code: u16,
}

impl Event {
    fn succeeded(&self) -> bool {
        self.response_status.is_some_and(|status| (200..300).contains(&status.code))
    }

    fn operator(&self) -> Option<&str> {
        let (_, name) = self.user_agent.as_deref()?.strip_prefix(USER_AGENT)?.split_once(" (")?;
        name.strip_suffix(')')
    }

    fn is_election(&self) -> bool {
        let leaders = |object: &Object| object.resource == "leases" && object.name == names::OPERATOR_MANAGER;
        self.object_ref.as_ref().is_some_and(leaders)
    }

    /// Who holds the Lease once this is written; nobody, where it was given up.
    fn holder(&self) -> Option<&str> {
        self.request_object.as_ref()?.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }
}

/// How many writes of operators were looked at, and those that were made while another held the Lease.
pub(super) fn writes_beside_the_leader(audit_log: &Path) -> Result<(usize, Vec<String>)> {
    let text = fs::read_to_string(audit_log).with_context(|| format!("reading {}", audit_log.display()))?;
    // A server that was killed may have left half a line.
    let events = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    Ok(judge(events.filter(Event::succeeded).filter(|event| event.operator().is_some()).collect()))
}

fn judge(mut events: Vec<Event>) -> (usize, Vec<String>) {
    events.sort_by_key(|event| event.request_received_timestamp);
    let (elections, writes): (Vec<Event>, Vec<Event>) = events.into_iter().partition(Event::is_election);
    let found = writes.iter().filter_map(|write| {
        let came = write.request_received_timestamp;
        // An answer that was on its way when the write came is not held against it.
        let last = elections.iter().rfind(|election| election.request_received_timestamp <= came)?;
        let holder = last.holder().filter(|_| last.stage_timestamp <= came)?;
        let operator = write.operator().filter(|operator| *operator != holder)?;
        let Object { resource, namespace, name } = write.object_ref.clone().unwrap_or_default();
        Some(format!("{operator} wrote ({} {resource} {namespace}/{name}, {came}) while {holder} held the Lease", write.verb))
    });
    (writes.len(), found.collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn event(operator: &str, at: u32, resource: &str, holder: Option<&str>) -> Event {
        let time = |offset: u32| format!("2026-01-01T00:00:{:02}.000000Z", at + offset);
        let event = json!({
            "userAgent": format!("stowage-operator/0.1.0 ({operator})"),
            "verb": "update",
            "objectRef": {"resource": resource, "name": if resource == "leases" { names::OPERATOR_MANAGER } else { "m" }},
            "responseStatus": {"code": 200},
            "requestObject": holder.map(|holder| json!({"metadata": {}, "spec": {"holderIdentity": holder}})),
            "requestReceivedTimestamp": time(0),
            "stageTimestamp": time(1),
        });
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn only_a_write_that_comes_after_another_has_the_lease_is_one_too_many() {
        let lease = |operator: &str, at| event(operator, at, "leases", Some(operator));
        let write = |operator: &str, at| event(operator, at, "modelnodes", None);
        let given_up = event("b", 30, "leases", Some(""));
        let events =
            vec![lease("a", 1), write("a", 3), lease("b", 10), write("a", 10), write("b", 12), given_up, write("a", 32), write("a", 14)];
        let (looked_at, found) = judge(events);
        assert_eq!(looked_at, 5);
        assert_eq!(found, ["a wrote (update modelnodes /m, 2026-01-01T00:00:14Z) while b held the Lease"]);
    }
}
