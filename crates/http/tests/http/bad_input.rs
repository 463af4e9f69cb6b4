//! Every bad request gets a clear JSON error, and the server goes on.

use axum::body::Body;
use axum::http::Method;
use moeshard_batcher::{BatcherConfig, ModelInfo};
use moeshard_http::HttpConfig;
use serde_json::json;

use crate::support::{CLS, FakeEngine, HELLO, SEP, Server, Setup, info, send};

/// Posts each body and checks status, type and message; afterwards the server still answers.
async fn check(server: &Server, path: &str, cases: &[(&str, u16, &str, &str)]) {
    for &(body, status, error_type, message) in cases {
        let answer = server.post(path, body.to_owned()).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        let json = answer.json();
        assert_eq!(json["error_type"], error_type, "{path} {body}: {json}");
        let error = json["error"].as_str().expect("a message");
        assert!(
            error.contains(message),
            "{path} {body}: {error:?} lacks {message:?}"
        );
    }
    server.json("/embed", json!({ "inputs": "hello" })).await;
}

#[tokio::test]
async fn embed_refuses_what_it_cannot_embed() {
    let cases = [
        (r#"{"inputs":""}"#, 400, "Empty", "`inputs` cannot be empty"),
        (r#"{"inputs":[]}"#, 400, "Empty", "`inputs` cannot be empty"),
        (
            r#"{"inputs":["hello",""]}"#,
            400,
            "Empty",
            "input 1: `inputs` cannot be empty",
        ),
        (
            r#"{"inputs":[[]]}"#,
            400,
            "Empty",
            "`inputs` cannot be empty",
        ),
        ("", 400, "Validation", "not valid JSON"),
        ("hello", 400, "Validation", "not valid JSON"),
        (r#"{"inputs":"a""#, 400, "Validation", "not valid JSON"),
        (r#""hello""#, 422, "Validation", "must be a JSON object"),
        ("{}", 422, "Validation", "missing field `inputs`"),
        (
            r#"{"inputs":7}"#,
            422,
            "Validation",
            "`inputs`: invalid type: integer `7`",
        ),
        (
            r#"{"inputs":{"a":1}}"#,
            422,
            "Validation",
            "`inputs`: invalid type: object",
        ),
        (
            r#"{"inputs":["a",null]}"#,
            422,
            "Validation",
            "`inputs[1]`: invalid type: null",
        ),
        (
            r#"{"inputs":"a","truncate":1}"#,
            422,
            "Validation",
            "`truncate`: invalid type",
        ),
        (
            r#"{"inputs":"a","normalize":"y"}"#,
            422,
            "Validation",
            "`normalize`: invalid type",
        ),
        (
            r#"{"inputs":"a","truncation_direction":"up"}"#,
            422,
            "Validation",
            "`left` or `right`",
        ),
        (
            r#"{"inputs":"a","prompt_name":"x"}"#,
            422,
            "Validation",
            "the model has `query`",
        ),
        (
            r#"{"inputs":[5],"prompt_name":"query"}"#,
            422,
            "Validation",
            "needs text",
        ),
        (
            r#"{"inputs":[2,89,3]}"#,
            422,
            "Validation",
            "token id 89 is outside the model's vocabul",
        ),
        (
            r#"{"inputs":[-1]}"#,
            422,
            "Validation",
            "`inputs[0]`: invalid value: integer `-1`",
        ),
        (
            r#"{"inputs":[4294967296]}"#,
            422,
            "Validation",
            "expected a token id",
        ),
        (
            r#"{"inputs":"a","dimensions":0}"#,
            422,
            "Validation",
            "between 1 and 4, got 0",
        ),
        (
            r#"{"inputs":"a","dimensions":5}"#,
            422,
            "Validation",
            "between 1 and 4, got 5",
        ),
        (
            r#"{"inputs":"a","dimensions":1.5}"#,
            422,
            "Validation",
            "`dimensions`: invalid type: number `1.5`, expected a positive integer",
        ),
    ];
    check(&Server::new(), "/embed", &cases).await;
}

#[tokio::test]
async fn classify_and_predict_refuse_what_they_cannot_classify() {
    let server = Server::new();
    let cases = [
        (r#"{"inputs":[]}"#, 400, "Empty", "cannot be empty"),
        (
            r#"{"inputs":"a","top_k":0}"#,
            422,
            "Validation",
            "`top_k`: must be at least 1, got 0",
        ),
        (
            r#"{"inputs":"a","parameters":{"function_to_apply":"tanh"}}"#,
            422,
            "Validation",
            "`parameters.function_to_apply`: expected `sigmoid` or `softmax` or `none`, got `tanh`",
        ),
        (
            r#"{"inputs":"a","parameters":{"function_to_apply":5}}"#,
            422,
            "Validation",
            "`parameters.function_to_apply`: invalid type: integer `5`, expected a string",
        ),
        (
            r#"{"inputs":"a","parameters":{"top_k":0}}"#,
            422,
            "Validation",
            "`parameters.top_k`: must be at least 1, got 0",
        ),
        (
            r#"{"inputs":"a","parameters":["softmax",1]}"#,
            422,
            "Validation",
            "`parameters`: invalid type: list, expected an object",
        ),
    ];
    check(&server, "/classify", &cases).await;
    let cases = [
        (r#"{"inputs":[]}"#, 400, "Empty", "cannot be empty"),
        (
            r#"{"inputs":["a","b","c"]}"#,
            422,
            "Validation",
            "got a list of 3",
        ),
        (r#"{"inputs":[1]}"#, 422, "Validation", "`inputs[0]`"),
        (r#"{"inputs":["",""]}"#, 400, "Empty", "cannot be empty"),
    ];
    check(&server, "/predict", &cases).await;
    let info = ModelInfo {
        labels: None,
        ..info()
    };
    let headless = Server::start(Setup {
        info,
        ..Setup::default()
    });
    let cases = [(
        r#"{"inputs":"a"}"#,
        422,
        "Validation",
        "no classification head",
    )];
    check(&headless, "/classify", &cases).await;
    check(&headless, "/predict", &cases).await;
}

#[tokio::test]
async fn tools_refuse_nonsense() {
    let server = Server::new();
    let cases = [
        (r#"{"ids":[89]}"#, 422, "Validation", "token id 89"),
        (
            r#"{"ids":"a"}"#,
            422,
            "Validation",
            "expected a list of token ids or a list",
        ),
    ];
    check(&server, "/decode", &cases).await;
    let cases = [
        (r#"{"inputs":[]}"#, 400, "Empty", "cannot be empty"),
        (
            r#"{"inputs":5}"#,
            422,
            "Validation",
            "`inputs`: invalid type: integer `5`, expected a text or a list of texts",
        ),
    ];
    check(&server, "/tokenize", &cases).await;
    let long = json!({ "inputs": "a ".repeat(600_000) }).to_string();
    check(
        &server,
        "/tokenize",
        &[(&long, 422, "Validation", "at most 1000000 bytes")],
    )
    .await;
    let empty = r#"{"inputs":{"source_sentence":"a","sentences":[]}}"#;
    check(
        &server,
        "/similarity",
        &[(empty, 400, "Empty", "`inputs.sentences`")],
    )
    .await;
    let cases = [
        (
            r#"{"inputs":["a",["b"]]}"#,
            422,
            "Validation",
            "`inputs`: invalid type: list, expected an object",
        ),
        (
            r#"{"inputs":{"source_sentence":"a"}}"#,
            422,
            "Validation",
            "`inputs`: missing field `sentences`",
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":{}}}"#,
            422,
            "Validation",
            "`inputs.sentences`: invalid type: object, expected a list of texts",
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":["b"]},"parameters":[true]}"#,
            422,
            "Validation",
            "`parameters`: invalid type: list, expected an object",
        ),
    ];
    check(&server, "/similarity", &cases).await;
    // Once read as a text and those it is compared with.
    let list = (
        r#"{"inputs":["a",["b"]]}"#,
        422,
        "Validation",
        "`inputs[1][0]`",
    );
    check(&server, "/", &[list]).await;
}

#[tokio::test]
async fn an_error_does_not_repeat_a_long_body() {
    let server = Server::new();
    for field in ["normalize", "prompt_name", "truncation_direction"] {
        let body = json!({ "inputs": "a", field: "é".repeat(100_000) });
        let answer = server.post("/embed", body.to_string()).await;
        assert_eq!(answer.status, 422, "{field}");
        let message = answer.json()["error"].as_str().map(str::to_owned);
        let message = message.expect("a message");
        assert!(message.chars().count() < 1100, "{field}: {}", message.len());
        assert!(message.contains("é … é"), "{message}");
    }
}

#[tokio::test]
async fn openai_clients_get_openai_errors() {
    let server = Server::new();
    let tiktoken = r#"{"input":[[15,16,17]]}"#;
    let cases = [
        (
            r#"{"input":""}"#,
            400,
            json!("input"),
            "`input` cannot be empty",
        ),
        (
            r#"{"input":[]}"#,
            400,
            json!("input"),
            "`input` cannot be empty",
        ),
        ("{", 400, json!(null), "not valid JSON"),
        (
            r#"{"model":"x"}"#,
            400,
            json!(null),
            "missing field `input`",
        ),
        (
            r#"{"input":{}}"#,
            400,
            json!("input"),
            "invalid type: object",
        ),
        (
            r#"{"input":"a","dimensions":0}"#,
            400,
            json!("dimensions"),
            "between 1 and 4, got 0",
        ),
        (
            r#"{"input":"a","encoding_format":"hex"}"#,
            400,
            json!("encoding_format"),
            "expected `float` or `base64`, got `hex`",
        ),
        (
            r#"{"input":"a","encoding_format":{"float":null}}"#,
            400,
            json!("encoding_format"),
            "invalid type: object, expected a string",
        ),
        (
            tiktoken,
            400,
            json!("input"),
            "not made by this model's tokenizer: they do not begin",
        ),
        (
            r#"{"input":[100257]}"#,
            400,
            json!("input"),
            "id 100257 is outside its vocabulary of 89",
        ),
    ];
    for (body, status, param, message) in cases {
        let answer = server.post("/v1/embeddings", body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error", "{body}: {error}");
        assert_eq!(error["param"], param, "{body}: {error}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|m| m.contains(message)),
            "{body}: {error}"
        );
    }
    let unknown = server.get("/v1/unknown").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &json!("unknown_url"))
    );
}

#[tokio::test]
async fn invalid_utf8_is_a_400() {
    let server = Server::new();
    let answer = server
        .post("/embed", b"{\"inputs\":\"\xc3\x28\"}".to_vec())
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.json()["error"],
        "the body is not valid UTF-8 (at byte 11)"
    );
}

#[tokio::test]
async fn unknown_routes_and_methods_are_json() {
    let server = Server::new();
    let answer = server.get("/no/such").await;
    assert_eq!(
        (answer.status, &answer.json()["error_type"]),
        (404, &json!("NotFound"))
    );
    let answer = server.get("/embed").await;
    assert_eq!(
        (answer.status, &answer.json()["error_type"]),
        (405, &json!("MethodNotAllowed"))
    );
    assert_eq!(answer.header("allow"), "POST");
    let answer = send(
        &server.router,
        Method::DELETE,
        "/health",
        &[],
        Body::empty(),
    )
    .await;
    assert_eq!(answer.status, 405);
    assert_eq!(
        answer.json()["error"],
        "/health does not take DELETE; see /docs"
    );
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let http = HttpConfig {
        payload_limit: 1000,
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let body = json!({ "inputs": "a".repeat(2000) }).to_string();
    let answer = server.post("/embed", body.clone()).await;
    assert_eq!(answer.status, 413);
    assert_eq!(
        answer.json()["error"],
        "the body is longer than the limit of 1000 bytes"
    );
    let length = body.len().to_string();
    let headers = [
        ("content-length", length.as_str()),
        ("expect", "100-continue"),
    ];
    let asked = send(
        &server.router,
        Method::POST,
        "/embed",
        &headers,
        Body::from(body),
    )
    .await;
    assert_eq!(asked.status, 413);
    let answer = server.post("/v1/embeddings", "x".repeat(2000)).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn ten_megabytes_are_cut_or_refused_without_stalling() {
    let server = Server::new();
    let text = "hello world ".repeat(900_000);
    let started = std::time::Instant::now();
    let body = json!({ "inputs": text, "normalize": false });
    assert_eq!(server.json("/embed", body).await[0][0], 16.0);
    let body = json!({ "inputs": text, "truncate": false }).to_string();
    let answer = server.post("/embed", body).await;
    assert_eq!(
        (answer.status, &answer.json()["error_type"]),
        (422, &json!("Validation"))
    );
    assert!(
        answer.text().contains("the model takes at most 16"),
        "{}",
        answer.text()
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test]
async fn a_text_that_is_too_long_is_refused_where_truncation_is_off() {
    let http = HttpConfig {
        auto_truncate: false,
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let body = json!({ "inputs": ["hello", "hello ".repeat(20)] });
    let answer = server.post("/embed", body.to_string()).await;
    assert_eq!(answer.status, 422);
    let message = "input 1: the input has 22 tokens, the model takes at most 16";
    assert!(answer.text().contains(message), "{}", answer.text());
    let body = json!({ "inputs": "hello ".repeat(20), "truncate": true });
    server.json("/embed", body).await;
    let ids = [vec![CLS], vec![HELLO; 20], vec![SEP]].concat();
    let answer = server
        .post("/embed", json!({ "inputs": ids }).to_string())
        .await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn five_thousand_inputs_are_split_not_refused() {
    let batcher = BatcherConfig {
        max_batch_tokens: 1024,
        max_queue_tokens: 2048,
        ..Default::default()
    };
    let server = Server::start(Setup {
        batcher,
        ..Setup::default()
    });
    let inputs: Vec<&str> = (0..5_000)
        .map(|i| ["hello", "hello world"][i % 2])
        .collect();
    let answer = server
        .json("/embed", json!({ "inputs": inputs, "normalize": false }))
        .await;
    let rows = answer.as_array().expect("a list");
    assert_eq!(rows.len(), 5_000);
    assert!(
        rows.iter()
            .enumerate()
            .all(|(i, row)| row[0] == [3.0, 4.0][i % 2])
    );
    assert!(
        server
            .engine
            .n_runs
            .load(std::sync::atomic::Ordering::SeqCst)
            >= 17
    );
}

#[tokio::test]
async fn millions_of_inputs_are_refused() {
    let server = Server::new();
    let bodies = [
        ("/embed", json!({ "inputs": vec!["a"; 65_537] })),
        ("/tokenize", json!({ "inputs": vec!["a"; 65_537] })),
        ("/decode", json!({ "ids": vec![[HELLO]; 65_537] })),
    ];
    for (path, body) in bodies {
        let answer = server.post(path, body.to_string()).await;
        assert_eq!(answer.status, 422, "{path}");
        let error = answer.json()["error"].to_string();
        assert!(
            error.contains("at most 65536 inputs a request, got more"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn one_text_may_exceed_the_limit_of_waiting_bytes() {
    let batcher = BatcherConfig {
        max_queue_bytes: 100,
        ..BatcherConfig::default()
    };
    let server = Server::start(Setup {
        batcher,
        ..Setup::default()
    });
    // Nothing waits, so one text may exceed the limit, and again once it is tokenized.
    for _ in 0..2 {
        let body = json!({ "inputs": "hello ".repeat(100) });
        server.json("/embed", body.clone()).await;
        server.json("/tokenize", body).await;
        server
            .json("/decode", json!({ "ids": vec![HELLO; 100] }))
            .await;
    }
}

#[tokio::test]
async fn an_engine_that_panics_makes_the_server_unhealthy_not_dead() {
    let engine = FakeEngine {
        panics: true,
        ..FakeEngine::default()
    };
    let server = Server::start(Setup {
        engine,
        ..Setup::default()
    });
    assert_eq!(server.get("/health").await.status, 200);
    let answer = server.post("/embed", r#"{"inputs":"hello"}"#).await;
    assert_eq!(
        (answer.status, &answer.json()["error_type"]),
        (503, &json!("Unhealthy"))
    );
    for path in ["/health", "/ready", "/ping"] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status, &answer.json()["error_type"]),
            (503, &json!("Unhealthy"))
        );
    }
    assert_eq!(server.get("/live").await.status, 200);
    let answer = server.post("/embed", r#"{"inputs":"hello"}"#).await;
    assert_eq!(answer.status, 503);
    assert!(
        server
            .get("/metrics")
            .await
            .text()
            .contains("moeshard_ready 0")
    );
}
