use std::{error::Error, fmt, sync::Arc, time::Duration};

use http::{Extensions, HeaderMap, Response};
use tokio::time::Instant;

use super::{
    shared::Breaker,
    state::{Sample, Ticket},
};
use crate::{
    body::{Ending, Guard},
    endpoint::{Blame, Endpoint, Route},
    outcome::{Cause, Fault, Judge, Outcome, OutcomeCell, Scope, Verdict},
    request::RequestContext,
};

/// What a layer's services, and what they admit, share.
#[derive(Clone)]
pub(super) struct Wiring {
    pub(super) breaker: Arc<Breaker>,
    pub(super) classify: Judge,
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

/// What a request that was let through carries: it reports the one verdict, and a dropped one reports that there is none.
pub struct Admission {
    wiring: Wiring,
    ticket: Ticket,
    context: Option<RequestContext>,
    /// Kept only where slowness counts.
    pace: Option<Box<Pace>>,
    awaits: Awaits,
}

/// How fast an answer comes.
struct Pace {
    started: Instant,
    /// How long the first output took.
    first_output: Option<Duration>,
}

enum Awaits {
    /// The head, or the end of a body whose head said nothing.
    Answer,
    /// What the leaf's cell will say.
    Commit(OutcomeCell),
    /// Nothing: it has reported.
    Nothing,
}

impl Admission {
    pub(super) fn new(wiring: Wiring, ticket: Ticket) -> Self {
        Self { wiring, ticket, context: None, pace: None, awaits: Awaits::Answer }
    }

    pub(super) fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    /// Starts the lease anew; false when the slot is gone.
    pub(super) fn renew(&self) -> bool {
        self.wiring.breaker.renew(self.ticket, Instant::now())
    }

    /// The request goes now.
    pub(super) fn start(&mut self, request: &Extensions) {
        let breaker = &self.wiring.breaker;
        if breaker.endpoint().is_some() {
            self.context = RequestContext::get(request).cloned();
        }
        self.pace = breaker.slow_after().map(|_| Box::new(Pace { started: Instant::now(), first_output: None }));
    }

    /// Takes in the head; the guard goes on with the body while that may still tell more.
    pub(super) fn head<B>(mut self, response: &Response<B>) -> Option<Self> {
        match Verdict::of(response, &*self.wiring.classify) {
            Verdict::Known(outcome) => {
                self.settle(outcome);
                return None;
            }
            Verdict::AtCommit(cell) => self.awaits = Awaits::Commit(cell),
            Verdict::AtEnd => {}
        }
        Some(self)
    }

    pub(super) fn error(mut self, error: &(dyn Error + 'static)) {
        let outcome = self.wiring.classify.error(error);
        self.settle(outcome);
    }

    /// Reports the verdict; only the first counts.
    fn settle(&mut self, outcome: Outcome) {
        if matches!(self.awaits, Awaits::Nothing) {
            return;
        }
        let sample = self.sample(&outcome);
        self.awaits = Awaits::Nothing;
        let breaker = &self.wiring.breaker;
        let is_success = matches!(sample, Sample::Success { .. });
        let says_nothing = matches!(sample, Sample::Neutral | Sample::Rest(_)) && !self.ticket.is_probe();
        if !(says_nothing || is_success && breaker.ignores_success(self.ticket)) {
            breaker.report(self.ticket, sample, outcome.fault().map(|fault| fault.cause), Instant::now());
        }
    }

    fn sample(&mut self, outcome: &Outcome) -> Sample {
        let endpoint = self.wiring.breaker.endpoint();
        match outcome {
            Outcome::Success => {
                if let Some(endpoint) = endpoint
                    && endpoint.suspects().watching()
                {
                    endpoint.suspects().success(endpoint, self.route(endpoint), Instant::now());
                }
                Sample::Success { slow: self.is_slow() }
            }
            Outcome::Fault(fault) => match (fault.scope, fault.rest) {
                (Scope::Key, None) => Sample::Failure(1),
                // these keep the endpoint from serving, so a probe that meets them has not passed
                (
                    Scope::Key | Scope::Workspace | Scope::Account | Scope::FreeTier | Scope::AccountModel,
                    Some(rest),
                ) => Sample::Rest(rest.hinted.then_some(rest.duration)),
                _ if fault.is_suspect() => match endpoint {
                    None => Sample::Failure(1),
                    Some(endpoint) => match endpoint.suspects().fault(endpoint, self.route(endpoint), Instant::now()) {
                        Blame::Endpoint(count) => Sample::Failure(count),
                        Blame::Pool | Blame::Nobody => Sample::Neutral,
                    },
                },
                _ => Sample::Neutral,
            },
        }
    }

    fn route(&self, endpoint: &Endpoint) -> Route {
        Route::of(endpoint, self.context.as_ref())
    }

    fn is_slow(&self) -> bool {
        let (Some(limit), Some(pace)) = (self.wiring.breaker.slow_after(), &self.pace) else { return false };
        pace.first_output.unwrap_or_else(|| Instant::now().saturating_duration_since(pace.started)) > limit
    }

    /// Reports what the leaf's cell says, once it says something.
    fn look(&mut self) {
        if let Awaits::Commit(cell) = &self.awaits
            && let Some(outcome) = cell.at_commit()
        {
            self.settle(outcome);
        }
    }
}

impl Guard for Admission {
    fn data(&mut self, _: &[u8]) {
        match (&self.awaits, &mut self.pace) {
            (Awaits::Commit(_), _) => self.look(),
            (Awaits::Answer, Some(pace)) if pace.first_output.is_none() => {
                pace.first_output = Some(Instant::now().saturating_duration_since(pace.started));
            }
            _ => {}
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        match &self.awaits {
            Awaits::Commit(_) => self.look(),
            Awaits::Answer => {
                let outcome = self.wiring.classify.end(Some(trailers));
                self.settle(outcome);
            }
            Awaits::Nothing => {}
        }
    }

    fn finish(mut self, ending: Ending) {
        self.look();
        match (&self.awaits, ending) {
            (Awaits::Nothing, _) => {}
            (_, Ending::Failed) => self.settle(Fault::new(Cause::Truncated, Scope::Pool).into()),
            (Awaits::Answer, Ending::Complete | Ending::HeadOnly) => {
                let outcome = self.wiring.classify.end(None);
                self.settle(outcome);
            }
            // the rest is the drop's: no verdict
            _ => {}
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.ticket.is_probe() && !matches!(self.awaits, Awaits::Nothing) {
            self.wiring.breaker.report(self.ticket, Sample::Neutral, None, Instant::now());
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_openrouter_loom)))]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use http::{Request, StatusCode};
    use http_body_util::Empty;
    use tower::{BoxError, Layer, ServiceExt, service_fn};

    use super::*;
    use crate::{
        breaker::{BreakerHandle, BreakerPolicy, BreakerState, CircuitBreakerLayer, TripPolicy},
        endpoint::PoolState,
        key::ApiKey,
        outcome::{Classify, HttpStatus, Rest},
    };

    fn admission(breaker: &Arc<Breaker>) -> Admission {
        let wiring = Wiring { breaker: breaker.clone(), classify: Judge::default() };
        Admission::new(wiring, breaker.free().unwrap())
    }

    #[test]
    fn r036_the_blame_table_over_all_statuses() {
        let breaker = Arc::new(Breaker::new(BreakerPolicy::default()));
        for code in 100..=599 {
            let outcome = HttpStatus.head(StatusCode::from_u16(code).unwrap(), &HeaderMap::new()).unwrap();
            let expected = match code {
                100..=399 => Sample::Success { slow: false },
                401 | 402 | 429 => Sample::Rest(None),
                408 | 500..=599 => Sample::Failure(1),
                _ => Sample::Neutral,
            };
            assert_eq!(admission(&breaker).sample(&outcome), expected, "{code}");
        }
    }

    #[test]
    fn faults_count_by_scope_and_rest() {
        let breaker = Arc::new(Breaker::new(BreakerPolicy::default()));
        let sample = |fault: Fault| admission(&breaker).sample(&fault.into());
        let rest = Rest::hinted(Duration::from_secs(7));
        assert_eq!(sample(Fault::new(Cause::InvalidKey, Scope::Key)), Sample::Failure(1));
        assert_eq!(sample(Fault::new(Cause::InvalidKey, Scope::Key).rest(rest)), Sample::Rest(Some(rest.duration)));
        for scope in [Scope::Workspace, Scope::Account, Scope::FreeTier, Scope::AccountModel] {
            assert_eq!(sample(Fault::new(Cause::NoCredit, scope)), Sample::Neutral);
            assert_eq!(sample(Fault::new(Cause::NoCredit, scope).rest(rest)), Sample::Rest(Some(rest.duration)));
        }
        for scope in [Scope::Request, Scope::Pool, Scope::Egress] {
            assert_eq!(sample(Fault::new(Cause::ProviderLimit, scope).rest(rest)), Sample::Neutral, "{scope}");
        }
        for cause in Cause::ALL {
            let expected = if cause.is_suspect() { Sample::Failure(1) } else { Sample::Neutral };
            assert_eq!(sample(Fault::new(cause, Scope::Pool)), expected, "{cause}");
        }
    }

    type Statuses = Arc<Mutex<Vec<u16>>>;

    /// A pool of keys behind breakers, with the status each answers.
    struct Pool {
        endpoints: Vec<Endpoint>,
        layers: Vec<CircuitBreakerLayer>,
        handles: Vec<BreakerHandle>,
        statuses: Statuses,
    }

    impl Pool {
        fn new(size: usize, policy: &BreakerPolicy) -> Self {
            let pool = Arc::<PoolState>::default();
            let endpoint = |n| Endpoint::in_pool(ApiKey::new(format!("key-{n}")).unwrap(), pool.clone());
            let endpoints: Vec<_> = (0..size).map(endpoint).collect();
            let layer = |endpoint| CircuitBreakerLayer::new(policy.clone()).endpoint(endpoint);
            let layers: Vec<_> = endpoints.iter().map(layer).collect();
            let handles = layers.iter().map(CircuitBreakerLayer::handle).collect();
            Self { endpoints, layers, handles, statuses: Arc::new(Mutex::new(vec![200; size])) }
        }

        fn set(&self, key: usize, status: u16) {
            self.statuses.lock().unwrap()[key] = status;
        }

        /// One request on each key whose breaker is closed.
        async fn round(&self, model: &str) {
            for (n, layer) in self.layers.iter().enumerate() {
                if self.handles[n].snapshot().state != BreakerState::Closed {
                    continue;
                }
                let statuses = self.statuses.clone();
                let service = layer.layer(service_fn(move |_: Request<()>| {
                    let mut response = Response::new(Empty::<Bytes>::new());
                    *response.status_mut() = statuses.lock().unwrap()[n].try_into().unwrap();
                    async { Ok::<_, BoxError>(response) }
                }));
                let mut request = Request::new(());
                RequestContext::of(&mut request).set_body(format!(r#"{{"model":"{model}"}}"#).into());
                service.oneshot(request).await.unwrap();
            }
        }

        fn closed(&self) -> usize {
            self.handles.iter().filter(|handle| handle.snapshot().state == BreakerState::Closed).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_alone_fails_is_opened_at_its_third_fault() {
        let pool = Pool::new(2, &BreakerPolicy::default());
        pool.set(0, 502);
        for round in 1..=5 {
            pool.round("m").await;
            assert_eq!(pool.closed(), if round < 3 { 2 } else { 1 }, "round {round}");
        }
        assert!(pool.endpoints[0].shut_until(Instant::now()).is_some());
        assert_eq!(pool.handles[1].snapshot().failures, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_fails_together_is_not_blamed_on_its_keys() {
        let pool = Pool::new(5, &BreakerPolicy::default());
        pool.round("m").await;
        (0..5).for_each(|key| pool.set(key, 503));
        for _ in 0..100 {
            pool.round("m").await;
        }
        assert_eq!(pool.closed(), 5);
        let mut request = Request::new(());
        RequestContext::of(&mut request).set_body(r#"{"model":"m"}"#.into());
        let route = Route::of(&pool.endpoints[0], RequestContext::get(request.extensions()));
        assert!(pool.endpoints[0].suspects().pool_failing(route, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_fails_on_all_keys_does_not_open_them_while_another_goes_well() {
        let pool = Pool::new(4, &BreakerPolicy::default());
        for _ in 0..20 {
            (0..4).for_each(|key| pool.set(key, 502));
            pool.round("down").await;
            (0..4).for_each(|key| pool.set(key, 200));
            pool.round("up").await;
        }
        assert_eq!(pool.closed(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_usable_key_is_never_opened_by_suspects() {
        let pool = Pool::new(3, &BreakerPolicy::new(TripPolicy::consecutive(1).unwrap()));
        for key in 0..3 {
            pool.set(key, 502);
            for _ in 0..20 {
                pool.round("m").await;
            }
        }
        assert_eq!(pool.closed(), 2, "of two keys left, one that fails opens; when both fail it is the pool");
        pool.handles[2].isolate();
        for _ in 0..20 {
            pool.round("m").await;
        }
        assert_eq!(pool.closed(), 1);
    }
}
