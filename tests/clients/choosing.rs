//! Which key serves whom, as the simulator sees it, when a real client asks the gateway.

use std::time::{Duration, Instant};

use async_openai::{
    Client,
    config::OpenAIConfig,
    error::OpenAIError,
    types::chat::{ChatCompletionRequestUserMessage, CreateChatCompletionRequestArgs},
};
use tokio::{net::TcpListener, time::sleep};
use tower_openrouter::simulator::{Scenario, Simulator, serve};

use super::process::{Gateway, PATIENCE};

/// A gateway with this configuration before a simulator of this scenario.
struct World {
    simulator: Simulator,
    client: Client<OpenAIConfig>,
    gateway: Gateway,
}

impl World {
    async fn new(name: &str, scenario: &str, configuration: &str) -> Self {
        let simulator = Simulator::new(Scenario::from_toml(scenario).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}/api/v1", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, simulator.clone()));
        let mut file = format!("upstream = \"{upstream}\"\n{configuration}");
        for key in simulator.keys() {
            file += &format!(
                "\n[[keys]]\nlabel = \"{}\"\nkey = \"{}\"\naccount = \"{}\"\ntags = [\"{0}\"]\n",
                key.label, key.secret, key.account
            );
        }
        let path = std::env::temp_dir().join(format!("tower-openrouter-clients-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, file).unwrap();
        let config = path.to_str().unwrap().to_owned();
        let start = move || Gateway::start(&["--config", &config], &[("TOWER_OPENROUTER_POLL_INTERVAL", "1s")]);
        let gateway = tokio::task::spawn_blocking(start).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let config = OpenAIConfig::new().with_api_base(format!("http://{}/v1", gateway.api)).with_api_key("any");
        Self { simulator, client: Client::with_config(config), gateway }
    }

    /// Asks, and waits for the whole answer; which key served.
    async fn ask(&self, model: &str, user: &str) -> Result<String, OpenAIError> {
        let request = CreateChatCompletionRequestArgs::default()
            .model(model)
            .user(user)
            .max_completion_tokens(6_u32)
            .messages([ChatCompletionRequestUserMessage::from("Say six words.").into()])
            .build()
            .unwrap();
        self.client.chat().create(request).await?;
        let log = self.simulator.log();
        assert_eq!(log.last().unwrap().status, Some(200));
        Ok(log.last().unwrap().key.as_deref().unwrap().to_owned())
    }

    /// Waits until the gateway has asked twice more about each key, so that what it was told first has arrived.
    async fn told(&self) {
        let start = Instant::now();
        let asked = |label: &str| {
            let shown = format!("<{label}>");
            let is_it = |value: &http::HeaderValue| value.to_str().is_ok_and(|value| value.ends_with(&shown));
            let requests = self.simulator.requests();
            let of_key = requests.iter().filter(|request| request.headers.get("authorization").is_some_and(is_it));
            of_key.filter(|request| request.uri.path().ends_with("/key")).count()
        };
        let labels: Vec<_> = self.simulator.keys().into_iter().map(|key| key.label).collect();
        let before: Vec<_> = labels.iter().map(|label| asked(label)).collect();
        while labels.iter().zip(&before).any(|(label, before)| asked(label) < before + 2) {
            assert!(start.elapsed() < PATIENCE, "it does not ask: {}", self.gateway.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_groups_of_keys_serve_three_families_of_models() {
    let scenario = r#"
        accounts = [{ name = "a", credits = 50.0 }, { name = "b", credits = 50.0 }]
        keys = [
            { label = "a-1", account = "a" }, { label = "a-2", account = "a" },
            { label = "b-1", account = "b" }, { label = "b-2", account = "b" },
        ]
        models = [{ id = "north/large" }, { id = "north/small" }, { id = "south/large" }, { id = "west/large" }]
        endpoints = [
            { model = "north/large", provider = "DeepInfra" }, { model = "north/small", provider = "DeepInfra" },
            { model = "south/large", provider = "Together" }, { model = "west/large", provider = "Together" },
        ]
    "#;
    let routes = r#"
        models.unrouted = "refuse"
        [[routes]]
        models = ["north/*"]
        accounts = ["a"]
        pick = "round-robin"
        [[routes]]
        models = ["north/small", "south/*"]
        keys = ["b-*"]
        pick = "round-robin"
        [[routes]]
        models = ["west/*"]
        tags = ["a-2"]
    "#;
    let world = World::new("routes", scenario, routes).await;
    for (model, group) in [
        ("north/large", &["a-1", "a-2"][..]),
        ("north/small", &["b-1", "b-2"]),
        ("south/large", &["b-1", "b-2"]),
        ("west/large", &["a-2"]),
    ] {
        let mut served = Vec::new();
        for _ in 0..4 {
            served.push(world.ask(model, "anyone").await.unwrap());
        }
        served.sort();
        served.dedup();
        assert_eq!(served, group, "{model}");
    }
    let seen = world.simulator.log().len();
    let refused = world.ask("east/large", "anyone").await.unwrap_err().to_string();
    assert!(refused.contains("404") && refused.contains("east/large"), "{refused}");
    assert_eq!(world.simulator.log().len(), seen, "it was sent to nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_stays_on_its_account_until_that_cannot_serve() {
    let scenario = r#"
        accounts = [{ name = "a", credits = 50.0 }, { name = "b", credits = 50.0 }, { name = "c", credits = 50.0 }]
        keys = [{ label = "a", account = "a" }, { label = "b", account = "b" }, { label = "c", account = "c" }]
        models = [{ id = "acme/swift-1" }]
        endpoints = [{ model = "acme/swift-1", provider = "DeepInfra", completion_price = 1.0 }]
    "#;
    let world = World::new("sessions", scenario, "select.sessions = true\n").await;
    let users: Vec<_> = (0..12).map(|number| format!("user-{number}")).collect();
    let ask_all = async || {
        let mut keys = Vec::new();
        for user in &users {
            keys.push(world.ask("acme/swift-1", user).await.unwrap());
        }
        keys
    };
    let first = ask_all().await;
    assert!(["a", "b", "c"].iter().all(|key| first.iter().any(|served| served == key)), "{first:?}");
    for _ in 0..3 {
        assert_eq!(ask_all().await, first);
    }
    // out of credit: its conversations move, the others do not
    world.simulator.set_credits("b", -1.0).unwrap();
    let moved = ask_all().await;
    for (before, after) in first.iter().zip(&moved) {
        assert!(if before == "b" { after != "b" } else { after == before }, "{first:?} {moved:?}");
    }
    assert_eq!(ask_all().await, moved);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_is_used_until_its_credit_falls_under_the_threshold_and_again_once_refilled() {
    // each answer is six tokens, which cost 60 cents
    let scenario = r#"
        accounts = [{ name = "a", credits = 50.0 }, { name = "b", credits = 50.0 }]
        keys = [{ label = "first", account = "a", cap = 5.0 }, { label = "second", account = "b", cap = 5.0 }]
        models = [{ id = "acme/swift-1" }]
        endpoints = [{ model = "acme/swift-1", provider = "DeepInfra", completion_price = 100000.0 }]
        reply = { min_tokens = 6, max_tokens = 6 }
    "#;
    let sticky = "credit.limit = true\n[select]\npick = \"sticky\"\nsticky_floor = 1.0\nsticky_back = 2.0\n";
    let world = World::new("sticky", scenario, sticky).await;
    world.told().await;
    let mut served = Vec::new();
    for _ in 0..12 {
        served.push(world.ask("acme/swift-1", "anyone").await.unwrap());
    }
    // 5 − 7 × 0.60 is the first that is less than 1
    let expected: Vec<_> = (0..12).map(|number| if number < 7 { "first" } else { "second" }).collect();
    assert_eq!(served, expected);
    assert!(world.simulator.log().iter().all(|attempt| attempt.status == Some(200)), "nothing was refused");
    world.simulator.set_key_cap("first", Some(20.0)).unwrap();
    world.told().await;
    assert_eq!(world.ask("acme/swift-1", "anyone").await.unwrap(), "first");
}
