//! What happens when: drawn from the seed, and from nothing that the cluster does, so that a seed gives the same script every time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::action::{Action, Deployment, Target};
use super::{NODES, OPERATORS, URGENT};

const DEPLOYMENTS: usize = 5;
const POLICIES: [&str; 3] = ["PreferGPU", "RequireGPU", "RequireCPU"];
const PRIORITIES: [&str; 3] = ["", "", URGENT];
const CONTEXTS: [u64; 4] = [512, 1024, 2048, 8192];
const MOST_REPLICAS: u32 = 2;
/// What others use: nothing, what is in the margin, what displaces a replica.
const FOREIGN: [u64; 4] = [0, 200, 500, 900];
/// Milliseconds between one action and the next.
const PACE: std::ops::Range<u64> = 300..2500;
/// Milliseconds for which a process is paused, or gone.
const ABSENCE: std::ops::Range<u64> = 200..9000;

/// An action, and how long after the beginning it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub action: Action,
}

/// Without an end.
pub struct Script {
    dice: StdRng,
    now: u64,
    /// What ends an absence, by when it is due.
    returns: BTreeMap<(u64, Target), Action>,
    absent: BTreeSet<Target>,
    deployments: BTreeSet<usize>,
    cordoned: BTreeSet<usize>,
}

impl Script {
    pub fn new(seed: u64) -> Script {
        Script {
            dice: StdRng::seed_from_u64(seed),
            now: 0,
            returns: BTreeMap::new(),
            absent: BTreeSet::new(),
            deployments: BTreeSet::new(),
            cordoned: BTreeSet::new(),
        }
    }

    fn has_control_plane(&self) -> bool {
        !self.absent.contains(&Target::ApiServer) && !self.absent.contains(&Target::Etcd)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.dice.random_range(0..of.len())]
    }

    /// A change of the cluster needs an API server that answers; while there is none only processes are disturbed.
    fn draw(&mut self) -> Action {
        let answers = self.has_control_plane();
        match self.dice.random_range(0..100) {
            0..45 if answers => self.change(),
            45..52 if answers => self.cordon(),
            52..62 => Action::Foreign(self.dice.random_range(0..NODES.len()), self.pick(&FOREIGN)),
            _ => self.disturb(),
        }
    }

    fn change(&mut self) -> Action {
        let index = self.dice.random_range(0..DEPLOYMENTS);
        if self.deployments.insert(index) {
            let (policy, num_ctx, priority) = (self.pick(&POLICIES), self.pick(&CONTEXTS), self.pick(&PRIORITIES));
            return Action::Create(Deployment { index, policy, num_ctx, replicas: self.dice.random_range(1..=MOST_REPLICAS), priority });
        }
        match self.dice.random_range(0..6) {
            0 => {
                self.deployments.remove(&index);
                Action::Delete(index)
            }
            1 => Action::Policy(index, self.pick(&POLICIES)),
            2 => Action::Context(index, self.pick(&CONTEXTS)),
            3 => Action::Priority(index, self.pick(&PRIORITIES)),
            _ => Action::Scale(index, self.dice.random_range(0..=MOST_REPLICAS)),
        }
    }

    fn cordon(&mut self) -> Action {
        let node = self.dice.random_range(0..NODES.len());
        let cordons = self.cordoned.insert(node);
        if !cordons {
            self.cordoned.remove(&node);
        }
        Action::Cordon(node, cordons)
    }

    fn disturb(&mut self) -> Action {
        let target = self.target();
        let until = self.now + self.dice.random_range(ABSENCE);
        let kills = self.dice.random();
        if kills && matches!(target, Target::Worker(_)) {
            // Its agent starts it again.
            return Action::Kill(target);
        }
        self.absent.insert(target);
        let (begin, end) =
            if kills { (Action::Kill(target), Action::Start(target)) } else { (Action::Pause(target), Action::Continue(target)) };
        self.returns.insert((until, target), end);
        begin
    }

    /// One that is not absent already. API server and etcd are not absent together: neither would be ready again without the other.
    fn target(&mut self) -> Target {
        loop {
            let target = match self.dice.random_range(0..100) {
                0..25 => Target::Operator(self.dice.random_range(0..OPERATORS)),
                25..50 => Target::Agent(self.dice.random_range(0..NODES.len())),
                50..85 => Target::Worker(self.dice.random_range(0..16)),
                85..93 => Target::ApiServer,
                _ => Target::Etcd,
            };
            let one_of_two = matches!(target, Target::ApiServer | Target::Etcd) && !self.has_control_plane();
            if !self.absent.contains(&target) && !one_of_two {
                return target;
            }
        }
    }
}

impl Iterator for Script {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let next = self.now + self.dice.random_range(PACE);
        let due = self.returns.first_key_value().map(|((when, _), _)| *when).filter(|when| *when <= next);
        self.now = due.unwrap_or(next).max(self.now);
        let action = match due.and_then(|_| self.returns.pop_first()) {
            Some(((_, target), action)) => {
                self.absent.remove(&target);
                action
            }
            None => self.draw(),
        };
        Some(Step { at: Duration::from_millis(self.now), action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 2000;

    fn steps(seed: u64) -> Vec<Step> {
        Script::new(seed).take(STEPS).collect()
    }

    #[test]
    fn a_seed_gives_the_same_steps_every_time_and_another_gives_others() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn steps_come_in_the_order_of_time_and_of_every_kind() {
        let steps = steps(1);
        assert!(steps.is_sorted_by_key(|step| step.at));
        let kinds: BTreeSet<String> = steps.iter().map(|step| format!("{:?}", std::mem::discriminant(&step.action))).collect();
        assert_eq!(kinds.len(), 12, "{kinds:?}");
        for target in [Target::Operator(0), Target::Agent(0), Target::ApiServer, Target::Etcd] {
            assert!(steps.iter().any(|step| step.action == Action::Kill(target)), "{target} is never killed");
            assert!(steps.iter().any(|step| step.action == Action::Pause(target)), "{target} is never paused");
        }
    }

    #[test]
    fn what_is_absent_comes_back_before_it_is_disturbed_again() {
        let mut absent = BTreeSet::new();
        for Step { action, .. } in steps(2) {
            match action {
                Action::Kill(Target::Worker(_)) => {}
                Action::Kill(target) | Action::Pause(target) => assert!(absent.insert(target), "{target} is absent already"),
                Action::Start(target) | Action::Continue(target) => assert!(absent.remove(&target), "{target} was there"),
                _ => {}
            }
        }
    }
}
