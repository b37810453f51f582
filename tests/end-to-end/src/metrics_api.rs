//! A metrics API server for HorizontalPodAutoscalers: one external metric, with the value that a test gives it.
//!
//! The API server reaches it through an APIService, whose Service is an `ExternalName` of this machine's loopback address: no other kind of Service leads
//! anywhere without a kube-proxy, and an EndpointSlice may not hold a loopback address.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::Cluster;
use crate::tls::Tls;

const GROUP_VERSION: &str = "external.metrics.k8s.io/v1beta1";

pub struct MetricsApi {
    port: u16,
    value: Arc<AtomicU64>,
}

impl MetricsApi {
    pub async fn start() -> Result<MetricsApi> {
        let listener = Tls::bind().await?;
        let (port, value) = (listener.address()?.port(), Arc::<AtomicU64>::default());
        let root = format!("/apis/{GROUP_VERSION}");
        let metric = format!("{root}/namespaces/{{namespace}}/{{metric}}");
        let router = Router::new().route(&root, get(resources)).route(&metric, get(values)).with_state(value.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(MetricsApi { port, value })
    }

    pub fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
    }

    /// Makes it part of the cluster's API.
    pub fn register(&self, cluster: &Cluster) -> Result<()> {
        let port = self.port;
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: metrics, namespace: default}}\n\
             spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {port}}}]}}\n"
        );
        let api_service = format!(
            "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {{name: v1beta1.external.metrics.k8s.io}}\n\
             spec:\n  group: external.metrics.k8s.io\n  version: v1beta1\n  groupPriorityMinimum: 100\n  versionPriority: 100\n  \
             insecureSkipTLSVerify: true\n  service: {{name: metrics, namespace: default, port: {port}}}\n"
        );
        cluster.apply(&format!("{service}---\n{api_service}")).map(drop)
    }
}

async fn resources() -> Json<Value> {
    let any = json!({"name": "*", "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": ["get"]});
    Json(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": [any]}))
}

async fn values(Path((_, metric)): Path<(String, String)>, State(value): State<Arc<AtomicU64>>) -> Json<Value> {
    let value = value.load(Ordering::Relaxed).to_string();
    let item = json!({"metricName": metric, "metricLabels": {}, "timestamp": Timestamp::now().to_string(), "value": value});
    Json(json!({"kind": "ExternalMetricValueList", "apiVersion": GROUP_VERSION, "metadata": {}, "items": [item]}))
}
