//! Which worker a name means.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::serve::error::{Fault, FaultKind};
use crate::serve::names::ModelNames;

/// One replica on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name, `NAME-REVISION-INDEX`.
    pub replica: String,
    pub names: ModelNames,
    /// Where its worker serves.
    pub worker: SocketAddr,
    /// Takes requests: not loading, not draining.
    pub ready: bool,
}

/// Whose turn it is among several replicas.
#[derive(Default)]
pub struct Turns(AtomicUsize);

impl Turns {
    /// The ready replicas of the model that `asked` names, in the order in which to try them.
    pub fn replicas(&self, routes: &[Route], asked: &str) -> Result<Vec<Route>, Fault> {
        let names = resolve(routes, asked)?;
        let mut ready: Vec<Route> = routes.iter().filter(|route| same(&route.names, names) && route.ready).cloned().collect();
        if ready.is_empty() {
            return Err(Fault::busy(format!("{} is on this node and not ready yet, or draining; try again", names.full())));
        }
        let turn = self.0.fetch_add(1, Ordering::Relaxed) % ready.len();
        ready.rotate_left(turn);
        Ok(ready)
    }
}

fn same(one: &ModelNames, other: &ModelNames) -> bool {
    one.namespace == other.namespace && one.name == other.name
}

/// The one ModelDeployment that a name means: its full name always, a short one where no other on this node has it.
fn resolve<'a>(routes: &'a [Route], asked: &str) -> Result<&'a ModelNames, Fault> {
    if let Some(route) = routes.iter().find(|route| route.names.is_full(asked)) {
        return Ok(&route.names);
    }
    let meant: BTreeMap<String, &ModelNames> =
        routes.iter().filter(|route| route.names.is_short(asked)).map(|route| (route.names.full(), &route.names)).collect();
    let forms = || meant.keys().cloned().collect::<Vec<_>>().join(" or ");
    match meant.len() {
        0 => Err(not_found(routes, asked)),
        1 => meant.into_values().next().ok_or_else(|| not_found(routes, asked)),
        count => {
            let message = format!("model {asked:?} is the name of {count} models on this node; ask for {}", forms());
            Err(Fault { field: Some("model".into()), ..Fault::new(FaultKind::AmbiguousModel, message) })
        }
    }
}

fn not_found(routes: &[Route], asked: &str) -> Fault {
    let there = listed(routes).into_iter().flat_map(|listed| listed.shown).collect::<Vec<_>>().join(", ");
    let there = if there.is_empty() { "there is none".to_owned() } else { format!("there is {there}") };
    let message = format!("model {asked:?} not found on this node; {there}");
    Fault { field: Some("model".into()), ..Fault::new(FaultKind::ModelNotFound, message) }
}

/// A ModelDeployment on this node, with the names to show for it.
pub struct Listed {
    pub names: ModelNames,
    /// Its short names where they are unambiguous, else its full name.
    pub shown: Vec<String>,
}

impl Listed {
    /// The name to show where only one is.
    pub fn first(&self) -> String {
        self.shown.first().cloned().unwrap_or_else(|| self.names.full())
    }
}

/// Every ModelDeployment on this node once, by full name.
pub fn listed(routes: &[Route]) -> Vec<Listed> {
    let models: BTreeMap<String, &ModelNames> = routes.iter().map(|route| (route.names.full(), &route.names)).collect();
    let unambiguous = |name: &str| models.values().filter(|names| names.is_short(name)).count() == 1;
    let listed = |names: &ModelNames| {
        let mut shown: Vec<String> = names.short().into_iter().filter(|name| unambiguous(name)).map(str::to_owned).collect();
        if !unambiguous(&names.name) {
            shown.insert(0, names.full());
        }
        Listed { names: names.clone(), shown }
    };
    models.values().map(|names| listed(names)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(namespace: &str, name: &str, aliases: &[&str], port: u16, ready: bool) -> Route {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let (replica, names) = (format!("{name}-{port}"), ModelNames::new(namespace, name, aliases));
        Route { replica, names, worker: ([127, 0, 0, 1], port).into(), ready }
    }

    fn ports(replicas: Result<Vec<Route>, Fault>) -> Vec<u16> {
        replicas.unwrap().iter().map(|route| route.worker.port()).collect()
    }

    #[test]
    fn a_bare_name_is_taken_only_where_one_model_has_it() {
        let routes = [route("a", "qwen", &[], 1, true), route("b", "qwen", &["coder"], 2, true)];
        let turns = Turns::default();
        let fault = turns.replicas(&routes, "qwen").unwrap_err();
        assert_eq!(fault.kind, FaultKind::AmbiguousModel);
        assert!(fault.message.ends_with("ask for a/qwen or b/qwen"), "{}", fault.message);
        assert_eq!(ports(turns.replicas(&routes, "b/qwen:latest")), [2]);
        assert_eq!(ports(turns.replicas(&routes, "coder")), [2]);
    }

    #[test]
    fn ready_replicas_of_one_model_take_turns() {
        let routes = [route("a", "m", &[], 1, true), route("a", "m", &[], 2, false), route("a", "m", &[], 3, true)];
        let turns = Turns::default();
        assert_eq!([ports(turns.replicas(&routes, "m")), ports(turns.replicas(&routes, "m"))], [[1, 3], [3, 1]]);
    }

    #[test]
    fn a_model_that_is_not_ready_is_busy_and_one_that_is_not_there_is_not_found() {
        let routes = [route("a", "m", &[], 1, false)];
        assert_eq!(Turns::default().replicas(&routes, "m").unwrap_err().kind, FaultKind::Busy);
        let fault = Turns::default().replicas(&routes, "x").unwrap_err();
        assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::ModelNotFound, "model \"x\" not found on this node; there is m"));
    }

    #[test]
    fn models_with_the_same_name_are_listed_by_their_full_names() {
        let routes = [route("a", "m", &["x"], 1, true), route("b", "m", &[], 2, true), route("b", "m", &[], 3, true)];
        let shown: Vec<Vec<String>> = listed(&routes).into_iter().map(|listed| listed.shown).collect();
        assert_eq!(shown, [vec!["a/m", "x"], vec!["b/m"]]);
    }
}
