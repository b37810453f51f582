//! What the accounts of the chart may do, asked of the API server with tokens as their Pods have them: what their roles allow (`roles`), and what policies
//! hold agents (`agents`) and the operator (`operator`) to.
#![allow(clippy::unwrap_used)]

mod agents;
mod operator;
mod roles;

use anyhow::{Result, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use stowage_control_plane::{ControlPlane, Options};
use stowage_end_to_end::installed::{self, Account};
use tempfile::TempDir;
use tokio::time::Duration;

/// For what the API server's caches of roles and policies take to hear of a change.
const PROPAGATION: Duration = Duration::from_secs(60);

struct Installed {
    control_plane: ControlPlane,
    folder: TempDir,
}

impl Installed {
    async fn start() -> Result<Installed> {
        let control_plane = ControlPlane::start(Options { controller_manager: false, ..Options::default() }).await?;
        let folder = tempfile::Builder::new().prefix("stowage-permissions-").tempdir()?;
        installed::install::<&str>(&control_plane, folder.path(), &[]).await?;
        for node in ["node-a", "node-b"] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
            installed::apply(&control_plane, folder.path(), &node.to_string())?;
        }
        Ok(Installed { control_plane, folder })
    }

    fn admin(&self) -> &Client {
        &self.control_plane.client
    }

    fn apply(&self, object: &Value) -> Result<()> {
        installed::apply(&self.control_plane, self.folder.path(), &object.to_string())
    }

    async fn acting_by(&self, token: &str, name: &str) -> Result<Client> {
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        installed::client(self.control_plane.kubeconfig(), token, path).await
    }

    async fn acting_as(&self, account: Account, node: Option<&str>) -> Result<Client> {
        let token = installed::bound_token(self.admin(), account, node).await?;
        self.acting_by(&token, &format!("{}-{}", account.name(), node.unwrap_or_default())).await
    }
}

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// Objects of a kind, in a namespace or in none.
fn api(client: &Client, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if namespace.is_empty() { Api::all_with(client.clone(), &resource) } else { Api::namespaced_with(client.clone(), namespace, &resource) }
}

fn refusal(result: Result<(), kube::Error>) -> Result<String> {
    match result {
        Err(kube::Error::Api(status)) => Ok(status.message.clone()),
        Err(other) => Err(other.into()),
        Ok(()) => bail!("it was taken"),
    }
}
