//! What others send cannot write entries into the log.

use std::io::Write;

use super::support::*;

/// A line as the gateway would write it, at a time when it did not run.
const FORGED: &str = "1999-01-01T00:00:00.000000Z  INFO tower_openrouter: forged";

#[test]
fn r113_nothing_that_is_sent_begins_an_entry_of_the_log() {
    let upstream = Upstream::start(|request, stream| {
        let escaped = format!("x\\n{FORGED}\\u001b[2J\\r{FORGED}");
        let error = format!(
            r#"{{"error":{{"code":502,"message":"{escaped}","metadata":{{"provider_name":"{escaped}","raw":"{escaped}"}}}}}}"#
        );
        let json = "content-type: application/json\r\n";
        let answer = match request.matches("kind-").count() {
            0 => response("502 Bad Gateway", json, &error),
            1 => response("200 OK", json, &format!("{{}}\n{FORGED}")),
            2 => response(
                &format!("500 x\t\u{85}{FORGED}"),
                &format!("x-odd: a\t\u{9b}2J{FORGED}\r\n"),
                &format!("\n{FORGED}"),
            ),
            3 => format!("HTTP/1.1 200 OK\r\n\n{FORGED}\n"),
            _ => format!("{FORGED}\n\n"),
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let file = File::new(
        "log",
        "explain = \"all\"\nbreaker.failures = 2\nmodels.unrouted = \"refuse\"\nwaiting.max_wait = \"0s\"\n\
         [[routes]]\nmodels = [\"acme/*\"]\n[[keys]]\nkey = \"sk-or-v1-one\"\n[[keys]]\nkey = \"sk-or-v1-two\"\n",
    );
    let gateway = Gateway::start(
        &[&file.flag()[..], &["--upstream", &upstream.base()]].concat(),
        &[("RUST_LOG", "trace"), ("TOWER_OPENROUTER_POLL_INTERVAL", "1s")],
    );
    for kinds in ["", "kind-", "kind-kind-", "kind-kind-kind-", "kind-kind-kind-kind-"] {
        for model in ["acme/x", "unknown/x"] {
            let body = format!(r#"{{"model":"{model}\n{FORGED}\u001b[2J","user":"\n{FORGED}","kind":"{kinds}"}}"#);
            let headers =
                format!("x-request-id: a\t{FORGED}\r\nx-title: \u{85}{FORGED}\r\nx-session-id: \t{FORGED}\r\n");
            post(gateway.api, "/v1/chat/completions", &headers, &body);
            post(gateway.api, "/v1/messages", "", &body);
        }
        get(gateway.api, &format!("/v1/models/%0a{}%0d%0a%1b[2J", FORGED.replace(' ', "%20")), "");
        raw(gateway.api, &format!("GET /x HTTP/1.1\r\nhost: {FORGED}\r\nconnection: close\r\n\r\n"));
        get(gateway.admin, &format!("/explain/%0a{}", FORGED.replace(' ', "%20")), "");
        let mut client = connect(gateway.api);
        client.write_all(format!("{FORGED}\n{FORGED}\r\n\r\n").as_bytes()).unwrap();
        rest(&mut client);
    }
    let log = gateway.log();
    assert!(log.contains("TRACE") && log.contains("forged"), "nothing of it was logged: {log}");
    for line in log.lines() {
        let begins = line.as_bytes().get(..11).is_some_and(|date| date.starts_with(b"20") && date.ends_with(b"T"));
        assert!(begins && !line.starts_with("1999"), "not an entry of ours: {line:?}");
        assert!(!line.chars().any(|char| char.is_control() && char != '\t'), "{line:?}");
    }
}
