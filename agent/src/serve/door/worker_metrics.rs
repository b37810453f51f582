//! What the node's workers count, at one address: their own ports come and go, and Prometheus could not know them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use futures::future::join_all;

use super::DoorState;
use super::proxy;
use super::routes::Route;
use crate::serve::metrics::open_metrics;

/// A worker that takes longer is left out rather than hold up the others.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of a worker's metrics that are read.
const MOST_BYTES: usize = 1 << 20;

/// `GET /metrics/workers`
pub async fn all(State(state): State<DoorState>) -> Response {
    let asked = state.routes().into_iter().map(|route| {
        let state = state.clone();
        async move { Some((route.replica.clone(), text_of(&state, &route).await?)) }
    });
    let texts: Vec<(String, String)> = join_all(asked).await.into_iter().flatten().collect();
    open_metrics(merged(&texts))
}

async fn text_of(state: &DoorState, route: &Route) -> Option<String> {
    let request = proxy::Forward {
        method: http::Method::GET,
        uri: http::Uri::from_static("/metrics"),
        headers: http::HeaderMap::new(),
        body: bytes::Bytes::new(),
    };
    let answer = async {
        let response = proxy::send(state, &request, route.worker).await.ok()?;
        axum::body::to_bytes(response.into_body(), MOST_BYTES).await.ok()
    };
    let bytes = tokio::time::timeout(PATIENCE, answer).await.ok().flatten()?;
    String::from_utf8(bytes.to_vec()).ok()
}

/// One family of metrics: what is said of it, and its samples.
#[derive(Default)]
struct Family {
    described: Vec<String>,
    samples: Vec<String>,
}

/// OpenMetrics texts as one, in which each sample says which replica it is of. A family may stand in it only once, so samples are gathered by family.
fn merged(texts: &[(String, String)]) -> String {
    let mut families: BTreeMap<&str, Family> = BTreeMap::new();
    for (replica, text) in texts {
        let mut current = "";
        for line in text.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
            match described(line) {
                Some(name) => {
                    current = name;
                    let family = families.entry(name).or_default();
                    if !family.described.iter().any(|known| known == line) {
                        family.described.push(line.to_owned());
                    }
                }
                None => families.entry(current).or_default().samples.push(labelled(line, replica)),
            }
        }
    }
    let lines = families.into_values().flat_map(|family| family.described.into_iter().chain(family.samples));
    lines.chain(["# EOF".to_owned()]).map(|line| line + "\n").collect()
}

/// The family that a line such as `# TYPE name gauge` describes.
fn described(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("# ")?.split(' ');
    words.next().filter(|what| matches!(*what, "HELP" | "TYPE" | "UNIT"))?;
    words.next()
}

/// A sample with one label more. Nothing but its name comes before its first brace or space.
fn labelled(sample: &str, replica: &str) -> String {
    let (name, rest) = sample.split_at(sample.find(['{', ' ']).unwrap_or(sample.len()));
    match rest.strip_prefix('{') {
        Some(labels) => {
            let comma = if labels.starts_with('}') { "" } else { "," };
            format!("{name}{{replica=\"{replica}\"{comma}{labels}")
        }
        None => format!("{name}{{replica=\"{replica}\"}}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stands_once_with_the_samples_of_all_replicas() {
        let one = "# HELP a Help.\n# TYPE a counter\na_total{x=\"{1} 2\"} 3\n# TYPE b gauge\nb 4\n# EOF\n";
        let two = "# HELP a Help.\n# TYPE a counter\na_total{} 5\n# EOF\n";
        let texts = [("m-0".to_owned(), one.to_owned()), ("m-1".to_owned(), two.to_owned())];
        let expected = "# HELP a Help.\n# TYPE a counter\na_total{replica=\"m-0\",x=\"{1} 2\"} 3\na_total{replica=\"m-1\"} 5\n\
                        # TYPE b gauge\nb{replica=\"m-0\"} 4\n# EOF\n";
        assert_eq!(merged(&texts), expected);
        assert_eq!(merged(&[]), "# EOF\n");
    }
}
