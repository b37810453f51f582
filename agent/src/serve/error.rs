//! Why a request got no answer, and how each API says so.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use stowage_engine::EngineError;
use stowage_placement::Reason;

/// Seconds after which a client may try again where a replica is busy, draining or not ready.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Whose error shape a client expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Ollama,
    OpenAi,
}

impl Dialect {
    pub fn of_path(path: &str) -> Dialect {
        if path == "/v1" || path.starts_with("/v1/") { Dialect::OpenAi } else { Dialect::Ollama }
    }
}

/// What kind of no it is. It decides the status code, and is all that the access log says of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A field is missing, malformed, or can't be honoured.
    InvalidRequest,
    /// The prompt is longer than the context.
    PromptTooLong,
    /// Several models go by that name.
    AmbiguousModel,
    ModelNotFound,
    UnknownPath,
    WrongMethod,
    BodyTooLarge,
    /// The client stopped sending its body.
    BodyTooSlow,
    /// Models are managed by applying ModelDeployments, not here.
    ManagedElsewhere,
    /// No API key, or one that is not known.
    Unauthorized,
    /// Queue full, draining, or not ready yet.
    Busy,
    /// The worker behind the node's door broke off.
    BadGateway,
    Failed,
}

impl FaultKind {
    pub fn status(self) -> StatusCode {
        match self {
            FaultKind::InvalidRequest | FaultKind::PromptTooLong | FaultKind::AmbiguousModel => StatusCode::BAD_REQUEST,
            FaultKind::ModelNotFound | FaultKind::UnknownPath => StatusCode::NOT_FOUND,
            FaultKind::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            FaultKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            FaultKind::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            FaultKind::ManagedElsewhere => StatusCode::NOT_IMPLEMENTED,
            FaultKind::Unauthorized => StatusCode::UNAUTHORIZED,
            FaultKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            FaultKind::BadGateway => StatusCode::BAD_GATEWAY,
            FaultKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// OpenAI's `code`, with its own words where it has them; also the outcome in metrics and log.
    pub fn code(self) -> &'static str {
        match self {
            FaultKind::InvalidRequest => "invalid_request",
            FaultKind::PromptTooLong => "context_length_exceeded",
            FaultKind::AmbiguousModel => "model_ambiguous",
            FaultKind::ModelNotFound => "model_not_found",
            FaultKind::UnknownPath => "unknown_url",
            FaultKind::WrongMethod => "method_not_allowed",
            FaultKind::BodyTooLarge => "body_too_large",
            FaultKind::BodyTooSlow => "body_too_slow",
            FaultKind::ManagedElsewhere => "managed_elsewhere",
            FaultKind::Unauthorized => "invalid_api_key",
            FaultKind::Busy => "overloaded",
            FaultKind::BadGateway => "bad_gateway",
            FaultKind::Failed => "failed",
        }
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub kind: FaultKind,
    pub message: String,
    /// The field of the request at fault.
    pub field: Option<String>,
}

impl Fault {
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into(), field: None }
    }

    /// A field that is malformed or can't be honoured. The message should say what to write instead.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { kind: FaultKind::InvalidRequest, message: message.into(), field: Some(field.into()) }
    }

    pub fn busy(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Busy, message)
    }

    /// The error as one line of a stream or one body.
    pub fn body(&self, dialect: Dialect) -> serde_json::Value {
        match dialect {
            Dialect::Ollama => json!({"error": self.message}),
            Dialect::OpenAi => {
                let class = if self.kind.status().is_server_error() { "server_error" } else { "invalid_request_error" };
                json!({"error": {"message": self.message, "type": class, "param": self.field, "code": self.kind.code()}})
            }
        }
    }

    pub fn response(&self, dialect: Dialect) -> Response {
        let mut response = (self.kind.status(), Json(self.body(dialect))).into_response();
        if self.kind == FaultKind::Busy {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        response
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Fault {
        let kind = match error.reason {
            Reason::PromptTooLong => FaultKind::PromptTooLong,
            _ if error.is_busy() => FaultKind::Busy,
            _ if error.is_callers_fault() => FaultKind::InvalidRequest,
            _ => FaultKind::Failed,
        };
        Fault::new(kind, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_503_with_a_time_to_try_again() {
        let response = Fault::from(EngineError::new(Reason::QueueFull, "16 requests are waiting")).response(Dialect::OpenAi);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn each_api_has_its_own_error_shape() {
        let fault = Fault::field("n", "`n` must be at least 1");
        assert_eq!(fault.body(Dialect::Ollama), json!({"error": "`n` must be at least 1"}));
        assert_eq!(
            fault.body(Dialect::OpenAi),
            json!({"error": {"message": "`n` must be at least 1", "type": "invalid_request_error", "param": "n", "code": "invalid_request"}})
        );
    }
}
