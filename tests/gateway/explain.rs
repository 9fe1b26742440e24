//! "Why this key?", asked of a gateway.

use serde_json::json;

use super::support::*;

const ASKS: &str = "x-balancer-explain: 1\r\n";

/// A gateway with two keys before an upstream that knows only the second.
fn with_a_dead_key(flags: &[&str]) -> (Upstream, Gateway) {
    let upstream = Upstream::start(|request, stream| {
        let dead = request.to_ascii_lowercase().contains("bearer sk-or-v1-dead");
        let json = "content-type: application/json\r\n";
        let answer = match dead {
            true => {
                response("401 Unauthorized", json, r#"{"error":{"code":401,"message":"No auth credentials found"}}"#)
            }
            false => response(
                "200 OK",
                json,
                r#"{"id":"gen-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"cost":0.25}}"#,
            ),
        };
        std::io::Write::write_all(stream, answer.as_bytes()).unwrap();
    });
    let base = upstream.base();
    let flags = [&["--upstream", &base], flags].concat();
    let gateway =
        Gateway::start(&flags, &[("OPENROUTER_API_KEY_1", "sk-or-v1-dead"), ("OPENROUTER_API_KEY_2", "sk-or-v1-fine")]);
    (upstream, gateway)
}

fn told(gateway: &Gateway, reply: &Reply, headers: &str) -> Reply {
    get(gateway.admin, &format!("/explain/{}", reply.header("x-request-id").unwrap()), headers)
}

#[test]
fn who_asks_is_answered_in_the_header_and_told_the_whole_at_the_admin_address() {
    let (upstream, gateway) = with_a_dead_key(&[]);
    // which key comes first is luck
    let mut failed_over = false;
    for _ in 0..20 {
        let reply = gateway.chat(ASKS);
        assert_eq!(reply.status, 200);
        let header = reply.header("x-balancer-explain").expect("the request asked").to_owned();
        let whole = told(&gateway, &reply, "").json();
        assert_eq!(whole["id"], *reply.header("x-request-id").unwrap());
        let attempts = whole["attempts"].as_array().unwrap();
        let last = attempts.last().unwrap();
        assert_eq!((&last["key"], &last["ending"]), (&json!("api-key-2"), &json!("complete")), "{whole:#}");
        assert_eq!(last["usage"], json!({"prompt_tokens": 3, "completion_tokens": 4, "cost_usd": 0.25}));
        assert_eq!(whole["result"]["status"], 200);
        if attempts.len() == 2 {
            failed_over = true;
            assert_eq!(header, "1:api-key-1=invalid_key(60s) next=failover;2:api-key-2=ok out=ruled_out*1");
            break;
        }
        assert_eq!(header, "1:api-key-2=ok");
    }
    assert!(failed_over, "twenty picks of two never met the first");
    let reply = gateway.chat(ASKS);
    assert_eq!(reply.header("x-balancer-explain"), Some("1:api-key-2=ok out=resting:invalid_key*1"));
    for request in upstream.seen() {
        assert!(!request.to_ascii_lowercase().contains("x-balancer"), "{request}");
    }
    let secrets = [told(&gateway, &reply, "").body, gateway.log()].concat();
    assert!(!secrets.contains("sk-or-v1"), "{secrets}");
}

#[test]
fn who_does_not_ask_is_explained_only_if_all_are() {
    for (flags, kept, header) in [
        (&[][..], false, false),
        (&["--explain", "off"][..], false, false),
        (&["--explain", "all"][..], true, false),
        (&["--explain", "all", "--no-balancer-headers"][..], true, false),
    ] {
        let upstream = Upstream::fine();
        let gateway = Gateway::before(&upstream, flags);
        let reply = gateway.chat("");
        assert_eq!(reply.header("x-balancer-explain").is_some(), header, "{flags:?}");
        assert_eq!(told(&gateway, &reply, "").status == 200, kept, "{flags:?}");
    }
    for (flags, kept, header) in [
        (&["--explain", "off"][..], false, false),
        (&["--explain", "asked", "--no-balancer-headers"][..], true, false),
        (&["--explain", "all"][..], true, true),
    ] {
        let upstream = Upstream::fine();
        let gateway = Gateway::before(&upstream, flags);
        let reply = gateway.chat(ASKS);
        assert_eq!(reply.header("x-balancer-explain").is_some(), header, "{flags:?}");
        assert_eq!(told(&gateway, &reply, "").status == 200, kept, "{flags:?}");
        let passed_on = upstream.seen().iter().any(|request| request.to_ascii_lowercase().contains("x-balancer"));
        assert!(!passed_on, "{flags:?}");
    }
}

#[test]
fn a_request_that_runs_can_be_asked_about_by_the_id_its_client_gave() {
    let upstream = Upstream::start(|_, stream| {
        let begun = format!("{STREAM_HEAD}{}", chunk("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"));
        std::io::Write::write_all(stream, begun.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    });
    let gateway = Gateway::before(&upstream, &[]);
    let mut stream = connect(gateway.api);
    let headers = format!("{ASKS}X-Request-Id: mine/7\r\n");
    let text = request("POST", "/v1/chat/completions", &headers, CHAT);
    std::io::Write::write_all(&mut stream, text.as_bytes()).unwrap();
    let head = until(&mut stream, "\r\n\r\n");
    assert!(head.contains("x-balancer-explain: 1:api-key=200\r\n"), "{head}");
    let whole = get(gateway.admin, "/explain/mine%2F7", "").json();
    assert_eq!((&whole["id"], &whole["result"]["kind"]), (&json!("mine/7"), &json!("answered")));
    assert_eq!((&whole["attempts"][0]["key"], &whole["attempts"][0]["ending"]), (&json!("api-key"), &json!(null)));
}

#[test]
fn a_refusal_is_explained_and_who_may_not_come_in_is_not() {
    let upstream = Upstream::answering(
        "401 Unauthorized",
        "content-type: application/json\r\n",
        r#"{"error":{"code":401,"message":"no"}}"#,
    );
    let gateway = Gateway::before(&upstream, &["--access-token", "let-me-in", "--max-wait", "0s"]);
    let asks = format!("{ASKS}authorization: Bearer let-me-in\r\n");
    assert_eq!(gateway.chat(&asks).status, 429);
    let reply = gateway.chat(&asks);
    assert_eq!(reply.header("x-balancer-explain"), Some("1:-=no_key out=resting:invalid_key*1"), "{reply:?}");
    let whole = told(&gateway, &reply, "").json();
    assert_eq!((&whole["result"]["kind"], &whole["result"]["why"]), (&json!("rejected"), &json!("no_key")));
    let reply = gateway.chat(ASKS);
    assert_eq!((reply.status, reply.header("x-balancer-explain")), (401, None));
    assert_eq!(told(&gateway, &reply, "").status, 404);
}

#[test]
fn traces_ask_for_the_admin_token_and_what_is_not_kept_is_a_404_in_json() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--admin-token", "operator"]);
    let reply = gateway.chat(ASKS);
    for wrong in ["", "authorization: Bearer other\r\n"] {
        let refused = told(&gateway, &reply, wrong);
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!(401)), "{wrong}");
    }
    let token = "authorization: Bearer operator\r\n";
    assert_eq!(told(&gateway, &reply, token).status, 200);
    for path in ["/explain/unknown", "/explain/%FF", "/explain/", "/explain", "/explain/a/b"] {
        let missing = get(gateway.admin, path, token);
        assert_eq!((missing.status, &missing.json()["error"]["code"]), (404, &json!(404)), "{path}");
        assert_eq!(missing.header("content-type"), Some("application/json"), "{path}");
    }
    assert_eq!(get(gateway.api, "/explain/unknown", "").status, 404, "only the admin address tells");
}
