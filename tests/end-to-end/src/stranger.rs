//! A process that is no worker and holds VRAM.

use std::process::{Child, Command};

use anyhow::{Context, Result};
use stowage_placement::Bytes;

use crate::Agent;

/// It holds nothing of a GPU but what the simulation says.
pub struct Stranger(Child);

impl Stranger {
    pub fn start() -> Result<Stranger> {
        Ok(Stranger(Command::new("sleep").arg("3600").spawn().context("starting a process")?))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// From now on it holds so much of the agent's first GPU.
    pub fn takes(&self, agent: &mut Agent, bytes: Bytes) -> Result<()> {
        agent.options.gpus[0].foreign = vec![(self.0.id(), bytes)];
        agent.machine.write(&agent.options.gpus)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
