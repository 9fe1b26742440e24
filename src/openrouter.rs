//! OpenRouter as a tower [`Service`](tower::Service): the leaf of a stack, and the one place that knows what its answers mean.
//!
//! A balancer is only as good as its reading of failures, and OpenRouter's are easily misread: a 429 is nearly always a
//! provider's and says nothing about the key, a key that has spent its cap answers 403, one kind of 402 is over in seconds,
//! and a 200 is sent before any token, so that a failure can be inside it. [`OpenRouter`] sends a request below the
//! configured API root, over whatever transport it is given, and judges the answer by the table below, once. The result
//! lies as an [`OutcomeCell`](crate::outcome::OutcomeCell) in the response's extensions; the rest of the stack reads that.
//!
//! - Of a request only path and query below the API root are taken; nobody can send a key to another host.
//! - Redirects are not followed, connection-level headers stop here in both directions.
//! - Of an error's body up to 64 KiB are read to judge it, then it is passed on byte for byte.
//! - The body of a 200 is watched as it flows: see [`Scan`].
//! - A key is put on by [`AuthorizeLayer`], one to a key's stack.
//! - Which providers may serve is said by the request, or by a [`ProviderLayer`] for those that do not say.
//!
//! Transports have no policy of their own: [`HyperTransport`] (feature `hyper`), [`ReqwestTransport`] (feature `reqwest`), or
//! any service of `http` requests, such as the [simulator](crate::simulator).
//!
//! # Examples
//!
//! ```
//! use tower::{Service, ServiceExt};
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower_openrouter::{OpenRouter, outcome::{Outcome, OutcomeCell}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! // a transport that answers for itself; see `HyperTransport` for one that does not
//! let transport = tower::service_fn(|request: Request<String>| async move {
//!     assert_eq!(request.uri(), "https://openrouter.ai/api/v1/chat/completions");
//!     let answer = r#"{"choices":[{"message":{"content":"hello"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
//!     Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes::Bytes::from(answer))))
//! });
//!
//! let response = OpenRouter::new(transport).oneshot(Request::post("/v1/chat/completions").body("{}".to_owned())?).await?;
//! let cell = response.extensions().get::<OutcomeCell>().cloned().unwrap();
//! response.into_body().collect().await?;
//! assert_eq!(cell.at_end(), Some(Outcome::Success));
//! assert_eq!(cell.usage().unwrap().prompt_tokens, 3);
//! # Ok(())
//! # }
//! ```
//!
//! With settings of one's own, in front of a regional host:
//!
//! ```
//! use tower_openrouter::{OpenRouter, openrouter::BuildError};
//! # let transport = ();
//!
//! let builder = OpenRouter::builder()
//!     .base_url("https://eu.openrouter.ai/api/v1")
//!     .title("Example");
//! let service = builder.clone().build(transport)?;
//!
//! let refused = builder.error_body_limit(0).build(transport);
//! assert_eq!(refused.unwrap_err(), BuildError::ZeroErrorBodyLimit);
//! # Ok::<(), BuildError>(())
//! ```
//!
//! # The classification table
//!
//! *Retry*: elsewhere = at once on a key outside the scope; back-off = any key, after the rest or a back-off; once = that, a
//! single time. *Rest*: what the server hints, else the default named here; never more than [`MAX_REST`]. A hint of zero
//! counts as a guess of a second at most. An [`AccountPoller`](crate::AccountPoller) ends the rest of row 7 when the upstream,
//! asked with `GET /key`, accepts the key after all.
//!
//! | row | answer | cause | scope | rest | retry |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 | 200 | success | | | |
//! | 2 | 200 with an error inside, before output | by the error's own code | | | |
//! | 3 | the same after output | `MidStream` | pool | none | never |
//! | 4 | 200 that ends without its end marker | `Truncated` | pool | none | once before output, never after |
//! | 5 | 400 with a provider's 429 or 5xx inside | `ProviderLimit` | pool | 1 s | back-off |
//! | 6 | other 400, 412, 422 | `BadRequest` | request | none | never |
//! | 7 | 401 | `InvalidKey` | key | 60 s | elsewhere |
//! | 8 | 401 on most keys at once | `PlatformAuth`, which only the pool can tell | | | |
//! | 9 | 402, in-flight budget | `InFlightBudget` | account | 5 s | elsewhere |
//! | 10 | 402, more than the account can pay | `TooDearForAccount` | account | none | elsewhere |
//! | 11 | 402, more than is left under the key's cap | `TooDearForKey` | key | none | elsewhere |
//! | 12 | other 402 | `NoCredit` | account | 10 min | elsewhere |
//! | 13 | 403, key limit exceeded | `KeyLimit` | key | its reset; "total": 1 h | elsewhere |
//! | 14 | 403, workspace or guardrail budget | `WorkspaceBudget`, `GuardrailBudget` | workspace, key | its reset, else 10 min | elsewhere |
//! | 15 | other 403 | `Refused` | request | none | never |
//! | 16 | 403, management key | `ManagementKey` | key | 24 h | elsewhere |
//! | 17 | 429, free models | `FreeTierMinute`, `FreeTierDaily` | free tier | the reset; at most 60 s, next 00:00 UTC | elsewhere |
//! | 17b | 429, other limit of the platform | `PlatformLimit` | account | 60 s | elsewhere |
//! | 18 | 429, a provider's | `ProviderLimit` | pool | 1 s | back-off |
//! | 18b | 429, the account's own key at a provider | `ByokLimit` | account × model | 1 s | elsewhere |
//! | 19 | 429 that does not say whose | `UnknownLimit` | pool | 1 s | back-off |
//! | 20 | 403, 429, 503 of the edge | `EdgeBlock` | egress | 30 s | back-off |
//! | 21 | 404 by data policy, guardrails, allowed providers | `Unroutable` | account × model | 10 min | elsewhere |
//! | 22 | other 404 | `NotFound` | request | none | never |
//! | 23 | 408, 504, 524 | `UpstreamTimeout` | pool | if hinted | once |
//! | 24 | 413 | `TooLarge` | request | none | never |
//! | 25 | 500 and other 5xx | `ServerError` | pool | if hinted | back-off |
//! | 26 | 502, 503, 529 | `ProviderUnavailable` | pool | if hinted | back-off |
//! | 26 | 503 before any provider was tried | `NoProvider` | request | none | never |
//! | 27 | 520 to 530, and 502 in HTML | `EdgeError` | egress | if hinted | back-off |
//! | 28 | no connection; or it broke | `Connect`; `Reset` | egress | none | back-off; unclear |
//! | 29 | silence beyond a limit of our own: to the head | `HeadersTimeout` | pool | none | unclear |
//! | 29 | to the first output | `FirstOutputTimeout` | pool | none | a stream once, else unclear |
//! | 29 | after it; or the whole took too long | `GapTimeout`; `Timeout` | pool | none | never |

pub mod account;
mod authorize;
mod base;
mod body;
mod calendar;
mod classify;
mod error_body;
mod future;
mod headers;
mod hints;
pub mod provider;
mod scan;
mod service;
#[cfg(feature = "hyper")]
mod transport_hyper;
#[cfg(feature = "reqwest")]
mod transport_reqwest;

pub use crate::clock::WallClock;
pub use account::{AccountClient, LookupError};
pub use authorize::{Authorize, AuthorizeLayer};
pub use body::OpenRouterBody;
pub use classify::{Answer, Judged, MAX_REST, classify};
pub use future::OpenRouterFuture;
pub use hints::Hints;
pub use provider::{
    DataCollection, MaxPrice, OnFullPool, Partition, Percentiles, PreferenceError, ProviderLayer, ProviderPreferences,
    Quantization, Sort, SortBy, Threshold, Variant,
};
pub use scan::Scan;
pub use service::{BASE_URL, BuildError, OpenRouter, OpenRouterBuilder};
#[cfg(feature = "hyper")]
pub use transport_hyper::{HyperTransport, HyperTransportFuture};
#[cfg(feature = "reqwest")]
pub use transport_reqwest::{ReqwestTransport, ReqwestTransportFuture};
