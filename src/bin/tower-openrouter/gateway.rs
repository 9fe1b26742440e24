//! `tower-openrouter gateway`: an OpenAI-compatible API over many OpenRouter keys.

use std::{
    env,
    error::Error,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    thread,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tower_openrouter::{ApiKey, OpenRouter};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

mod access;
mod admin;
mod app;
pub(crate) mod balancer;
mod banner;
mod config;
mod drain;
mod headers;
pub(crate) mod keys;
mod proxy;
mod refusal;
mod server;
mod span;

pub(crate) use config::Arguments;
pub(crate) use span::Span;

use access::Access;
use admin::{Admin, Local};
use balancer::Upstream;
use banner::Banner;
use config::Settings;
use drain::Drain;
use proxy::Shared;
use server::Server;

/// How long cut connections have to pass their last words on.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Runs until stopped by a signal.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let settings = arguments.settle()?;
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    // with one core to run on, threads only cost: nothing is gained by handing tasks from one to the other
    let mut runtime = match thread::available_parallelism() {
        Ok(cores) if cores.get() == 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let outcome = runtime.block_on(gateway(settings));
    // a name look-up that hangs must not hold up the end
    runtime.shutdown_background();
    outcome
}

async fn gateway(settings: Settings) -> Result<(), Box<dyn Error>> {
    let keys = keys::load(&settings.keys, &settings.folder, &env::vars_os().collect())?;
    let (upstream, keys) = Upstream::choose(&settings, keys)?;
    let drain = Drain::new();
    let shared = Shared {
        access: Access(settings.access_token.clone()),
        drain: drain.clone(),
        balancer_headers: settings.balancer_headers,
        simulated: upstream.is_simulated(),
    };
    let balancer = balancer::builder(&settings, keys.clone())?;
    let mut signals = Signals::new()?;
    let listener = bind(settings.listen, "listen").await?;
    let admin_listener = bind(settings.admin_listen, "admin-listen").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin_listener.local_addr()?);

    let (alive, mut ended) = mpsc::channel(1);
    let server = Server { header_timeout: settings.header_timeout, stop: drain.watch(), _alive: alive };
    // it answers until the very end; nobody waits for it
    let never = watch::Sender::new(false);
    let admin_server = Server { stop: never.subscribe(), _alive: mpsc::channel(1).0, ..server.clone() };

    let admin =
        Admin { balancer: balancer.handle(), drain: drain.clone(), access: Access(settings.admin_token.clone()) };
    let admin = admin::app(admin);
    // the stacks as they are, with nothing boxed
    match &upstream {
        Upstream::Real(url) => {
            let app = app::app(balancer.service(Upstream::leaf(url)?), shared);
            tokio::spawn(server.serve(listener, move |_| app.clone()));
        }
        Upstream::Simulated(simulator, _) => {
            let app = app::app(balancer.service(OpenRouter::new(simulator.service())), shared);
            tokio::spawn(server.serve(listener, move |_| app.clone()));
        }
    }
    tokio::spawn(admin_server.serve(admin_listener, move |local| {
        admin.clone().map_request(move |mut request: http::Request<_>| {
            request.extensions_mut().insert(Local(local));
            request
        })
    }));

    let banner = Banner {
        listen,
        admin_listen,
        upstream: upstream.name(),
        simulated: upstream.simulated_model(),
        keys: &keys,
        asks_token: settings.access_token.is_some(),
    };
    // nobody may be reading
    let _ = write!(io::stdout(), "{banner}").and_then(|()| io::stdout().flush());
    caution(&settings, &upstream, listen, &keys);

    signals.next().await;
    info!(for_at_most = ?settings.drain_timeout, "stopping: nothing new is taken, what runs is finished; a second signal ends it at once");
    drain.start();
    tokio::select! {
        _ = ended.recv() => return Ok(()),
        () = sleep(settings.drain_timeout) => warn!("the drain timeout has passed: what still runs is cut"),
        () = signals.next() => warn!("second signal: what still runs is cut"),
    }
    drain.cut();
    let _ = timeout(LAST_WORDS, ended.recv()).await;
    Ok(())
}

/// Says what is allowed and probably not meant.
fn caution(settings: &Settings, upstream: &Upstream, listen: SocketAddr, keys: &[ApiKey]) {
    if upstream.is_simulated() {
        return;
    }
    for key in keys.iter().filter(|key| !key.looks_like_openrouter()) {
        warn!(key = key.name(), "this key does not start with sk-or-: is it one of OpenRouter's?");
    }
    if !listen.ip().is_loopback() && settings.access_token.is_none() {
        warn!(%listen, "whoever reaches this address can spend your keys: set --access-token");
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        let what_to_do = match error.kind() {
            io::ErrorKind::AddrInUse => "something else listens there: stop it, or choose another port",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address: choose one it has",
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose a higher one",
            _ => "choose another address",
        };
        format!("cannot listen on {address} (--{flag}): {error}; {what_to_do}")
    })
}

/// What asks the process to stop.
#[cfg(unix)]
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What asks the process to stop.
#[cfg(not(unix))]
pub(crate) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // nothing can ask: it runs until it is killed
            std::future::pending().await
        }
    }
}
