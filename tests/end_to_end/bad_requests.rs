//! Every bad request gets a clear JSON error, and the server goes on.

use moeshard_tests::http::{Answer, Client};
use moeshard_tests::server::Server;
use serde_json::json;

/// Asserts a JSON error of that status whose message has a fragment, and that the server goes on.
#[track_caller]
fn assert_refused(client: &Client, answer: &Answer, status: u16, fragment: &str) {
    let body = answer.text();
    assert_eq!(answer.status, status, "{body}");
    let error = &answer.json()["error"];
    // OpenAI's routes put the message one level deeper.
    let message = error.as_str().or_else(|| error["message"].as_str());
    let message = message.unwrap_or_else(|| panic!("no message in {body}"));
    assert!(message.contains(fragment), "{message:?} lacks {fragment:?}");
    let after = client.post("/embed", json!({ "inputs": "hello" }));
    assert_eq!(after.status, 200, "after {body}: {}", after.text());
}

#[test]
fn wrong_bodies_are_explained() {
    let server = Server::start(&[]);
    let client = server.client();
    let cases: [(&str, &str, u16, &str); 22] = [
        ("/embed", r#"{"inputs":""}"#, 400, "empty"),
        ("/embed", r#"{"inputs":["hello",""]}"#, 400, "input 1"),
        ("/embed", r#"{"inputs":[]}"#, 400, "empty"),
        ("/embed", r#"{"inputs":[[]]}"#, 400, "empty"),
        ("/embed", "", 400, "JSON"),
        ("/embed", r#"{"inputs":"a"#, 400, "JSON"),
        ("/embed", r#""hello""#, 422, "object"),
        ("/embed", "{}", 422, "inputs"),
        ("/embed", r#"{"inputs":7}"#, 422, "inputs"),
        ("/embed", r#"{"inputs":null}"#, 422, "inputs"),
        ("/embed", r#"{"inputs":["a",{}]}"#, 422, "inputs[1]"),
        (
            "/embed",
            r#"{"inputs":"a","normalize":"yes"}"#,
            422,
            "normalize",
        ),
        ("/embed", r#"{"inputs":"a","dimensions":0}"#, 422, "got 0"),
        (
            "/embed",
            r#"{"inputs":"a","dimensions":100000}"#,
            422,
            "got 100000",
        ),
        ("/embed", r#"{"inputs":[2,999999,3]}"#, 422, "999999"),
        ("/embed", r#"{"inputs":[-1]}"#, 422, "-1"),
        (
            "/embed",
            r#"{"inputs":"a","prompt_name":"none"}"#,
            422,
            "none",
        ),
        ("/classify", r#"{"inputs":"a","top_k":0}"#, 422, "top_k"),
        ("/predict", r#"{"inputs":["a","b","c"]}"#, 422, "inputs"),
        ("/v1/embeddings", r#"{"input":""}"#, 400, "empty"),
        ("/v1/embeddings", r#"{"input":[999999]}"#, 400, "999999"),
        (
            "/v1/embeddings",
            r#"{"input":"a","dimensions":0}"#,
            400,
            "got 0",
        ),
    ];
    for (path, body, status, fragment) in cases {
        let answer = client.post_bytes(path, body.as_bytes());
        assert_refused(&client, &answer, status, fragment);
    }
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let server = Server::start(&[]);
    let client = server.client();
    for path in ["/embed", "/classify", "/v1/embeddings", "/"] {
        let answer = client.post_bytes(path, b"{\"inputs\":\"\xff\xfe\",\"input\":\"\xff\"}");
        assert_refused(&client, &answer, 400, "UTF-8");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let server = Server::start(&[]);
    let client = server.client();
    let cases = [
        ("/embed", json!({ "inputs": "hello", "colour": "red" })),
        (
            "/classify",
            json!({ "inputs": "hello", "parameters": { "x": 1 } }),
        ),
        (
            "/v1/embeddings",
            json!({ "input": "hello", "truncate_prompt_tokens": 3, "user": "u" }),
        ),
    ];
    for (path, body) in cases {
        assert_eq!(client.post(path, body).status, 200, "{path}");
    }
}

#[test]
fn unknown_routes_and_methods_are_named() {
    let server = Server::start(&[]);
    let client = server.client();
    let send = |method, path| client.send(method, path, b"").expect("an answer");
    assert_refused(&client, &send("GET", "/nothing"), 404, "/nothing");
    assert_refused(
        &client,
        &send("POST", "/v1/chat/completions"),
        404,
        "/v1/chat/completions",
    );
    for (method, path, allowed) in [("GET", "/embed", "POST"), ("DELETE", "/info", "GET")] {
        let answer = send(method, path);
        assert_refused(&client, &answer, 405, method);
        assert!(
            answer
                .header("allow")
                .is_some_and(|allow| allow.contains(allowed))
        );
    }
}

#[test]
fn a_text_of_ten_megabytes_is_cut_or_refused() {
    let server = Server::start(&[]);
    let client = server.client();
    let text = "lost my card ".repeat(800_000);
    assert!(text.len() > 10_000_000);
    let answer = client.post("/embed", json!({ "inputs": text }));
    assert_eq!(answer.rows().len(), 1);
    let answer = client.post("/embed", json!({ "inputs": text, "truncate": false }));
    assert_refused(&client, &answer, 422, "at most 256");
    // One word of ten megabytes is another path through a tokenizer.
    let answer = client.post("/embed", json!({ "inputs": "x".repeat(10_000_000) }));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn bodies_over_the_limit_are_refused() {
    let server = Server::start(&[]);
    let client = server.client();
    let body = vec![b' '; 34_000_000];
    let limit = client.get("/info").ok()["payload_limit"].to_string();
    assert!(
        limit.starts_with("32") && limit.len() == 8,
        "32 MB by default, not {limit}"
    );
    assert_refused(&client, &client.post_bytes("/embed", &body), 413, &limit);

    let server = Server::start(&["--payload-limit", "1000"]);
    let client = server.client();
    assert_refused(
        &client,
        &client.post_bytes("/embed", &body[..1001]),
        413,
        "1000",
    );
}

#[test]
fn five_thousand_inputs_are_split_inside() {
    let server = Server::start(&[]);
    let client = server.client();
    let texts: Vec<String> = (0..5_000).map(|idx| format!("card {}", idx % 10)).collect();
    let rows = client.post("/embed", json!({ "inputs": texts })).rows();
    assert_eq!(rows.len(), 5_000);
    let alone = client.post("/embed", json!({ "inputs": texts[7] })).rows();
    for idx in [7, 17, 2_507, 4_997] {
        crate::numbers::assert_close(&rows[idx..=idx], &alone, 1e-5);
    }
}
