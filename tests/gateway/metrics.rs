//! `/metrics`, and the dashboard that is drawn from it.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{prometheus::Page, support::*};

const JSON: &str = "content-type: application/json\r\n";
const DASHBOARD: &str = include_str!("../../examples/grafana/tower-openrouter.json");

/// Does not know the key `dead`, and fails when it is asked for the model `flaky` for the first time.
fn upstream() -> Upstream {
    let flaky = AtomicBool::new(true);
    Upstream::start(move |request, stream| {
        let answer = if request.starts_with("GET") && request.contains("sk-or-v1-good") {
            let told = json!({"limit": 3, "limit_remaining": 2, "usage": 1, "creator_user_id": "user_a"});
            response("200 OK", JSON, &json!({"data": told}).to_string())
        } else if request.starts_with("GET") {
            response("500 Internal Server Error", "", "")
        } else if request.contains("sk-or-v1-dead") {
            response("401 Unauthorized", JSON, r#"{"error":{"code":401,"message":"User not found."}}"#)
        } else if request.contains("flaky") && flaky.swap(false, SeqCst) {
            response("503 Service Unavailable", JSON, r#"{"error":{"code":503,"message":"Overloaded"}}"#)
        } else if request.contains("unknown") {
            response("400 Bad Request", JSON, r#"{"error":{"code":400,"message":"No such model"}}"#)
        } else {
            let usage = json!({"prompt_tokens": 5, "completion_tokens": 7, "cost": 0.25});
            response(
                "200 OK",
                JSON,
                &json!({"id": "gen-1", "model": "acme/swift-1", "choices": [], "usage": usage}).to_string(),
            )
        };
        let _left = stream.write_all(answer.as_bytes());
    })
}

fn page(gateway: &Gateway, headers: &str) -> Page {
    let reply = get(gateway.admin, "/metrics", headers);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    Page::parse(&reply.body)
}

fn name(short: &str) -> String {
    format!("tower_openrouter_{short}")
}

/// The names of figures in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("tower_openrouter_"))
}

/// Everything that is asked of Prometheus below `value`.
fn queries<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                match value {
                    Value::String(text) if matches!(member.as_str(), "expr" | "query") => found.push(text),
                    value => queries(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn each_figure_of_the_dashboard_is_on_the_page_and_counts_what_happened() {
    let upstream = upstream();
    let path = std::env::temp_dir().join(format!("tower-openrouter-metrics-{}.toml", std::process::id()));
    let file = "credit.limit = true\nselect.pick = \"round-robin\"\n\
        [[keys]]\nkey = \"sk-or-v1-dead\"\nlabel = \"dead\"\n[[keys]]\nkey = \"sk-or-v1-good\"\nlabel = \"good\"\n";
    fs::write(&path, file).unwrap();
    let flags = ["--config", path.to_str().unwrap(), "--upstream", &upstream.base()];
    let gateway = Gateway::start(&flags, &[("TOWER_OPENROUTER_POLL_INTERVAL", "1s")]);
    // the page once it has what is waited for.
    let once = |there: &dyn Fn(&Page) -> bool| {
        let start = Instant::now();
        loop {
            let page = page(&gateway, "");
            if there(&page) {
                return page;
            }
            assert!(start.elapsed() < PATIENCE, "{page:#?} {}", gateway.log());
            thread::sleep(Duration::from_millis(5));
        }
    };
    let of = |page: &Page, short: &str, labels: &[(&str, &str)]| page.sum(&name(short), labels);
    assert_eq!(of(&page(&gateway, ""), "keys", &[("state", "up")]), 2.0, "before any traffic");

    let ask = |model: &str| post(gateway.api, "/v1/chat/completions", "", &format!(r#"{{"model":"{model}"}}"#)).status;
    for (model, status) in [("acme/swift-1", 200), ("acme/swift-1", 200), ("flaky", 200), ("unknown", 400)] {
        assert_eq!(ask(model), status, "{model}");
    }
    let spendable = |page: &Page| of(page, "key_spendable_usd", &[("key", "good")]) > 0.0;
    let page = once(&spendable);
    let seen = upstream.seen().iter().filter(|request| request.starts_with("POST")).count();
    assert_eq!(of(&page, "attempts_total", &[]), seen as f64);
    assert_eq!(of(&page, "requests_total", &[("outcome", "success"), ("model", "acme/swift-1")]), 2.0);
    assert_eq!(of(&page, "requests_total", &[("outcome", "failed"), ("error_type", "bad_request")]), 1.0);
    assert_eq!(of(&page, "key_rotations_total", &[("error_type", "invalid_key")]), 1.0);
    assert_eq!(of(&page, "retries_total", &[("error_type", "provider_unavailable")]), 1.0);
    assert_eq!((of(&page, "key_up", &[("key", "dead")]), of(&page, "key_up", &[("key", "good")])), (0.0, 1.0));
    assert!(of(&page, "key_rest_seconds", &[("key", "dead")]) > 1.0);
    assert_eq!(of(&page, "key_cost_nano_usd_total", &[("key", "good")]), 750e6);
    assert_eq!(of(&page, "tokens_total", &[("type", "output")]), 21.0);

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    let drawn: BTreeSet<_> = asked.iter().flat_map(|query| names(query)).collect();
    assert!(drawn.len() > 20, "{drawn:?}");
    let there: BTreeSet<_> = page.samples().map(|sample| sample.name.as_str()).collect();
    let missing: Vec<_> = drawn.difference(&there).collect();
    assert!(missing.is_empty(), "drawn and not exported: {missing:?}");

    // a reload without the dead key: what requests did is still counted, and its series are gone
    fs::write(&path, file.replacen("[[keys]]\nkey = \"sk-or-v1-dead\"\nlabel = \"dead\"\n", "", 1)).unwrap();
    gateway.signal("HUP");
    let later = once(&|page| page.values("key") == ["good"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(of(&later, "requests_total", &[]), 4.0);
    assert_eq!(of(&later, "attempts_total", &[("key", "good")]), of(&page, "attempts_total", &[("key", "good")]));
}

#[test]
fn the_page_asks_for_the_admin_token_and_is_for_the_operator_alone() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--admin-token", "operator"]);
    for wrong in ["", "authorization: Bearer other\r\n"] {
        assert_eq!(get(gateway.admin, "/metrics", wrong).status, 401, "{wrong}");
    }
    assert!(page(&gateway, "authorization: Bearer operator\r\n").series() > 10);
    assert_eq!(get(gateway.api, "/metrics", "").status, 404);
    assert_eq!(post(gateway.admin, "/metrics", "authorization: Bearer operator\r\n", "").status, 405);
}
