use super::*;
use crate::{ApiKey, outcome::Retry};

fn key(name: &str, account: &str) -> Endpoint {
    Endpoint::new(ApiKey::new(name).unwrap().label(name).account(account))
}

fn asking(model: &str) -> RequestContext {
    let request = RequestContext::new();
    request.set_body(format!("{{\"model\":\"{model}\"}}").into());
    request
}

fn fault(cause: Cause, scope: Scope, rest: Rest) -> Fault {
    Fault::new(cause, scope).rest(rest).retry(Retry::Elsewhere)
}

const SECOND: Duration = Duration::from_secs(1);

struct Desk {
    book: Book,
    now: Instant,
}

impl Desk {
    fn new() -> Self {
        Self { book: Book::default(), now: Instant::now() }
    }

    fn note(&self, endpoint: &Endpoint, request: &RequestContext, fault: Fault) -> bool {
        self.book.record(endpoint, request, &fault, 5, self.now)
    }

    fn out(&self, endpoint: &Endpoint) -> Option<Duration> {
        self.book.out(endpoint, self.now).map(|resting| resting.until - self.now)
    }
}

#[test]
fn r023_an_accounts_rest_holds_for_all_its_keys_and_no_other() {
    let desk = Desk::new();
    let (one, two, other) = (key("one", "acme"), key("two", "acme"), key("other", "else"));
    let gone = desk.note(&one, &asking("m"), fault(Cause::NoCredit, Scope::Account, Rest::guessed(SECOND * 600)));
    assert!(gone, "endpoints left the snapshot");
    assert_eq!(desk.out(&two), Some(SECOND * 600));
    assert_eq!(desk.out(&other), None);
}

#[test]
fn r023_without_groups_each_key_stands_alone() {
    let desk = Desk::new();
    let alone = |name| Endpoint::new(ApiKey::new(name).unwrap());
    let (one, two) = (alone("one"), alone("two"));
    desk.note(&one, &asking("m"), fault(Cause::NoCredit, Scope::Account, Rest::guessed(SECOND)));
    assert_eq!((desk.out(&one), desk.out(&two)), (Some(SECOND), None));
}

#[test]
fn a_free_tier_rest_leaves_paid_models_alone() {
    let desk = Desk::new();
    let endpoint = key("one", "acme");
    let rest = fault(Cause::FreeTierDaily, Scope::FreeTier, Rest::hinted(SECOND * 60));
    assert!(!desk.note(&endpoint, &asking("m:free"), rest));
    assert!(desk.book.out_for(&endpoint, &asking("x:free"), desk.now).is_some());
    assert!(desk.book.out_for(&endpoint, &asking("m"), desk.now).is_none());
    assert_eq!(desk.out(&endpoint), None);
}

#[test]
fn a_pools_rest_is_the_models_and_no_keys() {
    let desk = Desk::new();
    let (one, two) = (key("one", "a"), key("two", "b"));
    desk.note(&one, &asking("m"), fault(Cause::ProviderLimit, Scope::Pool, Rest::hinted(SECOND)));
    assert_eq!((desk.out(&one), desk.out(&two)), (None, None));
    assert!(desk.book.upstream_out(&two, &asking("m"), desk.now).is_some(), "for every key");
    assert!(desk.book.upstream_out(&one, &asking("n"), desk.now).is_none(), "for this model only");
}

#[test]
fn the_later_end_wins() {
    let desk = Desk::new();
    let endpoint = key("one", "a");
    for (seconds, expected) in [(10, 10), (3, 10), (20, 20)] {
        desk.note(&endpoint, &asking("m"), fault(Cause::KeyLimit, Scope::Key, Rest::hinted(SECOND * seconds)));
        assert_eq!(desk.out(&endpoint), Some(SECOND * expected));
    }
}

#[test]
fn guesses_about_a_pool_double_to_a_cap_and_a_success_starts_them_anew() {
    let mut desk = Desk::new();
    let (endpoint, request) = (key("one", "a"), asking("m"));
    let busy = fault(Cause::ProviderLimit, Scope::Pool, Rest::guessed(SECOND));
    for expected in [1, 2, 4, 8, 16, 30, 30] {
        desk.note(&endpoint, &request, busy);
        desk.note(&endpoint, &request, busy);
        let until = desk.book.upstream_out(&endpoint, &request, desk.now).unwrap().until;
        assert_eq!(until - desk.now, SECOND * expected, "the second refusal was sent before the rest began");
        desk.now = until;
    }
    desk.book.succeed(&endpoint, &request, None, desk.now);
    desk.note(&endpoint, &request, busy);
    assert_eq!(desk.book.upstream_out(&endpoint, &request, desk.now).unwrap().until - desk.now, SECOND);
}

#[test]
fn after_a_rest_of_a_failing_upstream_one_goes_ahead_and_the_others_wait_for_it() {
    let mut desk = Desk::new();
    let (endpoint, request) = (key("one", "a"), asking("m"));
    let failing = fault(Cause::ServerError, Scope::Pool, Rest::guessed(SECOND));
    let rests = |desk: &Desk| desk.book.upstream_out(&endpoint, &request, desk.now).map(|it| it.until - desk.now);
    desk.note(&endpoint, &request, failing);
    desk.book.send(&endpoint, &request, desk.now);
    assert_eq!(rests(&desk), Some(SECOND), "who goes although it rests is no scout");
    desk.now += SECOND;
    assert_eq!(rests(&desk), None, "one may go");
    desk.book.send(&endpoint, &request, desk.now);
    assert_eq!(rests(&desk), Some(SECOND), "and the others wait for it, or a second");
    assert!(!desk.book.succeed(&endpoint, &request, Some(desk.now - SECOND), desk.now), "sent before the rest");
    desk.now += SECOND / 2;
    desk.note(&endpoint, &request, failing);
    assert_eq!(rests(&desk), Some(SECOND * 2), "it failed, too");
    desk.now += SECOND * 2;
    let sent = desk.now;
    desk.book.send(&endpoint, &request, sent);
    desk.now += SECOND / 2;
    assert!(desk.book.succeed(&endpoint, &request, Some(sent), desk.now), "all may come");
    assert_eq!((rests(&desk), desk.book.is_blank()), (None, true));
}

#[test]
fn a_straggling_success_does_not_lift_a_rest() {
    let desk = Desk::new();
    let (endpoint, request) = (key("one", "a"), asking("m"));
    desk.note(&endpoint, &request, fault(Cause::KeyLimit, Scope::Key, Rest::hinted(SECOND)));
    desk.book.succeed(&endpoint, &request, None, desk.now);
    assert_eq!(desk.out(&endpoint), Some(SECOND));
}

#[test]
fn r056_no_rest_is_longer_than_a_day() {
    let desk = Desk::new();
    let endpoint = key("one", "a");
    desk.note(&endpoint, &asking("m"), fault(Cause::KeyLimit, Scope::Key, Rest::hinted(Duration::MAX)));
    assert_eq!(desk.out(&endpoint), Some(LONGEST));
}

#[test]
fn a_key_refused_three_times_over_five_minutes_is_dead_until_reset() {
    let mut desk = Desk::new();
    let (endpoint, request) = (key("one", "a"), asking("m"));
    let refused = fault(Cause::InvalidKey, Scope::Key, Rest::guessed(SECOND * 60));
    for minutes in [0, 2, 6] {
        desk.now += SECOND * 60 * minutes;
        desk.note(&endpoint, &request, refused);
    }
    assert!(desk.out(&endpoint).unwrap() > LONGEST);
    desk.book.reset(&endpoint, desk.now);
    assert_eq!(desk.out(&endpoint), None);
}

#[test]
fn all_keys_refused_at_once_are_the_platforms_incident() {
    let mut desk = Desk::new();
    let keys: Vec<_> = (0..5).map(|index| key(&format!("k{index}"), "a")).collect();
    let request = asking("m");
    let refused = fault(Cause::InvalidKey, Scope::Key, Rest::guessed(SECOND * 60));
    for key in &keys[..2] {
        desk.note(key, &request, refused);
        assert!(desk.out(key).is_some());
    }
    desk.note(&keys[2], &request, refused);
    assert!(keys.iter().all(|key| desk.out(key).is_none()), "no key is blamed");
    for expected in [1, 2, 4] {
        let resting = desk.book.upstream_out(&keys[4], &request, desk.now).unwrap();
        assert_eq!((resting.cause, resting.until - desk.now), (Cause::PlatformAuth, SECOND * expected));
        desk.now = resting.until;
        desk.note(&keys[3], &request, refused);
        assert_eq!(desk.out(&keys[3]), None, "while it lasts, nor are others");
    }
    desk.now += SECOND * 60;
    desk.book.succeed(&keys[0], &request, None, desk.now);
    desk.note(&keys[0], &request, refused);
    assert!(desk.out(&keys[0]).is_some(), "afterwards a refusal is the key's own again");
}

#[test]
fn one_dead_key_does_not_prolong_an_incident_that_others_have_survived() {
    let mut desk = Desk::new();
    let keys: Vec<_> = (0..5).map(|index| key(&format!("k{index}"), "a")).collect();
    let request = asking("m");
    let refused = fault(Cause::InvalidKey, Scope::Key, Rest::guessed(SECOND * 60));
    let before = desk.now;
    desk.now += SECOND;
    for key in &keys[..3] {
        desk.note(key, &request, refused);
    }
    let until = |desk: &Desk| desk.book.upstream_out(&keys[4], &request, desk.now).map(|resting| resting.until);
    desk.now = until(&desk).unwrap();
    let released = desk.now;
    desk.now += SECOND / 20;
    desk.note(&keys[0], &request, refused);
    let rests = until(&desk);
    assert!(rests.is_some(), "the first to be back was refused again");
    assert!(!desk.book.succeed(&keys[1], &request, None, desk.now), "sent when nothing rested yet");
    assert!(!desk.book.succeed(&keys[1], &request, Some(before), desk.now), "sent before the incident");
    assert_eq!(until(&desk), rests);
    assert!(desk.book.succeed(&keys[1], &request, Some(released), desk.now), "sent with the one that was refused");
    assert_eq!(until(&desk), None);
    desk.note(&keys[0], &request, refused);
    assert_eq!((until(&desk), desk.out(&keys[0])), (None, Some(SECOND * 60)), "now it is the key's own");
}

#[test]
fn a_limit_of_unknown_owner_is_the_accounts_once_a_second_model_meets_it() {
    let mut desk = Desk::new();
    let (one, two, other) = (key("one", "a"), key("two", "a"), key("other", "b"));
    let unknown = fault(Cause::UnknownLimit, Scope::Pool, Rest::guessed(SECOND));
    desk.note(&one, &asking("m"), unknown);
    desk.note(&other, &asking("n"), unknown);
    assert!([&one, &two, &other].iter().all(|key| desk.out(key).is_none()), "one model each");
    desk.now += SECOND * 5;
    assert!(desk.note(&two, &asking("x"), unknown), "the same account, another model");
    assert!(desk.out(&one).is_some() && desk.out(&two).is_some());
    assert_eq!(desk.out(&other), None);
}

#[test]
fn a_key_refused_by_mistake_is_back_once_upstream_vouches_for_it() {
    let mut desk = Desk::new();
    let endpoint = key("one", "a");
    let refused = fault(Cause::InvalidKey, Scope::Key, Rest::guessed(SECOND * 60));
    desk.note(&endpoint, &asking("m"), refused);
    assert!(!desk.book.vouch(&endpoint, desk.now - SECOND, desk.now), "asked before the refusal");
    assert!(desk.book.vouch(&endpoint, desk.now, desk.now));
    assert_eq!(desk.out(&endpoint), None);

    desk.now += SECOND;
    desk.note(&endpoint, &asking("m"), refused);
    assert!(!desk.book.vouch(&endpoint, desk.now, desk.now), "the live answer is believed the second time");
    assert_eq!(desk.out(&endpoint), Some(SECOND * 60));

    desk.now += DEAD_AFTER;
    desk.note(&endpoint, &asking("m"), refused);
    assert!(desk.out(&endpoint) > Some(LONGEST), "given up for dead");
    assert!(desk.book.vouch(&endpoint, desk.now, desk.now));
    assert_eq!(desk.out(&endpoint), None);
}

#[test]
fn vouching_ends_no_other_rest() {
    let desk = Desk::new();
    let endpoint = key("one", "a");
    assert!(!desk.book.vouch(&endpoint, desk.now, desk.now));
    desk.note(&endpoint, &asking("m"), fault(Cause::KeyLimit, Scope::Key, Rest::hinted(SECOND)));
    assert!(!desk.book.vouch(&endpoint, desk.now, desk.now));
    assert_eq!(desk.out(&endpoint), Some(SECOND));
}
