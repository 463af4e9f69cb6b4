//! What requests and responses look like.
//!
//! Unknown fields are ignored everywhere: clients send fields of other servers.

mod classify;
mod counted;
mod embed;
mod error;
mod fields;
mod info;
mod inputs;
mod openai;
mod tools;

pub use classify::{
    ClassifyParameters, ClassifyRequest, FunctionToApply, PredictInputs, PredictRequest, Score,
};
pub(crate) use counted::{too_many, with_most_inputs};
pub use embed::EmbedRequest;
pub use error::{ErrorBody, OpenAiError, OpenAiErrorBody};
pub use info::{ClassifierType, EmbeddingType, Info, ModelType, Status};
pub use inputs::Inputs;
pub use openai::{
    Embedding, EmbeddingValues, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat, Model,
    Models, Usage,
};
pub use tools::{
    DecodeRequest, SimilarityInputs, SimilarityParameters, SimilarityRequest, Texts, TokenIds,
    TokenInfo, TokenizeRequest,
};
