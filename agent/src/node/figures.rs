//! The node's devices and replicas for Prometheus: free, held by replicas, by others; predicted beside measured.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use stowage_crds::model_node::{ModelNodeStatus, ReplicaStatus};
use stowage_placement::Bytes;
use tokio::sync::watch;

/// The node as it was last looked at, published or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFigures {
    pub status: ModelNodeStatus,
    /// `NAMESPACE/NAME` of the ModelDeployment of each replica, by assignment uid.
    pub models: BTreeMap<String, String>,
}

/// Writes the figures as they are when they are asked for.
#[derive(Debug)]
pub struct NodeCollector(pub watch::Receiver<NodeFigures>);

type Labels = Vec<(&'static str, String)>;
type Sample = (Labels, Bytes);

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let figures = self.0.borrow();
        let families: [(&str, &str, Vec<Sample>); 5] = [
            ("stowage_device_total", "Memory of a device; of the host, what may be used of it", figures.totals()),
            ("stowage_device_free", "Memory of a GPU that nobody holds", figures.free()),
            ("stowage_device_used_by_others", "Memory of a device that no replica holds and others do", figures.used_by_others()),
            ("stowage_replica_predicted", "Memory that a replica was planned to take on a device", figures.predicted()),
            ("stowage_replica_measured", "Memory that a replica takes on a device", figures.measured()),
        ];
        for (name, help, samples) in families {
            let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            for (labels, bytes) in samples {
                ConstGauge::new(i64::try_from(bytes.0).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl NodeFigures {
    fn of_gpus(&self, bytes: impl Fn(&stowage_crds::model_node::DeviceStatus) -> Bytes) -> Vec<Sample> {
        let gpus = self.status.devices.iter();
        gpus.map(|gpu| (vec![("device", gpu.uuid.clone()), ("name", gpu.name.clone())], bytes(gpu))).collect()
    }

    fn of_host(&self, bytes: impl Fn(&stowage_crds::model_node::SystemStatus) -> Bytes) -> Vec<Sample> {
        let labels = || vec![("device", stowage_placement::HOST.to_owned()), ("name", String::new())];
        self.status.system.iter().map(|system| (labels(), bytes(system))).collect()
    }

    fn totals(&self) -> Vec<Sample> {
        [self.of_gpus(|gpu| gpu.total_bytes), self.of_host(|system| system.memory_bytes)].concat()
    }

    fn free(&self) -> Vec<Sample> {
        self.of_gpus(|gpu| gpu.free_bytes)
    }

    fn used_by_others(&self) -> Vec<Sample> {
        [self.of_gpus(|gpu| gpu.used_by_others_bytes), self.of_host(|system| system.memory_used_by_others_bytes)].concat()
    }

    fn of_replicas(&self, bytes: impl Fn(&stowage_crds::model_deployment::DeviceBytes) -> Option<Bytes>) -> Vec<Sample> {
        let labels = |replica: &ReplicaStatus, device: &str| {
            let model = self.models.get(&replica.uid).cloned().unwrap_or_default();
            vec![("model", model), ("replica", replica.replica.clone()), ("device", device.to_owned())]
        };
        let replicas = self.status.replicas.iter();
        let of = replicas.flat_map(|replica| replica.devices.iter().map(move |on| (replica, on)));
        of.filter_map(|(replica, on)| Some((labels(replica, &on.id), bytes(on)?))).collect()
    }

    fn predicted(&self) -> Vec<Sample> {
        self.of_replicas(|on| Some(on.predicted_bytes))
    }

    fn measured(&self) -> Vec<Sample> {
        self.of_replicas(|on| on.measured_bytes)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use stowage_crds::model_deployment::DeviceBytes;
    use stowage_crds::model_node::{DeviceStatus, SystemStatus};

    use super::*;

    #[test]
    fn devices_and_replicas_are_told_with_what_was_predicted_beside_what_was_measured() {
        let gpu = DeviceStatus {
            uuid: "GPU-a".into(),
            name: "H100".into(),
            total_bytes: Bytes(80),
            free_bytes: Bytes(50),
            used_by_others_bytes: Bytes(10),
            ..DeviceStatus::default()
        };
        let on = DeviceBytes { id: "GPU-a".into(), predicted_bytes: Bytes(21), measured_bytes: Some(Bytes(20)) };
        let replica = ReplicaStatus { uid: "u".into(), replica: "m-1-0".into(), devices: vec![on], ..ReplicaStatus::default() };
        let system = SystemStatus { memory_bytes: Bytes(64), ..SystemStatus::default() };
        let status = ModelNodeStatus { devices: vec![gpu], replicas: vec![replica], system: Some(system), ..ModelNodeStatus::default() };
        let figures = NodeFigures { status, models: [("u".to_owned(), "default/m".to_owned())].into() };
        let mut registry = Registry::default();
        let (_sender, receiver) = watch::channel(figures);
        registry.register_collector(Box::new(NodeCollector(receiver)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "stowage_device_total_bytes{device=\"GPU-a\",name=\"H100\"} 80",
            "stowage_device_total_bytes{device=\"host\",name=\"\"} 64",
            "stowage_device_free_bytes{device=\"GPU-a\",name=\"H100\"} 50",
            "stowage_device_used_by_others_bytes{device=\"GPU-a\",name=\"H100\"} 10",
            "stowage_replica_predicted_bytes{model=\"default/m\",replica=\"m-1-0\",device=\"GPU-a\"} 21",
            "stowage_replica_measured_bytes{model=\"default/m\",replica=\"m-1-0\",device=\"GPU-a\"} 20",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
