//! Rust clients, unmodified: the same four things are asked of the simulator and of the gateway before it.
//!
//! The clients of other languages are in `clients/`, with the scenario both kinds share.

#[path = "clients/choosing.rs"]
mod choosing;
#[path = "clients/openai_rs.rs"]
mod openai_rs;
#[path = "clients/openrouter_rs.rs"]
mod openrouter_rs;
#[allow(dead_code, unreachable_pub, reason = "shared with the gateway's own tests")]
#[path = "gateway/support.rs"]
mod process;

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
                for (asked, shown) in world.statuses {
                    crate::openai_rs::is_shown(&world.base, asked, shown).await;
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
                for (asked, shown) in world.statuses {
                    crate::openrouter_rs::is_shown(&world.base, asked, shown).await;
                }
            }
        }
    };
}

clients_of!(simulator);
clients_of!(gateway);

/// Something to talk to.
struct World {
    /// Up to and including `/v1`.
    base: String,
    /// What a request for `fail/<asked>` is answered with, in an order in which they do not disturb each other.
    statuses: Vec<(u16, u16)>,
    _gateway: Option<process::Gateway>,
}

/// Every status as it is.
async fn simulator() -> World {
    let all = [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 524, 529];
    World {
        base: format!("{}/v1", simulated().await),
        statuses: all.map(|status| (status, status)).into(),
        _gateway: None,
    }
}

/// Errors of the request and of the provider as they are; those of all keys as "try again later".
async fn gateway() -> World {
    let upstream = simulated().await;
    let keys = "sk-or-v1-clients-alpha-1,sk-or-v1-clients-alpha-2,sk-or-v1-clients-beta-1";
    // Repeats of 5xx would cost seconds of real time here.
    let gateway = process::Gateway::start(
        &["--upstream", &format!("{upstream}/v1"), "--attempts", "1"],
        &[("OPENROUTER_API_KEYS", keys), ("TOWER_OPENROUTER_ACCESS_TOKEN", KEY)],
    );
    let same = [400, 404, 413, 422, 408, 500, 502, 503, 524, 529, 429];
    World {
        base: format!("http://{}/v1", gateway.api),
        statuses: same.into_iter().map(|status| (status, status)).chain([(402, 429)]).collect(),
        _gateway: Some(gateway),
    }
}

/// A simulator on a port of its own, up to `/api`, for as long as the test's runtime lives.
async fn simulated() -> String {
    let simulator = Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, simulator));
    format!("http://{address}/api")
}
