//! Tells users what happened, as Events of their ModelDeployments, beside the decision task: an Event that is lost loses nothing else.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use stowage_crds::{ModelDeployment, names};
use tokio::sync::mpsc;

use crate::step::Notice;

/// The API server takes at most 1024 bytes.
const LONGEST_NOTE: usize = 1024;

/// Publishes until all senders are gone.
pub async fn run(client: Client, identity: String, mut notices: mpsc::UnboundedReceiver<Notice>) {
    let reporter = Reporter { controller: names::OPERATOR_MANAGER.to_owned(), instance: Some(identity) };
    while let Some(notice) = notices.recv().await {
        tracing::info!(deployment = %notice.key, reason = %notice.reason, "{}", notice.message);
        // A recorder counts Events of the same reason as one and keeps the first one's words; each of ours is a transition with words of its own.
        let recorder = Recorder::new(client.clone(), reporter.clone());
        let (event, regarding) = event(&notice);
        if let Err(error) = recorder.publish(&event, &regarding).await {
            tracing::warn!(deployment = %notice.key, "publishing an Event: {error}");
        }
    }
}

fn event(notice: &Notice) -> (Event, ObjectReference) {
    let Notice { key, uid, warning, reason, message } = notice;
    let event = Event {
        type_: if *warning { EventType::Warning } else { EventType::Normal },
        reason: reason.as_str().to_owned(),
        note: Some(shortened(message)),
        action: "Decide".to_owned(),
        secondary: None,
    };
    let regarding = ObjectReference {
        api_version: Some(ModelDeployment::api_version(&()).into_owned()),
        kind: Some(ModelDeployment::kind(&()).into_owned()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        uid: Some(uid.clone()),
        ..ObjectReference::default()
    };
    (event, regarding)
}

fn shortened(message: &str) -> String {
    let end = (0..=LONGEST_NOTE.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        let long = "é".repeat(600);
        assert_eq!(shortened(&long).len(), 1024);
        assert_eq!(shortened("x").len(), 1);
        assert_eq!(shortened(&format!("x{long}")).len(), 1023);
    }
}
