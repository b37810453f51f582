//! The one HTTP client, which looks at every address before it connects.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use url::{Host, Url};

use crate::address_policy::{AddressPolicy, ForbiddenAddress};
use crate::error::SourceError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for this long is taken for gone; a download goes on with a new connection.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;

/// The HTTP client that connects only to what `policy` permits. For requests other than those of this crate.
///
/// A host that is an address itself is not resolved, and so must be checked by whoever sends a request to it; redirects are checked here.
pub fn client(policy: &AddressPolicy) -> Result<reqwest::Client, SourceError> {
    policy.client().cloned()
}

/// Makes the client. Proxies of the environment are left out: behind one, it would be the proxy's address that is judged. A machine that has no
/// certificates of authorities can still read from http.
pub(crate) fn build(policy: &AddressPolicy) -> Result<reqwest::Client, SourceError> {
    // A second call finds the provider there, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = builder(policy).build().or_else(|error| {
        tracing::warn!(error = causes(&error), "no https server can be trusted; models are read by http alone");
        builder(policy).tls_certs_only([]).build()
    });
    made.map_err(|error| SourceError::Client(causes(&error)))
}

fn builder(policy: &AddressPolicy) -> reqwest::ClientBuilder {
    let resolver = CheckedResolver { policy: policy.without_client() };
    let redirected = policy.without_client();
    reqwest::Client::builder()
        .user_agent(concat!("stowage/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .no_proxy()
        .referer(false)
        .dns_resolver(resolver)
        .redirect(redirect::Policy::custom(move |attempt| follow(&redirected, attempt)))
}

/// A URL that may be read from, as far as it can be judged before its name is resolved.
pub(crate) fn checked_url(url: &str, policy: &AddressPolicy) -> Result<Url, SourceError> {
    let parsed = Url::parse(url).map_err(|why| SourceError::InvalidUrl { url: shown_text(url), why: why.to_string() })?;
    if !matches!(parsed.scheme(), "http" | "https") {
        let why = format!("its scheme is {}; http and https are supported", parsed.scheme());
        return Err(SourceError::InvalidUrl { url: shown(&parsed), why });
    }
    match check_host(&parsed, policy) {
        Ok(()) => Ok(parsed),
        Err(forbidden) => Err(SourceError::Forbidden { url: shown(&parsed), forbidden }),
    }
}

fn check_host(url: &Url, policy: &AddressPolicy) -> Result<(), ForbiddenAddress> {
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    policy.check(&address.to_string(), address)
}

fn follow(policy: &AddressPolicy, attempt: redirect::Attempt<'_>) -> redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(format!("more than {MAX_REDIRECTS} redirects"));
    }
    let from_https = attempt.previous().last().is_some_and(|previous| previous.scheme() == "https");
    if !matches!((from_https, attempt.url().scheme()), (_, "https") | (false, "http")) {
        return attempt.error("it redirects from https to what is not https");
    }
    match check_host(attempt.url(), policy) {
        Ok(()) => attempt.follow(),
        Err(forbidden) => attempt.error(forbidden),
    }
}

/// Resolves names by the system's resolver, and gives back only addresses that may be connected to.
struct CheckedResolver {
    policy: AddressPolicy,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let mut permitted = Vec::with_capacity(found.len());
            let mut refused = None;
            for address in found {
                match policy.check(&host, address.ip()) {
                    Ok(()) => permitted.push(address),
                    Err(forbidden) => refused = Some(forbidden),
                }
            }
            match refused {
                Some(forbidden) if permitted.is_empty() => Err(forbidden.into()),
                _ => Ok(Box::new(permitted.into_iter()) as Addrs),
            }
        })
    }
}

/// What a failed request says, in our words where it was the policy that refused.
pub(crate) fn request_error(url: &Url, error: reqwest::Error) -> SourceError {
    let error = error.without_url();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(forbidden) = current.downcast_ref::<ForbiddenAddress>() {
            return SourceError::Forbidden { url: shown(url), forbidden: asked_for(url, forbidden) };
        }
        cause = current.source();
    }
    if error.is_redirect() {
        return SourceError::BadAnswer { url: shown(url), why: causes(&error) };
    }
    SourceError::Unreachable { url: shown(url), why: causes(&error) }
}

/// The refusal of a host that the URL names, or of one that its server named, whose name is not repeated.
fn asked_for(url: &Url, forbidden: &ForbiddenAddress) -> ForbiddenAddress {
    if url.host_str().is_some_and(|host| host.trim_matches(['[', ']']) == forbidden.host) {
        return forbidden.clone();
    }
    ForbiddenAddress { host: "the host that it redirects to".into(), ..forbidden.clone() }
}

/// An error and what it came from, in one line.
fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        let text = current.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = current.source();
    }
    line
}

/// A URL as it may be shown: without user, password and query, in which secrets travel.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails for URLs that can't have them, which is as good.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

pub(crate) fn shown_text(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let shown = &url[..end];
    match shown.rsplit_once('@') {
        Some((_, after)) => format!("…@{after}"),
        None => shown.to_owned(),
    }
}
