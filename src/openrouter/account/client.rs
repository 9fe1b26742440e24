//! Asking.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::ACCEPT};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Limited};
use tower::{BoxError, Layer, Service, ServiceExt};

use super::{Credits, KeyInfo, ModelInfo};
use crate::{
    clock::{self, WallClock},
    key::ApiKey,
    openrouter::AuthorizeLayer,
    outcome::{Fault, OutcomeCell},
};

/// Longest wait for an answer, body and all. A balancer that asks once a minute has no use for a slower one.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest body read, bytes. The list of models has about one million.
const LONGEST: usize = 16 << 20;

/// Asks OpenRouter about keys, accounts and models. See the [module](super).
///
/// It works over any service of `http` requests; over [`OpenRouter`](crate::OpenRouter) errors tell their cause. Cheap to
/// clone when the service is.
///
/// ```
/// use std::time::Duration;
/// use tower_openrouter::{OpenRouter, openrouter::AccountClient};
/// # use tower_openrouter::simulator::{Scenario, Simulator};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tower::BoxError> {
/// # let transport = Simulator::new(Scenario::default())?.service();
/// let client = AccountClient::new(OpenRouter::new(transport)).timeout(Duration::from_secs(3));
/// let models = client.models().await?;
/// println!("{}: {:?}", models[0].id, models[0].price());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AccountClient<S> {
    leaf: S,
    timeout: Duration,
    wall_clock: WallClock,
}

impl<S> AccountClient<S> {
    /// Asks over `leaf`, which puts paths below the API root; keys are put on here.
    pub fn new(leaf: S) -> Self {
        Self { leaf, timeout: TIMEOUT, wall_clock: clock::wall }
    }

    /// Sets the longest wait for one answer; default 10 s.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Sets the wall clock by which resets and dates are read; default [`SystemTime::now`](std::time::SystemTime::now).
    #[must_use]
    pub fn wall_clock(mut self, clock: WallClock) -> Self {
        self.wall_clock = clock;
        self
    }

    /// What a key is told about itself: `GET /key`, or at its old place where there is none.
    ///
    /// # Errors
    /// When there is no answer, or none that can be used.
    pub async fn key<B>(&self, key: &ApiKey) -> Result<KeyInfo, LookupError>
    where
        S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let keyed = AuthorizeLayer::new(key).layer(self.leaf.clone());
        let read = |body: &[u8]| KeyInfo::read(body, (self.wall_clock)());
        match self.get(keyed.clone(), "/key", read).await {
            Err(LookupError::Refused { status: StatusCode::NOT_FOUND, .. }) => self.get(keyed, "/auth/key", read).await,
            found => found,
        }
    }

    /// What the account of a key has bought and spent: `GET /credits`. Many keys are refused with 401 or 403.
    ///
    /// # Errors
    /// When there is no answer, or none that can be used.
    pub async fn credits<B>(&self, key: &ApiKey) -> Result<Credits, LookupError>
    where
        S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        self.get(AuthorizeLayer::new(key).layer(self.leaf.clone()), "/credits", Credits::read).await
    }

    /// All models: `GET /models`, which needs no key.
    ///
    /// # Errors
    /// When there is no answer, or none that can be used.
    pub async fn models<B>(&self) -> Result<Vec<ModelInfo>, LookupError>
    where
        S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        self.get(self.leaf.clone(), "/models", ModelInfo::read_list).await
    }

    async fn get<C, B, T>(
        &self,
        service: C,
        path: &'static str,
        read: impl Fn(&[u8]) -> Result<T, &'static str>,
    ) -> Result<T, LookupError>
    where
        C: Service<Request<Empty<Bytes>>, Response = Response<B>>,
        C::Error: Into<BoxError>,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let answer = tokio::time::timeout(self.timeout, ask(service, path)).await;
        let body = answer.map_err(|_| LookupError::TimedOut { path, after: self.timeout })??;
        read(&body).map_err(|what| LookupError::Unreadable { path, what })
    }
}

async fn ask<C, B>(service: C, path: &'static str) -> Result<Bytes, LookupError>
where
    C: Service<Request<Empty<Bytes>>, Response = Response<B>>,
    C::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let failed = |source: BoxError| LookupError::Failed { path, source };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    let response = service.oneshot(request).await.map_err(|error| failed(error.into()))?;
    let status = response.status();
    if !status.is_success() {
        let outcome = response.extensions().get::<OutcomeCell>().and_then(OutcomeCell::at_commit);
        return Err(LookupError::Refused { path, status, fault: outcome.and_then(|outcome| outcome.fault().copied()) });
    }
    let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(failed)?;
    Ok(body.to_bytes())
}

impl<S> fmt::Debug for AccountClient<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountClient").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Why something was not learned. It holds nothing of a key, nor of what the upstream wrote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The answer is a refusal or a failure.
    #[error("GET {path} was answered {}{}", .status.as_u16(), told(.fault.as_ref()))]
    Refused {
        /// What was asked for.
        path: &'static str,
        /// The status of the answer.
        status: StatusCode,
        /// What it means, where the service below judges answers.
        fault: Option<Fault>,
    },
    /// No answer came, or not to its end.
    #[error("GET {path} failed: {source}")]
    Failed {
        /// What was asked for.
        path: &'static str,
        /// What went wrong.
        source: BoxError,
    },
    /// The answer took too long.
    #[error("GET {path} was not answered within {after:?}")]
    TimedOut {
        /// What was asked for.
        path: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer does not say what was asked.
    #[error("GET {path} was answered with something else: {what}")]
    Unreadable {
        /// What was asked for.
        path: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl LookupError {
    /// What it says about whom, where that is known.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Refused { fault, .. } => fault.as_ref(),
            _ => None,
        }
    }

    /// The status of the answer, if there was one that refused.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

fn told(fault: Option<&Fault>) -> String {
    fault.map(|fault| format!(" ({})", fault.cause)).unwrap_or_default()
}
