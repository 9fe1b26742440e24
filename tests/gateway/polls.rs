//! What the gateway asks beside its traffic, and shows of it at `/stats`.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::support::*;

const JSON: &str = "content-type: application/json\r\n";
const ON: (&str, &str) = ("TOWER_OPENROUTER_POLL_INTERVAL", "1s");

/// Tells every key that it has two dollars left of three, and its account that it has five.
fn telling() -> Upstream {
    Upstream::start(|request: &str, stream: &mut TcpStream| {
        let body = match request.split(' ').nth(1) {
            Some("/api/v1/key") => {
                json!({"data": {"limit": 3, "limit_remaining": 2, "usage": 1, "creator_user_id": "user_a"}})
            }
            Some("/api/v1/credits") => json!({"data": {"total_credits": 10, "total_usage": 5}}),
            Some("/api/v1/models") => json!({"data": []}),
            _ => json!({"id": "gen-1", "choices": []}),
        };
        let _left = stream.write_all(response("200 OK", JSON, &body.to_string()).as_bytes());
    })
}

/// The endpoints by `/stats`, once each has what `wanted` looks for.
fn endpoints(gateway: &Gateway, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let stats = get(gateway.admin, "/stats", "").json();
        let endpoints = stats["endpoints"].as_array().unwrap();
        if endpoints.iter().all(&wanted) {
            return endpoints.clone();
        }
        assert!(start.elapsed() < PATIENCE, "{stats}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stats_show_what_each_key_may_spend() {
    let upstream = telling();
    let keys = [("OPENROUTER_API_KEY", "sk-or-v1-one"), ON];
    let gateway = Gateway::start(&["--upstream", &upstream.base()], &keys);
    let endpoints = endpoints(&gateway, |endpoint| endpoint["credit"]["balance_usd"].is_number());
    let credit = &endpoints[0]["credit"];
    for (member, usd) in [
        ("spendable_usd", 2.0),
        ("key_spendable_usd", 2.0),
        ("balance_usd", 5.0),
        ("limit_usd", 3.0),
        ("used_usd", 1.0),
        ("reserved_usd", 0.0),
    ] {
        assert_eq!(credit[member], usd, "{member}");
    }
    assert_eq!(endpoints[0]["account"], "user_a");
    assert!(credit["told_s_ago"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{credit}");
    assert_eq!(endpoints[0]["attempts"], 0, "questions are no attempts");
}

#[test]
fn the_simulators_keys_are_asked_about_too() {
    let gateway = Gateway::start(&[], &[ON]);
    let endpoints = endpoints(&gateway, |endpoint| endpoint["credit"]["balance_usd"].is_number());
    let of = |label: &str| endpoints.iter().find(|endpoint| endpoint["key"] == label).unwrap()["credit"].clone();
    assert_eq!(of("alpha-1")["key_spendable_usd"], "unlimited");
    assert_eq!(of("alpha-2")["key_spendable_usd"], 2.0);
    assert_eq!(of("gamma-1")["balance_usd"], 0.0);
}

#[test]
fn nothing_is_asked_when_the_interval_is_0() {
    let upstream = telling();
    let gateway = Gateway::before(&upstream, &["--poll-interval", "0s"]);
    assert_eq!(gateway.chat("").status, 200);
    assert!(upstream.seen().iter().all(|request| request.starts_with("POST ")), "{:?}", upstream.seen());
    assert!(get(gateway.admin, "/stats", "").json()["endpoints"][0].get("credit").is_none());
}

#[test]
fn an_interval_below_a_second_is_refused() {
    let told = refused(&["--poll-interval", "10ms"], &[]);
    assert!(told.contains("poll_interval") && told.contains("shorter than 1s"), "{told}");
}

#[test]
fn keys_of_a_file_that_was_read_again_are_asked_about() {
    let upstream = telling();
    let path = std::env::temp_dir().join(format!("tower-openrouter-polls-{}.toml", std::process::id()));
    let write = |keys: &[&str]| {
        let keys: String =
            keys.iter().map(|key| format!("[[keys]]\nlabel = \"{key}\"\nkey = \"sk-or-v1-{key}\"\n")).collect();
        fs::write(&path, format!("upstream = \"{}\"\n{keys}", upstream.base())).unwrap();
    };
    write(&["old"]);
    let gateway = Gateway::start(&["--config", path.to_str().unwrap()], &[ON]);
    endpoints(&gateway, |endpoint| endpoint["credit"]["limit_usd"].is_number());
    write(&["old", "new"]);
    gateway.signal("HUP");
    let known = |endpoint: &Value| endpoint["credit"]["limit_usd"].is_number();
    let start = Instant::now();
    while endpoints(&gateway, known).len() < 2 {
        assert!(start.elapsed() < PATIENCE, "{}", gateway.log());
    }
    fs::remove_file(&path).unwrap();
}
