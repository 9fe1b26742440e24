use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    DeadlineLayer,
    lab::{Ask, Ending, Run, Scenario, run_asks, stack_fn},
    pace::PacePolicy,
    request::Priority,
};

const WORLD: &str = r#"
    name = "small"
    length_s = 20.0
    patience = { max_wait_s = 5.0, deadline_s = 20.0 }
    [world]
    accounts = [{ name = "a", credits = 10.0 }, { name = "b", credits = 10.0 }]
    keys = [{ label = "a-1", account = "a" }, { label = "b-1", account = "b" }]
    models = [{ id = "acme/swift-1" }, { id = "acme/spare-1" }]
    endpoints = [
      { model = "acme/swift-1", provider = "One", completion_price = 1.0, accept_ms = 50, first_token_ms = 200, tokens_per_second = 100 },
      { model = "acme/spare-1", provider = "Two", completion_price = 1.0, accept_ms = 50, first_token_ms = 200, tokens_per_second = 100 },
    ]
    [world.reply]
    min_tokens = 1000
    max_tokens = 1000
"#;

/// A key that fails whatever it is sent.
const BROKEN_KEY: &str = "[[world.faults]]\nkey = \"a-1\"\nwhat = { kind = \"status\", status = 502 }\n";
/// A model that nobody serves.
const BROKEN_MODEL: &str = "[[world.faults]]\nmodel = \"acme/swift-1\"\nwhat = { kind = \"status\", status = 503 }\n";

const DEFAULT_ORDER: &str = r#"layers = ["respond", "deadline", "buffer", "retry", "provider", "hedge", "commit-gate", "select",
    "monitor", "breaker", "limit", "authorize", "timeouts"]"#;

/// A line each, of every section.
const SAMPLE: &str = r#"name = "sample"
about = "all sections"
layers = ["keep-alive", "hear-out", "respond", "deadline", "buffer", "route", "retry", "provider", "hedge", "commit-gate",
  "select", "monitor", "breaker", "limit", "authorize", "timeouts"]
deadline = "1m"
timeouts = { headers = "1m", hear_out = "10s", hear_out_bytes = "1KiB" }
stream = { hold = "10s", keep_alive_after = "5s" }
select = { pick = "sticky", sessions = true, sticky_floor = 0.5, max_ejected = 0.5 }
waiting = { max_wait = "5s", max_waiters = 10 }
models = { fallback = ["acme/spare-1"], variant = "nitro" }
provider = { zdr = true }
credit = { poll_interval = "30s", limit = true, floor = 0.1 }
breaker = { failures = 5, window = "30s" }
retry = { attempts = 2, unclear = true }
hedge = { enabled = true, share = 0.1 }
limits = { max_in_flight = 5, adaptive = "aimd", memory = "1GiB" }
pace = { learn = false, requests_per_minute = 600 }
"#;

fn stack(text: &str) -> Composed {
    Composed::from_toml("test", text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn ran(stack: &dyn Stack, faults: &str, number: u64) -> Run {
    let scenario = Scenario::from_toml(&format!("{WORLD}{faults}")).unwrap();
    let ask = |number| Ask {
        at: Duration::from_millis(100 * number),
        model: "acme/swift-1".into(),
        prompt_tokens: 100,
        reply_tokens: 20,
        stream: number % 2 == 0,
        session: None,
        priority: Priority::Normal,
        deadline: None,
    };
    run_asks(&scenario, stack, 1, (0..number).map(ask).collect()).unwrap()
}

fn served(run: &Run) -> usize {
    run.samples.iter().filter(|sample| sample.ending == Ending::Served).count()
}

/// How many attempts the upstream saw of the clients' requests.
fn attempts(run: &Run) -> usize {
    run.sent.iter().filter(|sent| sent.request.is_some()).count()
}

#[test]
fn an_empty_file_is_the_default_balancer_with_the_pace_it_learns() {
    let literal = stack_fn("literal", |world: &World| {
        let deadline = DeadlineLayer::new(Duration::from_secs_f64(world.patience().deadline_s))?;
        let balancer = Balancer::builder(world.pool()?).pace(PacePolicy::default()).deadline(deadline);
        let balancer = balancer.max_wait(Duration::from_secs_f64(world.patience().max_wait_s)).build(world.leaf());
        let handle = balancer.handle().clone();
        Ok(Built::new(balancer).watch(handle))
    });
    for faults in ["", BROKEN_KEY] {
        let (empty, literal) = (ran(&stack("credit.poll_interval = \"0s\""), faults, 60), ran(&literal, faults, 60));
        assert_eq!(empty.samples, literal.samples);
        assert_eq!(empty.sent, literal.sent);
        assert_eq!(empty.watched, literal.watched);
    }
}

#[test]
fn the_poller_asks_beside_the_traffic_as_often_as_it_is_set() {
    let questions = |text: &str| ran(&stack(text), "", 60).sent.iter().filter(|sent| sent.request.is_none()).count();
    assert_eq!(questions("credit.poll_interval = \"0s\""), 0);
    let (seldom, often) = (questions(""), questions("credit.poll_interval = \"1s\""));
    assert!(0 < seldom && seldom < often, "{seldom} {often}");
}

#[test]
fn the_default_order_said_is_the_default_order() {
    for faults in ["", BROKEN_KEY, BROKEN_MODEL] {
        let (said, left) = (ran(&stack(DEFAULT_ORDER), faults, 60), ran(&stack(""), faults, 60));
        assert_eq!(said.samples, left.samples);
        assert_eq!(said.sent, left.sent);
        assert_eq!(said.watched, left.watched);
    }
}

#[test]
fn what_is_left_out_is_not_there() {
    let left_out = |name: &str| ran(&stack(&DEFAULT_ORDER.replacen(&format!("\"{name}\","), "", 1)), BROKEN_KEY, 40);
    let whole = ran(&stack(DEFAULT_ORDER), BROKEN_KEY, 40);
    assert_eq!(served(&whole), 40);
    assert!(attempts(&whole) > 40, "some met the broken key first");

    let without = left_out("retry");
    assert_eq!(attempts(&without), 40);
    assert!(served(&without) < 40);

    let without = left_out("authorize");
    assert!(without.sent.iter().filter(|sent| sent.request.is_some()).all(|sent| sent.key.is_none()));
    assert_eq!(served(&without), 0);

    // errors stay errors
    let without = ran(&stack(&DEFAULT_ORDER.replacen("\"respond\",", "", 1)), "", 1);
    assert_eq!(served(&without), 1);
    let nobody = "[[world.faults]]\nwhat = { kind = \"reset\" }\n";
    let refused = |text: &str| ran(&stack(text), nobody, 1).samples[0].ending;
    assert!(matches!(refused(DEFAULT_ORDER), Ending::Failed(_)));
    assert_eq!(refused(&DEFAULT_ORDER.replacen("\"respond\",", "", 1)), Ending::Error);
}

#[test]
fn a_retry_below_selection_tries_the_same_key_again() {
    let below = stack(r#"layers = ["respond", "deadline", "buffer", "select", "retry", "monitor", "authorize"]"#);
    let run = ran(&below, BROKEN_KEY, 40);
    let keys_of = |number: usize| {
        run.sent.iter().filter(|sent| sent.request == Some(number)).filter_map(|sent| sent.key).collect::<BTreeSet<_>>()
    };
    assert!((0..40).all(|number| keys_of(number).len() == 1));
    assert!(attempts(&run) > 40 && served(&run) < 40, "{} {}", attempts(&run), served(&run));
}

#[test]
fn a_breaker_opens_as_it_is_set() {
    let opened = |text: &str| {
        let run = ran(&stack(text), BROKEN_KEY, 100);
        run.sent.iter().filter(|sent| sent.request.is_some() && sent.key == Some(0)).count()
    };
    let left_out = opened(&DEFAULT_ORDER.replacen("\"breaker\",", "", 1));
    let (few, more) = (opened("breaker.failures = 2"), opened("breaker.failures = 12"));
    assert!(few < more && more < left_out, "{few} {more} {left_out}");
}

#[test]
fn fallback_models_are_tried_in_either_form() {
    let fallback = "models.fallback = [\"acme/spare-1\"]\n";
    let route = DEFAULT_ORDER.replacen("\"buffer\",", "\"buffer\", \"route\",", 1);
    assert_eq!(served(&ran(&stack(""), BROKEN_MODEL, 3)), 0);
    assert_eq!(served(&ran(&stack(fallback), BROKEN_MODEL, 3)), 3);
    assert_eq!(served(&ran(&stack(&format!("{route}\n{fallback}")), BROKEN_MODEL, 3)), 3);
}

#[test]
fn the_worlds_patience_holds_unless_the_file_says_otherwise() {
    let patience = Patience { max_wait_s: 5.0, deadline_s: 0.5 };
    let settled = |text: &str| {
        let settings = stack(text).settings_in(patience).unwrap();
        (settings.deadline.get(), settings.waiting.max_wait.0)
    };
    let seconds = Duration::from_secs;
    assert_eq!(settled(""), (Duration::from_millis(500), seconds(5)));
    assert_eq!(settled("deadline = \"7s\"\nwaiting.max_waiters = 3"), (seconds(7), seconds(5)));
    assert_eq!(settled("waiting.max_wait = \"9s\""), (Duration::from_millis(500), seconds(9)));
    for deadline_s in [0.0, -1.0, f64::NAN] {
        let error = stack("").settings_in(Patience { deadline_s, ..patience }).unwrap_err();
        assert!(error.to_string().starts_with("the scenario's patience.deadline_s: "), "{error}");
    }
}

#[test]
fn one_setting_is_changed_and_the_rest_stays() {
    let base = stack("about = \"it\"\n[breaker]\nfailures = 7\nwindow = \"30s\"");
    let changed = base.set("breaker.failures", "5").unwrap().set("select.pick", "round-robin").unwrap();
    let changed = changed.set("waiting.max_wait", "3s").unwrap().set("layers", "[\"select\", \"breaker\"]");
    let changed = changed.unwrap_or_else(|error| panic!("{error}"));
    let Settings { breaker, select, waiting, .. } = changed.settings();
    assert_eq!((breaker.failures.get(), breaker.window), (5, Time::seconds(30)));
    assert_eq!((select.pick.to_string(), waiting.max_wait), ("round-robin".to_owned(), Span::seconds(3)));
    assert_eq!((changed.name(), changed.about()), ("test", "it"));
    assert_eq!(base.settings().breaker.failures.get(), 7);
    assert_eq!(base.named("other").set("pace.learn", "false").unwrap().name(), "other");
    // it is a value, whatever it looks like
    let error = stack("").set("breaker.failures", "5\nbreaker.window = 1").unwrap_err();
    assert!(error.to_string().contains("invalid type: string"), "{error}");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, told) in [
        ("\nlayers = [\"selekt\"]", "line 2"),
        ("\nlayers = \"select\"", "line 2"),
        ("\n[breaker]\nfailures = 0", "line 3"),
        ("\n[breaker]\nfailurez = 1", "line 3"),
        ("\n[braker]", "line 2"),
        ("keys = []", "line 1"),
        ("# é\n[breaker", "line 2"),
        ("name = 1", "line 1"),
        ("layers = []", "layers: `select` is missing"),
        ("layers = [\"select\", \"limit\", \"limit\"]", "layers: `limit` is there twice"),
        ("layers = [\"monitor\", \"select\"]", "layers: `monitor` belongs to one key: put it after `select`"),
        ("layers = [\"select\", \"route\"]", "layers: `route` asks for other models"),
        ("retry.min_backoff = \"1m\"", "retry.max_backoff: 30s is shorter than min_backoff"),
        ("models.unrouted = \"refuse\"", "models.unrouted: without routes"),
        ("models.fallback = [\"a/b\", \"a/b\"]", "models.fallback: the fallback model \"a/b\" is given twice"),
        ("provider.order = []", "provider: "),
    ] {
        let error = Composed::from_toml("test", text).unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn a_setting_of_a_layer_that_is_left_out_is_refused() {
    let whole = stack(SAMPLE);
    let layers = whole.head.layers.clone().unwrap();
    for place in layers.iter().filter(|place| !matches!(place, Place::Respond | Place::Select | Place::Monitor)) {
        let name = place.name();
        let without = SAMPLE.replacen(&format!("\"{name}\""), "\"respond\"", 1).replacen(
            "\"respond\", \"deadline",
            "\"deadline",
            1,
        );
        let without = if *place == Place::Deadline { SAMPLE.replacen("\"deadline\", ", "", 1) } else { without };
        let told = format!("it is a setting of `{name}`, which `layers` leaves out");
        match Composed::from_toml("test", &without) {
            Err(error) => assert!(error.to_string().contains(&told), "{name}: {error}"),
            Ok(_) => assert_eq!(*place, Place::Authorize, "it has no setting"),
        }
    }
    let error = stack("layers = [\"select\"]").set("breaker.failures", "3").unwrap_err().to_string();
    assert!(error.starts_with("breaker.failures = 3: breaker.failures: it is a setting of `breaker`"), "{error}");
}

#[test]
fn every_section_can_be_set_at_once() {
    let run = ran(&stack(SAMPLE).set("provider", "{}").unwrap().set("models.variant", "floor").unwrap(), "", 20);
    assert_eq!(served(&run), 20);
}

proptest! {
    #[test]
    fn r119_any_text_is_a_stack_or_an_error_that_names_the_place(
        changes in proptest::collection::vec((
            any::<prop::sample::Index>(), 0..20_usize,
            prop::sample::select(&["", "=", "\"", "[", "]", "{", "\n", "0", "-1", "1e999", "99999999999999999999", "é", "\0", "''"][..]),
        ), 0..6),
        foreign in ".{0,20}",
    ) {
        let mut text = SAMPLE.to_owned();
        for (at, length, put) in changes {
            let mut from = at.index(text.len() + 1);
            let mut to = (from + length).min(text.len());
            while !text.is_char_boundary(from) { from -= 1; }
            while !text.is_char_boundary(to) { to += 1; }
            text.replace_range(from..to, put);
        }
        for text in [text, foreign] {
            if let Err(error) = Composed::from_toml("test", &text) {
                let error = error.to_string();
                let path = error.split_once(": ").map_or("", |(path, _)| path);
                let names_setting = !path.is_empty() && path.bytes().all(|byte| byte.is_ascii_lowercase() || b"_.".contains(&byte));
                prop_assert!(error.contains("at line ") || names_setting, "{}", error);
            }
        }
    }

    #[test]
    fn r119_any_value_of_a_setting_is_one_or_an_error_that_names_it(
        setting in prop::sample::select(&["breaker.failures", "deadline", "layers", "a.b", "provider", "name", "select.pick.x"][..]),
        value in r#"[0-9a-z"'\[\]{}=., -]{0,12}|\PC{0,8}"#,
    ) {
        if let Err(error) = stack("").set(setting, &value) {
            let told = format!("{setting} = {value}: ");
            prop_assert!(error.to_string().starts_with(&told), "{}", error);
        }
    }
}
