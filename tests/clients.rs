//! Rust clients, unmodified: the same four things are asked of the simulator and of the gateway before it.
//!
//! The clients of other languages are in `clients/`, with the scenario both kinds share.

#[path = "clients/openai_rs.rs"]
mod openai_rs;
#[path = "clients/openrouter_rs.rs"]
mod openrouter_rs;

use tokio::net::TcpListener;
use tower_openrouter::simulator::{Scenario, Simulator, serve};

const SCENARIO: &str = include_str!("clients/scenario.toml");
const KEY: &str = "sk-or-v1-clients-alpha-1";
const MODEL: &str = "acme/swift-1";
/// Tokens, and words, of every reply by the scenario.
const TOKENS: usize = 6;

/// What all clients are asked to do, and the statuses they are to be shown.
macro_rules! clients_of {
    ($world:ident) => {
        mod $world {
            #[tokio::test]
            async fn async_openai_chats() {
                let world = super::$world().await;
                crate::openai_rs::chats(&world.base).await;
            }

            #[tokio::test]
            async fn async_openai_streams() {
                let world = super::$world().await;
                crate::openai_rs::streams(&world.base).await;
            }

            #[tokio::test]
            async fn async_openai_lists_models() {
                let world = super::$world().await;
                crate::openai_rs::lists_models(&world.base).await;
            }

            #[tokio::test]
            async fn async_openai_is_shown_errors() {
                let world = super::$world().await;
                for status in world.statuses {
                    crate::openai_rs::is_shown(&world.base, *status).await;
                }
            }

            #[tokio::test]
            async fn openrouter_rs_chats() {
                let world = super::$world().await;
                crate::openrouter_rs::chats(&world.base).await;
            }

            #[tokio::test]
            async fn openrouter_rs_streams() {
                let world = super::$world().await;
                crate::openrouter_rs::streams(&world.base).await;
            }

            #[tokio::test]
            async fn openrouter_rs_lists_models() {
                let world = super::$world().await;
                crate::openrouter_rs::lists_models(&world.base).await;
            }

            #[tokio::test]
            async fn openrouter_rs_is_shown_errors() {
                let world = super::$world().await;
                for status in world.statuses {
                    crate::openrouter_rs::is_shown(&world.base, *status).await;
                }
            }
        }
    };
}

clients_of!(simulator);

/// Something to talk to.
struct World {
    /// Up to and including `/api/v1`.
    base: String,
    /// What a request for `fail/<status>` answers with, unchanged.
    statuses: &'static [u16],
}

async fn simulator() -> World {
    World {
        base: format!("{}/api/v1", simulated().await),
        statuses: &[400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 524, 529],
    }
}

/// A simulator on a port of its own, for as long as the test's runtime lives.
async fn simulated() -> String {
    let simulator = Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, simulator));
    format!("http://{address}")
}
