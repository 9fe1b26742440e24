//! Asking what the keys may spend, beside the traffic.

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use tokio::task::AbortHandle;
use tower::ServiceExt;
use tower_openrouter::{AccountPoller, OpenRouter, buffer::ReplayBody, select::Pool};

use super::{
    Transport,
    config::{Settings, Trouble},
};

/// A poller that runs; dropped, it stops.
#[derive(Debug)]
pub(crate) struct Polling(AbortHandle);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts one for the keys of `pool`, over the connections that requests use, unless the interval is 0.
pub(crate) fn start<T: Transport>(
    settings: &Settings,
    pool: &Pool,
    leaf: OpenRouter<T>,
) -> Result<Option<Polling>, Trouble> {
    let interval = settings.credit.poll_interval.0;
    if interval.is_zero() {
        return Ok(None);
    }
    let leaf = leaf.map_request(|request: Request<Empty<Bytes>>| request.map(|_| ReplayBody::empty()));
    let poller = AccountPoller::new(pool, leaf)
        .interval(interval)
        .map_err(|error| Trouble::with("credit.poll_interval", error))?;
    Ok(Some(Polling(tokio::spawn(poller.run()).abort_handle())))
}
