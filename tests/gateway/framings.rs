//! R103 by chance: of requests framed in any way the upstream sees those that the standard finds in them, and no other.
//!
//! A longer run, and one of another seed:
//!
//! ```text
//! FRAMINGS=20000 FRAMINGS_SEED=7 cargo test --test gateway framings -- --nocapture
//! ```

mod hostile;
mod reference;

use std::{collections::BTreeMap, env, io::Write, thread};

use fastrand::Rng;

use super::{support::*, world::*};
use reference::Asked;

const CONNECTIONS: usize = 320;
/// So many at once, since some end by a time limit only.
const AT_ONCE: usize = 64;

fn number(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is to be a number")))
}

/// One account with keys enough, and as many requests kept as come at once.
fn world() -> World {
    World::of(
        r#"
        accounts = [{ name = "alpha", credits = 1e6 }]
        keys = [{ label = "one", account = "alpha" }, { label = "two", account = "alpha" }]
        models = [{ id = "acme/swift-1" }]
        endpoints = [{ model = "acme/swift-1", provider = "DeepInfra" }]
        keep = { requests = 1000, log = 10, generations = 10 }
        "#,
    )
}

/// What the upstream was asked, by connection, in order.
fn seen(world: &World, first: usize) -> BTreeMap<usize, Vec<Asked>> {
    let mut seen: BTreeMap<usize, Vec<Asked>> = BTreeMap::new();
    for request in world.simulator.requests() {
        let name = request.headers[hostile::NAME].to_str().unwrap().to_owned();
        let case = name.split('-').next().unwrap().parse().unwrap_or_else(|_| panic!("whose is {request:?}?"));
        if case >= first {
            seen.entry(case).or_default().push(Asked { name, body: request.body.to_vec() });
        }
    }
    seen
}

#[test]
fn r103_however_requests_are_framed_the_upstream_sees_only_what_the_standard_finds() {
    let (count, seed) = (number("FRAMINGS", CONNECTIONS), number("FRAMINGS_SEED", 1));
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed as u64);
    let world = world();
    let gateway = world.gateway(&["--header-timeout", "500ms"]);
    let (mut found, mut served, mut second) = (0, 0, 0);
    for first in (0..count).step_by(AT_ONCE) {
        let sent: Vec<_> =
            (first..count.min(first + AT_ONCE)).map(|case| (case, hostile::connection(&mut rng, case))).collect();
        let told: Vec<_> = thread::scope(|scope| {
            let ask = |bytes: &[u8]| {
                let mut client = connect(gateway.api);
                // closed before all of it was read, writing may fail
                let _ = client.write_all(bytes);
                until_closed(&mut client)
            };
            let asking: Vec<_> = sent.iter().map(|(_, bytes)| scope.spawn(move || ask(bytes))).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        let mut seen = seen(&world, first);
        for ((case, bytes), told) in sent.iter().zip(told) {
            let sent = || format!("seed {seed}, connection {case}: {:?}", String::from_utf8_lossy(bytes));
            let told = told.unwrap_or_else(|| panic!("still open after {}", sent()));
            let (expected, seen) = (reference::requests(bytes), seen.remove(case).unwrap_or_default());
            let mut rest = expected.iter();
            for asked in &seen {
                assert!(rest.any(|expected| expected == asked), "{} is no request of {}\n{told}", asked.name, sent());
            }
            let by_upstream = told.matches("\r\nx-balancer-key: ").count();
            assert_eq!(seen.len(), by_upstream, "what was asked and what was answered: {}\n{told}", sent());
            let answers = told.matches("HTTP/1.1 ").count();
            assert!(answers <= expected.len() + 1, "{answers} answers, {} requests: {}", expected.len(), sent());
            found += expected.len();
            served += seen.len();
            second += usize::from(seen.len() > 1);
        }
        assert_eq!(seen, BTreeMap::new(), "requests of nobody");
    }
    println!(
        "{count} connections: {found} requests by the standard, {served} served, {second} connections had two or more"
    );
    assert!(served * 10 > found * 8 && found > count / 2 && second > count / 10, "this proves nothing");
    assert_eq!(gateway.chat("").status, 200, "and others are served");
}
