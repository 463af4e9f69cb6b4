//! The OpenAPI document, and the schemas that cannot be derived.

use utoipa::OpenApi;
use utoipa::openapi::schema::{
    AnyOfBuilder, ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type,
};
use utoipa::openapi::{RefOr, Schema};

use crate::routes::{classify, docs, embed, model_task, openai, probes, tools};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "moeshard",
        description = "Embeddings and classification by mixture-of-experts encoders.",
    ),
    paths(
        embed::embed,
        classify::classify,
        classify::predict,
        model_task::own_task,
        model_task::invocations,
        openai::embeddings,
        openai::models,
        openai::model,
        tools::similarity,
        tools::tokenize,
        tools::decode,
        probes::info,
        probes::live,
        probes::health,
        probes::metrics,
        docs::page,
        docs::openapi_json,
    )
)]
struct Document;

/// The OpenAPI document of this server.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// `"text"`, `[1, 2]`, `["text", [1, 2]]`.
pub(crate) fn inputs() -> RefOr<Schema> {
    let one = || {
        AnyOfBuilder::new()
            .item(of_type(Type::String))
            .item(list(token_id()))
    };
    one()
        .item(list(one()))
        .description(Some("A text, a list of token ids, or a list of those."))
        .into()
}

/// `"text"`, `["a", "b"]`, `[["a"], ["a", "b"]]`.
pub(crate) fn predict_inputs() -> RefOr<Schema> {
    let texts = || list(of_type(Type::String));
    AnyOfBuilder::new()
        .item(of_type(Type::String))
        .item(texts())
        .item(list(texts()))
        .into()
}

/// `"text"`, `["a", "b"]`.
pub(crate) fn texts() -> RefOr<Schema> {
    AnyOfBuilder::new()
        .item(of_type(Type::String))
        .item(list(of_type(Type::String)))
        .description(Some("A text or a list of texts."))
        .into()
}

/// `[1, 2]`, `[[1, 2], [3]]`.
pub(crate) fn token_ids() -> RefOr<Schema> {
    AnyOfBuilder::new()
        .item(list(token_id()))
        .item(list(list(token_id())))
        .description(Some("Token ids of one text or of several."))
        .into()
}

/// `[0.1, 0.2]` or Base64.
pub(crate) fn embedding_values() -> RefOr<Schema> {
    OneOfBuilder::new()
        .item(list(of_type(Type::Number)))
        .item(of_type(Type::String))
        .into()
}

fn of_type(schema_type: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(schema_type))
}

fn token_id() -> ObjectBuilder {
    of_type(Type::Integer).minimum(Some(0))
}

fn list(items: impl Into<RefOr<Schema>>) -> ArrayBuilder {
    ArrayBuilder::new().items(items.into())
}
