//! What becomes of ModelDeployments of different priority that want the same bytes.

use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::ModelDeploymentStatus;
use stowage_placement::{Bytes, PlacementPolicy, Reason};

use super::interleavings::HIGH;
use super::world::{SMALL_GPU, World, context, processor, reason};
use crate::cache::Key;

fn of(world: &World, name: &str) -> ModelDeploymentStatus {
    world.cluster.deployments.objects[&Key::new("default", name)].status.clone().unwrap()
}

fn important(policy: PlacementPolicy) -> impl FnOnce(&mut ModelDeployment) {
    move |deployment| {
        context(1024, policy)(deployment);
        deployment.spec.priority_class_name = HIGH.into();
    }
}

#[test]
fn one_of_higher_priority_takes_the_place_of_one_that_waits_from_then_on() {
    let mut world = World::new(&[SMALL_GPU]);
    world.apply(context(1024, PlacementPolicy::RequireGPU));
    world.begin();
    world.cluster.apply_deployment("z", important(PlacementPolicy::RequireGPU));
    world.settle(|_| false);
    let (above, below) = (of(&world, "z"), world.status());
    assert_eq!((above.ready.as_str(), reason(&above), above.preempts.len()), ("1/1", "AsAsked", 0));
    assert_eq!((below.ready.as_str(), reason(&below)), ("0/1", "InsufficientVRAM"));
    let told = |name: &str, reason| world.told.iter().find(|notice| notice.key.name == name && notice.reason == reason);
    assert!(told("z", Reason::Preempting).unwrap().message.contains("m-"), "who has to go");
    assert!(told("m", Reason::Preempted).unwrap().message.contains("default/z, whose priority is 1000"), "who comes");
    // And back, once that is gone.
    world.cluster.delete_deployment("z");
    assert_eq!(world.settled().ready, "1/1");
}

#[test]
fn one_that_may_run_on_cpu_moves_there_for_one_of_higher_priority() {
    let mut world = World::new(&[SMALL_GPU]);
    world.apply(context(1024, PlacementPolicy::PreferGPU));
    world.cluster.apply_deployment("z", important(PlacementPolicy::PreferGPU));
    world.settle(|_| false);
    assert_eq!(processor(&of(&world, "z")), "100% GPU");
    assert_eq!((processor(&world.status()), world.status().ready.as_str()), ("100% CPU", "1/1"));
}

#[test]
fn nobody_has_to_go_where_there_is_another_place_as_good() {
    let mut world = World::new(&[SMALL_GPU, SMALL_GPU]);
    let before = world.apply(context(1024, PlacementPolicy::PreferGPU));
    world.cluster.apply_deployment("z", important(PlacementPolicy::PreferGPU));
    world.settle(|_| false);
    assert_eq!(processor(&of(&world, "z")), "100% GPU");
    assert_eq!(world.status().placements, before.placements);
}

#[test]
fn equal_priority_takes_nothing_and_as_few_go_as_will_do() {
    let mut world = World::new(&[Bytes::mib(2000)]);
    world.apply(|deployment| {
        context(1024, PlacementPolicy::RequireGPU)(deployment);
        deployment.spec.replicas = 2;
    });
    assert_eq!(world.status().ready, "2/2");
    world.cluster.apply_deployment("y", context(1024, PlacementPolicy::RequireGPU));
    assert_eq!((world.settled().ready.as_str(), of(&world, "y").ready.as_str()), ("2/2", "0/1"));
    world.cluster.apply_deployment("z", important(PlacementPolicy::RequireGPU));
    assert_eq!((world.settled().ready.as_str(), of(&world, "z").ready.as_str()), ("1/2", "1/1"));
}

#[test]
fn a_class_that_does_not_exist_is_named() {
    let mut world = World::new(&[SMALL_GPU]);
    let status = world.apply(|deployment| deployment.spec.priority_class_name = "lofty".into());
    let scheduled = &status.conditions.iter().find(|condition| condition.type_ == "Scheduled").unwrap();
    assert!(scheduled.reason == "InvalidRequest" && scheduled.message.contains("\"lofty\""), "{}", scheduled.message);
}
