//! What a cluster has before Stowage is started in it: our kinds, and the system namespace.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::runtime::{conditions::is_crd_established, wait::await_condition};
use kube::{Api, Client};
use stowage_crds::{definitions, names};

const ESTABLISHED_DEADLINE: Duration = Duration::from_secs(60);

/// Applies an object on the server's side.
pub(crate) async fn apply<K>(api: &Api<K>, name: &str, object: &K) -> Result<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    Ok(api.patch(name, &PatchParams::apply("stowage-up").force(), &Patch::Apply(object)).await?)
}

/// Makes the kinds and the system namespace.
pub(crate) async fn prepare(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions::all()? {
        let name = definition.metadata.name.clone().context("a CustomResourceDefinition has a name")?;
        apply(&api, &name, &definition).await.with_context(|| format!("applying {name}"))?;
    }
    kinds_are_known(client).await?;
    make_namespace(client).await
}

/// Waits until the API server knows our kinds, which somebody has applied.
pub(crate) async fn kinds_are_known(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions::all()? {
        let name = definition.metadata.name.context("a CustomResourceDefinition has a name")?;
        let established = await_condition(api.clone(), &name, is_crd_established());
        tokio::time::timeout(ESTABLISHED_DEADLINE, established).await.with_context(|| format!("waiting for {name}"))??;
    }
    Ok(())
}

/// Makes the system namespace.
pub(crate) async fn make_namespace(client: &Client) -> Result<()> {
    let namespace = names::SYSTEM_NAMESPACE;
    let object = Namespace { metadata: ObjectMeta { name: Some(namespace.to_owned()), ..Default::default() }, ..Default::default() };
    apply(&Api::all(client.clone()), namespace, &object).await.with_context(|| format!("making namespace {namespace}"))?;
    Ok(())
}
