//! The router with its layers, and running it until shutdown.

use std::any::Any;
use std::future::{Future, IntoFuture, pending};
use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any as AnyOf, CorsLayer};

use crate::auth::require_key;
use crate::config::HttpConfig;
use crate::drain::drain_errors;
use crate::error::{RequestError, render_errors};
use crate::metrics::Metrics;
use crate::observe::observe;
use crate::routes::{classify, docs, embed, model_task, openai, probes, tools};
use crate::state::AppState;

/// How often samples of the histograms are sorted into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// All routes with all layers.
pub fn router(state: AppState) -> Router {
    let mut router = Router::new();
    for (path, handler) in routes() {
        state.metrics().add_route(path);
        router = router.route(path, handler);
    }
    layered(router, state)
}

/// Serves until `shutdown` resolves, then finishes what was accepted.
///
/// At shutdown the port is closed, `/ready` says 503, and requests under way are answered, for at
/// most the configured time. Afterwards the model's place is closed, which ends its worker.
///
/// # Errors
/// If the listener breaks.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (begun, has_begun) = oneshot::channel();
    let slot = state.slot().clone();
    let timeout = state.config().shutdown_timeout;
    let upkeep = tokio::spawn(upkeep(state.metrics().clone()));
    // Answers are small and written at once: waiting to fill a packet only delays them.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let announce = {
        let slot = slot.clone();
        async move {
            shutdown.await;
            tracing::info!("shutting down: finishing what was accepted");
            slot.drain();
            let _ = begun.send(());
        }
    };
    let server = axum::serve(listener, router(state)).with_graceful_shutdown(announce);
    let result = tokio::select! {
        result = server.into_future() => result,
        () = too_long_after(has_begun, timeout) => {
            tracing::warn!(timeout_s = timeout.as_secs(), "gave up on clients that are too slow");
            Ok(())
        }
    };
    upkeep.abort();
    slot.close();
    result
}

fn routes() -> [(&'static str, MethodRouter<AppState>); 20] {
    [
        // Who opens the address in a browser wants to read what is here.
        (
            "/",
            post(model_task::own_task).get(async || Redirect::temporary("/docs")),
        ),
        ("/invocations", post(model_task::invocations)),
        ("/embed", post(embed::embed)),
        ("/classify", post(classify::classify)),
        ("/predict", post(classify::predict)),
        ("/similarity", post(tools::similarity)),
        ("/tokenize", post(tools::tokenize)),
        ("/decode", post(tools::decode)),
        ("/embeddings", post(openai::embeddings)),
        ("/v1/embeddings", post(openai::embeddings)),
        ("/v1/models", get(openai::models)),
        // Names of models hold slashes.
        ("/v1/models/{*id}", get(openai::model)),
        ("/info", get(probes::info)),
        ("/live", get(probes::live)),
        ("/health", get(probes::health)),
        ("/ping", get(probes::health)),
        ("/ready", get(probes::health)),
        ("/metrics", get(probes::metrics)),
        ("/docs", get(docs::page)),
        ("/api-doc/openapi.json", get(docs::openapi_json)),
    ]
}

/// Puts the layers around the routes, the last one outermost.
fn layered(router: Router<AppState>, state: AppState) -> Router {
    router
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_route)
        .layer(from_fn_with_state(state.clone(), require_key))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(render_errors))
        .layer(cors(state.config()))
        .layer(from_fn_with_state(state.clone(), observe))
        .layer(from_fn(drain_errors))
        .with_state(state)
}

/// Any header is allowed, by repeating what the browser asks for: `*` would leave out `Authorization`.
fn cors(config: &HttpConfig) -> CorsLayer {
    let origins = match config.cors_allow_origin.as_slice() {
        [] => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([axum::http::Method::GET, axum::http::Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(AnyOf)
}

async fn no_route(request: Request) -> RequestError {
    RequestError::NoRoute {
        path: request.uri().path().to_owned(),
    }
}

async fn wrong_method(request: Request) -> RequestError {
    let method = request.method().to_string();
    RequestError::Method {
        method,
        path: request.uri().path().to_owned(),
    }
}

/// The panic's message goes to the log only: it may quote the request.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the layer hands the panic over"
)]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
    tracing::error!(message, "a handler panicked");
    RequestError::Internal.into_response()
}

/// Resolves `timeout` after the shutdown has begun.
async fn too_long_after(has_begun: oneshot::Receiver<()>, timeout: Duration) {
    match has_begun.await {
        Ok(()) => tokio::time::sleep(timeout).await,
        Err(_) => pending().await,
    }
}

async fn upkeep(metrics: Metrics) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use moeshard_batcher::ModelSlot;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panicking_handler_is_a_json_500() {
        let state = AppState::new(ModelSlot::new(), HttpConfig::default());
        let panics = get(|| async { panic!("with a secret") as Response });
        let router = layered(Router::new().route("/panic", panics), state);
        let request = Request::get("/panic")
            .body(Body::empty())
            .expect("a request");
        let response = router.oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 10_000)
            .await
            .expect("a body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["error_type"], "Internal");
        assert!(!body.to_string().contains("secret"));
    }

    #[test]
    fn every_route_is_documented() {
        let document = serde_json::to_value(crate::openapi::document()).expect("JSON");
        // Second names of documented routes.
        let aliases = ["/ping", "/ready", "/embeddings"];
        for (path, _) in routes() {
            let path = path.replace("{*", "{");
            let known = document["paths"].get(&path).is_some() || aliases.contains(&path.as_str());
            assert!(known, "{path} is not in the OpenAPI document");
        }
    }
}
