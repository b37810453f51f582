//! What becomes of replicas that run on CPU, in part or wholly, when a GPU comes to have room for them.

use stowage_crds::ModelDeployment;
use stowage_placement::{Bytes, PlacementPolicy, Reason};

use super::world::{SMALL_GPU, World, context, processor};
use crate::clock::after;

const PATIENCE: i64 = 300;

/// One that runs on CPU, for others use the GPU.
fn on_cpu(change: impl FnOnce(&mut ModelDeployment)) -> World {
    let mut world = World::new(&[SMALL_GPU]);
    world.leader.state.move_up_after = PATIENCE;
    world.cluster.agent("n1").others_use(Bytes::mib(900));
    world.settle(|_| false);
    let status = world.apply(|deployment| {
        context(1024, PlacementPolicy::PreferGPU)(deployment);
        change(deployment);
    });
    assert_eq!(processor(&status), "100% CPU");
    world
}

fn seconds_later(world: &mut World, seconds: i64) -> String {
    world.time = after(world.time, seconds);
    world.listen();
    world.begin();
    processor(&world.settled()).to_owned()
}

#[test]
fn a_replica_moves_to_a_gpu_that_has_had_room_for_long_enough_and_serves_all_the_while() {
    let mut world = on_cpu(|_| {});
    world.cluster.agent("n1").others_use(Bytes::ZERO);
    assert_eq!(processor(&world.settled()), "100% CPU");
    assert_eq!(world.leader.state.memory.room_above.values().next(), Some(&world.time));
    assert_eq!(seconds_later(&mut world, PATIENCE - 1), "100% CPU");
    assert_eq!(seconds_later(&mut world, 1), "100% GPU");
    assert_eq!(world.fewest_ready, 1);
    assert!(world.told(Reason::MovingUp));
    let status = world.status();
    assert_eq!((status.placements.len(), status.placements[0].replaces.as_str()), (1, ""));
}

#[test]
fn room_that_comes_and_goes_moves_nothing() {
    let mut world = on_cpu(|_| {});
    for _ in 0..3 {
        world.cluster.agent("n1").others_use(Bytes::ZERO);
        assert_eq!(seconds_later(&mut world, PATIENCE - 1), "100% CPU");
        world.cluster.agent("n1").others_use(Bytes::mib(900));
        assert_eq!(seconds_later(&mut world, 2), "100% CPU");
    }
    assert!(world.leader.state.memory.room_above.is_empty());
}

#[test]
fn what_is_to_run_on_cpu_stays_there() {
    let mut world = on_cpu(|deployment| deployment.spec.parameters.num_gpu = Some(0));
    world.cluster.agent("n1").others_use(Bytes::ZERO);
    assert_eq!(seconds_later(&mut world, PATIENCE), "100% CPU");
    assert_eq!(seconds_later(&mut world, PATIENCE), "100% CPU");
}

#[test]
fn without_a_surge_it_goes_first_where_one_may_be_missing() {
    let mut world = on_cpu(|deployment| {
        (deployment.spec.update_strategy.max_surge, deployment.spec.update_strategy.max_unavailable) = (0, 1);
    });
    world.cluster.agent("n1").others_use(Bytes::ZERO);
    world.settled();
    assert_eq!(seconds_later(&mut world, PATIENCE), "100% GPU");
    assert_eq!(world.fewest_ready, 0);
}

#[test]
fn a_better_place_that_is_refused_is_given_back_and_tried_again_later() {
    let mut world = on_cpu(|_| {});
    world.cluster.agent("n1").others_use(Bytes::ZERO);
    world.settled();
    world.time = after(world.time, PATIENCE);
    world.listen();
    world.begin();
    world.settle(|_| true);
    assert_eq!((processor(&world.status()), world.fewest_ready, world.cluster.promised()), ("100% CPU", 1, 1));
    assert!(world.told(Reason::DeviceChanged));
    assert_eq!(seconds_later(&mut world, 60), "100% CPU");
    assert_eq!(seconds_later(&mut world, PATIENCE), "100% GPU");
}
