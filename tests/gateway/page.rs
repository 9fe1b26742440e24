//! The live page, what it is told, and what an operator does to keys.

use std::{io::Write, net::TcpStream, thread, time::Instant};

use serde_json::Value;

use super::support::*;

const TOKEN: &str = "authorization: Bearer operator\r\n";
const KEYS: [(&str, &str); 2] =
    [("OPENROUTER_API_KEY_1", "sk-or-v1-first-canary"), ("OPENROUTER_API_KEY_2", "sk-or-v1-second-canary")];

/// A gateway with two keys, whose operator has a token.
fn operated(upstream: &Upstream) -> Gateway {
    Gateway::start(&["--upstream", &upstream.base(), "--admin-token", "operator"], &KEYS)
}

/// Does something to a key.
fn act(gateway: &Gateway, path: &str) -> Reply {
    post(gateway.admin, path, TOKEN, "")
}

/// One who looks at the page, and the head of the answer.
fn listen(gateway: &Gateway, headers: &str) -> (TcpStream, String) {
    let mut stream = connect(gateway.admin);
    stream.write_all(request("GET", "/events", headers, "").as_bytes()).unwrap();
    let head = until(&mut stream, "\r\n\r\n");
    (stream, head)
}

/// The next picture that has all.
fn picture(gateway: &Gateway) -> Value {
    let (mut stream, head) = listen(gateway, TOKEN);
    // the event, or a part of it, may have come with the head
    let text = if head.contains("}\n\n") { head } else { head + &until(&mut stream, "}\n\n") };
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))
}

#[test]
fn the_page_is_served_to_whom_the_admin_side_is_and_lets_nothing_else_in() {
    let gateway = operated(&Upstream::fine());
    let mut bytes = 0;
    for (path, kind, holds) in [
        ("/", "text/html", "data-token=\"asked\""),
        ("/page.css", "text/css", "tabular-nums"),
        ("/page.js", "text/javascript", "fetch("),
        ("/draw.js", "text/javascript", "svg"),
        ("/requests.js", "text/javascript", "export"),
        ("/rests.js", "text/javascript", "export"),
    ] {
        let reply = get(gateway.admin, path, "");
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-type").unwrap().starts_with(kind) && reply.body.contains(holds), "{path}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"));
        assert!(!policy.contains("unsafe") && reply.header("x-content-type-options") == Some("nosniff"), "{policy}");
        assert_eq!(raw(gateway.admin, &request("POST", path, TOKEN, "")).status, 405);
        let by_name = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
        assert_eq!(raw(gateway.admin, &by_name).status, 403);
        assert_eq!(get(gateway.api, path, "").status, 404);
        bytes += reply.body.len();
    }
    assert!(bytes < 100_000, "{bytes}");
    let open = Gateway::before(&Upstream::fine(), &[]);
    assert!(get(open.admin, "/", "").body.contains("data-token=\"none\""));
}

#[test]
fn keys_are_acted_on_with_the_admin_token_alone() {
    let upstream = Upstream::fine();
    let gateway = operated(&upstream);
    let path = "/keys/api-key-1/isolate";
    for (headers, status) in [
        ("", 401),
        ("authorization: Bearer other\r\n", 401),
        ("authorization: Bearer operator\r\norigin: http://evil.example\r\n", 403),
        ("authorization: Bearer operator\r\norigin: null\r\n", 403),
    ] {
        assert_eq!(post(gateway.admin, path, headers, "").status, status, "{headers}");
    }
    assert_eq!(get(gateway.admin, path, TOKEN).status, 405);
    assert_eq!(post(gateway.api, path, TOKEN, "").status, 404);
    for (path, says) in [
        ("/keys/unknown/isolate", "No key has this label"),
        ("/keys/api-key-1/delete", "No such action"),
        ("/keys/%FF/drain", "No key has this label"),
    ] {
        let reply = act(&gateway, path);
        assert!(reply.status == 404 && reply.body.contains(says), "{path}: {reply:?}");
    }
    assert!(picture(&gateway)["keys"].as_array().unwrap().iter().all(|key| key["admin"] == "in_service"));

    let open = Gateway::before(&upstream, &[]);
    for headers in ["", TOKEN] {
        let reply = post(open.admin, "/keys/api-key/drain", headers, "");
        assert!(reply.status == 403 && reply.body.contains("--admin-token"), "{reply:?}");
    }
    assert_eq!(listen(&open, "").1.lines().next(), Some("HTTP/1.1 200 OK"), "who may read may not therefore act");
}

#[test]
fn what_is_isolated_or_drained_is_asked_nothing_until_it_is_reset() {
    let upstream = Upstream::fine();
    let gateway = operated(&upstream);
    for (action, state) in [("isolate", "isolated"), ("drain", "draining")] {
        let reply = act(&gateway, &format!("/keys/api-key-1/{action}"));
        assert_eq!((reply.status, &reply.json()["state"]), (200, &state.into()));
        let before = upstream.seen().len();
        for _ in 0..8 {
            assert_eq!(gateway.chat("").header("x-balancer-key"), Some("api-key-2"), "{action}");
        }
        assert!(upstream.seen()[before..].iter().all(|seen| !seen.contains("first-canary")), "{action}");
        let told = picture(&gateway);
        assert_eq!((&told["keys"][0]["admin"], &told["usable"]), (&state.into(), &1.into()));
        assert_eq!(act(&gateway, "/keys/api-key-1/reset").json()["state"], "in_service");
        // so many that the idle keys, drawn by lot, have both had a turn
        let keys: Vec<_> = (0..40).map(|_| gateway.chat("").header("x-balancer-key").unwrap().to_owned()).collect();
        assert!(keys.iter().any(|key| key == "api-key-1"), "{keys:?}");
    }
    for key in ["api-key-1", "api-key-2"] {
        assert_eq!(get(gateway.admin, "/readyz", "").status, 200);
        act(&gateway, &format!("/keys/{key}/isolate"));
    }
    let ready = get(gateway.admin, "/readyz", "");
    assert_eq!((ready.status, &ready.json()["why"]), (503, &"no usable key".into()));
    let refused = gateway.chat("");
    assert!(refused.status == 429 && refused.body.contains("2 taken_out_of_service"), "{refused:?}");
    assert!(gateway.log().contains("by the operator"), "{}", gateway.log());
}

#[test]
fn what_the_page_is_told_asks_for_the_token_and_holds_no_secret() {
    let upstream = Upstream::answering(
        "401 Unauthorized",
        "content-type: application/json\r\n",
        r#"{"error":{"code":401,"message":"User not found."}}"#,
    );
    let gateway = operated(&upstream);
    for headers in ["", "x-api-key: operato\r\n"] {
        assert!(listen(&gateway, headers).1.starts_with("HTTP/1.1 401 "), "{headers}");
    }
    let name = "<img src=x onerror=alert(1)>".repeat(8);
    let chat = format!(r#"{{"model":"{name}","messages":[]}}"#);
    assert_ne!(post(gateway.api, "/v1/chat/completions", "x-balancer-explain: 1\r\n", &chat).status, 200);
    let told = picture(&gateway);
    assert_eq!(told["causes"][0]["cause"], "invalid_key");
    assert!(told["keys"].as_array().unwrap().iter().all(|key| key["failed"]["invalid_key"] == 1), "{told}");
    let model = told["requests"][0]["attempts"][0]["model"].as_str().unwrap();
    assert!(name.starts_with(model.trim_end_matches('…')) && model.chars().count() == 101, "{model}");
    for secret in ["canary", "sk-or-v1", "operator"] {
        assert!(!told.to_string().contains(secret), "{told}");
    }
}

#[test]
fn what_rests_for_all_keys_is_told_with_its_model_cut_and_how_long_still() {
    let full = r#"{"error":{"code":429,"message":"Provider returned error","metadata":{"provider_name":"Acme","raw":"acme/swift-1 is temporarily rate-limited upstream. Please retry shortly."}}}"#;
    let headers = "content-type: application/json\r\nretry-after: 20\r\n";
    let gateway = operated(&Upstream::answering("429 Too Many Requests", headers, full));
    assert_eq!(picture(&gateway)["rests"], Value::Array(vec![]));
    let ask = |model: &str| {
        let chat = format!(r#"{{"model":"{model}","messages":[]}}"#);
        let mut stream = connect(gateway.api);
        stream.write_all(request("POST", "/v1/chat/completions", "", &chat).as_bytes()).unwrap();
        stream
    };
    let names: Vec<_> = (0..25).map(|number| format!("{}{number:02}", "<b>".repeat(40))).collect();
    let _waiting: Vec<_> = names.iter().map(|name| ask(name)).collect();
    let start = Instant::now();
    let told = loop {
        let told = picture(&gateway);
        if told["rests_in_all"] == names.len() {
            break told;
        }
        assert!(start.elapsed() < PATIENCE, "{told}");
        thread::yield_now();
    };
    let rests = told["rests"].as_array().unwrap();
    assert_eq!(rests.len(), 20, "no page full of what clients invent");
    for rest in rests {
        assert_eq!(
            (&rest["scope"], &rest["cause"], &rest["hinted"]),
            (&"pool".into(), &"provider_limit".into(), &true.into())
        );
        assert!((1..=20_000).contains(&rest["left_ms"].as_u64().unwrap()), "{rest}");
        assert_eq!(rest["model"].as_str().unwrap().chars().count(), 101);
    }
    assert!(told["usable"] == 2, "no key is to blame: {told}");
    let stats = get(gateway.admin, "/stats", TOKEN).json();
    assert_eq!(stats["rests"].as_array().unwrap().len(), names.len());
    let metrics = get(gateway.admin, "/metrics", TOKEN).body;
    assert!(
        metrics.contains("tower_openrouter_rests{scope=\"pool\"} 25") && metrics.contains("rests{scope=\"egress\"} 0")
    );
}

#[test]
fn requests_are_explained_for_those_who_look_and_not_while_nobody_does() {
    let gateway = operated(&Upstream::fine());
    let explained = || {
        let id = gateway.chat("").header("x-request-id").unwrap().to_owned();
        get(gateway.admin, &format!("/explain/{id}"), TOKEN).status == 200
    };
    assert!(!explained());
    let (mut stream, _) = listen(&gateway, TOKEN);
    until(&mut stream, "\"full\":false");
    assert!(explained());
    drop(stream);
    let start = Instant::now();
    while explained() {
        assert!(start.elapsed() < PATIENCE, "nobody looks any more");
        thread::yield_now();
    }
}

#[test]
fn r132_so_many_may_look_and_no_more() {
    let gateway = operated(&Upstream::fine());
    let mut looking: Vec<_> = (0..16).map(|_| listen(&gateway, TOKEN)).collect();
    assert!(looking.iter().all(|(_, head)| head.starts_with("HTTP/1.1 200 ")));
    let (_, refused) = listen(&gateway, TOKEN);
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    looking.pop();
    let start = Instant::now();
    while !listen(&gateway, TOKEN).1.starts_with("HTTP/1.1 200 ") {
        assert!(start.elapsed() < PATIENCE, "who has left keeps the place");
    }
}

#[test]
fn those_who_look_are_sent_away_when_the_gateway_stops() {
    let mut gateway = operated(&Upstream::fine());
    let (mut stream, head) = listen(&gateway, TOKEN);
    assert!(head.contains("content-type: text/event-stream") && head.contains("cache-control: no-store"), "{head}");
    gateway.signal("TERM");
    let told = rest(&mut stream);
    assert!(told.contains("event: stopping\ndata: {}\n\n"), "{told}");
    let (_, took) = gateway.ended();
    assert!(took < PATIENCE / 2, "{took:?}");
}
