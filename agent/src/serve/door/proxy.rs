//! A request handed on to a worker, and its answer handed back as it comes.
//!
//! A client that leaves drops the answer's body, and with it the connection to the worker, which ends the generation.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{self, HeaderName};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, StatusCode, Uri};

use super::DoorState;
use crate::serve::account::Account;
use crate::serve::error::{Fault, FaultKind};

/// Workers are on the same node: one that does not answer by then is gone.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Headers that belong to one connection, and those that the client's side sets anew.
const NOT_FORWARDED: [HeaderName; 7] =
    [header::CONNECTION, header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::UPGRADE, header::TE, header::EXPECT];

/// A request as it came.
pub struct Forward {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Hands a request to a ready replica of `model`; where one can't be reached or is busy, to the next.
pub async fn forward(state: &DoorState, account: &Account, request: Forward, model: &str) -> Result<Response, Fault> {
    let replicas = state.0.turns.replicas(&state.routes(), model)?;
    let mut last = Err(Fault::busy(format!("no replica of {model} could be asked; try again")));
    for replica in replicas {
        account.model(replica.names.full());
        match send(state, &request, replica.worker).await {
            Ok(response) if response.status() != StatusCode::SERVICE_UNAVAILABLE => return Ok(handed_back(account, response)),
            Ok(response) => last = Ok(response),
            Err(fault) if fault.kind == FaultKind::Busy => last = Err(fault),
            Err(fault) => return Err(fault),
        }
    }
    last.map(|response| handed_back(account, response))
}

/// Asks one worker.
pub async fn send(state: &DoorState, forward: &Forward, worker: SocketAddr) -> Result<Response, Fault> {
    let mut parts = forward.uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    let failed =
        |error: &dyn std::fmt::Display| Fault::new(FaultKind::BadGateway, format!("the worker at {worker} was not asked: {error}"));
    parts.authority = Some(worker.to_string().parse::<Authority>().map_err(|error| failed(&error))?);
    let uri = Uri::from_parts(parts).map_err(|error| failed(&error))?;
    let mut request = Request::new(Body::from(forward.body.clone()));
    *request.method_mut() = forward.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = forward.headers.clone();
    NOT_FORWARDED.iter().for_each(|name| drop(request.headers_mut().remove(name)));
    state.0.client.request(request).await.map(|response| response.map(Body::new)).map_err(|error| {
        let kind = if error.is_connect() { FaultKind::Busy } else { FaultKind::BadGateway };
        Fault::new(kind, format!("the worker at {worker} gave no answer: {error}"))
    })
}

/// The worker's answer; the account stays open until its last byte was taken.
fn handed_back(account: &Account, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::CONNECTION);
    parts.headers.remove(header::TRANSFER_ENCODING);
    let account = account.clone();
    let outcome = outcome(parts.status);
    // A body of known length is not asked for more once it is through, so its end is counted, not waited for.
    let mut left = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut body = body.into_data_stream();
    let stream = async_stream::stream! {
        while let Some(part) = body.next().await {
            account.text_arrived();
            let broken = part.is_err();
            left = left.map(|left| left.saturating_sub(part.as_ref().map_or(0, |part| part.len() as u64)));
            if left == Some(0) && !broken {
                account.ended_as(outcome);
            }
            yield part;
            if broken {
                account.ended_as(FaultKind::BadGateway.code());
                return;
            }
        }
        account.ended_as(outcome);
    };
    Response::from_parts(parts, Body::from_stream(stream))
}

fn outcome(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => FaultKind::ModelNotFound.code(),
        StatusCode::SERVICE_UNAVAILABLE => FaultKind::Busy.code(),
        _ if status.is_client_error() => FaultKind::InvalidRequest.code(),
        _ if status.is_server_error() => FaultKind::Failed.code(),
        _ => "ok",
    }
}
