//! One span for each request, one for each attempt, and what stands on them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::HeaderValue;
use tokio::time::timeout;
use tower_openrouter::ObserveLayer;
use tracing::{
    Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use crate::world::{MODEL, World, chat};

#[derive(Debug, Clone, Default)]
struct Seen {
    name: &'static str,
    parent: Option<u64>,
    fields: BTreeMap<&'static str, String>,
    closed: bool,
}

impl Seen {
    /// These fields' values; empty for what was not recorded.
    fn of<const N: usize>(&self, fields: [&str; N]) -> [&str; N] {
        fields.map(|field| self.fields.get(field).map_or("", String::as_str))
    }
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps the crate's spans, enabled as an exporter would.
#[derive(Clone, Default)]
struct Capture(Arc<Mutex<BTreeMap<u64, Seen>>>);

impl Capture {
    fn here(&self) -> DefaultGuard {
        let ours = Targets::new().with_target("tower_openrouter::spans", Level::DEBUG);
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone().with_filter(ours)))
    }

    /// The spans of this name, in the order in which they began; none is open.
    fn spans(&self, name: &str) -> Vec<(u64, Seen)> {
        let spans = self.0.lock().unwrap();
        assert!(spans.values().all(|span| span.closed), "a span is open: {spans:#?}");
        spans.iter().filter(|(_, span)| span.name == name).map(|(id, span)| (*id, span.clone())).collect()
    }

    /// The one request, and its attempts.
    fn story(&self) -> (Seen, Vec<Seen>) {
        let [(id, request)] = &self.spans("request")[..] else { panic!("{:#?}", self.0) };
        let attempts = self.spans("attempt");
        assert!(attempts.iter().all(|(_, attempt)| attempt.parent == Some(*id)), "{attempts:#?}");
        (request.clone(), attempts.into_iter().map(|(_, attempt)| attempt).collect())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        // the registry uses ids again
        let mut spans = self.0.lock().unwrap();
        let number = spans.len() as u64;
        let parent = context.span(id).and_then(|span| Some(span.parent()?.extensions().get::<Number>()?.0));
        let mut seen = Seen { name: attributes.metadata().name(), parent, ..Seen::default() };
        attributes.record(&mut seen);
        spans.insert(number, seen);
        context.span(id).unwrap().extensions_mut().insert(Number(number));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let number = context.span(id).unwrap().extensions().get::<Number>().unwrap().0;
        values.record(self.0.lock().unwrap().get_mut(&number).unwrap());
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let number = context.span(&id).unwrap().extensions().get::<Number>().unwrap().0;
        self.0.lock().unwrap().get_mut(&number).unwrap().closed = true;
    }
}

/// Which span of the capture one is.
struct Number(u64);

/// Has keys that cannot serve tried first, then one that can.
async fn rotated(stream: bool) -> (Seen, Vec<Seen>) {
    let capture = Capture::default();
    let _here = capture.here();
    let world = World::new(&ObserveLayer::new());
    for label in ["a-1", "a-2"] {
        world.handle.pool().remove(label);
    }
    let b = world.handle.pool().endpoints().iter().find(|key| key.key().name() == "b-1").unwrap().clone();
    // out at first, so that the others come before it
    b.set_shut_until(Some(tokio::time::Instant::now() + Duration::from_millis(60)));
    let mut request = chat(MODEL, stream);
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("mine-1"));
    assert_eq!(world.whole(request).await, 200);
    capture.story()
}

#[tokio::test(start_paused = true)]
async fn a_request_has_one_span_and_each_of_its_attempts_has_one_within_it() {
    for stream in [false, true] {
        let (request, attempts) = rotated(stream).await;
        assert_eq!(
            request.of([
                "otel.name",
                "gen_ai.operation.name",
                "gen_ai.request.model",
                "http.request.method",
                "url.path"
            ]),
            ["chat", "chat", MODEL, "POST", "/v1/chat/completions"]
        );
        assert_eq!(
            request.of(["request_id", "attempts", "key", "outcome", "error.type", "http.response.status_code"]),
            ["mine-1", "3", "b-1", "success", "", "200"]
        );
        let first: f64 = request.of(["time_to_first_output_ms"])[0].parse().unwrap();
        assert!(first >= 100.0, "{first}");
        let [good, bad @ ..] = &attempts.iter().rev().collect::<Vec<_>>()[..] else { panic!("{attempts:#?}") };
        let mut causes: Vec<_> =
            bad.iter().map(|attempt| attempt.of(["key", "error.type", "scope", "http.response.status_code"])).collect();
        causes.sort_unstable();
        assert_eq!(causes, [["broke-1", "no_credit", "account", "402"], ["dead", "invalid_key", "key", "401"]]);
        assert!(bad.iter().all(|attempt| attempt.of(["outcome", "otel.status_code"]) == ["failed", "ERROR"]));
        assert_eq!(
            good.of([
                "otel.name",
                "otel.kind",
                "gen_ai.provider.name",
                "gen_ai.request.model",
                "gen_ai.response.model"
            ]),
            ["chat acme/swift-1", "client", "openrouter", MODEL, MODEL]
        );
        assert_eq!(
            good.of(["key", "outcome", "error.type", "server.address", "server.port", "http.response.status_code"]),
            ["b-1", "success", "", "openrouter.ai", "443", "200"]
        );
        for number in good.of(["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "cost_usd"]) {
            assert!(number.parse::<f64>().unwrap() > 0.0, "{good:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_or_left_says_so() {
    let capture = Capture::default();
    let here = capture.here();
    let world = World::new(&ObserveLayer::new());
    timeout(Duration::from_millis(20), world.ask(chat(MODEL, false))).await.unwrap_err();
    let (request, attempts) = capture.story();
    assert_eq!(request.of(["outcome", "error.type", "otel.status_code"]), ["left", "client_gone", ""]);
    assert_eq!(attempts.last().unwrap().of(["outcome", "error.type", "otel.status_code"]), ["left", "client_gone", ""]);
    drop(here);

    let capture = Capture::default();
    let _here = capture.here();
    for endpoint in world.handle.pool().endpoints().iter() {
        endpoint.set_shut_until(Some(tokio::time::Instant::now() + Duration::from_secs(600)));
    }
    assert_eq!(world.whole(chat(MODEL, false)).await, 429);
    let (request, attempts) = capture.story();
    assert_eq!(request.of(["outcome", "error.type", "otel.status_code"]), ["refused", "no_key", "ERROR"]);
    assert!(attempts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn at_the_level_of_a_usual_log_there_are_no_spans() {
    let capture = Capture::default();
    let info = capture.clone().with_filter(Targets::new().with_default(Level::INFO));
    let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(info));
    let world = World::new(&ObserveLayer::new());
    assert_eq!(world.whole(chat(MODEL, false)).await, 200);
    assert!(capture.0.lock().unwrap().is_empty());
}
