//! Packs the weights of models that serve, for the next time that they are loaded: one at a time, in a process of its own (`crate::pack`), behind everything else.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use stowage_crds::model_node::Assignment;
use stowage_placement::{Bytes, DeviceKind};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::confine::Confine;
use super::launch::withhold;
use super::loaded_file::LoadedFile;
use super::packed::PackedWeights;
use crate::pack::PackOrder;

/// What a file has beside the weights, at most: its description, and what lies between them.
const BESIDE_WEIGHTS: Bytes = Bytes::mib(64);

/// Where packed weights are kept, and the way to the task that makes them. Both end together.
pub struct Packer {
    pub packed: PackedWeights,
    wanted: mpsc::UnboundedSender<Wanted>,
}

struct Wanted {
    assignment: Assignment,
    model: LoadedFile,
}

struct Task {
    executable: PathBuf,
    confine: Confine,
    packed: PackedWeights,
}

impl Packer {
    /// Must be called within a Tokio runtime.
    pub fn start(packed: PackedWeights, executable: PathBuf, confine: Confine) -> Packer {
        let (wanted, wishes) = mpsc::unbounded_channel();
        tokio::spawn(Task { executable, confine, packed: packed.clone() }.run(wishes));
        Packer { packed, wanted }
    }

    /// Has what this assignment has on the CPU packed, unless it is already. The model serves, so it can be.
    pub fn keep(&self, assignment: &Assignment, model: &LoadedFile) {
        let computes = |on: &stowage_placement::DeviceAllocation| on.kind == DeviceKind::Host && !on.layer_ranges.is_empty();
        if assignment.plan.devices.iter().any(computes) {
            // Fails where the runtime ends.
            let _ = self.wanted.send(Wanted { assignment: assignment.clone(), model: model.clone() });
        }
    }
}

impl Task {
    async fn run(self, mut wishes: mpsc::UnboundedReceiver<Wanted>) {
        self.tidy().await;
        while let Some(Wanted { assignment, model }) = wishes.recv().await {
            if self.packed.find(&model).is_some() {
                continue;
            }
            self.tidy().await;
            let replica = assignment.replica.clone();
            match self.pack(assignment, model).await {
                Ok(size) => tracing::info!(replica, %size, "packed weights are kept: the model's next load here begins with them"),
                Err(error) => tracing::warn!(replica, %error, "no packed weights are kept of this model; it is packed at each load"),
            }
        }
    }

    async fn tidy(&self) {
        let packed = self.packed.clone();
        let tidied = tokio::task::spawn_blocking(move || packed.tidy()).await;
        if let Err(error) = tidied.map_err(io::Error::other).and_then(|tidied| tidied) {
            tracing::warn!(%error, "looking through the packed weights that are kept");
        }
    }

    async fn pack(&self, assignment: Assignment, model: LoadedFile) -> io::Result<Bytes> {
        let on_host = assignment.plan.devices.iter().filter(|on| on.kind == DeviceKind::Host).map(|on| on.weights_bytes);
        let most = on_host.sum::<Bytes>().saturating_add(BESIDE_WEIGHTS);
        let (partial, file) = self.packed.begin(&model, most)?;
        let order = PackOrder { model: model.path().to_owned(), plan: assignment.plan, request: assignment.request, most };
        let status = self.run_process(&order, file.try_clone()?).await?;
        if !status.success() {
            return Err(io::Error::other(format!("its process: {status}; the log above may say why")));
        }
        if let Some(change) = model.change() {
            return Err(io::Error::other(change));
        }
        let finished = tokio::task::spawn_blocking(move || {
            let size = Bytes(file.metadata()?.len());
            partial.finish(&file).map(|()| size)
        });
        finished.await.map_err(io::Error::other)?
    }

    async fn run_process(&self, order: &PackOrder, to: File) -> io::Result<ExitStatus> {
        let mut command = Command::new(&self.executable);
        command.arg("pack").arg("--confine").arg(self.confine.as_str());
        command.stdin(Stdio::piped()).stdout(to).kill_on_drop(true);
        withhold(&mut command);
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(&serde_json::to_vec(order)?).await?;
        }
        child.wait().await
    }
}
