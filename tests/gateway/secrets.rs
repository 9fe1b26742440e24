//! Keys and tokens show nowhere.

use std::{fmt::Write as _, fs};

use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::support::*;

const ENV_KEY: &str = "sk-or-v1-3fQz7Lk9WcVb2NxTe5Yh";
const FILE_KEY: &str = "sk-or-v1-Hn4Rt8Jp1MsDw6GaUy0E";
const CLIENT: &str = "Zk2PvB9qXr7LmTc4WsJd";
const OPERATOR: &str = "Yd8FnH3gKt6QwRb1VxCe";

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).flat_map(|group| {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        (0..=group.len()).map(move |digit| DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char)
    });
    groups.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where 8 characters in a row of a secret show, plainly or in another form.
fn shows(text: &str) -> Option<String> {
    for secret in [ENV_KEY, FILE_KEY, CLIENT, OPERATOR] {
        let private = secret.trim_start_matches("sk-or-v1-");
        let runs = (0..=private.len() - 8).map(|at| private[at..at + 8].to_owned());
        let others =
            [secret, private, &format!("Bearer {secret}")].map(|form| (base64(form.as_bytes()), hex(form.as_bytes())));
        for form in runs.chain(others.into_iter().flat_map(|(base64, hex)| [base64, hex])) {
            if let Some(line) = text.lines().find(|line| line.contains(&form)) {
                return Some(format!("{secret} in: {line}"));
            }
        }
    }
    None
}

#[test]
fn the_search_would_find_what_it_looks_for() {
    assert_eq!(base64(b"Bearer ab"), "QmVhcmVyIGFi");
    assert_eq!(base64(b"abcd"), "YWJjZA");
    for text in ["x Lk9WcVb2 y", &base64(CLIENT.as_bytes()), &hex(FILE_KEY.as_bytes())] {
        assert!(shows(text).is_some(), "{text}");
    }
    assert!(shows("sk-or-v1-").is_none());
}

// waiting for the process blocks a thread, which the HTTP/2 client must not be on
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn r099_no_key_and_no_token_shows_however_much_is_logged() {
    let upstream = Upstream::start(|request, stream| {
        use std::io::Write;
        let json = "content-type: application/json\r\n";
        let answer = match request.matches("kind-").count() {
            0 => response("200 OK", json, r#"{"id":"gen-1","choices":[]}"#),
            1 => response("401 Unauthorized", json, r#"{"error":{"code":401,"message":"User not found."}}"#),
            2 => response("302 Found", "location: http://127.0.0.1:1/\r\n", ""),
            3 => response("500 Internal Server Error", "", "<html>"),
            _ => "HTTP/1.1 200 OK\r\nbroken".to_owned(),
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let path = std::env::temp_dir().join(format!("tower-openrouter-secrets-{}.toml", std::process::id()));
    fs::write(
        &path,
        format!("waiting.max_wait = \"0s\"\nadmin_token = \"{OPERATOR}\"\n[[keys]]\nkey = \"{FILE_KEY}\"\n"),
    )
    .unwrap();
    let mut gateway = Gateway::start(
        &["--config", path.to_str().unwrap(), "--upstream", &upstream.base()],
        &[
            ("OPENROUTER_API_KEY", ENV_KEY),
            ("TOWER_OPENROUTER_ACCESS_TOKEN", CLIENT),
            ("TOWER_OPENROUTER_POLL_INTERVAL", "1s"),
            ("RUST_LOG", "trace"),
        ],
    );
    fs::remove_file(&path).unwrap();
    let mut outputs = vec![gateway.banner.clone()];
    let tokens = [format!("authorization: Bearer {CLIENT}\r\n"), format!("x-api-key: {CLIENT}\r\n"), String::new()];
    for token in &tokens {
        for kinds in ["", "kind-kind-", "kind-kind-kind-", "kind-kind-kind-kind-", "kind-", "kind-", ""] {
            for path in ["/v1/chat/completions", "/v1/messages", "/nowhere"] {
                let reply = post(gateway.api, path, token, &format!("{{\"model\":\"{kinds}\"}}"));
                outputs.push(reply.head + &reply.body);
            }
        }
    }
    for broken in ["GET /v1/models\r\n\r\n", "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n"] {
        outputs.push(raw(gateway.api, &format!("{broken}{}\r\n", tokens[0])).head);
    }
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<bytes::Bytes>>();
    for path in ["v1/chat/completions", "nowhere"] {
        let request = http::Request::post(format!("http://{}/{path}", gateway.api))
            .header("authorization", format!("Bearer {CLIENT}"))
            .body(Full::from(CHAT))
            .unwrap();
        let response = client.request(request).await.unwrap();
        outputs.push(format!("{:?}", response.headers()));
        outputs.push(String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into());
    }
    for token in [format!("authorization: Bearer {OPERATOR}\r\n"), String::new()] {
        for path in ["/stats", "/metrics", "/readyz", "/healthz"] {
            let reply = get(gateway.admin, path, &token);
            outputs.push(reply.head + &reply.body);
        }
    }
    gateway.signal("TERM");
    drop(client);
    gateway.ended();
    let log = gateway.log();
    assert!(log.contains("TRACE"), "nothing was logged to look into: {log}");
    outputs.push(log);
    assert!(upstream.seen().len() > 5);
    for output in outputs {
        assert_eq!(shows(&output), None);
    }
}

#[test]
fn r099_errors_at_start_do_not_show_what_is_wrong_either() {
    let path = std::env::temp_dir().join(format!("tower-openrouter-start-{}.toml", std::process::id()));
    for (file, variable) in [
        (format!("[[keys]]\nkey = {FILE_KEY}\n"), ENV_KEY.to_owned()),
        (format!("keys = [\"{FILE_KEY}\"]\n"), ENV_KEY.to_owned()),
        (format!("[[keys]]\nkey = \"{FILE_KEY}\"\nkey_env = \"X\"\n"), ENV_KEY.to_owned()),
        (format!("access_token = \"{CLIENT} {CLIENT}\"\n"), ENV_KEY.to_owned()),
        (String::new(), format!("{ENV_KEY}\n{FILE_KEY}")),
        (String::new(), format!("{ENV_KEY}é")),
    ] {
        fs::write(&path, file).unwrap();
        let flags = ["--config", path.to_str().unwrap(), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let said = refused(&flags, &[("OPENROUTER_API_KEY", &variable), ("RUST_LOG", "trace")]);
        assert_eq!(shows(&said), None);
    }
    fs::remove_file(&path).unwrap();
}
