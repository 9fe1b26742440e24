use std::{any::type_name, fmt};

use tokio::time::Instant;

use super::{Filter, Fit};
use crate::{endpoint::Endpoint, request::RequestContext};

/// A [`Filter`] from a closure. The parameters' types must be written out.
///
/// Keys of one workspace only:
///
/// ```
/// use tokio::time::Instant;
/// use tower_openrouter::{Endpoint, RequestContext, select::{Fit, filter_fn}};
///
/// let filter = filter_fn(|endpoint: &Endpoint, _: &RequestContext, _: Instant| {
///     if endpoint.key().workspace_name() == Some("research") { Fit::Yes } else { Fit::No }
/// });
/// # let _ = filter;
/// ```
///
/// A stack that leaves one key out for its first minute:
///
/// ```
/// use std::time::Duration;
/// use tokio::time::Instant;
/// use tower_openrouter::{ApiKey, Balancer, Endpoint, RequestContext, select::{Fit, Pool, filter_fn}};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?.label("later")])?;
/// let start = Instant::now() + Duration::from_secs(60);
/// let builder = Balancer::builder(pool).filter(filter_fn(move |endpoint: &Endpoint, _: &RequestContext, now: Instant| {
///     if endpoint.key().name() == "later" && now < start { Fit::NotBefore(start) } else { Fit::Yes }
/// }));
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
pub fn filter_fn<F>(judge: F) -> FilterFn<F>
where
    F: Fn(&Endpoint, &RequestContext, Instant) -> Fit + Send + Sync + 'static,
{
    FilterFn(judge)
}

/// See [`filter_fn`].
#[derive(Clone, Copy)]
pub struct FilterFn<F>(F);

impl<F> fmt::Debug for FilterFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FilterFn").field(&type_name::<F>()).finish()
    }
}

impl<F> Filter for FilterFn<F>
where
    F: Fn(&Endpoint, &RequestContext, Instant) -> Fit + Send + Sync + 'static,
{
    fn judge(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Fit {
        (self.0)(endpoint, request, now)
    }
}
