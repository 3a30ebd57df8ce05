//! Requests an access token with LiveKit's crate: `rust-client URL HEADER VALUE`, with the options as a JSON object on the
//! standard input. Prints the reply as JSON; an error goes to the standard error, with exit code 1.

use std::process::ExitCode;

use livekit_token_source::{TokenSourceConfigurable, TokenSourceFetchOptions, endpoint};
use serde_json::{Map, Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, header, value] = &arguments[..] else {
        panic!("usage: rust-client URL HEADER VALUE")
    };
    let fields: Map<String, Value> =
        serde_json::from_reader(std::io::stdin()).expect("a JSON object on the standard input");
    let source = endpoint(url).with_header(header, value);
    match source.fetch(&options(&fields)).await {
        Ok(reply) => {
            let valid = reply.has_valid_token();
            let reply = json!({
                "server_url": reply.server_url, "participant_token": reply.participant_token, "valid": valid,
            });
            println!("{reply}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options(fields: &Map<String, Value>) -> TokenSourceFetchOptions {
    let mut options = TokenSourceFetchOptions::new();
    for (name, value) in fields {
        if let Value::Object(attributes) = value {
            assert_eq!(name, "participant_attributes");
            options = options.with_participant_attributes(
                attributes.iter().map(|(key, text)| (key, string(text))),
            );
            continue;
        }
        let set = match name.as_str() {
            "room_name" => TokenSourceFetchOptions::with_room_name,
            "participant_name" => TokenSourceFetchOptions::with_participant_name,
            "participant_identity" => TokenSourceFetchOptions::with_participant_identity,
            "participant_metadata" => TokenSourceFetchOptions::with_participant_metadata,
            "agent_name" => TokenSourceFetchOptions::with_agent_name,
            "agent_metadata" => TokenSourceFetchOptions::with_agent_metadata,
            _ => panic!("{name}: not an option"),
        };
        options = set(options, string(value));
    }
    options
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}
