use std::time::Duration;

use super::*;
use crate::{
    events::Events,
    outcome::{Cause, Rest, Scope},
    select::WideRest,
};

fn key(secret: &str) -> ApiKey {
    ApiKey::new(secret).unwrap().label(secret)
}

#[test]
fn r024_an_empty_set_is_an_error_and_duplicates_are_one() {
    assert_eq!(Pool::new([]).unwrap_err(), KeyError::NoKeys);
    let pool = Pool::new([key("a"), key("a").label("again"), key("b")]).unwrap();
    assert_eq!(pool.endpoints().len(), 2);
    let known = pool.endpoints()[0].clone();
    assert_eq!(pool.add(key("a")), known, "one key, one state");
}

#[test]
fn a_shared_pool_has_the_same_endpoints_for_the_same_keys() {
    let old = Pool::new([key("a"), key("b"), key("c")]).unwrap();
    let new = old.share([key("c"), key("b").account("acme"), key("d")]).unwrap();
    let (old_keys, new_keys) = (old.endpoints(), new.endpoints());
    assert_eq!(new_keys[0], old_keys[2]);
    assert!(new_keys[1] != old_keys[1], "other settings, another endpoint");
    assert_eq!(new_keys.iter().map(|endpoint| endpoint.key().name()).collect::<Vec<_>>(), ["c", "b", "d"]);
    assert_eq!(old.share([]).unwrap_err(), KeyError::NoKeys);
}

#[tokio::test(start_paused = true)]
async fn a_rest_holds_in_every_pool_that_shares_it() {
    let old = Pool::new([key("a"), key("b")]).unwrap();
    let new = old.share([key("b")]).unwrap();
    let endpoint = &old.endpoints()[1];
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(60)));
    let version = new.state().version();
    old.record(endpoint, &RequestContext::new(), &fault, Instant::now());
    assert!(new.resting(endpoint).is_some() && new.state().version() > version);
    assert!(new.reset("b") && old.resting(endpoint).is_none());
}

#[test]
fn a_key_taken_out_of_service_stays_so_in_a_new_set_whatever_its_settings() {
    let old = Pool::new([key("a"), key("b"), key("c")]).unwrap();
    assert!(old.isolate("a") && old.drain("b") && !old.drain("unknown"));
    let new = old.share([key("a"), key("b").account("acme"), key("c")]).unwrap();
    let states = |pool: &Pool| pool.endpoints().iter().map(Endpoint::admin_state).collect::<Vec<_>>();
    assert_eq!(states(&new), [AdminState::Isolated, AdminState::Draining, AdminState::InService]);
    assert!(new.reset("a") && new.reset("b"));
    assert_eq!(states(&new), [AdminState::InService; 3]);
    assert_eq!(states(&old)[0], AdminState::InService, "it is the same endpoint");
}

#[tokio::test(start_paused = true)]
async fn reset_forgets_penalties_too() {
    let pool = Pool::new([key("a")]).unwrap();
    let (endpoint, now) = (&pool.endpoints()[0], Instant::now());
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(60)));
    pool.record(endpoint, &RequestContext::new(), &fault, now);
    endpoint.figures().fail(&fault, Duration::ZERO, now);
    assert!(endpoint.figures().load(now) > 0.0 && endpoint.figures().recent_first_byte(now).is_some());
    assert!(pool.reset("a"));
    assert!(pool.resting(endpoint).is_none());
    assert_eq!((endpoint.figures().load(now), endpoint.figures().recent_first_byte(now)), (0.0, None));
    assert!(endpoint.take_doubt(), "whoever asks about keys asks about this one");
}

#[test]
fn a_removed_key_says_so() {
    let pool = Pool::new([key("a"), key("b")]).unwrap();
    let gone = pool.endpoints()[0].clone();
    assert!(pool.remove("a") && gone.is_removed());
    assert!(!pool.remove("a"));
    assert_eq!(pool.endpoints().len(), 1);
}

/// What was told since, each as `whose change`.
fn told(events: &mut Events) -> Vec<String> {
    std::iter::from_fn(|| events.try_recv())
        .map(|event| {
            let rest = match event.change {
                Change::RestBegun { cause, until, hinted } | Change::RestExtended { cause, until, hinted } => {
                    format!(
                        " {cause} {} s {}",
                        (until - Instant::now()).as_secs(),
                        if hinted { "hinted" } else { "guessed" }
                    )
                }
                Change::RestLifted { cause } => format!(" {cause}"),
                _ => String::new(),
            };
            format!("{} {}{rest}", event.whose, event.change.as_str())
        })
        .collect()
}

fn asking(model: &str) -> RequestContext {
    let request = RequestContext::new();
    request.set_body(format!("{{\"model\":\"{model}\"}}").into());
    request
}

#[test]
fn r081_what_operators_do_is_told_once_in_every_pool_that_shares() {
    let pool = Pool::new([key("a"), key("b")]).unwrap();
    let mut events = pool.events();
    let group = pool.share([key("a"), key("b").account("acme"), key("c")]).unwrap();
    assert_eq!(told(&mut events), ["key b added", "key c added"], "with other settings it is another");
    let added = pool.add(key("d"));
    pool.add(key("d"));
    let event = events.try_recv().unwrap();
    assert_eq!((event.endpoint, event.change), (Some(added.id()), Change::Added));
    assert_eq!(events.try_recv(), None, "it was there");
    for (act, expected) in [
        ((|pool| pool.drain("a")) as fn(&Pool) -> bool, Some("key a drained")),
        (|pool| pool.drain("a"), None),
        (|pool| pool.isolate("a"), Some("key a isolated")),
        (|pool| pool.reset("a"), Some("key a reset")),
        (|pool| pool.remove("a"), Some("key a removed")),
        (|pool| !pool.remove("a"), None),
    ] {
        assert!(act(&group));
        assert_eq!(told(&mut events), Vec::from_iter(expected));
    }
    assert!(pool.remove("a"), "here it is still listed");
    assert_eq!(told(&mut events), [""; 0], "and gone already");
    pool.isolate("d");
    let again = pool.share([key("d").account("acme")]).unwrap();
    assert_eq!(told(&mut events), ["key d isolated", "key d added", "key d isolated"]);
    drop((pool, group, again, added));
    let mut end = tokio_test::task::spawn(events);
    assert!(tokio_test::assert_ready!(end.poll_next()).is_none(), "the endpoints are gone, and with them the events");
}

#[tokio::test(start_paused = true)]
async fn r081_rests_are_told_when_they_begin_grow_and_are_lifted_and_not_when_they_just_end() {
    let pool = Pool::new(["a", "b", "c", "d", "e"].map(|name| key(name).account("acme"))).unwrap();
    let (keys, mut events, start) = (pool.endpoints(), pool.events(), Instant::now());
    let second = Duration::from_secs(1);
    let hint = |seconds| Rest::hinted(second * seconds);
    let guess = |seconds| Rest::guessed(second * seconds);
    let fault = |key: usize, cause, scope, rest| {
        pool.record(&keys[key], &asking("m"), &Fault::new(cause, scope).rest(rest), Instant::now());
    };
    for (scope, whose) in [
        (Scope::Key, "key a"),
        (Scope::Workspace, "key a"),
        (Scope::Account, "account acme"),
        (Scope::FreeTier, "free_tier acme"),
        (Scope::AccountModel, "account_model acme of m"),
        (Scope::Pool, "pool of m"),
        (Scope::Egress, "egress"),
    ] {
        fault(0, Cause::KeyLimit, scope, hint(2));
        fault(0, Cause::KeyLimit, scope, guess(9));
        fault(0, Cause::KeyLimit, scope, hint(1));
        assert_eq!(
            told(&mut events),
            [format!("{whose} rest_begun key_limit 2 s hinted")],
            "by hints the later end holds"
        );
        fault(0, Cause::NoCredit, scope, hint(3));
        assert_eq!(told(&mut events), [format!("{whose} rest_extended no_credit 3 s hinted")]);
        tokio::time::advance(second * 4).await;
        pool.succeed(&keys[0], &asking("m"), Some(start), Instant::now());
        assert_eq!(told(&mut events), [""; 0], "it ended by itself");
    }
    fault(0, Cause::ServerError, Scope::Pool, guess(1));
    tokio::time::advance(second).await;
    pool.book().send(&keys[0], &asking("m"), Instant::now());
    let sent = Instant::now();
    tokio::time::advance(second / 2).await;
    pool.succeed(&keys[0], &asking("m"), Some(sent), Instant::now());
    let scout = "pool of m rest_begun server_error";
    let lifted = "pool of m rest_lifted server_error";
    assert_eq!(told(&mut events), [&format!("{scout} 0 s guessed"), &format!("{scout} 0 s guessed"), lifted]);

    fault(1, Cause::InvalidKey, Scope::Key, guess(60));
    assert_eq!(told(&mut events), ["key b rest_begun invalid_key 60 s guessed"]);
    pool.vouch(&keys[1], Instant::now());
    assert_eq!(told(&mut events), ["key b rest_lifted invalid_key"]);
    fault(2, Cause::InvalidKey, Scope::Key, guess(60));
    fault(3, Cause::InvalidKey, Scope::Key, guess(60));
    let mut all = told(&mut events);
    all[2..].sort();
    let [refused, incident] = ["rest_begun invalid_key 60 s guessed", "egress rest_begun platform_auth 1 s guessed"];
    assert_eq!(all, [&format!("key c {refused}"), "key c rest_lifted invalid_key", incident], "all are refused alike");

    fault(0, Cause::NoCredit, Scope::Account, hint(9));
    fault(0, Cause::KeyLimit, Scope::Key, hint(9));
    told(&mut events);
    pool.reset("a");
    let mut all = told(&mut events);
    all[..2].sort();
    assert_eq!(all, ["account acme rest_lifted no_credit", "key a rest_lifted key_limit", "key a reset"]);
}

#[tokio::test(start_paused = true)]
async fn rests_that_no_key_has_are_listed_the_widest_first() {
    let host = |key: ApiKey| key.base_url("https://eu.example:444/v1").unwrap();
    let pool = Pool::new([key("a").account("acme"), key("b"), host(key("c"))]).unwrap();
    assert!(pool.rests().is_empty());
    let keys = pool.endpoints();
    let fault = |key: usize, model, scope, rest| {
        pool.record(&keys[key], &asking(model), &Fault::new(Cause::ProviderLimit, scope).rest(rest), Instant::now());
    };
    let second = Duration::from_secs(1);
    fault(0, "m", Scope::Key, Rest::hinted(second * 9));
    assert!(pool.rests().is_empty(), "that is said of the key");
    fault(0, "m", Scope::Account, Rest::hinted(second * 4));
    fault(1, "m", Scope::AccountModel, Rest::hinted(second * 4));
    fault(0, "m", Scope::Pool, Rest::guessed(second * 2));
    fault(2, "n", Scope::Pool, Rest::hinted(second * 3));
    fault(1, "m", Scope::Egress, Rest::hinted(second));
    let listed = |pool: &Pool| {
        let line = |rest: &WideRest| {
            let by = if rest.hinted { "hinted" } else { "guessed" };
            format!("{} {} {} {by}", rest.whose, rest.cause, (rest.until - Instant::now()).as_secs())
        };
        pool.rests().iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(
        listed(&pool),
        [
            "egress provider_limit 1 hinted",
            "pool eu.example of n provider_limit 3 hinted",
            "pool of m provider_limit 2 guessed",
            "account_model b of m provider_limit 4 hinted",
            "account acme provider_limit 4 hinted",
        ]
    );
    assert_eq!(listed(&pool.share([key("z")]).unwrap()).len(), 5, "it is shared");
    tokio::time::advance(second * 3).await;
    assert_eq!(listed(&pool).len(), 2, "what has ended is left out");
    pool.reset("a");
    assert_eq!(listed(&pool), ["account_model b of m provider_limit 1 hinted"]);
}

#[tokio::test(start_paused = true)]
async fn r132_of_models_that_clients_invent_no_more_than_so_many_rest() {
    let pool = Pool::new([key("a")]).unwrap();
    let (keys, second) = (pool.endpoints(), Duration::from_secs(1));
    let name = |number: u64| format!("{number:05}{}", "x".repeat(200));
    let full = Fault::new(Cause::ProviderLimit, Scope::Pool);
    pool.record(
        &keys[0],
        &asking("m"),
        &Fault::new(Cause::PlatformAuth, Scope::Egress).rest(Rest::hinted(second)),
        Instant::now(),
    );
    for number in 1..=4_200 {
        let fault = full.rest(Rest::hinted(second * 3600 - second * (number as u32 % 3000)));
        pool.record(&keys[0], &asking(&name(number)), &fault, Instant::now());
    }
    let rests = pool.rests();
    assert_eq!(rests.len(), 4_096 + 1, "that of our own address is no model's");
    assert!(rests[1..].iter().all(|rest| rest.whose.model.as_ref().unwrap().chars().count() == 101));
    let soonest = rests[1..].iter().map(|rest| rest.until).min().unwrap();
    assert_eq!(soonest - Instant::now(), second * 705, "the 104 that would have ended soonest are gone");
}
