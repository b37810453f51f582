//! The explanation in sentences.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use stowage_crds::model_deployment::{DeviceBytes, ModelSource, PlacementState, PlacementStatus, WhenNoRoom};
use stowage_placement::{Bytes, ContextPolicy, PlacementPolicy, PlanReport, Reason};

use super::Explanation;
use crate::kubectl::difference::difference;
use crate::kubectl::plan::{ClusterPlan, NodePlan};
use crate::plan::printable;
use crate::plan::table;
use crate::plan::text::paragraph;

pub fn render(explanation: &Explanation) -> String {
    let sections = [
        heading(explanation),
        decision(explanation),
        replicas(explanation),
        nodes(explanation.present.as_ref()),
        changes(explanation),
        conditions(explanation),
        events(explanation),
        explanation.notes.iter().map(|note| paragraph("Unseen", &format!("{note}."))).collect(),
    ];
    printable(&sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n"))
}

fn heading(explanation: &Explanation) -> String {
    let Explanation { namespace, name, status, .. } = explanation;
    let ready = if status.ready.is_empty() { "not looked at yet" } else { &status.ready };
    let mut summary = format!("{name} in namespace {namespace}: {ready}");
    if let Some(worst) = status.summary.as_ref().filter(|summary| !summary.processor.is_empty()) {
        summary += &format!(" ready, {}", worst.processor);
        summary += &worst.num_ctx.map(|num_ctx| format!(" at num_ctx {num_ctx}")).unwrap_or_default();
    }
    if let Some(reason) = status.summary.as_ref().map(|summary| &summary.reason).filter(|reason| !reason.is_empty()) {
        summary += &format!(" ({reason})");
    }
    let behind = if explanation.is_behind() {
        paragraph("", "The operator has not looked at the present spec yet: what follows is of the one before.")
    } else {
        String::new()
    };
    summary + "\n" + &paragraph("Asked", &asked(explanation)) + &behind
}

/// The model, its request and its policy.
fn asked(explanation: &Explanation) -> String {
    let spec = &explanation.spec;
    let asked = spec.asked();
    let source = match &spec.model {
        ModelSource { hugging_face: Some(file), .. } => format!("{}/{} of Hugging Face", file.repository, file.file),
        ModelSource { http: Some(http), .. } => http.url.split(['?', '#']).next().unwrap_or_default().to_owned(),
        ModelSource { path, .. } => path.clone().unwrap_or_default(),
    };
    let context = match (asked.num_ctx, asked.context_policy) {
        (Some(num_ctx), ContextPolicy::Exact) => format!("num_ctx {num_ctx}"),
        (Some(num_ctx), ContextPolicy::ShrinkToFit) => {
            format!("num_ctx {num_ctx} or less, down to {}", asked.min_context.unwrap_or_default())
        }
        (None, _) => "the largest context that fits".to_owned(),
    };
    let policy = match asked.policy {
        PlacementPolicy::PreferGPU => "on GPU as far as it fits (PreferGPU)",
        PlacementPolicy::RequireGPU => "wholly on GPU or not at all (RequireGPU)",
        PlacementPolicy::RequireCPU => "on CPU (RequireCPU)",
    };
    let replicas = if spec.replicas == 1 { "1 replica".to_owned() } else { format!("{} replicas", spec.replicas) };
    format!(
        "{replicas} of {source}: {context}, num_gpu {}, KV cache {}, parallel {}, {policy}",
        asked.num_gpu, asked.kv_cache_type, asked.parallel
    )
}

/// What was decided, on what, and for which numbers.
fn decision(explanation: &Explanation) -> String {
    let status = &explanation.status;
    let Some(PlanReport { plan, fit, .. }) = &status.fit else { return paragraph("Decided", "nothing yet") };
    let on = status.decision.as_ref().map(|decision| {
        let of = if decision.nodes == 1 { "the only node".to_owned() } else { format!("{} nodes", decision.nodes) };
        format!("from {of}, {} as it was at version {}: ", decision.node, decision.resource_version)
    });
    let how = match fit.message.contains(&plan.processor) {
        true => String::new(),
        false if status.placements.is_empty() => format!(" The nearest plan is {}.", plan.processor),
        false => format!(" The plan is {}, {} of {} layers on GPU.", plan.processor, plan.gpu_layers, plan.total_layers),
    };
    paragraph("Decided", &format!("{}{}{how}", on.unwrap_or_default(), fit.message))
}

fn replicas(explanation: &Explanation) -> String {
    let status = &explanation.status;
    let placements = status.placements.iter().map(|placement| paragraph("Replica", &replica(placement)) + &devices(placement));
    let placements: String = placements.collect();
    let lacking = explanation.spec.replicas.saturating_sub(u32::try_from(status.placements.len()).unwrap_or(u32::MAX));
    let lacking = if lacking > 0 { paragraph("", &format!("{lacking} more asked for, without a place.")) } else { String::new() };
    placements + &lacking + &rollout(explanation)
}

fn replica(placement: &PlacementStatus) -> String {
    let PlacementStatus { replica, node, processor, gpu_layers, total_layers, reason, .. } = placement;
    let state = match placement.state {
        PlacementState::Claimed => "is claimed",
        PlacementState::Placed => "is being brought up",
        PlacementState::Ready => "serves",
        PlacementState::Releasing => "is being given back",
    };
    let percent = placement.percent.map(|percent| format!(", {percent} % done")).unwrap_or_default();
    let measured = placement.measured_bytes.map_or_else(|| "not measured yet".to_owned(), |bytes| format!("measured {bytes}"));
    let uncertainty = if placement.uncertainty_bytes.0 > 0 { format!(" ± {}", placement.uncertainty_bytes) } else { String::new() };
    let message = if placement.message.is_empty() { Reason::meaning(*reason) } else { &placement.message };
    format!(
        "{replica} {state} on {node}{percent}: {processor}, {gpu_layers} of {total_layers} layers on GPU, predicted {}{uncertainty}, {measured}. {reason}: {message}",
        placement.predicted_bytes
    )
}

/// Of each device that it is on, what was predicted and what it takes there.
fn devices(placement: &PlacementStatus) -> String {
    let taken = placement.devices.iter().filter(|on| on.predicted_bytes > Bytes::ZERO || on.measured_bytes.is_some());
    let line = |on: &DeviceBytes| {
        let DeviceBytes { id, predicted_bytes, measured_bytes } = on;
        let measured = measured_bytes.map(|bytes| format!("measured {bytes}, {}", difference(*predicted_bytes, bytes)));
        paragraph("", &format!("{id}: predicted {predicted_bytes}, {}", measured.unwrap_or_else(|| "not measured yet".to_owned())))
    };
    taken.map(line).collect()
}

/// How far a change is.
fn rollout(explanation: &Explanation) -> String {
    let (status, spec) = (&explanation.status, &explanation.spec);
    let updated = status
        .placements
        .iter()
        .filter(|placement| Some(&placement.revision) == status.resolved.as_ref().map(|resolved| &resolved.revision));
    let old = status.placements.len() - updated.count();
    if old == 0 && status.progressed_at.is_none() {
        return String::new();
    }
    let no_room = match spec.update_strategy.when_no_room {
        WhenNoRoom::Replace => "where there is no room for both, the old one goes first",
        WhenNoRoom::Wait => "where there is no room for both, it waits",
    };
    let since = status.progressed_at.as_ref().map(|at| format!(", last a step further {} ago", age(explanation.now, at.0)));
    let paused = if spec.paused { ", paused" } else { "" };
    let text = format!(
        "{} of {} replicas are of the newest revision, {old} older; {no_room}{}{paused}.",
        status.updated_replicas,
        spec.replicas,
        since.unwrap_or_default()
    );
    paragraph("Rollout", &text)
}

/// Each node as it is now.
fn nodes(present: Option<&ClusterPlan>) -> String {
    let Some(plan) = present else { return String::new() };
    let nodes = plan.nodes.iter().map(|node| paragraph("", &format!("{}: {}", node.node, standing(node))));
    format!("On the nodes as they are now, without its own replicas\n{}", nodes.collect::<String>())
}

fn standing(node: &NodePlan) -> String {
    let meaning = Reason::meaning(node.reason);
    let Some(PlanReport { plan, fit, .. }) = &node.report else { return format!("{}. {meaning}", node.reason) };
    let how = format!("{}, {} of {} layers on GPU", plan.processor, plan.gpu_layers, plan.total_layers);
    match (node.considered, fit.fits) {
        (false, _) => format!("not considered, {}: {meaning} It would be {how}.", node.reason),
        (true, true) => format!("fits, {how}"),
        (true, false) => format!("{how}. {}", fit.message),
    }
}

/// Of the present figures; where those are unseen, of those that were decided on.
fn changes(explanation: &Explanation) -> String {
    let present = explanation.present.as_ref().and_then(|plan| plan.report.as_ref());
    present.or(explanation.status.fit.as_ref()).map(table::suggestions).unwrap_or_default()
}

fn conditions(explanation: &Explanation) -> String {
    let conditions = &explanation.status.conditions;
    let line = |condition: &Condition| {
        let since = age(explanation.now, condition.last_transition_time.0);
        paragraph("", &format!("{} {} for {since} ({}): {}", condition.type_, condition.status, condition.reason, condition.message))
    };
    if conditions.is_empty() { String::new() } else { format!("Conditions\n{}", conditions.iter().map(line).collect::<String>()) }
}

fn events(explanation: &Explanation) -> String {
    let line = |event: &super::Told| {
        let at = event.at.map(|at| format!("{} ago, ", age(explanation.now, at))).unwrap_or_default();
        let warning = if event.warning { "warning, " } else { "" };
        paragraph("", &format!("{at}{warning}{}: {}", event.reason, event.message))
    };
    let events = &explanation.events;
    if events.is_empty() { String::new() } else { format!("Events\n{}", events.iter().map(line).collect::<String>()) }
}

/// How long ago, in the largest unit of which there are at least two, as kubectl tells it.
fn age(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let found = units.into_iter().find(|(length, _)| seconds >= 2 * length);
    found.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}
