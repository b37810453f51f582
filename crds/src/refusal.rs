//! Why the API server refused a write of ours, in words that say what to do.

/// What the API server says of an applied field that its CustomResourceDefinition doesn't have.
const UNKNOWN_FIELD: &str = "field not declared in schema";

/// The API server's own words, where it said something. Of definitions that are older than this program it says only which field it doesn't know.
pub fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.contains(UNKNOWN_FIELD) => format!(
            "{}: the CustomResourceDefinitions in the cluster are older than this program ({}); apply those of its chart, templates/crds",
            status.message,
            env!("CARGO_PKG_VERSION"),
        ),
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
