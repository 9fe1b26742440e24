//! Where the examples send their requests: to OpenRouter with the keys in `OPENROUTER_API_KEYS`, separated by commas; without
//! any, to a simulator of it, served on a port of this machine.

use tokio::net::TcpListener;
use tower::BoxError;
use tower_openrouter::{
    ApiKey, KeyError,
    openrouter::BASE_URL,
    simulator::{Scenario, Simulator, serve},
};

/// The other side.
pub(crate) struct Upstream {
    pub(crate) base_url: String,
    pub(crate) keys: Vec<ApiKey>,
    pub(crate) model: &'static str,
    /// What answers, where it is the simulator: it knows what really came.
    pub(crate) simulator: Option<Simulator>,
}

pub(crate) async fn upstream() -> Result<Upstream, BoxError> {
    if let Ok(secrets) = std::env::var("OPENROUTER_API_KEYS") {
        let keys = secrets.split(',').map(ApiKey::new).collect::<Result<_, KeyError>>()?;
        println!("sending to OpenRouter");
        return Ok(Upstream { base_url: BASE_URL.into(), keys, model: "openai/gpt-4o-mini", simulator: None });
    }
    // five keys on three accounts, of which `gamma` has no credit
    let simulator = Simulator::new(Scenario::default())?;
    let keys =
        simulator.keys().into_iter().map(|key| Ok(ApiKey::new(key.secret)?.label(key.label).account(key.account)));
    let keys = keys.collect::<Result<_, KeyError>>()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base_url = format!("http://{}/api/v1", listener.local_addr()?);
    println!("no key in OPENROUTER_API_KEYS, so a simulator answers at {base_url}");
    tokio::spawn(serve(listener, simulator.clone()));
    Ok(Upstream { base_url, keys, model: "acme/swift-1", simulator: Some(simulator) })
}
