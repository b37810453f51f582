//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use stowage_crds::names;
use stowage_placement::{Bytes, Defaults};

use crate::leader::Periods;
use crate::workers::Settings;

/// Decides which node runs which model, and writes it down. Any number may run; one of them leads.
#[derive(Clone, Debug, Parser)]
#[command(name = "stowage-operator", version)]
pub struct Options {
    /// Namespace of the operator's and the agents' Leases.
    #[arg(long, default_value = names::SYSTEM_NAMESPACE, env = "STOWAGE_SYSTEM_NAMESPACE")]
    pub system_namespace: String,
    /// Kubeconfig to use; without it, $KUBECONFIG, ~/.kube/config or the Pod's own account.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Name by which this process holds the leader's Lease; made from host name and process id where it is missing.
    #[arg(long, env = "STOWAGE_IDENTITY")]
    pub identity: Option<String>,
    /// Seconds without a renewal after which another process leads.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..))]
    pub lease_duration: u64,
    /// Seconds without a renewal after which the leader stops deciding; less than --lease-duration.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub renew_deadline: u64,
    /// Seconds between two tries to take or renew the leader's Lease; less than --renew-deadline.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub retry_period: u64,
    /// Address to serve /metrics, /healthz and /readyz on, such as 0.0.0.0:9090. Without it they are not served.
    #[arg(long, env = "STOWAGE_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
    /// Percent of each device that is left free.
    #[arg(long, value_name = "PERCENT", default_value_t = Defaults::default().margin_percent, value_parser = clap::value_parser!(u32).range(2..=90))]
    pub margin_percent: u32,
    /// At least so much of each device is left free; not less than 256MiB, by which published figures may lag behind.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = least_margin)]
    pub least_margin: Bytes,
    /// What a GPU's driver and libraries take for one replica, until an agent has measured it on that kind of GPU.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub overhead: Bytes,
    /// Seconds for which a GPU must have had room before a replica that runs on CPU, in part or wholly, moves there.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub move_up_after: u32,
    /// A range of addresses (10.0.0.0/8, 127.0.0.1/32) that models may be read from although it is not public; may be given more than once.
    #[arg(long = "allow-source-address", value_name = "CIDR")]
    pub allow_source_addresses: Vec<String>,
    /// Host at which replicas are reached, instead of the addresses that they advertise; for a cluster on one machine. An operator asks only those of nodes
    /// whose agents are silent.
    #[arg(long, value_name = "HOST")]
    pub replica_host: Option<String>,
    /// Who starts workers; agents must be told the same.
    #[arg(long, value_enum, value_name = "WHO", default_value_t)]
    pub workers: WorkersArg,
    /// With --workers=pod: what all their Pods have in common, as the chart writes it.
    #[arg(long, value_name = "JSON")]
    pub worker_pods: Option<Settings>,
    /// Log as JSON, one object a line.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkersArg {
    /// The agents: each is a child process of its node's.
    #[default]
    Process,
    /// The operator: each is in a Pod of its own.
    Pod,
}

fn least_margin(text: &str) -> Result<Bytes, String> {
    let (asked, least) = (text.parse::<Bytes>()?, Defaults::default().least_margin_bytes);
    if asked < least { Err(format!("{asked} is less than {least}")) } else { Ok(asked) }
}

impl Options {
    /// What is assumed of devices of which neither admin nor agent says otherwise.
    pub fn defaults(&self) -> Defaults {
        Defaults { margin_percent: self.margin_percent, least_margin_bytes: self.least_margin, overhead_bytes: self.overhead }
    }

    /// What workers' Pods have in common; `None` where there are none.
    pub fn workers(&self) -> Result<Option<Settings>, String> {
        match (self.workers, &self.worker_pods) {
            (WorkersArg::Process, None) => Ok(None),
            (WorkersArg::Pod, Some(settings)) => Ok(Some(settings.clone())),
            (WorkersArg::Pod, None) => Err("--workers=pod needs --worker-pods, which says what workers' Pods have in common".into()),
            (WorkersArg::Process, Some(_)) => Err("--worker-pods is of no use without --workers=pod".into()),
        }
    }

    /// The periods of the election, or why they can't work.
    pub fn periods(&self) -> Result<Periods, String> {
        let (lease, deadline, retry) = (self.lease_duration, self.renew_deadline, self.retry_period);
        if !(retry < deadline && deadline < lease) {
            return Err(format!(
                "--retry-period ({retry}) must be less than --renew-deadline ({deadline}), and that less than --lease-duration ({lease})"
            ));
        }
        Ok(Periods { lease: Duration::from_secs(lease), renew_deadline: Duration::from_secs(deadline), retry: Duration::from_secs(retry) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_assumed_of_devices_can_be_set_and_margins_only_upwards() {
        assert_eq!(Options::parse_from(["stowage-operator"]).defaults(), Defaults::default());
        let set = Options::parse_from(["stowage-operator", "--margin-percent", "5", "--least-margin", "1GiB", "--overhead", "300MiB"]);
        let expected = Defaults { margin_percent: 5, least_margin_bytes: Bytes::gib(1), overhead_bytes: Bytes::mib(300) };
        assert_eq!(set.defaults(), expected);
        for wrong in [["--margin-percent", "1"], ["--least-margin", "255MiB"], ["--overhead", "much"]] {
            assert!(Options::try_parse_from(["stowage-operator", wrong[0], wrong[1]]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn workers_in_pods_need_to_be_told_what_pods_and_those_of_agents_do_not() {
        let parsed = |arguments: &[&str]| Options::try_parse_from([&["stowage-operator"], arguments].concat());
        assert_eq!(parsed(&[]).unwrap().workers(), Ok(None));
        assert!(parsed(&["--workers", "pod"]).unwrap().workers().unwrap_err().contains("--worker-pods"));
        let json = serde_json::json!({
            "image": "i", "serviceAccount": "w", "user": 1, "group": 1, "socket": "/s", "port": 1, "volumes": [], "volumeMounts": [],
        });
        let told = parsed(&["--workers", "pod", "--worker-pods", &json.to_string()]).unwrap();
        assert_eq!(told.workers().unwrap().unwrap().image, "i");
        let error = parsed(&["--workers", "pod", "--worker-pods", "{\"imago\": 1}"]).unwrap_err().to_string();
        assert!(error.contains("unknown field `imago`"), "{error}");
    }

    #[test]
    fn the_leader_stops_before_another_begins() {
        let periods = Options::parse_from(["stowage-operator"]).periods().unwrap();
        assert!(periods.renew_deadline < periods.lease && periods.lease + 2 * periods.retry < Duration::from_secs(15));
        let wrong = Options::parse_from(["stowage-operator", "--renew-deadline", "10"]);
        assert!(wrong.periods().unwrap_err().contains("--renew-deadline (10)"));
    }
}
