//! `tower-openrouter simulator`: a pretended OpenRouter on a local port.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::net::TcpListener;
use tower_openrouter::simulator::{Scenario, Simulator, serve, utc_date};

/// Serve a simulated OpenRouter: no account, no cost, the same wire format.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8787")]
    listen: SocketAddr,

    /// Accounts, keys, models, faults, as TOML. Without it a demonstration with five keys.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
}

/// Runs until interrupted.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut scenario = match &arguments.scenario {
            Some(path) => {
                let name = path.display();
                let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
                Scenario::from_toml(&text).map_err(|error| format!("{name}: {error}"))?
            }
            None => Scenario::default(),
        };
        if scenario.start.is_none() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            scenario.start = Some(utc_date(i64::try_from(now.as_millis())?));
        }
        let model = scenario.models.first().map_or("author/model", |model| &model.id).to_owned();
        let simulator = Simulator::new(scenario)?;
        let listener = TcpListener::bind(arguments.listen)
            .await
            .map_err(|error| format!("cannot listen on {}: {error}", arguments.listen))?;
        introduce(listener.local_addr()?, &simulator, &model);
        tokio::select! {
            served = serve(listener, simulator) => Ok(served?),
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

/// Keys are printed whole: they are worth nothing anywhere else.
fn introduce(address: SocketAddr, simulator: &Simulator, model: &str) {
    println!("simulated OpenRouter on http://{address}/api/v1");
    let keys = simulator.keys();
    for key in &keys {
        println!("  {:<12} {:<10} {}", key.label, key.account, key.secret);
    }
    if let Some(key) = keys.first() {
        let request = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}]}}"#);
        println!(
            "try: curl http://{address}/api/v1/chat/completions -H 'Authorization: Bearer {}' \
             -H 'Content-Type: application/json' -d '{request}'",
            key.secret
        );
    }
}
