//! The OpenAPI document, and the schemas that cannot be derived.

use std::collections::BTreeMap;

use utoipa::openapi::schema::{
    AnyOfBuilder, ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type,
};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder, Schema};
use utoipa::{IntoResponses, Modify, OpenApi};

use crate::auth;
use crate::error::is_openai;
use crate::routes::{classify, docs, embed, model_task, openai, probes, tools};
use crate::wire::{ErrorBody, OpenAiError, OpenAiErrorBody};

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
    ),
    components(schemas(ErrorBody, OpenAiError, OpenAiErrorBody)),
    modifiers(&Key),
)]
struct Document;

/// The OpenAPI document of this server.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The API key, where a route asks for one.
struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        let when = "Needed only where the server was started with an API key.";
        scheme.description = Some(when.to_owned());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(scheme));
        let none_or_key = [
            SecurityRequirement::default(),
            SecurityRequirement::new("api_key", [""; 0]),
        ];
        for (path, item) in &mut document.paths.paths {
            if auth::PUBLIC.contains(&path.as_str()) {
                continue;
            }
            for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
                operation.security = Some(none_or_key.to_vec());
                let refusal = refusal("The API key is missing or wrong", is_openai(path));
                let refusals = &mut operation.responses.responses;
                refusals.insert("401".to_owned(), refusal);
            }
        }
    }
}

/// How every route that takes a body may refuse it.
pub(crate) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(false)
            .chain([(
                "422".to_owned(),
                refusal("A field is wrong, or the model cannot do it", false),
            )])
            .collect()
    }
}

/// The same in OpenAI's shape, where a wrong field is a 400.
pub(crate) struct OpenAiRefusals;

impl IntoResponses for OpenAiRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(true).collect()
    }
}

fn refusals(openai: bool) -> impl Iterator<Item = (String, RefOr<Response>)> {
    [
        (
            "400",
            if openai {
                "Something in the request is wrong"
            } else {
                "No inputs, or no JSON"
            },
        ),
        ("408", "The body stopped coming"),
        ("413", "The body is too long"),
        ("424", "The model failed"),
        ("429", "Too much work; see Retry-After"),
        ("503", "The model cannot answer"),
    ]
    .into_iter()
    .map(move |(status, description)| (status.to_owned(), refusal(description, openai)))
}

fn refusal(description: &str, openai: bool) -> RefOr<Response> {
    let body = if openai {
        "OpenAiErrorBody"
    } else {
        "ErrorBody"
    };
    let content = Content::new(Some(Ref::from_schema_name(body)));
    ResponseBuilder::new()
        .description(description)
        .content("application/json", content)
        .build()
        .into()
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
