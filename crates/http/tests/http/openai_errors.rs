//! What OpenAI's clients are told of a bad request.

use serde_json::{Value, json};

use crate::support::Server;

/// `FIELD BODY => MESSAGE` a line, `-` where no field is at fault.
const CASES: &str = r#"
input {"input":""} => `input` cannot be empty
input {"input":[]} => `input` cannot be empty
- { => not valid JSON
- {"model":"x"} => missing field `input`
input {"input":{}} => invalid type: object
dimensions {"input":"a","dimensions":0} => between 1 and 4, got 0
encoding_format {"input":"a","encoding_format":"hex"} => expected `float` or `base64`, got `hex`
encoding_format {"input":"a","encoding_format":{"float":null}} => invalid type: object, expected a string
input {"input":[[15,16,17]]} => not made by this model's tokenizer: they do not begin
input {"input":[100257]} => id 100257 is outside its vocabulary of 89
"#;

#[tokio::test]
async fn openai_clients_get_openai_errors() {
    let server = Server::new();
    for case in CASES.trim().lines() {
        let (case, message) = case.split_once(" => ").expect("a message");
        let (param, body) = case.split_once(' ').expect("a field and a body");
        let answer = server.post("/v1/embeddings", body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error", "{body}: {error}");
        let param = if param == "-" {
            Value::Null
        } else {
            json!(param)
        };
        assert_eq!(error["param"], param, "{body}: {error}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|found| found.contains(message)),
            "{body}: {error}"
        );
    }
}

#[tokio::test]
async fn openai_clients_get_openais_code_for_an_unknown_route() {
    let unknown = Server::new().get("/v1/unknown").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &json!("unknown_url"))
    );
}
