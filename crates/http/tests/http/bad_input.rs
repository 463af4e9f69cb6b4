//! Every bad request gets a clear JSON error, and the server goes on.

use axum::body::Body;
use axum::http::Method;
use moeshard_batcher::{BatcherConfig, ModelInfo};
use moeshard_http::HttpConfig;
use serde_json::json;

use crate::support::{CLS, FakeEngine, HELLO, SEP, Server, Setup, info, send};

/// Posts a body and checks status, type and message.
async fn refuse(server: &Server, path: &str, body: &str, expected: (u16, &str, &str)) {
    let (status, error_type, message) = expected;
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

/// Posts the body of each line, `STATUS TYPE BODY => MESSAGE`; afterwards the server still answers.
async fn check(server: &Server, path: &str, cases: &str) {
    for case in cases.trim().lines() {
        let (case, message) = case.split_once(" => ").expect("a message");
        let mut words = case.splitn(3, ' ');
        let status = words.next().and_then(|word| word.parse().ok());
        let status = status.expect("a status");
        let error_type = words.next().expect("a type");
        let body = words.next().unwrap_or("");
        refuse(server, path, body, (status, error_type, message)).await;
    }
    server.json("/embed", json!({ "inputs": "hello" })).await;
}

#[tokio::test]
async fn embed_refuses_what_it_cannot_embed() {
    let cases = r#"
400 Empty {"inputs":""} => `inputs` cannot be empty
400 Empty {"inputs":[]} => `inputs` cannot be empty
400 Empty {"inputs":["hello",""]} => input 1: `inputs` cannot be empty
400 Empty {"inputs":[[]]} => `inputs` cannot be empty
400 Validation => not valid JSON
400 Validation hello => not valid JSON
400 Validation {"inputs":"a" => not valid JSON
422 Validation "hello" => must be a JSON object
422 Validation {} => missing field `inputs`
422 Validation {"inputs":7} => `inputs`: invalid type: integer `7`
422 Validation {"inputs":{"a":1}} => `inputs`: invalid type: object
422 Validation {"inputs":["a",null]} => `inputs[1]`: invalid type: null
422 Validation {"inputs":"a","truncate":1} => `truncate`: invalid type
422 Validation {"inputs":"a","normalize":"y"} => `normalize`: invalid type
422 Validation {"inputs":"a","truncation_direction":"up"} => `left` or `right`
422 Validation {"inputs":"a","prompt_name":"x"} => the model has `query`
422 Validation {"inputs":[5],"prompt_name":"query"} => needs text
422 Validation {"inputs":[2,89,3]} => token id 89 is outside the model's vocabul
422 Validation {"inputs":[-1]} => `inputs[0]`: invalid value: integer `-1`
422 Validation {"inputs":[4294967296]} => expected a token id
422 Validation {"inputs":"a","dimensions":0} => between 1 and 4, got 0
422 Validation {"inputs":"a","dimensions":5} => between 1 and 4, got 5
422 Validation {"inputs":"a","dimensions":1.5} => `dimensions`: invalid type: number `1.5`, expected a positive integer
"#;
    check(&Server::new(), "/embed", cases).await;
}

#[tokio::test]
async fn classify_and_predict_refuse_what_they_cannot_classify() {
    let server = Server::new();
    let cases = r#"
400 Empty {"inputs":[]} => cannot be empty
422 Validation {"inputs":"a","top_k":0} => `top_k`: must be at least 1, got 0
422 Validation {"inputs":"a","parameters":{"function_to_apply":"tanh"}} => `parameters.function_to_apply`: expected `sigmoid` or `softmax` or `none`, got `tanh`
422 Validation {"inputs":"a","parameters":{"function_to_apply":5}} => `parameters.function_to_apply`: invalid type: integer `5`, expected a string
422 Validation {"inputs":"a","parameters":{"top_k":0}} => `parameters.top_k`: must be at least 1, got 0
422 Validation {"inputs":"a","parameters":["softmax",1]} => `parameters`: invalid type: list, expected an object
"#;
    check(&server, "/classify", cases).await;
    let cases = r#"
400 Empty {"inputs":[]} => cannot be empty
422 Validation {"inputs":["a","b","c"]} => got a list of 3
422 Validation {"inputs":[1]} => `inputs[0]`
400 Empty {"inputs":["",""]} => cannot be empty
"#;
    check(&server, "/predict", cases).await;
    let info = ModelInfo {
        labels: None,
        ..info()
    };
    let headless = Server::start(Setup {
        info,
        ..Setup::default()
    });
    let case = r#"422 Validation {"inputs":"a"} => no classification head"#;
    check(&headless, "/classify", case).await;
    check(&headless, "/predict", case).await;
}

#[tokio::test]
async fn tools_refuse_nonsense() {
    let server = Server::new();
    let cases = r#"
422 Validation {"ids":[89]} => token id 89
422 Validation {"ids":"a"} => expected a list of token ids or a list
"#;
    check(&server, "/decode", cases).await;
    let cases = r#"
400 Empty {"inputs":[]} => cannot be empty
422 Validation {"inputs":5} => `inputs`: invalid type: integer `5`, expected a text or a list of texts
"#;
    check(&server, "/tokenize", cases).await;
    let long = json!({ "inputs": "a ".repeat(600_000) }).to_string();
    let expected = (422, "Validation", "at most 1000000 bytes");
    refuse(&server, "/tokenize", &long, expected).await;
    let cases = r#"
400 Empty {"inputs":{"source_sentence":"a","sentences":[]}} => `inputs.sentences`
422 Validation {"inputs":["a",["b"]]} => `inputs`: invalid type: list, expected an object
422 Validation {"inputs":{"source_sentence":"a"}} => `inputs`: missing field `sentences`
422 Validation {"inputs":{"source_sentence":"a","sentences":{}}} => `inputs.sentences`: invalid type: object, expected a list of texts
422 Validation {"inputs":{"source_sentence":"a","sentences":["b"]},"parameters":[true]} => `parameters`: invalid type: list, expected an object
"#;
    check(&server, "/similarity", cases).await;
    // Once read as a text and those it is compared with.
    let case = r#"422 Validation {"inputs":["a",["b"]]} => `inputs[1][0]`"#;
    check(&server, "/", case).await;
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
