//! What every route answers when all is well.

use axum::body::Body;
use axum::http::Method;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use moeshard_batcher::ModelInfo;
use moeshard_http::{ApiKey, HttpConfig};
use serde_json::{Value, json};

use crate::support::{CLS, HELLO, SEP, Server, Setup, WORLD, info, send};

fn floats(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().expect("a list");
    numbers
        .iter()
        .map(|number| number.as_f64().expect("a number") as f32)
        .collect()
}

#[tokio::test]
async fn embed_takes_every_form() {
    let server = Server::new();
    let hello = json!([3.0, f64::from(HELLO), 0.0, 1.0]);
    let world = json!([4.0, f64::from(WORLD), 0.0, 1.0]);
    let cases = [
        (json!("hello"), json!([hello])),
        (json!(["hello", "world cat"]), json!([hello, world])),
        (json!([CLS, HELLO, SEP]), json!([hello])),
        (
            json!([[CLS, HELLO, SEP], "world cat"]),
            json!([hello, world]),
        ),
    ];
    for (inputs, expect) in cases {
        let body = json!({ "inputs": inputs, "normalize": false, "unknown": { "field": 1 } });
        assert_eq!(server.json("/embed", body).await, expect);
    }
}

#[tokio::test]
async fn embed_honours_its_options() {
    let server = Server::new();
    let unit = floats(&server.json("/embed", json!({ "inputs": "hello" })).await[0]);
    assert!((unit.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
    let body = json!({ "inputs": "hello", "dimensions": 2, "normalize": null });
    let cut = floats(&server.json("/embed", body).await[0]);
    assert_eq!(cut, [0.6, 0.8]);
    let long = "world ".to_owned() + &"hello ".repeat(30);
    for (side, first) in [("Left", HELLO), ("right", WORLD), ("LEFT", HELLO)] {
        let body = json!({ "inputs": long, "truncation_direction": side, "normalize": false });
        assert_eq!(
            floats(&server.json("/embed", body).await[0])[..2],
            [16.0, first as f32]
        );
    }
    let body = json!({ "inputs": "hello", "prompt_name": "query", "normalize": false });
    assert_eq!(floats(&server.json("/embed", body).await[0])[0], 6.0);
}

#[tokio::test]
async fn what_it_took_is_in_the_headers() {
    let server = Server::new();
    let answer = server
        .post("/embed", r#"{"inputs":["hello","hello world"]}"#)
        .await;
    assert_eq!(answer.header("x-compute-tokens"), "7");
    for name in [
        "x-total-time",
        "x-tokenization-time",
        "x-queue-time",
        "x-inference-time",
    ] {
        answer
            .header(name)
            .parse::<u64>()
            .expect("integer milliseconds");
    }
}

#[tokio::test]
async fn classify_always_answers_lists_of_lists() {
    let server = Server::new();
    let one = json!([
        { "label": "found", "score": 0.7 },
        { "label": "lost", "score": 0.2 },
        { "label": "other", "score": 0.1 },
    ]);
    let answer = server.json("/classify", json!({ "inputs": "hello" })).await;
    assert_eq!(answer, json!([one]));
    let answer = server
        .json("/classify", json!({ "inputs": ["hello", "world"] }))
        .await;
    assert_eq!(answer, json!([one, one]));
    let body = json!({ "inputs": "hello", "raw_scores": true, "top_k": 1 });
    let answer = server.json("/classify", body).await;
    assert_eq!(answer, json!([[{ "label": "found", "score": 4.0 }]]));
    let with = |function: &str| json!({ "inputs": "hello", "parameters": { "function_to_apply": function, "top_k": 2 } });
    let scores = |answer: Value| -> Vec<f64> {
        let one = answer[0].as_array().expect("a list").clone();
        one.iter()
            .map(|score| score["score"].as_f64().expect("a number"))
            .collect()
    };
    assert_eq!(
        scores(server.json("/classify", with("none")).await),
        [4.0, 1.0]
    );
    let softmax = scores(server.json("/classify", with("softmax")).await);
    assert!((softmax[0] - 0.925).abs() < 1e-3);
    let sigmoid = scores(server.json("/classify", with("sigmoid")).await);
    assert!((sigmoid[0] - 0.982).abs() < 1e-3);
    let parameters = json!({ "function_to_apply": null, "top_k": null });
    let body = json!({ "inputs": "hello", "parameters": parameters });
    assert_eq!(server.json("/classify", body).await, json!([one]));
}

#[tokio::test]
async fn predict_answers_a_list_for_one_and_lists_for_a_batch() {
    let server = Server::new();
    let first = |answer: &Value| answer["label"].clone();
    for one in [json!("hello"), json!(["hello"]), json!(["hello", "world"])] {
        let answer = server.json("/predict", json!({ "inputs": one })).await;
        assert_eq!(first(&answer[0]), "found");
    }
    let body = json!({ "inputs": [["hello"], ["hello", "world"]], "raw_scores": true });
    let answer = server.json("/predict", body).await;
    assert_eq!(answer.as_array().map(Vec::len), Some(2));
    assert_eq!(answer[1][0]["score"], 4.0);
    let answer = server
        .json("/predict", json!({ "inputs": [["hello"]] }))
        .await;
    assert_eq!(first(&answer[0][0]), "found");
}

#[tokio::test]
async fn the_root_does_the_models_own_task() {
    let server = Server::new();
    for path in ["/", "/invocations"] {
        let answer = server
            .json(path, json!({ "inputs": "hello", "normalize": false }))
            .await;
        assert_eq!(floats(&answer[0])[0], 3.0);
        let inputs = json!({ "source_sentence": "hello", "sentences": ["hello", "world"] });
        let answer = floats(&server.json(path, json!({ "inputs": inputs })).await);
        assert!((answer[0] - 1.0).abs() < 1e-6 && answer[1] < 1.0);
    }
    let info = ModelInfo {
        classifier: true,
        ..info()
    };
    let server = Server::start(Setup {
        info,
        ..Setup::default()
    });
    let answer = server.json("/", json!({ "inputs": "hello" })).await;
    assert_eq!(answer[0][0]["label"], "found");
}

#[tokio::test]
async fn the_default_prompt_is_for_embeddings() {
    let info = ModelInfo {
        default_prompt_name: Some("query".to_owned()),
        ..info()
    };
    let server = Server::start(Setup {
        info,
        ..Setup::default()
    });
    let check = async |path: &str, body: Value, n_tokens: &str| {
        let answer = server.post(path, body.to_string()).await;
        let status_and_tokens = (answer.status, answer.header("x-compute-tokens"));
        assert_eq!(status_and_tokens, (200, n_tokens), "{path} {body}");
    };
    // `[CLS] hello [SEP]`, and the three tokens of the prompt.
    let inputs = json!({ "inputs": "hello" });
    check("/embed", inputs.clone(), "6").await;
    check("/", inputs.clone(), "6").await;
    check("/v1/embeddings", json!({ "input": "hello" }), "6").await;
    check("/classify", inputs.clone(), "3").await;
    check("/predict", inputs, "3").await;
    let named = json!({ "inputs": "hello", "prompt_name": "query" });
    check("/classify", named, "6").await;
}

#[tokio::test]
async fn openai_clients_are_at_home() {
    let server = Server::new();
    for path in ["/v1/embeddings", "/embeddings"] {
        let body = json!({ "input": ["hello", "hello world"], "model": "x", "user": "me" });
        let answer = server.json(path, body).await;
        assert_eq!(answer["object"], "list");
        assert_eq!(answer["model"], "tiny");
        assert_eq!(
            answer["usage"],
            json!({ "prompt_tokens": 7, "total_tokens": 7 })
        );
        assert_eq!(answer["data"][1]["index"], 1);
        assert_eq!(answer["data"][1]["object"], "embedding");
        assert_eq!(floats(&answer["data"][0]["embedding"]).len(), 4);
    }
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["object"], "model");
    assert_eq!(
        server.get("/v1/models/tiny").await.json(),
        models["data"][0]
    );
    let other = server.get("/v1/models/someone/else").await;
    assert_eq!(other.status, 404);
    assert_eq!(other.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn base64_holds_the_same_values_little_endian() {
    let server = Server::new();
    let body = |format| json!({ "input": [CLS, HELLO, SEP], "encoding_format": format });
    let plain = server.json("/v1/embeddings", body("float")).await;
    let packed = server.json("/v1/embeddings", body("base64")).await;
    let text = packed["data"][0]["embedding"].as_str().expect("Base64");
    let bytes = BASE64_STANDARD.decode(text).expect("Base64");
    let values: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|chunk| f32::from_le_bytes(chunk.try_into().expect("four bytes")))
        .collect();
    assert_eq!(values, floats(&plain["data"][0]["embedding"]));
    let body = json!({ "input": "hello", "dimensions": 2, "encoding_format": "float" });
    let cut = server.json("/v1/embeddings", body).await;
    assert_eq!(floats(&cut["data"][0]["embedding"]), [0.6, 0.8]);
}

#[tokio::test]
async fn tools_show_tokens_and_distances() {
    let server = Server::new();
    let answer = server
        .json("/tokenize", json!({ "inputs": "hello cats" }))
        .await;
    let expect = json!({ "id": 8, "text": "cat", "special": false, "start": 6, "stop": 9 });
    assert_eq!(answer[0][2], expect);
    let body = json!({ "inputs": ["hello", "cat"], "add_special_tokens": false });
    assert_eq!(
        server
            .json("/tokenize", body)
            .await
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    let answer = server
        .json("/decode", json!({ "ids": [CLS, HELLO, WORLD, SEP] }))
        .await;
    assert_eq!(answer, json!(["hello world"]));
    let body = json!({ "ids": [[HELLO], [CLS]], "skip_special_tokens": false });
    assert_eq!(
        server.json("/decode", body).await,
        json!(["hello", "[CLS]"])
    );
    let inputs = json!({ "source_sentence": "hello", "sentences": ["world", "hello"] });
    let answer = floats(
        &server
            .json("/similarity", json!({ "inputs": inputs }))
            .await,
    );
    assert!((answer[1] - 1.0).abs() < 1e-6);
}

#[tokio::test]
async fn info_has_the_keys_that_clients_look_for() {
    let server = Server::new();
    let answer = server.get("/info").await.json();
    assert_eq!(answer["model_id"], "tiny");
    assert_eq!(
        answer["model_type"],
        json!({ "embedding": { "pooling": "mean" } })
    );
    assert_eq!(answer["max_input_length"], 16);
    assert_eq!(answer["n_experts"], 8);
    assert_eq!(answer["max_queue_bytes"], 512 << 20);
    assert_eq!(answer["max_client_batch_size"], 65_536);
    assert_eq!(answer["payload_limit"], 32_000_000);
    let info = ModelInfo {
        classifier: true,
        ..info()
    };
    let server = Server::start(Setup {
        info,
        ..Setup::default()
    });
    let answer = server.get("/info").await.json();
    assert_eq!(answer["model_type"]["classifier"]["id2label"]["1"], "found");
    assert_eq!(answer["model_type"]["classifier"]["label2id"]["found"], 1);
}

#[tokio::test]
async fn metrics_count_requests_batches_and_experts() {
    let server = Server::new();
    let before = server.get("/metrics").await.text();
    assert!(before.contains(r#"moeshard_requests_total{route="/embed",status="200"} 0"#));
    server
        .json("/embed", json!({ "inputs": ["hello", "world"] }))
        .await;
    server.post("/embed", "{").await;
    server.get("/no/such/route").await;
    let after = server.get("/metrics").await.text();
    for expect in [
        r#"moeshard_requests_total{route="/embed",status="200"} 1"#,
        r#"moeshard_requests_total{route="/embed",status="400"} 1"#,
        r#"moeshard_requests_total{route="unmatched",status="404"} 1"#,
        r#"moeshard_request_duration_seconds_count{route="/embed"} 2"#,
        "moeshard_tokens_total 6",
        "moeshard_batch_tokens_sum 6",
        "moeshard_queue_tokens 0",
        "moeshard_ready 1",
        "moeshard_dropped_tokens_total 0",
        r#"moeshard_expert_bytes{rank="1"} 1000"#,
        r#"moeshard_expert_multiply_adds_total{rank="1"} 8"#,
    ] {
        assert!(after.contains(expect), "{expect} is missing in\n{after}");
    }
}

#[tokio::test]
async fn docs_work_without_a_network() {
    let server = Server::new();
    let page = server.get("/docs").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(!page.text().contains("http://") && !page.text().contains("https://"));
    let root = server.get("/").await;
    assert_eq!((root.status, root.header("location")), (307, "/docs"));
    let document = server.get("/api-doc/openapi.json").await.json();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3."))
    );
    let schema = &document["components"]["schemas"]["EmbedRequest"];
    assert_eq!(schema["required"], json!(["inputs"]));
    // An empty list is of several forms.
    assert!(schema["properties"]["inputs"]["anyOf"].is_array());
    let labels = &document["components"]["schemas"]["ClassifierType"]["properties"]["id2label"];
    assert_eq!(labels["additionalProperties"]["type"], "string");
    assert_eq!(labels["propertyNames"]["type"], "string");
    let body = &document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"];
    assert!(body["example"]["inputs"].is_array());
}

#[tokio::test]
async fn the_document_knows_the_key_and_all_that_it_refers_to() {
    let document = Server::new().get("/api-doc/openapi.json").await.json();
    let scheme = &document["components"]["securitySchemes"]["api_key"];
    assert_eq!(
        (&scheme["type"], &scheme["scheme"]),
        (&json!("http"), &json!("bearer"))
    );
    let paths = &document["paths"];
    for (path, method, shape) in [
        ("/", "post", "ErrorBody"),
        ("/embed", "post", "ErrorBody"),
        ("/info", "get", "ErrorBody"),
        ("/v1/embeddings", "post", "OpenAiErrorBody"),
        ("/v1/models", "get", "OpenAiErrorBody"),
    ] {
        let operation = &paths[path][method];
        assert_eq!(
            operation["security"],
            json!([{}, { "api_key": [] }]),
            "{path}"
        );
        let refusal = &operation["responses"]["401"]["content"]["application/json"]["schema"];
        assert_eq!(
            refusal["$ref"],
            format!("#/components/schemas/{shape}"),
            "{path}"
        );
    }
    for path in [
        "/live",
        "/health",
        "/metrics",
        "/docs",
        "/api-doc/openapi.json",
    ] {
        assert!(paths[path]["get"].is_object(), "{path}");
        assert!(paths[path]["get"].get("security").is_none(), "{path}");
    }
    for status in ["400", "401", "408", "413", "422", "424", "429", "503"] {
        for path in [
            "/embed",
            "/predict",
            "/similarity",
            "/decode",
            "/invocations",
        ] {
            let known = paths[path]["post"]["responses"].get(status);
            assert!(known.is_some(), "{status} of {path}");
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().expect("it ends");
        assert!(
            document.pointer(pointer).is_some(),
            "{pointer} leads nowhere"
        );
    }
}

#[tokio::test]
async fn a_key_is_asked_for_where_one_is_set() {
    let http = HttpConfig {
        api_key: Some(ApiKey::new("sesame")),
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let body = || Body::from(r#"{"inputs":"hello"}"#);
    let post = async |headers: &[(&str, &str)], path: &str| {
        send(&server.router, Method::POST, path, headers, body()).await
    };
    let refused = post(&[], "/embed").await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, "Bearer")
    );
    assert_eq!(refused.json()["error_type"], "Unauthorized");
    assert_eq!(
        post(&[("authorization", "Bearer sesamE")], "/embed")
            .await
            .status,
        401
    );
    assert_eq!(
        post(&[("authorization", "Basic sesame")], "/embed")
            .await
            .status,
        401
    );
    assert_eq!(
        post(&[("authorization", "bearer sesame")], "/embed")
            .await
            .status,
        200
    );
    let openai = post(&[], "/v1/embeddings").await;
    assert_eq!(openai.json()["error"]["type"], "authentication_error");
    for path in ["/live", "/health", "/ping", "/ready", "/metrics", "/docs"] {
        assert_eq!(server.get(path).await.status, 200, "{path} is for everyone");
    }
    assert_eq!(server.get("/").await.status, 307, "it leads to /docs");
    assert_eq!(post(&[], "/").await.status, 401);
    assert_eq!(server.get("/info").await.status, 401);
}

#[tokio::test]
async fn browsers_may_send_any_header_from_the_allowed_origins() {
    let preflight = async |server: &Server, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-mine"),
        ];
        send(
            &server.router,
            Method::OPTIONS,
            "/embed",
            &headers,
            Body::empty(),
        )
        .await
    };
    let open = preflight(&Server::new(), "http://a.example").await;
    assert_eq!(open.status, 200);
    assert_eq!(open.header("access-control-allow-origin"), "*");
    assert_eq!(
        open.header("access-control-allow-headers"),
        "authorization,x-mine"
    );
    let origin = moeshard_http::HeaderValue::from_static("http://a.example");
    let http = HttpConfig {
        cors_allow_origin: vec![origin],
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let allowed = preflight(&server, "http://a.example").await;
    assert_eq!(
        allowed.header("access-control-allow-origin"),
        "http://a.example"
    );
    let other = preflight(&server, "http://b.example").await;
    assert!(!other.headers.contains_key("access-control-allow-origin"));
}
