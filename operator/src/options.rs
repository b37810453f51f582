//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use stowage_crds::names;

use crate::leader::Periods;

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
    #[arg(long)]
    pub metrics_address: Option<SocketAddr>,
    /// A range of addresses (10.0.0.0/8, 127.0.0.1/32) that models may be read from although it is not public; may be given more than once.
    #[arg(long = "allow-source-address", value_name = "CIDR")]
    pub allow_source_addresses: Vec<String>,
    /// Log as JSON, one object a line.
    #[arg(long)]
    pub log_json: bool,
}

impl Options {
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
    fn the_leader_stops_before_another_begins() {
        let periods = Options::parse_from(["stowage-operator"]).periods().unwrap();
        assert!(periods.renew_deadline < periods.lease && periods.lease + 2 * periods.retry < Duration::from_secs(15));
        let wrong = Options::parse_from(["stowage-operator", "--renew-deadline", "10"]);
        assert!(wrong.periods().unwrap_err().contains("--renew-deadline (10)"));
    }
}
