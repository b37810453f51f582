//! Accounts as the chart makes them, with the tokens that their Pods would have: no kubelet runs here, so a Pod is bound to its node by hand.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::config::Kubeconfig;
use kube::{Api, Client};
use stowage_control_plane::ControlPlane;
use stowage_crds::{names, yaml};

use crate::chart;
use crate::prepare::{kinds_are_known, make_namespace};

/// Who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    Operator,
    Agent,
    /// Of workers' Pods, which have no token of it.
    Worker,
    SmokeTest,
}

impl Account {
    pub fn name(self) -> &'static str {
        match self {
            Account::Operator => "stowage-operator",
            Account::Agent => "stowage-agent",
            Account::Worker => "stowage-worker",
            Account::SmokeTest => "stowage-smoke-test",
        }
    }
}

/// Applies the chart with these arguments of helm, and waits until the API server knows the kinds. `folder`: for what helm and kubectl write.
pub async fn install<A: AsRef<OsStr>>(control_plane: &ControlPlane, folder: &Path, arguments: &[A]) -> Result<()> {
    make_namespace(&control_plane.client).await?;
    apply(control_plane, folder, &chart::render(folder, names::SYSTEM_NAMESPACE, arguments)?)?;
    kinds_are_known(&control_plane.client).await
}

/// As kubectl applies it on the server's side.
pub fn apply(control_plane: &ControlPlane, folder: &Path, manifest: &str) -> Result<()> {
    let path = folder.join("manifest.yaml");
    fs::write(&path, manifest).context("writing a manifest")?;
    let output = control_plane.kubectl().args(["apply", "--server-side", "-f"]).arg(&path).output().context("running kubectl")?;
    if !output.status.success() {
        bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The Pod that the chart would run for `account`, by the API server's own copy of its controller; of a worker, whose Pods the operator makes, any Pod.
pub async fn pod_spec(client: &Client, account: Account) -> Result<PodSpec> {
    let (namespace, name) = (names::SYSTEM_NAMESPACE, account.name());
    let spec = match account {
        Account::Operator => {
            let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
            api.get(name).await?.spec.template.spec
        }
        Account::Agent => {
            let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
            api.get(name).await?.spec.template.spec
        }
        Account::Worker => {
            let container = Container { name: "worker".into(), image: Some("any".into()), ..Container::default() };
            Some(PodSpec { service_account_name: Some(name.into()), containers: vec![container], ..PodSpec::default() })
        }
        Account::SmokeTest => {
            let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
            api.get(name).await?.spec
        }
    };
    spec.with_context(|| format!("{name} has no Pod"))
}

/// What the chart tells the operator of the Pods of workers.
pub async fn worker_flags(client: &Client) -> Result<Vec<String>> {
    let spec = pod_spec(client, Account::Operator).await?;
    let arguments = spec.containers.into_iter().flat_map(|container| container.args.unwrap_or_default());
    Ok(arguments.filter(|argument| argument.starts_with("--worker")).collect())
}

/// A token of `account` as its Pod on `node` has it; without a node, of a Pod that has no place yet.
pub async fn bound_token(client: &Client, account: Account, node: Option<&str>) -> Result<String> {
    let spec = PodSpec { node_name: node.map(str::to_owned), ..pod_spec(client, account).await? };
    let name = format!("{}-{}", account.name(), node.unwrap_or("without-a-place"));
    // Without labels: a controller would take it for one of its own.
    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
    let pods: Api<Pod> = Api::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
    let pod = Pod { metadata, spec: Some(spec), status: None };
    let pod = pods.create(&PostParams::default(), &pod).await.with_context(|| format!("making Pod {name}"))?;
    let bound =
        BoundObjectReference { api_version: Some("v1".into()), kind: Some("Pod".into()), name: pod.metadata.name, uid: pod.metadata.uid };
    token(client, account, Some(bound)).await
}

/// A token of `account`, bound to an object or to none.
pub async fn token(client: &Client, account: Account, bound_object_ref: Option<BoundObjectReference>) -> Result<String> {
    let request = TokenRequest { spec: Some(TokenRequestSpec { bound_object_ref, ..Default::default() }), ..Default::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
    let made = accounts.create_token_request(account.name(), &PostParams::default(), &request).await;
    let made = made.with_context(|| format!("asking for a token of {}", account.name()))?;
    made.status.and_then(|status| status.token).context("a TokenRequest without its token")
}

/// The kubeconfig `of` an administrator with this token in its place, written to `path`.
pub fn kubeconfig(of: &Path, token: &str, path: PathBuf) -> Result<PathBuf> {
    let mut kubeconfig = Kubeconfig::read_from(of).context("reading the administrator's kubeconfig")?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info.get_or_insert_default().token = Some(token.to_owned().into());
    }
    fs::write(&path, yaml::to_string(&kubeconfig)?).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// A client that acts by this token.
pub async fn client(of: &Path, token: &str, path: PathBuf) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig(of, token, path)?)?;
    Ok(Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?)?)
}
