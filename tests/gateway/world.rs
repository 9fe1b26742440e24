//! The simulator as the upstream, for tests in which it counts, and what a client sees of a connection's end.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    thread,
};

use tower_openrouter::simulator::{Scenario, Simulator, serve};

use super::support::*;

/// A simulator on a port of its own, served by a thread until the test process ends.
pub(crate) struct World {
    pub(crate) simulator: Simulator,
    address: SocketAddr,
}

impl World {
    /// One account, one key, one model, `acme/swift-1`, and no delays.
    pub(crate) fn plain() -> Self {
        Self::of(
            r#"
            accounts = [{ name = "alpha", credits = 100.0 }]
            keys = [{ label = "one", account = "alpha" }]
            models = [{ id = "acme/swift-1" }]
            endpoints = [{ model = "acme/swift-1", provider = "DeepInfra" }]
            keep = { requests = 100000 }
            "#,
        )
    }

    pub(crate) fn of(scenario: &str) -> Self {
        let simulator = Simulator::new(Scenario::from_toml(scenario).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let served = simulator.clone();
        thread::spawn(move || runtime.block_on(serve(listener, served)));
        Self { simulator, address }
    }

    /// A gateway with the keys of this world before it.
    pub(crate) fn gateway(&self, flags: &[&str]) -> Gateway {
        let keys: Vec<_> = self.simulator.keys().into_iter().map(|key| key.secret).collect();
        let base = format!("http://{}/api/v1", self.address);
        Gateway::start(&[&["--upstream", &base], flags].concat(), &[("OPENROUTER_API_KEYS", &keys.join(","))])
    }

    /// The paths that were asked for so far.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.simulator.requests().iter().map(|request| request.uri.path().to_owned()).collect()
    }
}

/// Reads until the other side closes; `None` when it does not.
pub(crate) fn until_closed(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        _closed_or_reset => Some(String::from_utf8_lossy(&text).into_owned()),
    }
}
