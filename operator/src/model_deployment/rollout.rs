//! Which replica comes, and which goes: what was refused goes back, what is too many goes, the new revision comes first where it fits beside the old, and so
//! does the replacement of a replica that can't stay where it is.
//!
//! One step claims at most one place, so that each is chosen knowing all the promises before it.

use std::cmp::Reverse;

use k8s_openapi::jiff::Timestamp;
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::{MAX_PLACEMENTS, PlacementState, WhenNoRoom};
use stowage_crds::model_node::Assignment;
use stowage_placement::{Asked, Bytes, PlanReport, Reason, Refusal, Tokens};

use crate::ledger::freed_by;
use crate::model_deployment::candidates::{Decided, Refused, choose_place};
use crate::model_deployment::models::Found;
use crate::model_deployment::preemption;
use crate::model_deployment::slots::{Slot, Slots, claim};
use crate::model_deployment::validate::Wanted;
use crate::state::{Refused as RefusedBefore, State};
use crate::step::{RefusalSeen, Remark};

/// After so many times that memory ran out for a revision, it is not placed again.
const MOST_OUT_OF_MEMORY: u32 = 3;

/// What a step is made on.
pub struct Situation<'a> {
    pub state: &'a State,
    pub deployment: &'a ModelDeployment,
    pub wanted: &'a Wanted,
    pub found: &'a Result<Found, Refusal>,
    pub now: Timestamp,
}

/// Where the replicas should be after this step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub slots: Vec<Slot>,
    /// Why a replica of the newest revision has no place, or what it waits for.
    pub obstacle: Option<Refusal>,
    /// How it fits, where that was looked into.
    pub fit: Option<Decided>,
    /// The context of this revision.
    pub num_ctx: Option<Tokens>,
    pub refusals: Vec<RefusalSeen>,
    /// Assignments of lower priority that are to make way, by uid.
    pub preempts: Vec<String>,
    /// What to remember before anything is written.
    pub remark: Option<Remark>,
}

impl Outcome {
    pub(super) fn live(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| !slot.is_releasing())
    }

    fn current(&self) -> usize {
        self.live().filter(|slot| slot.is_current).count()
    }

    pub(super) fn staying(&self) -> usize {
        self.live().filter(|slot| slot.stays()).count()
    }

    pub(super) fn ready(&self) -> usize {
        self.live().filter(|slot| slot.is_ready()).count()
    }

    /// The refusal of a new place, with the replica that it is for where there is one that can't stay.
    fn for_whom(&self, refusal: Refusal) -> Refusal {
        let leaving = self.live().filter(|slot| slot.is_current).find_map(|slot| Some((slot, slot.leaving.as_ref()?)));
        match leaving {
            Some((slot, why)) => {
                let message =
                    format!("{} can't stay, for {}, and has no other place: {}", slot.placement.replica, why.message, refusal.message);
                Refusal { message, ..refusal }
            }
            None => refusal,
        }
    }
}

pub fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub fn advance(situation: &Situation<'_>, observed: Slots) -> Outcome {
    let withdrawn = observed.withdrawn;
    let mut outcome = Outcome { slots: observed.slots, ..Outcome::default() };
    situation.take_back_refused(&mut outcome);
    situation.make_way_for_others(&mut outcome);
    outcome.num_ctx = situation.settled_context(&outcome, withdrawn);
    if situation.deployment.spec.paused {
        return outcome;
    }
    situation.release_surplus(&mut outcome);
    situation.release_leaving(&mut outcome);
    situation.retire_old(&mut outcome);
    match outcome.refusals.last().map(|seen| seen.refusal.clone()) {
        Some(just_refused) => outcome.obstacle = Some(just_refused),
        None if outcome.staying() < situation.wanted.replicas => situation.place_one(&mut outcome),
        None => {}
    }
    situation.move_up(&mut outcome);
    outcome
}

/// Whether the first place serves the user no worse than the second.
fn is_as_good(place: &PlanReport, other: &PlanReport) -> bool {
    let rank = |report: &PlanReport| (report.fit.fits, report.plan.gpu_layers, report.request.num_ctx);
    let ((fits, layers, num_ctx), (other_fits, other_layers, other_num_ctx)) = (rank(place), rank(other));
    fits >= other_fits && layers >= other_layers && num_ctx >= other_num_ctx
}

impl Situation<'_> {
    fn take_back_refused(&self, outcome: &mut Outcome) {
        for slot in outcome.slots.iter_mut().filter(|slot| !slot.is_releasing()) {
            let Some(refusal) = slot.refused.clone().or_else(|| slot.failed_move()) else { continue };
            slot.release(refusal.reason, refusal.message.clone());
            let beyond_plan = if refusal.reason == Reason::OutOfMemory { slot.beyond_plan() } else { Bytes::ZERO };
            let (uid, revision) = (self.wanted.uid.clone(), slot.placement.revision.clone());
            outcome.refusals.push(RefusalSeen { uid, revision, refusal, beyond_plan });
        }
    }

    /// The context is settled once a revision; one that was chosen for what then turned out not to fit is chosen again.
    fn settled_context(&self, outcome: &Outcome, withdrawn: bool) -> Option<Tokens> {
        if !self.wanted.context_is_open() {
            return self.wanted.spec_asked.num_ctx;
        }
        let fell_through = (withdrawn || !outcome.refusals.is_empty()) && outcome.current() == 0;
        self.wanted.settled(self.deployment).filter(|_| !fell_through).and_then(|settled| settled.num_ctx)
    }

    /// Of the newest revision: those beyond the number asked for, the ones that don't serve, the worst placed and the last ones first.
    fn release_surplus(&self, outcome: &mut Outcome) {
        let surplus = outcome.staying().saturating_sub(self.wanted.replicas);
        let mut staying: Vec<&mut Slot> = outcome.slots.iter_mut().filter(|slot| slot.stays()).collect();
        let worth = |slot: &Slot| (slot.is_ready(), slot.placement.gpu_layers, Reverse(slot.placement.replica.clone()));
        staying.sort_by_key(|slot| worth(slot));
        for slot in staying.into_iter().take(surplus) {
            slot.release(Reason::Draining, "fewer replicas are asked for");
        }
    }

    /// Of the newest revision: those that can't stay, once others serve in their stead.
    fn release_leaving(&self, outcome: &mut Outcome) {
        let mut spare = outcome.ready().saturating_sub(self.wanted.replicas);
        let replaced = outcome.live().filter(|slot| slot.stays() && slot.is_ready()).count() >= self.wanted.replicas;
        let places = outcome.staying();
        for slot in outcome.slots.iter_mut().filter(|slot| slot.is_current && !slot.is_releasing()) {
            let Some(why) = slot.leaving.clone() else { continue };
            let goes = match slot.is_ready() {
                true => spare > 0,
                // Its node may come back, and then it serves.
                false if slot.is_lost() => replaced,
                false => places >= self.wanted.replicas,
            };
            spare -= usize::from(goes && slot.is_ready());
            if goes {
                slot.release(why.reason, why.message);
            }
        }
    }

    /// Of older revisions: what does not serve once the new one has a place, and what may go because enough others serve.
    fn retire_old(&self, outcome: &mut Outcome) {
        let least = self.wanted.replicas.saturating_sub(self.wanted.max_unavailable);
        let new_has_a_place = outcome.staying() > 0 || self.wanted.replicas == 0;
        let new_serve = outcome.live().filter(|slot| slot.is_current && slot.is_ready()).count();
        let old_serve = outcome.ready() - new_serve;
        // Scaled down while the new revision finds no place: the old one shrinks.
        let old_surplus = old_serve.saturating_sub(self.wanted.replicas);
        let mut spare = if new_has_a_place { (old_serve + new_serve).saturating_sub(least) } else { old_surplus };
        for slot in outcome.slots.iter_mut().rev().filter(|slot| !slot.is_current && !slot.is_releasing()) {
            match slot.is_ready() {
                false if new_has_a_place => slot.release(Reason::Draining, "a newer revision takes its place"),
                true if spare > 0 && (new_serve > 0 || old_surplus > 0 || self.wanted.replicas == 0) => {
                    spare -= 1;
                    slot.release(Reason::Draining, "a newer revision takes its place");
                }
                _ => {}
            }
        }
    }

    fn place_one(&self, outcome: &mut Outcome) {
        let found = match self.found {
            Ok(found) => found,
            Err(refusal) => {
                outcome.obstacle = Some(refusal.clone());
                return;
            }
        };
        if let Some(refusal) = preemption::unknown_class(self.state, self.deployment) {
            outcome.obstacle = Some(refusal);
            return;
        }
        if let Some(refusal) = self.gives_up() {
            outcome.obstacle = Some(refusal);
            return;
        }
        if let Some(refused) = self.just_refused() {
            outcome.obstacle = Some(refused.refusal.clone());
            return;
        }
        if outcome.slots.len() >= MAX_PLACEMENTS {
            let message = format!(
                "{} places are held already, those being given back included; a ModelDeployment holds at most {MAX_PLACEMENTS}",
                outcome.slots.len()
            );
            outcome.obstacle = Some(Refusal { reason: Reason::TooManyAssignments, message });
            return;
        }
        let asked = self.wanted.asked(outcome.num_ctx);
        match self.choose(found, &asked, outcome, None) {
            Ok(later) if !later.report.fit.fits && self.preempt(outcome, found, &asked) => {}
            Ok(later) => self.place_there(outcome, found, &asked, later),
            Err(_) if self.preempt(outcome, found, &asked) => {}
            Err((refusal, fit)) => {
                outcome.obstacle = Some(outcome.for_whom(refusal));
                outcome.fit = fit.map(|fit| fit.without_layers());
            }
        }
    }

    /// Memory ran out too often for this revision: what is asked has to change first.
    fn gives_up(&self) -> Option<Refusal> {
        let refused = self.state.refused(self.wanted)?;
        let times = refused.out_of_memory;
        (times >= MOST_OUT_OF_MEMORY).then(|| {
            let message =
                format!("Memory ran out {times} times, so it is not tried again until the spec changes. Last: {}", refused.refusal.message);
            Refusal { reason: Reason::OutOfMemory, message }
        })
    }

    /// A refusal after which it is not yet time to try again.
    pub(super) fn just_refused(&self) -> Option<&RefusedBefore> {
        self.state.refused(self.wanted).filter(|refused| self.now < refused.until)
    }

    /// `later` is the best place once all that may go for it is gone.
    fn place_there(&self, outcome: &mut Outcome, found: &Found, asked: &Asked, later: Decided) {
        let live = outcome.live().filter(|slot| !slot.is_lost()).count();
        let may_surge = live < self.wanted.replicas.saturating_add(self.wanted.max_surge);
        let now = match may_surge {
            true => self.choose(found, asked, outcome, Some(&[])).ok(),
            false => None,
        };
        let waits = self.deployment.spec.update_strategy.when_no_room == WhenNoRoom::Wait;
        match now {
            Some(now) if is_as_good(&now.report, &later.report) => self.claim(outcome, now),
            _ if !may_surge => self.make_way_within_budget(outcome, &later),
            Some(now) if waits && self.old_on(outcome, later.node()).next().is_some() => self.claim(outcome, now),
            _ => self.make_way(outcome, found, asked, &later, waits),
        }
        if outcome.fit.is_none() {
            outcome.fit = Some(later.without_layers());
        }
    }

    /// Chooses as if everything were gone that may go for this replica (`None`), or only these of our own replicas and nothing else.
    pub(super) fn choose(&self, found: &Found, asked: &Asked, outcome: &Outcome, only: Option<&[&str]>) -> Result<Decided, Refused> {
        let going: Vec<&str> = match only {
            Some(uids) => uids.to_vec(),
            None => {
                let going = outcome.slots.iter().filter(|slot| !slot.is_current || slot.is_releasing());
                going.map(|slot| slot.placement.assignment_uid.as_str()).collect()
            }
        };
        let soon_free = |assignment: &Assignment| only.is_none() && freed_by(assignment).is_some_and(|by| self.now < by);
        let given_back = |assignment: &Assignment| going.contains(&assignment.uid.as_str()) || soon_free(assignment);
        let siblings = |node: &str| count(outcome.live().filter(|slot| slot.stays() && slot.placement.node == node).count());
        choose_place(self.state, self.wanted, found, asked, self.now, &given_back, &siblings)
    }

    fn old_on<'o>(&self, outcome: &'o Outcome, node: &'o str) -> impl Iterator<Item = &'o Slot> {
        outcome.live().filter(move |slot| !slot.is_current && slot.placement.node == node)
    }

    pub(super) fn claim(&self, outcome: &mut Outcome, place: Decided) {
        let taken = |name: &String| outcome.slots.iter().any(|slot| &slot.placement.replica == name);
        let index = (0..).find(|index| !taken(&self.wanted.replica_name(*index))).unwrap_or_default();
        // It was chosen among these just now.
        let Some(node) = self.state.model_node(place.node()) else { return };
        let placement = claim(self.deployment, self.wanted, index, node, &place.report);
        outcome.num_ctx = Some(place.report.request.num_ctx);
        outcome.fit = Some(place.without_layers());
        outcome.slots.push(Slot { placement, is_current: true, refused: None, leaving: None, crowded: None });
    }

    /// No replica more may be made; an old one goes first where one may be missing.
    fn make_way_within_budget(&self, outcome: &mut Outcome, later: &Decided) {
        let least = self.wanted.replicas.saturating_sub(self.wanted.max_unavailable);
        let may_miss = outcome.ready() > least;
        let node = later.node();
        let old = outcome.slots.iter_mut().filter(|slot| !slot.stays() && !slot.is_releasing() && (may_miss || !slot.is_ready()));
        // `false` comes first: not serving, then on the node that is wanted.
        if let Some(slot) = old.min_by_key(|slot| (slot.is_ready(), slot.placement.node != node)) {
            let why = slot.leaving.clone().filter(|_| slot.is_current);
            let why = why.unwrap_or_else(|| Refusal { reason: Reason::Draining, message: "a newer revision takes its place".into() });
            slot.release(why.reason, why.message);
        }
    }

    /// There is no room for old and new at once.
    fn make_way(&self, outcome: &mut Outcome, found: &Found, asked: &Asked, later: &Decided, waits: bool) {
        let fit = &later.report.fit.message;
        let in_the_way: Vec<&str> = self.old_on(outcome, later.node()).map(|slot| slot.placement.assignment_uid.as_str()).collect();
        let on_the_move = outcome.slots.iter().any(|slot| slot.is_releasing() || (slot.is_current && !slot.is_ready()));
        let replaced = outcome.slots.iter().map(|slot| &slot.placement).find(|placement| placement.reason == Reason::ReplacingForRoom);
        if let Some(replaced) = replaced.filter(|placement| placement.state == PlacementState::Releasing) {
            outcome.obstacle = Some(Refusal { reason: replaced.reason, message: replaced.message.clone() });
            return;
        }
        if in_the_way.is_empty() || on_the_move || waits {
            let message = format!("Bytes on {} are not free yet. When they are: {fit}", later.node());
            outcome.obstacle = Some(Refusal { reason: Reason::WaitingForRoom, message });
            return;
        }
        let suffices = |uid: &&&str| {
            let place = self.choose(found, asked, outcome, Some(&[**uid]));
            place.is_ok_and(|place| is_as_good(&place.report, &later.report))
        };
        let going: Vec<String> = match in_the_way.iter().find(suffices) {
            Some(one) => vec![(*one).to_owned()],
            None => in_the_way.iter().map(|uid| (*uid).to_owned()).collect(),
        };
        let message =
            format!("Node {} has no room for the old and the new revision at once, so the old one goes first. Then: {fit}", later.node());
        for slot in outcome.slots.iter_mut().filter(|slot| going.contains(&slot.placement.assignment_uid)) {
            slot.release(Reason::ReplacingForRoom, message.clone());
        }
        outcome.obstacle = Some(Refusal { reason: Reason::ReplacingForRoom, message });
    }
}
