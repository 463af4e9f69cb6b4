//! The two shapes of an error.

use utoipa::ToSchema;

/// An error, as every route but OpenAI's answers it.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
    /// `Empty`, `Validation`, `Tokenizer`, `Backend`, `Overloaded`, `Unhealthy`, …
    pub error_type: &'static str,
}

/// An error, as OpenAI's routes answer it.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct OpenAiErrorBody {
    /// The error.
    pub error: OpenAiError,
}

/// What OpenAI's clients read of an error.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct OpenAiError {
    /// What is wrong.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that is wrong.
    pub param: Option<String>,
    /// `invalid_api_key`, `rate_limit_exceeded`, `model_not_found`, `unknown_url` or null.
    pub code: Option<&'static str>,
}
