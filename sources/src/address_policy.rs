//! Which addresses a model may be read from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use crate::error::SourceError;

/// Addresses that Stowage reads models from: public ones, and the ranges that were allowed by whoever runs it.
///
/// What is judged is the address that is connected to: of a name, what it resolved to at that moment; after a redirect, the new one. So a name
/// that resolves to something else a moment later, or a server that redirects inwards, gains nothing. Clones share one HTTP client.
#[derive(Clone, Debug)]
pub struct AddressPolicy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    allowed: Vec<IpNet>,
    client: OnceLock<reqwest::Client>,
}

/// An address that the policy does not permit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, {kind}; models are not read from there unless its range is allowed")]
pub struct ForbiddenAddress {
    pub host: String,
    pub address: IpAddr,
    pub kind: &'static str,
}

impl Default for AddressPolicy {
    fn default() -> AddressPolicy {
        AddressPolicy::public()
    }
}

impl AddressPolicy {
    /// Public addresses alone.
    pub fn public() -> AddressPolicy {
        AddressPolicy::allowing([])
    }

    /// Public addresses, and these ranges.
    pub fn allowing(allowed: impl IntoIterator<Item = IpNet>) -> AddressPolicy {
        AddressPolicy { inner: Arc::new(Inner { allowed: allowed.into_iter().collect(), client: OnceLock::new() }) }
    }

    /// Public addresses, and ranges written as `10.0.0.0/8` or as one address.
    pub fn parse<S: AsRef<str>>(ranges: impl IntoIterator<Item = S>) -> Result<AddressPolicy, SourceError> {
        let ranges = ranges.into_iter().map(|range| parse_range(range.as_ref()));
        Ok(AddressPolicy::allowing(ranges.collect::<Result<Vec<IpNet>, SourceError>>()?))
    }

    /// Whether `host`, which is or resolved to `address`, may be connected to.
    pub fn check(&self, host: &str, address: IpAddr) -> Result<(), ForbiddenAddress> {
        let Some(kind) = kind_of_inner_address(address) else { return Ok(()) };
        let plain = address.to_canonical();
        if self.inner.allowed.iter().any(|range| range.contains(&address) || range.contains(&plain)) {
            return Ok(());
        }
        Err(ForbiddenAddress { host: host.to_owned(), address, kind })
    }

    /// The client that judges by this policy, made once.
    pub(crate) fn client(&self) -> Result<&reqwest::Client, SourceError> {
        if let Some(client) = self.inner.client.get() {
            return Ok(client);
        }
        let client = crate::client::build(self)?;
        Ok(self.inner.client.get_or_init(|| client))
    }

    /// Same ranges, no client yet: what the client's own parts hold, so that it does not hold itself.
    pub(crate) fn without_client(&self) -> AddressPolicy {
        AddressPolicy::allowing(self.inner.allowed.iter().copied())
    }
}

fn parse_range(range: &str) -> Result<IpNet, SourceError> {
    let parsed = range.parse::<IpNet>().ok().or_else(|| range.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| SourceError::BadRange { range: range.to_owned() })
}

/// What kind of address this is, where it is none that the whole Internet can reach.
fn kind_of_inner_address(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => kind_of_v4(address),
        IpAddr::V6(address) => kind_of_v6(address),
    }
}

fn kind_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b) {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_link_local() => Some("a link-local address"),
        _ if address.is_private() => Some("a private address"),
        (0, _) => Some("an address of this host"),
        (100, 64..=127) => Some("a carrier's shared address"),
        (192, 0) if c == 0 => Some("a reserved address"),
        (198, 18 | 19) => Some("an address for benchmarks"),
        _ if address.is_documentation() => Some("an address for documentation"),
        _ if address.is_multicast() => Some("a multicast address"),
        (240..=255, _) => Some("a reserved address"),
        _ => None,
    }
}

fn kind_of_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(v4) = embedded_v4(address) {
        return kind_of_v4(v4);
    }
    match address.segments() {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_unspecified() => Some("an address of this host"),
        _ if address.is_unicast_link_local() => Some("a link-local address"),
        _ if address.is_unique_local() => Some("a private address"),
        _ if address.is_multicast() => Some("a multicast address"),
        [0xfec0..=0xfeff, ..] => Some("a site-local address"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("an address for documentation"),
        [0x100, 0, 0, 0, ..] => Some("a reserved address"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, by NAT64 (RFC 6052), or by 6to4 (RFC 3056).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some(from(high, low)),
        // Deprecated IPv4-compatible addresses; `::` and `::1` are no such.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(from(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(policy: &AddressPolicy, address: &str) -> bool {
        policy.check("host", address.parse().unwrap()).is_ok()
    }

    #[test]
    fn inner_addresses_are_refused_in_every_spelling() {
        let policy = AddressPolicy::public();
        let inner = [
            "127.0.0.1",
            "127.9.9.9",
            "10.96.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ];
        for address in inner {
            assert!(!permitted(&policy, address), "{address}");
        }
        for address in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::"] {
            assert!(permitted(&policy, address), "{address}");
        }
    }

    #[test]
    fn an_allowed_range_is_permitted_and_nothing_beside_it() {
        let policy = AddressPolicy::parse(["10.0.0.0/8", "192.168.1.7"]).unwrap();
        assert!(permitted(&policy, "10.1.2.3"));
        assert!(permitted(&policy, "::ffff:10.1.2.3"));
        assert!(permitted(&policy, "192.168.1.7"));
        assert!(!permitted(&policy, "192.168.1.8"));
        assert!(!permitted(&policy, "127.0.0.1"));
    }

    #[test]
    fn a_range_that_is_none_is_an_error() {
        let error = AddressPolicy::parse(["10.0.0.0/99"]).unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/99"), "{error}");
    }
}
