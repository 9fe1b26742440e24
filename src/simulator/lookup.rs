use super::refusal;
use super::request::Dialect;
use super::service::{Call, Reference, refuse};
use super::{Shared, SimulatorBody, SimulatorError};
use http::Response;
use std::sync::Arc;
pub(super) async fn answer(shared: &Arc<Shared>, _call: &Call) -> Result<Response<SimulatorBody>, SimulatorError> {
    Ok(refuse(shared, &refusal::not_found("Not Found"), &Reference::of(Dialect::Chat), None))
}
