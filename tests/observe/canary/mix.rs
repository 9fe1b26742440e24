//! A platform, requests of all kinds to it, and all that can go wrong with one.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tower_openrouter::{
    deadline::Deadline,
    simulator::{Fault, InBand, Reason, Scenario, SimKey, What},
};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request's body may have so many bytes.
pub(super) const BODY_LIMIT: usize = 4096;
const ACCOUNTS: usize = 4;
const KEYS: usize = 12;
const ENDPOINTS: &str = r#"
models = [{ id = "acme/swift-1" }, { id = "acme/deep-2" }, { id = "acme/small-3" }, { id = "acme/swift-1:free" }]
[[endpoints]]
model = "acme/swift-1"
provider = "One"
completion_price = 0.5
first_token_ms = 150
tokens_per_second = 150
[[endpoints]]
model = "acme/swift-1"
provider = "Two"
completion_price = 0.6
first_token_ms = 200
[[endpoints]]
model = "acme/deep-2"
provider = "Two"
completion_price = 2.0
first_token_ms = 400
[[endpoints]]
model = "acme/small-3"
provider = "Three"
completion_price = 0.1
[[endpoints]]
model = "acme/swift-1:free"
provider = "Three"
[keep]
log = 10
requests = 0
generations = 10
"#;

/// Accounts with enough credit for any run, and keys without a word of English or a plain number in them.
pub(super) fn platform() -> Scenario {
    let accounts: String = (0..ACCOUNTS)
        .map(|account| {
            format!("[[accounts]]\nname = \"account-{account}\"\ncredits = 1e6\nfree_per_minute = 1000\nfree_per_day = 1000000\n")
        })
        .collect();
    let mut scenario = Scenario::from_toml(&format!("{ENDPOINTS}{accounts}")).unwrap();
    let mut rng = fastrand::Rng::with_seed(99);
    scenario.keys = (0..KEYS)
        .map(|key| SimKey {
            secret: Some(secret(&mut rng)),
            ..SimKey::new(format!("key-{key}"), format!("account-{}", key % ACCOUNTS))
        })
        .collect();
    scenario
}

/// A key that nobody knows.
pub(super) fn unknown() -> String {
    secret(&mut fastrand::Rng::with_seed(100))
}

/// As long as real ones, of more kinds of characters, so that nothing looks like a part of it by chance.
fn secret(rng: &mut fastrand::Rng) -> String {
    let private: String = (0..64).map(|_| rng.alphanumeric()).collect();
    format!("sk-or-v1-{private}")
}

/// What strikes the requests, in turn; all attempts of one, or only its first.
pub(super) fn faults() -> Vec<Fault> {
    let status = |status, retry_after| What::Status { status, retry_after };
    let raw = |status, body: &str| What::Raw { status, content_type: "application/json".into(), body: body.into() };
    let in_band = |form, after_tokens| What::InBand { form, after_tokens, code: 502 };
    let reasons = [
        Reason::InFlightBudget,
        Reason::WeightExceedsBudget,
        Reason::CannotAfford,
        Reason::KeyCannotAfford,
        Reason::InsufficientCredits,
        Reason::NeverPurchased,
        Reason::KeyLimit,
        Reason::WorkspaceBudget,
        Reason::ManagementKey,
        Reason::Guardrail,
        Reason::Moderation,
        Reason::ContentPolicy,
        Reason::Harness,
        Reason::Geo,
        Reason::DataPolicy,
        Reason::Parameters,
        Reason::ProviderBadRequest,
        Reason::CapacityAs400,
        Reason::FreePerMinute,
        Reason::FreePerDay,
        Reason::PlatformLimit,
        Reason::UpstreamByok,
        Reason::Unidentified429,
    ];
    let mut kinds: Vec<What> = reasons.into_iter().map(|reason| What::Refuse { reason }).collect();
    kinds.extend([403, 429, 502, 503, 520, 522].map(|status| What::Html { status }));
    kinds.extend([400, 404, 408, 413, 500, 502, 503, 504, 529].map(|code| status(code, None)));
    kinds.extend([status(429, Some(1)), status(503, Some(2))]);
    kinds.extend([400, 408, 502, 503].map(|status| What::ProviderFails { status }));
    kinds.extend(
        [InBand::Standard, InBand::Choice, InBand::EmptyChoices, InBand::StringCode, InBand::Bare]
            .into_iter()
            .flat_map(|form| [in_band(form, 0), in_band(form, 2)]),
    );
    kinds.extend([
        What::Reset,
        What::Stall,
        What::Unauthorized,
        What::PoolFull { retry_after: Some(1) },
        What::Slow { factor: 1.0, accept_ms: 400.0, first_token_ms: 3000.0 },
        What::Eof { after_tokens: 2 },
        What::Cut { after_tokens: 2, reset: true, half: true },
        What::Hang { after_tokens: 0 },
        What::Hang { after_tokens: 2 },
        What::Malformed,
        What::PaddingOnly,
        What::Huge { bytes: 20_000 },
        raw(200, "{ cut"),
        raw(403, r#"{"error":{"code":403,"message":"Member guardrail budget exceeded"}}"#),
        raw(503, r#"{"error":{"code":503,"message":"No provider","openrouter_metadata":{"attempt":0}}}"#),
    ]);
    let once = kinds.iter().cloned().map(|what| Fault::new(what).times(1));
    once.chain(kinds.iter().cloned().map(Fault::new)).collect()
}

fn whole(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

/// A body whose client is gone in the middle.
fn broken() -> Body {
    let pieces = [Ok(Frame::data(Bytes::from_static(b"{\"model\":"))), Err(io::Error::other("the client is gone"))];
    StreamBody::new(stream::iter(pieces)).boxed_unsync()
}

/// One request of all kinds, in turn.
pub(super) fn request(number: usize) -> Request<Body> {
    let model = ["acme/swift-1", "acme/deep-2", "acme/small-3", "acme/swift-1:free", "acme/swift-1"][number % 5];
    let stream = number.is_multiple_of(3);
    let chat = |model: &str, said: &str| {
        let messages = format!(r#"[{{"role":"user","content":"{said}"}}]"#);
        whole(format!(r#"{{"model":"{model}","max_tokens":4,"messages":{messages},"stream":{stream}}}"#))
    };
    let body = match number % 37 {
        30 => whole("{ not json".into()),
        31 => chat("acme/none", "hello"),
        32 => chat(model, &"x".repeat(BODY_LIMIT)),
        33 => broken(),
        _ => chat(model, "hello"),
    };
    let mut request = Request::post("/v1/chat/completions").header("content-type", "application/json");
    if number % 37 == 34 {
        request = Request::get("/v1/models");
    }
    if number.is_multiple_of(23) {
        request = request.extension(Deadline::within(Duration::from_millis(120)));
    }
    request.body(body).unwrap()
}
