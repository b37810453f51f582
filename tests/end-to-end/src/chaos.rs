//! A cluster in which everything happens at once: processes are killed and paused, specs change, nodes are cordoned, others take VRAM.
//!
//! What happens, and when, follows from the seed alone ([`script`]); the cluster's observer looks on all the while. When it is over, everything must come to
//! a state that is as asked or says why not ([`settled`]).

mod action;
mod driver;
mod fresh;
mod script;
mod settled;

use std::time::Duration;

use anyhow::{Context, Result};

pub use driver::Counts;
pub use settled::Settled;

use driver::Driver;
use script::Script;

/// Nodes, and replicas that their GPUs have room for.
const NODES: [(&str, u64); 3] = [("node-a", 3), ("node-b", 2), ("node-c", 1)];
const OPERATORS: usize = 2;
/// The PriorityClass of what goes before others.
const URGENT: &str = "urgent";

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub seed: u64,
    pub duration: Duration,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Summary {
    pub actions: Counts,
    pub settled: Settled,
}

/// Carries out the seed's script for as long as asked, and sees what comes of it. An error: what must never be was seen, or it did not settle.
pub async fn run(settings: Settings) -> Result<Summary> {
    let again = format!("make chaos SEED={} DURATION={}", settings.seed, settings.duration.as_secs());
    println!("chaos: `{again}` does the same again");
    let summary = play(settings).await.with_context(|| format!("`{again}` does the same again"))?;
    println!("chaos: seed {}: {}; then {}", settings.seed, summary.actions, summary.settled);
    Ok(summary)
}

async fn play(Settings { seed, duration }: Settings) -> Result<Summary> {
    let mut driver = Driver::start().await?;
    let steps = Script::new(seed).take_while(|step| step.at < duration);
    let settled = come_to_rest(&mut driver, steps).await;
    let (actions, cluster) = driver.end();
    let settled = settled.with_context(|| cluster.logs());
    // What the observer saw is told first: it is what the rest may have come from.
    cluster.stop()?;
    Ok(Summary { actions, settled: settled? })
}

async fn come_to_rest(driver: &mut Driver, steps: impl Iterator<Item = script::Step>) -> Result<Settled> {
    driver.carry_out(steps).await?;
    driver.calm().await?;
    settled::wait(&driver.cluster, driver.wanted()).await
}
