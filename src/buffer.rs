//! Request bodies that can be sent more than once.
//!
//! A retry sends the request again, and a selector wants to know which model it asks for; a body that streams by allows
//! neither. [`BufferLayer`] collects it once into [`Bytes`](bytes::Bytes), of which every attempt sends a cheap clone, and
//! gives it to the [`RequestContext`](crate::RequestContext). A body that lies ready in one piece is taken as it is, without
//! a copy.
//!
//! What is in memory must be bounded, three times:
//!
//! | | default | beyond it |
//! | --- | --- | --- |
//! | [`body_limit`](BufferLayer::body_limit), one body | 64 MiB, room for several images and files in base64 | [`Why::BodyTooLarge`]; a declared length is refused before anything is read |
//! | [`replay_cap`](BufferLayer::replay_cap), one body in memory | 16 MiB, above nearly all prompts | it streams through once: no retry, its model unknown |
//! | [`budget`](BufferLayer::budget), all bodies of the layer | 1 GiB, 64 bodies of the largest replayable size | [`Why::Overloaded`] |
//!
//! What is reserved of the budget belongs to the bytes themselves and is free again when the last clone of them is dropped,
//! whether an attempt, the request's context or a connection held it.
//!
//! Collecting is for requests known to end. For streaming gRPC, where the answer may begin before the request is over, there
//! is [`BufferLayer::tee`]: the body is passed on as it comes and recorded beside that, and can be replayed once it has ended
//! within the cap. Over the cap or the budget it is no longer recorded, and passed on all the same.
//!
//! A body that breaks off is [`Why::BodyBroken`], and the inner service is not called, unless it streams already; then that
//! is the error of the body. A body that is not `Unpin` has to be boxed first (`http_body_util::BodyExt::boxed_unsync`).
//!
//! [`Why::BodyTooLarge`]: crate::error::Why::BodyTooLarge
//! [`Why::BodyBroken`]: crate::error::Why::BodyBroken
//! [`Why::Overloaded`]: crate::error::Why::Overloaded
//!
//! # Examples
//!
//! The inner service finds the body whole, and what it asks for in the context:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{RequestContext, buffer::{BufferLayer, ReplayBody}};
//!
//! async fn model(request: Request<ReplayBody>) -> Result<Response<String>, BoxError> {
//!     let context = RequestContext::get(request.extensions()).unwrap();
//!     Ok(Response::new(context.asks().model.as_deref().unwrap_or("unknown").to_owned()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let service = ServiceBuilder::new().layer(BufferLayer::new()).service_fn(model);
//! let request = Request::new(Full::new(Bytes::from(r#"{"model":"some/model","messages":[]}"#)));
//! assert_eq!(service.oneshot(request).await?.into_body(), "some/model");
//! # Ok(())
//! # }
//! ```
//!
//! Tighter bounds, and what happens beyond them:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{buffer::{BufferLayer, ReplayBody}, error::{Rejected, Why}};
//!
//! async fn replayable(request: Request<ReplayBody>) -> Result<Response<bool>, BoxError> {
//!     Ok(Response::new(request.body().try_clone().is_some()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let buffer = BufferLayer::new().body_limit(1000).replay_cap(100).budget(10_000);
//! let service = ServiceBuilder::new().layer(buffer).service_fn(replayable);
//! let send = |bytes: usize| service.clone().oneshot(Request::new(Full::new(Bytes::from(vec![b'x'; bytes]))));
//!
//! assert!(send(100).await?.into_body());
//! assert!(!send(101).await?.into_body());
//! let error = send(1001).await.unwrap_err();
//! assert_eq!(Rejected::find(&*error).unwrap().why(), Why::BodyTooLarge);
//! # Ok(())
//! # }
//! ```

use tower_layer::Layer;

mod body;
mod collect;
mod service;

pub use body::ReplayBody;
use collect::Budget;
pub use service::{Buffer, BufferFuture};

const MIB: u64 = 1 << 20;

/// Makes request bodies replayable. See the [module](self).
///
/// Clones of a layer, and everything they are applied to, share one budget.
#[derive(Debug, Clone)]
pub struct BufferLayer {
    limits: Limits,
}

#[derive(Debug, Clone)]
struct Limits {
    body_limit: u64,
    replay_cap: u64,
    budget: Budget,
    tee: bool,
}

impl BufferLayer {
    /// Collects bodies before the inner service is called.
    pub fn new() -> Self {
        let budget = Budget::new(1024 * MIB);
        Self { limits: Limits { body_limit: 64 * MIB, replay_cap: 16 * MIB, budget, tee: false } }
    }

    /// Passes bodies on as they come and records them beside that, for requests that stream.
    ///
    /// A copy of such a body ([`ReplayBody::try_clone`]) may be sent once [`ReplayBody::is_replayable`] says so.
    pub fn tee() -> Self {
        let mut layer = Self::new();
        layer.limits.tee = true;
        layer
    }

    /// The largest body in bytes; a larger one is refused. Default: 64 MiB.
    #[must_use]
    pub fn body_limit(mut self, bytes: u64) -> Self {
        self.limits.body_limit = bytes;
        self
    }

    /// The largest body in bytes that is kept for a replay; a larger one streams through once. Default: 16 MiB; with 0
    /// everything streams.
    #[must_use]
    pub fn replay_cap(mut self, bytes: u64) -> Self {
        self.limits.replay_cap = bytes;
        self
    }

    /// The bytes that all bodies of this layer may have in memory at one time. Default: 1 GiB. Give at least the
    /// [`replay_cap`](Self::replay_cap), or bodies in between are never let through.
    #[must_use]
    pub fn budget(mut self, bytes: u64) -> Self {
        self.limits.budget = Budget::new(bytes);
        self
    }

    /// The bytes of the budget that are in use.
    pub fn used(&self) -> u64 {
        self.limits.budget.used()
    }
}

impl Default for BufferLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for BufferLayer {
    type Service = Buffer<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Buffer::new(inner, self.limits.clone())
    }
}
