//! `tower-openrouter keys`, run as a process against a simulator on loopback.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command};
use tower_openrouter::simulator::{Fault, Scenario, Simulator, What, serve};

const SCENARIO: &str = r#"
accounts = [
    { name = "alpha", credits = 10.0, used = 4.0 },
    { name = "beta", credits = 1.0, used = 2.0, organization = true },
]
workspaces = [{ name = "tight", account = "alpha", budgets = [{ limit = 0.0, reset = "daily" }] }]
models = [{ id = "acme/swift" }]
endpoints = [{ model = "acme/swift", provider = "DeepInfra" }]

[[keys]]
label = "fine"
account = "alpha"
secret = "sk-or-v1-canary-fine"
cap = 2.0
reset = "weekly"
used = 0.5

[[keys]]
label = "disabled"
account = "alpha"
secret = "sk-or-v1-canary-disabled"
disabled = true

[[keys]]
label = "spent"
account = "alpha"
secret = "sk-or-v1-canary-spent"
cap = 1.0
used = 1.0

[[keys]]
label = "tight"
account = "alpha"
workspace = "tight"
secret = "sk-or-v1-canary-tight"

[[keys]]
label = "boss"
account = "alpha"
secret = "sk-or-v1-canary-boss"
management = true

[[keys]]
label = "owing"
account = "beta"
secret = "sk-or-v1-canary-owing"
"#;

struct Upstream {
    simulator: Simulator,
    url: String,
}

impl Upstream {
    async fn start(scenario: Scenario) -> Self {
        let simulator = Simulator::new(scenario).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v1", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, simulator.clone()));
        Self { simulator, url }
    }
}

/// Runs the command with these keys, and nothing of the machine's own settings.
async fn run(flags: &[&str], keys: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-openrouter"));
    command.env_clear().arg("keys").args(flags).envs(keys.iter().copied()).stdin(Stdio::null());
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The last column of each line, by its first.
fn status_of<'a>(table: &'a str, label: &str) -> &'a str {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(label)).unwrap_or_else(|| {
        panic!("no line for {label}: {table}");
    });
    line.rsplit("  ").next().unwrap()
}

const FINE: (&str, &str) = ("OPENROUTER_API_KEY", "sk-or-v1-canary-fine");
const ALL: [(&str, &str); 2] = [
    FINE,
    (
        "OPENROUTER_API_KEYS",
        "sk-or-v1-canary-disabled,sk-or-v1-canary-spent,sk-or-v1-canary-tight,sk-or-v1-canary-boss,sk-or-v1-canary-owing",
    ),
];

#[tokio::test]
async fn each_key_has_a_line_with_what_it_may_spend() {
    let upstream = Upstream::start(Scenario::from_toml(SCENARIO).unwrap()).await;
    let output = run(&["--upstream", &upstream.url], &ALL).await;
    let table = text(&output.stdout);
    for (label, status) in [
        ("api-key", "ok"),
        ("api-keys-1", "refused"),
        ("api-keys-2", "limit spent"),
        ("api-keys-3", "budget spent"),
        ("api-keys-4", "management key"),
        ("api-keys-5", "negative balance"),
    ] {
        assert_eq!(status_of(table, label), status, "{table}");
    }
    let fine = table.lines().nth(1).unwrap();
    for told in ["$2.00", "$0.50", "$1.50", "weekly, in ", "$6.00", "free 0 of 1000 today"] {
        assert!(fine.contains(told), "{told}: {table}");
    }
    assert!(output.status.success(), "one key is usable");
    let told = text(&output.stderr);
    assert_eq!(
        told,
        "api-keys-1: GET /key was answered 401 (invalid_key); it is unknown, disabled, deleted or expired: replace it\n"
    );
    assert_eq!(upstream.simulator.counts().attempts, 0, "asking costs nothing");
    assert!(!table.contains("canary") && !told.contains("canary"));
}

#[tokio::test]
async fn programs_get_json() {
    let upstream = Upstream::start(Scenario::from_toml(SCENARIO).unwrap()).await;
    let output = run(&["--json", "--upstream", &upstream.url], &ALL).await;
    assert!(output.status.success());
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["usable"], 1);
    let fine = &value["keys"][0];
    let expected = [
        ("key", json!("api-key")),
        ("limit_usd", json!(2.0)),
        ("used_usd", json!(0.5)),
        ("remaining_usd", json!(1.5)),
        ("balance_usd", json!(6.0)),
        ("reset", json!("weekly")),
        ("status", json!("ok")),
        ("usable", json!(true)),
    ];
    for (member, wanted) in expected {
        assert_eq!(fine[member], wanted, "{member}");
    }
    let refused = &value["keys"][1];
    assert_eq!((&refused["status"], &refused["usable"]), (&json!("refused"), &json!(false)));
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("401")));
    assert_eq!(value["keys"][3]["budgets"][0]["remaining_usd"], 0.0);
    assert!(!text(&output.stdout).contains("canary"));
}

#[tokio::test]
async fn the_status_is_1_when_no_key_can_be_used() {
    let upstream = Upstream::start(Scenario::from_toml(SCENARIO).unwrap()).await;
    let keys = [("OPENROUTER_API_KEYS", "sk-or-v1-canary-disabled,sk-or-v1-canary-spent")];
    let output = run(&["--upstream", &upstream.url], &keys).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().count(), 3, "the table is shown all the same");
    assert!(text(&output.stderr).ends_with("error: none of the 2 keys can be used\n"), "{output:?}");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_is_another_is_told_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api/v1", free.local_addr().unwrap());
    drop(free);
    let output = run(&["--upstream", &url], &[FINE]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(status_of(text(&output.stdout), "api-key"), "unreachable");
    let told = text(&output.stderr);
    assert!(told.starts_with("api-key: GET /key failed: no connection to the upstream could be made: "), "{told}");
    assert!(told.contains("is --upstream right"), "{told}");

    let other = Upstream::start(Scenario::from_toml(SCENARIO).unwrap()).await;
    let page = What::Raw { status: 200, content_type: "text/html".into(), body: "<html>sk-or-v1-canary-fine".into() };
    other.simulator.inject(Fault::new(page)).unwrap();
    let output = run(&["--upstream", &other.url], &[FINE]).await;
    assert_eq!(status_of(text(&output.stdout), "api-key"), "unknown");
    let told = text(&output.stderr);
    assert!(told.starts_with("api-key: GET /key was answered with something else: it is not JSON"), "{told}");
    assert!(!told.contains("canary"));
}

#[tokio::test]
async fn keys_of_one_account_ask_for_its_balance_once_and_not_all_may() {
    let mut scenario = Scenario::from_toml(SCENARIO).unwrap();
    scenario.wire.credits_management_only = true;
    let upstream = Upstream::start(scenario).await;
    let output = run(&["--json", "--upstream", &upstream.url], &ALL).await;
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["keys"][0]["balance_usd"], Value::Null);
    assert_eq!(value["keys"][5]["status"], "ok", "who knows");
    assert_eq!(upstream.simulator.counts().lookups, 6 + 2, "six keys, two accounts");
}

#[tokio::test]
async fn without_a_key_it_shows_those_of_the_simulator() {
    let output = run(&[], &[]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "no key is set: these are the keys of the simulator\n");
    let table = text(&output.stdout);
    assert_eq!(status_of(table, "alpha-1"), "ok");
    assert_eq!(status_of(table, "gamma-1"), "free models only");
}

#[tokio::test]
async fn a_configuration_file_says_the_same_as_to_the_gateway() {
    let upstream = Upstream::start(Scenario::from_toml(SCENARIO).unwrap()).await;
    let path = std::env::temp_dir().join(format!("tower-openrouter-keys-{}.toml", std::process::id()));
    let file = format!(
        "upstream = {:?}\n[[keys]]\nlabel = \"ours\"\nkey = \"sk-or-v1-canary-fine\"\naccount = \"acme\"\n",
        upstream.url
    );
    std::fs::write(&path, file).unwrap();
    let output = run(&["--config", path.to_str().unwrap()], &[]).await;
    std::fs::write(&path, "[[keys]]\nkye = \"sk-or-v1-canary-fine\"\n").unwrap();
    let refused = run(&["--config", path.to_str().unwrap()], &[]).await;
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success(), "{output:?}");
    let line = text(&output.stdout).lines().nth(1).unwrap();
    assert!(line.starts_with("ours  acme"), "{line}");
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("line 2") && told.contains("kye") && !told.contains("canary"), "{told}");
}
