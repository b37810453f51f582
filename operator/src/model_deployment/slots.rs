//! Where each claimed place stands: promised or not, what its agent says of it, whether it serves.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stowage_crds::model_deployment::{DeviceBytes, PlacementState, PlacementStatus, ReplicaState};
use stowage_crds::model_node::{Assignment, AssignmentState, DeviceBackend, ReplicaStatus, Speed};
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Bytes, DeviceKind, HOST, LayerCount, PlacementPolicy, Reason, Refusal};

use crate::cache::{Key, Revision};
use crate::ledger;
use crate::model_deployment::moving_up;
use crate::model_deployment::validate::Wanted;
use crate::model_node::promises;
use crate::state::State;
use crate::step::{Step, Target};
use crate::workers::story;

/// One claimed place as it stands now.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub placement: PlacementStatus,
    /// Of the revision that is wanted.
    pub is_current: bool,
    /// What its agent refused it for.
    pub refused: Option<Refusal>,
    /// Why it can't stay where it is, though its revision is wanted: another replica takes its place before it goes.
    pub leaving: Option<Refusal>,
    /// Who uses VRAM that was promised on its GPUs.
    pub crowded: Option<Refusal>,
}

impl Slot {
    pub fn is_releasing(&self) -> bool {
        self.placement.state == PlacementState::Releasing
    }

    pub fn is_ready(&self) -> bool {
        self.placement.state == PlacementState::Ready
    }

    /// Whether it counts towards the replicas that are asked for.
    pub fn stays(&self) -> bool {
        self.is_current && self.leaving.is_none() && !self.is_releasing()
    }

    /// Whether it is to take the place of another that serves meanwhile.
    pub fn is_move(&self) -> bool {
        !self.placement.replaces.is_empty() && !self.is_releasing()
    }

    /// Host memory that it was seen to take beyond what was planned for it; where it was not seen to, a tenth of that.
    pub fn beyond_plan(&self) -> Bytes {
        let Some(host) = self.placement.devices.iter().find(|on| on.id == HOST) else { return Bytes::ZERO };
        let seen = host.measured_bytes.unwrap_or_default().saturating_sub(host.predicted_bytes);
        if seen > Bytes::ZERO { seen } else { Bytes(host.predicted_bytes.0 / 10) }
    }

    /// Why it is no better place after all.
    pub fn failed_move(&self) -> Option<Refusal> {
        let failures = [Reason::LoadFailed, Reason::WorkerCrashed, Reason::NodeNotReady, Reason::PodUnschedulable, Reason::PodNotStarted];
        let failed = self.is_move() && !self.is_ready() && failures.contains(&self.placement.reason);
        failed.then(|| Refusal { reason: self.placement.reason, message: self.placement.message.clone() })
    }

    /// Whether nobody has heard from its node's agent for too long, so that it counts for nothing.
    pub fn is_lost(&self) -> bool {
        self.leaving.as_ref().is_some_and(|why| why.reason == Reason::NodeNotReady)
    }

    /// Gives the place back, in two steps of which this is the beginning of the first.
    pub fn release(&mut self, reason: Reason, message: impl Into<String>) {
        self.placement.state = PlacementState::Releasing;
        self.placement.reason = reason;
        self.placement.message = message.into();
        self.placement.percent = None;
        self.placement.endpoint.clear();
    }
}

/// The places of a deployment that still stand, and whether a claim ended since without ever being promised.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    pub slots: Vec<Slot>,
    pub withdrawn: bool,
}

impl Slots {
    /// Of each replica that moves up, what it leaves can't stay; until it turns out that the new place is none, or the old one is gone.
    fn join_moves(&mut self) {
        let live = self.slots.iter().filter(|slot| !slot.is_releasing());
        let moves: Vec<(String, String)> = live.map(|slot| (slot.placement.replaces.clone(), slot.placement.node.clone())).collect();
        for slot in &mut self.slots {
            let to = moves.iter().find(|(uid, _)| *uid == slot.placement.assignment_uid).map(|(_, node)| node);
            slot.leaving = slot.leaving.take().or_else(|| to.map(|to| moving_up::leaves_for(to)));
        }
        let present: Vec<String> = self.slots.iter().map(|slot| slot.placement.assignment_uid.clone()).collect();
        for slot in self.slots.iter_mut().filter(|slot| !present.contains(&slot.placement.replaces)) {
            slot.placement.replaces.clear();
        }
    }
}

/// Observes all claims of the deployment. The error is what has to be looked at before more can be said.
pub fn observe(state: &State, deployment: &ModelDeployment, wanted: &Wanted, now: Timestamp) -> Result<Slots, Step> {
    let mut observed = Slots::default();
    for placement in deployment.status.iter().flat_map(|status| &status.placements) {
        match standing(state, deployment, placement)? {
            Standing::Over => observed.withdrawn |= placement.state == PlacementState::Claimed,
            Standing::Unpromised => observed.slots.push(slot(
                placement.clone(),
                wanted,
                None,
                leaving(state, placement, Heard::of(state, placement, None, now)),
            )),
            Standing::Promised { node, assignment } => {
                let replica = story::reported(state, node, assignment);
                let replica = replica.as_deref();
                let heard = Heard::of(state, placement, replica, now);
                let updated =
                    PlacementStatus { pod_ref: pod_ref(state, assignment), ..update(placement, assignment, replica, heard, wanted) };
                let crowded = crowded(state, placement);
                let leaving = leaving(state, placement, heard).or_else(|| without_room(state, assignment, &updated, now));
                observed.slots.push(Slot { crowded, ..slot(updated, wanted, replica, leaving) });
            }
        }
    }
    observed.join_moves();
    Ok(observed)
}

fn slot(placement: PlacementStatus, wanted: &Wanted, replica: Option<&ReplicaStatus>, leaving: Option<Refusal>) -> Slot {
    let refused = replica.filter(|replica| replica.state == ReplicaState::Refused);
    let refused =
        refused.map(|replica| Refusal { reason: replica.reason.unwrap_or(Reason::DeviceChanged), message: replica.message.clone() });
    Slot { is_current: placement.revision == wanted.revision, placement, refused, leaving, crowded: None }
}

/// The GPU of this placement of which others use what was promised, and who they are.
fn crowded(state: &State, placement: &PlacementStatus) -> Option<Refusal> {
    let node = state.model_node(&placement.node)?;
    let ledger = ledger::Ledger::new(node, state.defaults);
    let gpus = placement.devices.iter().filter(|on| on.id != HOST);
    let (lacking, gpu) = gpus.filter_map(|on| ledger.taken_by_others(&on.id)).max_by_key(|(lacking, _)| *lacking)?;
    let mut holders: Vec<String> =
        gpu.used_by.iter().map(|process| format!("{} (process {}) {}", process.name, process.pid, process.bytes)).collect();
    if holders.is_empty() {
        holders.push(format!("processes that can't be told apart {}", gpu.used_by_others_bytes));
    }
    let (name, uuid, node) = (&gpu.name, &gpu.uuid, &placement.node);
    let message = format!("{lacking} of {name} {uuid} on {node} are promised to replicas and used by others: {}", holders.join(", "));
    Some(Refusal { reason: Reason::VRAMTakenByOthers, message })
}

/// Of whom it is known how a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Agent,
    /// The agent is silent. The replica served when the agent was last heard, and has not been asked in vain since.
    ReplicaAlone,
    Nobody,
}

impl Heard {
    fn of(state: &State, placement: &PlacementStatus, replica: Option<&ReplicaStatus>, now: Timestamp) -> Heard {
        let served = replica.is_some_and(|replica| replica.state == ReplicaState::Ready && !replica.address.is_empty());
        match state.is_ready(&placement.node, now) {
            true => Heard::Agent,
            false if served && !state.unanswering.contains(&placement.assignment_uid) => Heard::ReplicaAlone,
            false => Heard::Nobody,
        }
    }
}

/// Why a replica can't stay on its node.
fn leaving(state: &State, placement: &PlacementStatus, heard: Heard) -> Option<Refusal> {
    let node = &placement.node;
    if heard == Heard::Nobody {
        return Some(Refusal {
            reason: Reason::NodeNotReady,
            message: format!("the agent of {node} is silent, and the replica does not answer"),
        });
    }
    if let Some(message) = lost_device(state, placement) {
        return Some(Refusal { reason: Reason::DeviceLost, message });
    }
    state.is_cordoned(node).then(|| Refusal { reason: Reason::NodeUnschedulable, message: format!("{node} is cordoned") })
}

/// What the scheduler says, who finds no room for the Pod of a worker where the ledger had some.
fn without_room(state: &State, assignment: &Assignment, placement: &PlacementStatus, now: Timestamp) -> Option<Refusal> {
    let told = placement.reason == Reason::PodUnschedulable && story::finds_no_room(state, assignment, now);
    told.then(|| Refusal { reason: Reason::PodUnschedulable, message: placement.message.clone() })
}

/// What its agent says of a GPU of this placement that can be used no more.
fn lost_device(state: &State, placement: &PlacementStatus) -> Option<String> {
    let node = &placement.node;
    let devices = &state.model_node(node)?.status.as_ref()?.devices;
    let is_on = |uuid: &str| placement.devices.iter().any(|on| on.id == uuid);
    let lost = devices.iter().find(|device| device.backend == DeviceBackend::None && is_on(&device.uuid))?;
    Some(format!("{} {} on {node} can't be used any more: {}", lost.name, lost.uuid, lost.message))
}

enum Standing<'a> {
    /// Nothing is promised, and nothing can be any more.
    Over,
    /// Nothing is promised yet, or no longer; the ModelNode's step settles which.
    Unpromised,
    Promised {
        node: &'a ModelNode,
        assignment: &'a Assignment,
    },
}

/// The Pod of its worker, where there is one, with its namespace.
fn pod_ref(state: &State, assignment: &Assignment) -> String {
    story::pod_of(state, assignment).map(|pod| Key::of(pod).to_string()).unwrap_or_default()
}

fn standing<'a>(state: &'a State, deployment: &ModelDeployment, placement: &PlacementStatus) -> Result<Standing<'a>, Step> {
    let Some(node) = state.model_node(&placement.node).filter(|node| promises::is_claimed_on(node, placement)) else {
        // With the ModelNode, its promises went. But it must not be missing, or another one, only because it is news.
        let written = Revision::of(deployment);
        if state.model_nodes.fresh(&Key::cluster(&placement.node)) < written {
            return Err(Step::Confirm { target: Target::ModelNode(placement.node.clone()), as_of: written });
        }
        return Ok(Standing::Over);
    };
    if let Some(assignment) = node.spec.assignments.iter().find(|assignment| assignment.uid == placement.assignment_uid) {
        return Ok(Standing::Promised { node, assignment });
    }
    let over = promises::is_withdrawn(node, &placement.assignment_uid);
    Ok(if over { Standing::Over } else { Standing::Unpromised })
}

/// The placement with what the assignment promises and the agent reports.
fn update(
    placement: &PlacementStatus,
    assignment: &Assignment,
    replica: Option<&ReplicaStatus>,
    heard: Heard,
    wanted: &Wanted,
) -> PlacementStatus {
    let plan = &assignment.plan;
    let state = state_of(placement.state, assignment.state, replica, heard);
    let (reason, message) = match state {
        PlacementState::Releasing if placement.state == PlacementState::Releasing => (placement.reason, placement.message.clone()),
        PlacementState::Releasing => (Reason::Draining, String::new()),
        _ => explain(placement, assignment, replica, heard, wanted),
    };
    let reported = |text: fn(&ReplicaStatus) -> &String| replica.map(text).filter(|text| !text.is_empty()).cloned();
    PlacementStatus {
        state,
        processor: reported(|replica| &replica.processor).unwrap_or_else(|| plan.processor.clone()),
        num_ctx: assignment.request.num_ctx,
        gpu_layers: plan.gpu_layers.0,
        total_layers: plan.total_layers.0,
        devices: devices(assignment, replica),
        predicted_bytes: plan.devices.iter().map(|on| on.total_bytes).sum(),
        uncertainty_bytes: plan.devices.iter().map(|on| on.uncertainty_bytes).sum(),
        measured_bytes: measured(replica),
        speed: replica.and_then(|replica| replica.speed.as_ref()).map(speed).unwrap_or_default(),
        percent: replica
            .filter(|_| !matches!(state, PlacementState::Ready | PlacementState::Releasing))
            .and_then(|replica| replica.percent),
        reason,
        message,
        endpoint: reported(|replica| &replica.address).filter(|_| state == PlacementState::Ready).unwrap_or_default(),
        ..placement.clone()
    }
}

fn state_of(claimed: PlacementState, promised: AssignmentState, replica: Option<&ReplicaStatus>, heard: Heard) -> PlacementState {
    match (claimed, promised) {
        (PlacementState::Releasing, _) | (_, AssignmentState::Drain | AssignmentState::Release) => PlacementState::Releasing,
        _ if heard != Heard::Nobody && replica.is_some_and(|replica| replica.state == ReplicaState::Ready) => PlacementState::Ready,
        _ => PlacementState::Placed,
    }
}

/// Why the replica is as it is, of one that is not being released.
fn explain(
    placement: &PlacementStatus,
    assignment: &Assignment,
    replica: Option<&ReplicaStatus>,
    heard: Heard,
    wanted: &Wanted,
) -> (Reason, String) {
    match heard {
        Heard::Agent => {}
        Heard::ReplicaAlone => {
            return (Reason::NodeNotReady, format!("the agent of {} is silent; the replica answers, and serves on", placement.node));
        }
        Heard::Nobody => return (Reason::NodeNotReady, "the node's agent is silent, and the replica does not answer".into()),
    }
    let Some(replica) = replica else { return (Reason::Assigned, String::new()) };
    let said = |reason| (replica.reason.unwrap_or(reason), replica.message.clone());
    match replica.state {
        ReplicaState::Pending => said(Reason::Assigned),
        ReplicaState::Downloading => said(Reason::Downloading),
        ReplicaState::Loading => said(Reason::Loading),
        ReplicaState::Ready if replica.reason == Some(Reason::ModelFileChanged) => said(Reason::ModelFileChanged),
        ReplicaState::Ready => (less_than_preferred(assignment, wanted).unwrap_or(Reason::Serving), String::new()),
        ReplicaState::Draining => said(Reason::Draining),
        ReplicaState::Refused => said(Reason::DeviceChanged),
        ReplicaState::Failed => said(Reason::LoadFailed),
        // It ended without having been asked to; its agent starts it again or says why not.
        ReplicaState::Gone => said(Reason::WorkerCrashed),
    }
}

/// Whether layers run on CPU that were preferred on GPU.
fn less_than_preferred(assignment: &Assignment, wanted: &Wanted) -> Option<Reason> {
    let preferred = wanted.spec_asked.policy == PlacementPolicy::PreferGPU && assignment.request.num_gpu < 0;
    let is_current = assignment.revision == wanted.revision;
    match assignment.plan.gpu_layers {
        layers if !preferred || !is_current || layers >= assignment.plan.total_layers => None,
        LayerCount(0) => Some(Reason::RunningOnCPU),
        _ => Some(Reason::PartlyOnCPU),
    }
}

fn devices(assignment: &Assignment, replica: Option<&ReplicaStatus>) -> Vec<DeviceBytes> {
    let measured = |id: &str| replica.and_then(|replica| replica.devices.iter().find(|on| on.id == id)).and_then(|on| on.measured_bytes);
    let devices = assignment.plan.devices.iter();
    devices.map(|on| DeviceBytes { id: on.id.clone(), predicted_bytes: on.total_bytes, measured_bytes: measured(&on.id) }).collect()
}

fn measured(replica: Option<&ReplicaStatus>) -> Option<Bytes> {
    let measured: Vec<Bytes> = replica?.devices.iter().filter_map(|on| on.measured_bytes).collect();
    (!measured.is_empty()).then(|| measured.into_iter().sum())
}

/// "282 tokens/s": of generating, or where there is nothing of that, of reading.
fn speed(measured: &Speed) -> String {
    format!("{} tokens/s", measured.decode_tokens_per_second.unwrap_or(measured.prefill_tokens_per_second))
}

/// GPU memory of a placement: as measured, where it was measured.
pub fn vram(placement: &PlacementStatus) -> Bytes {
    let gpus = placement.devices.iter().filter(|on| on.id != HOST);
    gpus.map(|on| on.measured_bytes.unwrap_or(on.predicted_bytes)).sum()
}

/// "658.0 MiB ± 256.0 MiB": what it was predicted to take, and how far that may be off.
pub fn predicted(placement: &PlacementStatus) -> String {
    match placement.uncertainty_bytes {
        Bytes::ZERO => placement.predicted_bytes.to_string(),
        uncertainty => format!("{} ± {uncertainty}", placement.predicted_bytes),
    }
}

/// A fresh claim.
pub fn claim(
    deployment: &ModelDeployment,
    wanted: &Wanted,
    index: usize,
    node: &ModelNode,
    report: &stowage_placement::PlanReport,
) -> PlacementStatus {
    let replica = wanted.replica_name(index);
    let plan = &report.plan;
    let devices = plan.devices.iter().filter(|on| on.kind == DeviceKind::Host || on.total_bytes > Bytes::ZERO);
    PlacementStatus {
        assignment_uid: super::validate::assignment_uid(deployment, &replica),
        replica,
        replaces: String::new(),
        revision: wanted.revision.clone(),
        node: node.name_any(),
        model_node_uid: node.uid().unwrap_or_default(),
        state: PlacementState::Claimed,
        processor: plan.processor.clone(),
        num_ctx: report.request.num_ctx,
        gpu_layers: plan.gpu_layers.0,
        total_layers: plan.total_layers.0,
        devices: devices.map(|on| DeviceBytes { id: on.id.clone(), predicted_bytes: on.total_bytes, measured_bytes: None }).collect(),
        predicted_bytes: plan.devices.iter().map(|on| on.total_bytes).sum(),
        uncertainty_bytes: plan.devices.iter().map(|on| on.uncertainty_bytes).sum(),
        measured_bytes: None,
        speed: String::new(),
        percent: None,
        reason: Reason::Assigned,
        message: String::new(),
        endpoint: String::new(),
        pod_ref: String::new(),
    }
}
