//! What clients and the upstream see of each other.

use std::{
    io::Write,
    net::TcpListener,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::{frames::*, support::*};

/// A listener nobody should connect to.
struct Canary(TcpListener);

impl Canary {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    fn is_untouched(&self) -> bool {
        self.0.accept().is_err()
    }
}

#[test]
fn the_paths_of_the_api_reach_the_upstream_and_no_others() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let mut expected = Vec::new();
    for root in ["/v1", "/api/v1"] {
        for path in ["/chat/completions", "/completions", "/responses", "/messages?beta=true", "/embeddings"] {
            assert_eq!(post(gateway.api, &format!("{root}{path}"), "", "{}").status, 200);
            expected.push(format!("POST /api/v1{path} HTTP/1.1"));
        }
        for path in ["/models", "/models?supported_parameters=tools", "/models/acme/swift-1/endpoints"] {
            assert_eq!(get(gateway.api, &format!("{root}{path}"), "").status, 200);
            expected.push(format!("GET /api/v1{path} HTTP/1.1"));
        }
    }
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/", 404),
        ("POST", "/chat/completions", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/v1/x/../chat/completions", 404),
        ("POST", "/V1/chat/completions", 404),
        ("GET", "/v1/keys", 404),
        ("GET", "/api/v1/credits", 404),
        ("GET", "/stats", 404),
        ("GET", "/readyz", 404),
        ("GET", "/healthz", 404),
        ("GET", "/metrics", 404),
        ("GET", "/explain/1", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ] {
        let reply = raw(gateway.api, &request(method, path, "", ""));
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(reply.json()["error"]["code"], status, "{method} {path}");
        assert_eq!(reply.header("allow").is_some(), status == 405, "{method} {path}");
    }
    let reply = post(gateway.api, "/v1/messages/count_tokens", "", "{}");
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (404, &"not_found_error".into()));
    let seen: Vec<_> = upstream.seen().iter().map(|request| request.lines().next().unwrap().to_owned()).collect();
    assert_eq!(seen, expected);
}

#[test]
fn r102_r105_the_upstream_sees_the_key_and_nothing_of_the_clients_own() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let reply = gateway.chat(
        "Authorization: Bearer private-1\r\nX-Api-Key: private-2\r\nCookie: private-3\r\nProxy-Authorization: private-4\r\n\
         Authorization: Basic private\r\nAPI-KEY: private\r\nx-goog-api-key: private\r\nX-Auth-Token: private\r\ncookie: private\r\n\
         Connection: X-Hop\r\nX-Hop: private-5\r\nTE: trailers\r\nX-Forwarded-For: private-6\r\nContent-Type: application/json\r\n\
         Connection: keep-alive,  X-Other , content-type2\r\nX-Other: private\r\nKeep-Alive: private\r\nUpgrade: private\r\n\
         HTTP-Referer: https://app.example\r\nX-Title: App\r\n",
    );
    assert_eq!(reply.status, 200);
    let seen = upstream.seen().remove(0).to_ascii_lowercase();
    assert!(seen.contains("authorization: bearer sk-or-v1-one\r\n"), "{seen}");
    assert!(seen.contains("http-referer: https://app.example\r\n") && seen.contains("x-title: app\r\n"), "{seen}");
    assert!(seen.ends_with(&CHAT.to_ascii_lowercase()), "{seen}");
    for gone in ["private", "x-hop", "\r\nte:", "localhost"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
}

#[test]
fn r102_the_client_sees_the_answer_and_nothing_between_gateway_and_upstream() {
    let headers = "content-type: application/json\r\nconnection: x-hop\r\nx-hop: private\r\nset-cookie: private=1\r\n\
                   access-control-allow-origin: *\r\nx-balancer-key: private\r\nproxy-authenticate: private\r\n\
                   retry-after: 7\r\nx-generation-id: gen-1\r\n";
    let upstream = Upstream::answering("400 Bad Request", headers, r#"{"error":{"code":400,"message":"no"}}"#);
    let reply = Gateway::before(&upstream, &[]).chat("");
    assert_eq!((reply.status, reply.body.as_str()), (400, r#"{"error":{"code":400,"message":"no"}}"#));
    assert_eq!((reply.header("retry-after"), reply.header("x-generation-id")), (Some("7"), Some("gen-1")));
    for gone in ["private", "x-hop", "set-cookie", "access-control"] {
        assert!(!reply.head.contains(gone), "{}", reply.head);
    }
}

#[test]
fn answers_say_which_key_and_how_many_attempts_unless_switched_off() {
    let upstream = Upstream::fine();
    let reply = Gateway::before(&upstream, &[]).chat("");
    assert_eq!((reply.header("x-balancer-key"), reply.header("x-balancer-attempts")), (Some("api-key"), Some("1")));
    assert_eq!(reply.header("x-balancer-simulated"), None);
    let reply = Gateway::before(&upstream, &["--no-balancer-headers"]).chat("");
    assert!(reply.status == 200 && !reply.head.contains("x-balancer"), "{}", reply.head);
}

#[test]
fn a_priority_ends_here_and_must_be_one_that_is_known() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    for (priority, status) in [("high", 200), ("Low", 200), ("urgent", 400), ("", 400)] {
        let reply = gateway.chat(&format!("X-Priority: {priority}\r\n"));
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(reply.body.contains("x-priority must be high, normal or low"), status == 400, "{reply:?}");
    }
    let seen = upstream.seen();
    assert!(
        seen.len() == 2 && !seen.iter().any(|request| request.to_ascii_lowercase().contains("priority")),
        "{seen:?}"
    );
    let stats = get(gateway.admin, "/stats", "").json();
    assert_eq!(stats["waiting"], serde_json::json!({"high": 0, "normal": 0, "low": 0}));
}

#[test]
fn each_answer_has_a_request_id_and_the_clients_own_is_kept() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    assert_eq!(gateway.chat("x-request-id: mine\r\n").header("x-request-id"), Some("mine"));
    let ids = [gateway.chat(""), gateway.chat(""), get(gateway.api, "/nowhere", "")];
    let ids: std::collections::HashSet<_> = ids.iter().map(|reply| reply.header("x-request-id").unwrap()).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn r101_a_redirect_is_neither_followed_nor_passed_on() {
    let canary = Canary::new();
    let location = format!("location: http://{}/api/v1/chat/completions\r\n", canary.address());
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let upstream = Upstream::answering(status, &location, "");
        let reply = Gateway::before(&upstream, &[]).chat("");
        assert_eq!((reply.status, reply.header("location")), (502, None), "{status}");
        assert_eq!(reply.json()["error"]["code"], 502);
    }
    assert!(canary.is_untouched());
    // nor to another place on the same server
    let upstream = Upstream::start(|request, stream| {
        let host = request.split("host: ").nth(1).unwrap().lines().next().unwrap();
        let location = format!("location: http://{host}/api/v1/models\r\n");
        stream.write_all(response("307 Temporary Redirect", &location, "").as_bytes()).unwrap();
    });
    assert_eq!(Gateway::before(&upstream, &[]).chat("").status, 502);
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn r104_no_client_chooses_the_upstream() {
    let (canary, upstream) = (Canary::new(), Upstream::fine());
    let gateway = Gateway::before(&upstream, &[]);
    let evil = canary.address();
    let end = "connection: close\r\ncontent-length: 2\r\n\r\n{}";
    for head in [
        format!("POST http://{evil}/v1/chat/completions HTTP/1.1\r\nhost: {evil}\r\n"),
        format!("POST http://user:word@{evil}/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"),
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {evil}\r\n"),
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nhost: {evil}\r\n"),
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-forwarded-host: {evil}\r\nforwarded: host={evil}\r\n"
        ),
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {evil}@localhost\r\n"),
        "POST /v1/chat/completions HTTP/1.1\r\n".to_owned(),
        "POST /v1/chat/completions HTTP/1.1\r\nhost: \r\n".to_owned(),
        format!("POST /v1/models/..%2f..%2f{evil} HTTP/1.1\r\nhost: localhost\r\n"),
        format!("GET /v1/models/http://{evil}/ HTTP/1.1\r\nhost: localhost\r\n"),
        format!("GET //{evil}/v1/models HTTP/1.1\r\nhost: localhost\r\n"),
        format!("CONNECT {evil} HTTP/1.1\r\nhost: {evil}\r\n"),
        format!("OPTIONS * HTTP/1.1\r\nhost: {evil}\r\n"),
    ] {
        let reply = raw(gateway.api, &format!("{head}{end}"));
        assert!(reply.status == 200 || (400..500).contains(&reply.status), "{head} -> {reply:?}");
    }
    for (scheme, authority) in [("http", &*evil), ("https", &evil), ("http", "localhost"), ("ftp", "a@b")] {
        let mut client = Http2::connect(gateway.api);
        let headers =
            [(":method", "POST"), (":scheme", scheme), (":path", "/v1/chat/completions"), (":authority", authority)];
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[&headers[..], &[("host", &evil)]].concat())));
        client.until(|frame| frame.stream == 1 && frame.kind != WINDOW_UPDATE);
    }
    assert!(canary.is_untouched());
    let ours = format!("host: {}", upstream.address());
    for request in upstream.seen() {
        let head = request.split("\r\n\r\n").next().unwrap();
        assert!(head.contains(&ours) && !head.contains(&evil), "{head}");
    }
}

#[test]
fn r106_without_the_token_nobody_comes_in() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--access-token", "let-me-in"]);
    for headers in [
        "",
        "authorization: Bearer wrong\r\n",
        "authorization: Bearer let-me-inn\r\n",
        "authorization: Basic let-me-in\r\n",
        "x-api-key: wrong\r\n",
        "cookie: let-me-in\r\n",
        "authorization: Bearer sk-or-v1-one\r\n",
    ] {
        let reply = gateway.chat(headers);
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (401, &401.into()), "{headers}");
        assert!(!reply.head.contains("x-balancer") && !reply.body.contains("let-me-in"), "{reply:?}");
        assert_eq!(get(gateway.api, "/v1/models", headers).status, 401);
    }
    let reply = post(gateway.api, "/v1/messages", "", "{}");
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (401, &"authentication_error".into()));
    assert_eq!(upstream.seen(), Vec::<String>::new());
    assert_eq!(gateway.chat("authorization: Bearer let-me-in\r\n").status, 200);
    assert_eq!(gateway.chat("x-api-key: let-me-in\r\n").status, 200);
    assert!(upstream.seen().iter().all(|request| !request.contains("let-me-in")));
}

#[test]
fn each_event_of_a_stream_is_passed_on_at_once() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |_, stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk(&token("1"))).as_bytes()).unwrap();
        for number in 2..=5 {
            // only once the client has the one before
            gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.write_all(chunk(&token(&number.to_string())).as_bytes()).unwrap();
        }
        stream.write_all(chunk("data: [DONE]\n\n").as_bytes()).unwrap();
        stream.write_all(b"0\r\n\r\n").unwrap();
    });
    let gateway = Gateway::before(&upstream, &[]);
    let mut client = connect(gateway.api);
    client.write_all(request("POST", "/v1/chat/completions", "", CHAT).as_bytes()).unwrap();
    for number in 1..=4 {
        until(&mut client, &token(&number.to_string()));
        go.send(()).unwrap();
    }
    let end = rest(&mut client);
    assert!(end.contains(&token("5")) && end.contains("[DONE]") && end.ends_with("0\r\n\r\n"), "{end:?}");
}

#[tokio::test]
async fn http2_is_served_without_tls() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<bytes::Bytes>>();
    let request = http::Request::post(format!("http://{}/v1/chat/completions", gateway.api));
    let response = client.request(request.body(Full::from(CHAT)).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
    assert_eq!(response.headers()["x-balancer-key"], "api-key");
    assert!(response.into_body().collect().await.unwrap().to_bytes().starts_with(b"{\"id\":\"gen-1\""));
    assert!(upstream.seen()[0].ends_with(CHAT));
}

#[test]
fn r107_a_connection_that_does_not_ask_is_closed_in_time_and_others_go_on() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--header-timeout", "400ms"]);
    let start = Instant::now();
    let slow: Vec<_> = ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "POST /v1/chat/completions HTTP/1.1\r\nhost: loc"]
        .map(|head| {
            let mut client = connect(gateway.api);
            thread::spawn(move || {
                client.write_all(head.as_bytes()).unwrap();
                rest(&mut client);
                start.elapsed()
            })
        })
        .into();
    assert_eq!(gateway.chat("").status, 200);
    for closed in slow {
        let took = closed.join().unwrap();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_millis(1400), "{took:?}");
    }
}

#[test]
fn r115_the_admin_side_answers_those_who_ask_it_by_address() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let ask = |path: &str, headers: &str| {
        raw(gateway.admin, &format!("GET {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n")).status
    };
    let own = format!("host: {}\r\n", gateway.admin);
    for path in ["/healthz", "/readyz", "/stats"] {
        for host in ["host: localhost\r\n", "host: LOCALHOST:1\r\n", "host: [::1]:9090\r\n", &own] {
            assert_eq!(ask(path, host), 200, "{path} {host}");
        }
        for host in ["", "host: evil.example\r\n", "host: localhost.evil.example\r\n", "host: 10.1.2.3\r\n"] {
            assert_eq!(ask(path, host), 403, "{path} {host}");
        }
        assert_eq!(ask(path, "host: localhost\r\nhost: evil.example\r\n"), 403);
        for origin in ["origin: http://evil.example\r\n", "origin: null\r\n", "origin: http://localhost:1\r\n"] {
            assert_eq!(ask(path, &format!("host: localhost\r\n{origin}")), 403, "{path} {origin}");
        }
        assert_eq!(ask(path, "host: localhost:7\r\norigin: http://localhost:7\r\n"), 200);
    }
    assert_eq!(ask("/v1/models", "host: localhost\r\n"), 404);
    assert_eq!(raw(gateway.admin, &request("POST", "/stats", "", "")).status, 405);
    let stats = get(gateway.admin, "/stats", "");
    assert!(stats.body.contains("api-key") && stats.header("content-type") == Some("application/json"), "{stats:?}");
    assert!(upstream.seen().is_empty());
}

#[test]
fn r115_stats_ask_for_the_admin_token_and_health_does_not() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--access-token", "client", "--admin-token", "operator"]);
    assert_eq!(get(gateway.admin, "/healthz", "").status, 200);
    assert_eq!(get(gateway.admin, "/readyz", "").status, 200);
    for wrong in ["", "authorization: Bearer client\r\n", "x-api-key: operato\r\n"] {
        assert_eq!(get(gateway.admin, "/stats", wrong).status, 401, "{wrong}");
    }
    let token = "authorization: Bearer operator\r\n";
    assert_eq!(get(gateway.admin, "/stats", token).status, 200);
    let by_name = format!("GET /stats HTTP/1.1\r\nhost: gateway.internal\r\n{token}connection: close\r\n\r\n");
    assert_eq!(raw(gateway.admin, &by_name).status, 200, "who shows the token may use any name");
}

#[test]
fn r114_with_no_usable_key_it_is_alive_but_not_ready() {
    let upstream = Upstream::answering(
        "401 Unauthorized",
        "content-type: application/json\r\n",
        r#"{"error":{"code":401,"message":"User not found."}}"#,
    );
    let gateway = Gateway::before(&upstream, &["--max-wait", "0s"]);
    assert_eq!(get(gateway.admin, "/readyz", "").status, 200);
    gateway.chat("");
    let reply = get(gateway.admin, "/readyz", "");
    assert_eq!((reply.status, reply.json()["why"].as_str()), (503, Some("no usable key")));
    assert_eq!(get(gateway.admin, "/healthz", "").status, 200);
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn r110_every_failure_of_our_own_is_an_answer_in_the_apis_error_shape() {
    let unauthorized = r#"{"error":{"code":401,"message":"User not found."}}"#;
    let silent = |_: &str, _: &mut std::net::TcpStream| thread::sleep(PATIENCE);
    // a port that no test is given in the meantime
    let closed = "127.0.0.1:1";
    let check = |gateway: &Gateway, status: u16, reasons: &[&str], retry_after: bool| {
        let reply = gateway.chat("");
        assert_eq!(reply.status, status, "{reply:?}");
        let error = &reply.json()["error"];
        assert_eq!(error["code"], status, "{reply:?}");
        assert!(reasons.iter().any(|reason| error["metadata"]["reason"] == *reason), "{reply:?}");
        assert!(error["message"].is_string() && reply.header("content-type") == Some("application/json"), "{reply:?}");
        assert_eq!(reply.header("retry-after").is_some(), retry_after, "{reply:?}");
        let reply = post(gateway.api, "/v1/messages", "", CHAT);
        assert_eq!((reply.status, &reply.json()["type"]), (status, &"error".into()), "{reply:?}");
    };

    let upstream = Upstream::answering("401 Unauthorized", "content-type: application/json\r\n", unauthorized);
    let gateway = Gateway::before(&upstream, &["--max-wait", "0s"]);
    gateway.chat("");
    check(&gateway, 429, &["no_key"], true);
    assert_eq!(upstream.seen().len(), 1, "a key known to be dead is not asked again");

    let unreachable = format!("http://{closed}/api/v1");
    let gateway =
        Gateway::start(&["--upstream", &unreachable, "--attempts", "1"], &[("OPENROUTER_API_KEY", "sk-or-v1-one")]);
    let reply = gateway.chat("");
    assert_eq!((reply.status, &reply.json()["error"]["metadata"]["reason"]), (502, &"connect".into()), "{reply:?}");

    let upstream = Upstream::start(silent);
    check(&Gateway::before(&upstream, &["--deadline", "200ms"]), 504, &["deadline"], false);

    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", (64 << 20) + 1);
        let mut client = connect(gateway.api);
        client.write_all(head.as_bytes()).unwrap();
        let reply = until(&mut client, "}}");
        assert_eq!(Reply::parse(&reply).status, 413, "{reply}");
    }
    assert_eq!(upstream.seen(), Vec::<String>::new());
}

#[test]
fn a_key_that_is_refused_is_not_the_clients_trouble() {
    let upstream = Upstream::start(|request, stream| {
        let answer = if request.contains("sk-or-v1-dead") {
            let body = r#"{"error":{"code":401,"message":"User not found."}}"#;
            response("401 Unauthorized", "content-type: application/json\r\n", body)
        } else {
            response("200 OK", "content-type: application/json\r\n", r#"{"id":"gen-1","choices":[]}"#)
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let keys = [("OPENROUTER_API_KEY_1", "sk-or-v1-dead"), ("OPENROUTER_API_KEY_2", "sk-or-v1-live")];
    let gateway = Gateway::start(&["--upstream", &upstream.base()], &keys);
    // so many that the idle keys, drawn by lot, have both had a turn
    let replies: Vec<_> = (0..40).map(|_| gateway.chat("")).collect();
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.header("x-balancer-key") == Some("api-key-2")));
    let tries: Vec<_> = replies.iter().map(|reply| reply.header("x-balancer-attempts").unwrap()).collect();
    assert!(tries.iter().filter(|tries| **tries == "2").count() <= 1, "{tries:?}");
    assert_eq!(get(gateway.admin, "/readyz", "").status, 200);
    let stats = get(gateway.admin, "/stats", "").body;
    assert!(stats.contains("api-key-1") && stats.contains("invalid_key"), "{stats}");
}
