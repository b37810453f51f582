//! A HorizontalPodAutoscaler scales a ModelDeployment: the real one, of kube-controller-manager, by an external metric.

use anyhow::Result;
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::metrics_api::MetricsApi;
use stowage_end_to_end::{Cluster, Settings, manifest, watch};

const AUTOSCALER: &str = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: m, namespace: default}
spec:
  scaleTargetRef: {apiVersion: stowage.dev/v1alpha1, kind: ModelDeployment, name: m}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - type: External
    external: {metric: {name: requests_waiting}, target: {type: AverageValue, averageValue: '10'}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 0}
";

/// So many replicas are asked for, and all of them serve.
fn has(deployment: &ModelDeployment, replicas: u32) -> bool {
    let ready = deployment.status.as_ref().map(|status| status.ready_replicas);
    deployment.spec.replicas == replicas && ready == Some(replicas) && watch::is(deployment, ConditionType::Ready, "True")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_follows_an_external_metric_up_and_down() -> Result<()> {
    let mut cluster = Cluster::start(Settings::default()).await?;
    cluster.start_gpu_nodes(&["node-a", "node-b"].map(|node| (node, manifest::room_for(2)))).await?;
    let metrics = MetricsApi::start().await?;
    metrics.set(5);
    metrics.register(&cluster)?;
    cluster.create(&manifest::on_gpu("m")).await?;
    cluster.until("m", |m| has(m, 1)).await?;
    cluster.apply(AUTOSCALER)?;
    for (waiting, replicas) in [(25, 3), (15, 2), (5, 1)] {
        metrics.set(waiting);
        cluster.until("m", |m| has(m, replicas)).await?;
        println!("with {waiting} requests waiting, {replicas} replicas serve");
    }
    println!("{}", cluster.kubectl_output(&["describe", "hpa", "m"])?);
    cluster.stop()
}
