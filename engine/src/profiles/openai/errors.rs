//! The shape of errors: `{"error": {"message", "type", "param", "code"}}`, everywhere.

use pagoda_http::reply::{Reply, json};
use serde::Serialize;

use crate::api::error::{ApiError, Fault};

/// A body that tells an error; also the last event of a stream that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    error: ErrorFields,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ErrorFields {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl From<&ApiError> for ErrorBody {
    fn from(error: &ApiError) -> Self {
        let r#type = match error.fault() {
            Fault::Client => "invalid_request_error",
            Fault::Capacity | Fault::Us => "server_error",
        };
        let param = match error {
            ApiError::Invalid { param, .. } => Some(param.clone()),
            ApiError::ContextLength { param, .. } => Some((*param).to_string()),
            ApiError::Template(_) => Some("messages".to_string()),
            ApiError::ModelNotFound(_) => Some("model".to_string()),
            ApiError::PathNotAllowed(_) => Some("path".to_string()),
            _ => None,
        };
        let error = ErrorFields { message: error.to_string(), r#type, param, code: code(error) };
        ErrorBody { error }
    }
}

/// The error as an answer.
pub fn render(error: &ApiError) -> Reply {
    json(error.status(), &ErrorBody::from(error))
}

/// Every error has its code here; the match has no default on purpose.
fn code(error: &ApiError) -> Option<&'static str> {
    Some(match error {
        ApiError::BadJson(_) => return None,
        ApiError::Invalid { code, .. } => code,
        ApiError::ContextLength { .. } => "context_length_exceeded",
        ApiError::Template(_) => "invalid_value",
        ApiError::ModelNotFound(_) => "model_not_found",
        ApiError::ModelExists(_) => "model_exists",
        ApiError::ModelChanging { .. } => "model_changing",
        ApiError::PathNotAllowed(_) => "path_not_allowed",
        ApiError::LoadFailed(_) => "model_load_failed",
        ApiError::NoMemory(_) => "insufficient_memory",
        ApiError::UnknownRoute { .. } => "unknown_url",
        ApiError::WrongMethod { .. } => "method_not_supported",
        ApiError::WrongMediaType => "unsupported_content_type",
        ApiError::WrongEncoding => "unsupported_content_encoding",
        ApiError::TooLarge { .. } | ApiError::TooManyValues { .. } => "request_too_large",
        ApiError::BodyTimeout { .. } => "request_timeout",
        ApiError::MissingKey => return None,
        ApiError::ForeignHost => "host_not_allowed",
        ApiError::WrongKey => "invalid_api_key",
        ApiError::ExpiredKey => "expired_api_key",
        ApiError::NotPermitted(_) => "insufficient_permissions",
        ApiError::NobodyKnown => "control_plane_unknown",
        ApiError::Busy { .. } => "engine_overloaded",
        ApiError::NotReady => "model_loading",
        ApiError::ShuttingDown => "shutting_down",
        ApiError::Engine => "engine_failed",
        ApiError::Internal => "internal_error",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each variant, with the status, type, param and code that clients see.
    #[test]
    fn every_error_has_its_status_and_shape() {
        let path = || ("GET".to_string(), "/x".to_string());
        let ((method, at), (method_2, at_2)) = (path(), path());
        let invalid = ApiError::invalid("n", "invalid_value", "m".into());
        let long = ApiError::ContextLength {
            max_model_len: 4,
            prompt_tokens: 5,
            max_tokens: 1,
            param: "messages",
        };
        let table = [
            (ApiError::BadJson("m".into()), "400 invalid_request_error - -"),
            (invalid, "400 invalid_request_error n invalid_value"),
            (long, "400 invalid_request_error messages context_length_exceeded"),
            (ApiError::Template("m".into()), "400 invalid_request_error messages invalid_value"),
            (ApiError::MissingKey, "401 invalid_request_error - -"),
            (ApiError::WrongKey, "401 invalid_request_error - invalid_api_key"),
            (ApiError::ExpiredKey, "401 invalid_request_error - expired_api_key"),
            (ApiError::NotPermitted("x"), "403 invalid_request_error - insufficient_permissions"),
            (ApiError::NobodyKnown, "503 server_error - control_plane_unknown"),
            (
                ApiError::ModelNotFound("x".into()),
                "404 invalid_request_error model model_not_found",
            ),
            (ApiError::ModelExists("x".into()), "409 invalid_request_error - model_exists"),
            (
                ApiError::ModelChanging { name: "x".into(), change: "loading" },
                "409 invalid_request_error - model_changing",
            ),
            (
                ApiError::PathNotAllowed("m".into()),
                "403 invalid_request_error path path_not_allowed",
            ),
            (ApiError::LoadFailed("m".into()), "422 invalid_request_error - model_load_failed"),
            (ApiError::NoMemory("m".into()), "507 server_error - insufficient_memory"),
            (
                ApiError::UnknownRoute { method, path: at },
                "404 invalid_request_error - unknown_url",
            ),
            (
                ApiError::WrongMethod { method: method_2, path: at_2, allow: "POST".into() },
                "405 invalid_request_error - method_not_supported",
            ),
            (ApiError::BodyTimeout { seconds: 1 }, "408 invalid_request_error - request_timeout"),
            (ApiError::TooLarge { limit: 1 }, "413 invalid_request_error - request_too_large"),
            (ApiError::TooManyValues { limit: 1 }, "413 invalid_request_error - request_too_large"),
            (ApiError::WrongEncoding, "415 invalid_request_error - unsupported_content_encoding"),
            (ApiError::WrongMediaType, "415 invalid_request_error - unsupported_content_type"),
            (ApiError::Busy { retry_after_s: 1 }, "503 server_error - engine_overloaded"),
            (ApiError::NotReady, "503 server_error - model_loading"),
            (ApiError::ShuttingDown, "503 server_error - shutting_down"),
            (ApiError::Engine, "500 server_error - engine_failed"),
            (ApiError::Internal, "500 server_error - internal_error"),
        ];
        for (error, expected) in table {
            let body = serde_json::to_value(ErrorBody::from(&error)).unwrap();
            let fields = body["error"].as_object().unwrap();
            assert_eq!(fields.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
            let word = |name: &str| fields[name].as_str().unwrap_or("-").to_string();
            let told = format!(
                "{} {} {} {}",
                error.status().as_u16(),
                word("type"),
                word("param"),
                word("code")
            );
            assert_eq!(told, expected);
            assert!(!word("message").is_empty() && word("message") != "-");
        }
    }
}
