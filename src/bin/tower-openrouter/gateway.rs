//! `tower-openrouter gateway`: an OpenAI-compatible API over many OpenRouter keys.

use std::{
    env,
    error::Error,
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Either;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tower::{Layer, ServiceExt};
use tower_openrouter::{ObserveLayer, buffer::ReplayBody, openrouter::HyperTransport};
use tracing::{error, info, trace, warn};

mod access;
mod actions;
mod admin;
mod app;
mod around;
mod banner;
mod bursts;
mod check;
mod config;
mod drain;
mod events;
mod headers;
mod intake;
mod live;
mod log;
mod metrics;
mod page;
pub(crate) mod poll;
mod proxy;
mod record;
mod refusal;
mod reload;
pub(crate) mod routed;
mod server;
pub(crate) mod stack;
mod telemetry;
mod traces;
mod upstream;

pub(crate) use config::{Arguments, Configuration, Trouble};
pub(crate) use upstream::{Transport, Upstream, leaf};

use access::Access;
use admin::Local;
use banner::Banner;
use check::Plan;
use drain::Drain;
use proxy::Shared;
use record::Recorder;
use reload::Runner;
use routed::Routed;
use server::Server;
use stack::Stack;
use telemetry::Telemetry;
use traces::Traces;

/// How long connections have to pass their last words on.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the gateway would run with when it is given this configuration file and this base URL, and who would answer.
pub(crate) fn configured(
    config: Option<PathBuf>,
    upstream: Option<String>,
) -> Result<(Configuration, Upstream), Box<dyn Error>> {
    let mut configuration = Arguments::of(config, upstream).load(&env::vars_os().collect())?;
    let upstream = Upstream::choose(&mut configuration)?;
    Ok((configuration, upstream))
}

/// Runs until stopped by a signal.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let variables = env::vars_os().collect();
    let mut configuration = arguments.load(&variables)?;
    if arguments.check {
        let upstream = Upstream::choose(&mut configuration)?;
        check::check(&configuration).map_err(|trouble| configuration.tell(&trouble))?;
        let plan = Plan { configuration: &configuration, simulated: matches!(upstream, Upstream::Simulated(..)) };
        return Ok(write!(io::stdout(), "{plan}")?);
    }
    // with one core to run on, threads only cost: nothing is gained by handing tasks from one to the other
    let mut runtime = match thread::available_parallelism() {
        Ok(cores) if cores.get() == 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let telemetry = Telemetry::start(&runtime)?;
    let outcome = runtime.block_on(async {
        match Upstream::choose(&mut configuration)? {
            Upstream::Real => gateway(arguments, configuration, HyperTransport::<ReplayBody>::new(), None).await,
            Upstream::Simulated(simulator, model) => {
                gateway(arguments, configuration, simulator.service(), Some(model)).await
            }
        }
    });
    telemetry.stop(&runtime);
    // what is being written is written; a name look-up that hangs must not hold up the end for longer
    runtime.shutdown_timeout(LAST_WORDS);
    outcome
}

/// Serves what is configured through `transport`, until stopped. `simulated` is a model to try when that is the simulator.
async fn gateway<T: Transport>(
    arguments: Arguments,
    configuration: Configuration,
    transport: T,
    simulated: Option<String>,
) -> Result<(), Box<dyn Error>> {
    let (drain, traces) = (Drain::new(), Traces::default());
    metrics::install()?;
    // one for all configurations, so that counting goes on
    let observe = ObserveLayer::new();
    let mut signals = Signals::new()?;
    let settings = &configuration.settings;
    let header_timeout = settings.header_timeout.get();
    let (listen, admin_listen, asks_token) = (settings.listen, settings.admin_listen, settings.access_token.is_some());
    let (draining, is_simulated, polling) = (drain.clone(), simulated.is_some(), Mutex::new(None));
    let keeping = traces.clone();
    let recorder = settings.record.as_deref().map(Recorder::start).transpose()?;
    let recording = recorder.clone();
    let make = move |Configuration { settings, .. }: &Configuration, stack: &Stack| {
        let shared = Shared {
            access: Access(settings.access_token.clone()),
            drain: draining.clone(),
            balancer_headers: settings.balancer_headers,
            explain: settings.explain,
            traces: keeping.clone(),
            recorder: recording.clone(),
            simulated: is_simulated,
        };
        let leaf = leaf(settings, transport.clone())?;
        let routes = stack.routes(settings, &leaf)?;
        let poller = poll::start(settings, stack.handle().pool(), leaf.clone())?;
        // the one before stops here
        *polling.lock().unwrap_or_else(PoisonError::into_inner) = poller;
        let hear_out = stack::hear_out(&settings.timeouts);
        let service = Routed::new(stack.all.service(leaf), routes);
        let service = service.map_response(move |response: Response<_>| match &hear_out {
            None => response.map(Either::Left),
            Some(hear_out) => hear_out.watch(response).map(Either::Right),
        });
        let service = observe.layer(service);
        #[cfg(feature = "otel")]
        let service = telemetry::OfCallers::new(service);
        // above all that waits, and below what writes on heads
        Ok(app::app(settings.stream.keep_alive()?.layer(service), shared))
    };
    let mut runner = Runner::new(arguments, configuration, make, drain.clone(), traces, is_simulated)?;
    let listener = bind(listen, "listen").await?;
    let admin_listener = bind(admin_listen, "admin-listen").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin_listener.local_addr()?);

    let (alive, mut ended) = mpsc::channel(1);
    let server = Server { header_timeout, stop: drain.watch(), _alive: alive };
    // it answers until the very end; nobody waits for it
    let never = watch::Sender::new(false);
    let admin_server = Server { stop: never.subscribe(), _alive: mpsc::channel(1).0, ..server.clone() };

    let (api, admin) = (runner.api(), admin::app(runner.admin()));
    tokio::spawn(server.serve(listener, move |_| {
        let api = api.clone();
        move || api.now()
    }));
    tokio::spawn(admin_server.serve(admin_listener, move |local| {
        let admin = admin.clone();
        move || {
            admin.clone().map_request(move |mut request: Request<_>| {
                request.extensions_mut().insert(Local(local));
                request
            })
        }
    }));

    let configuration = runner.configuration();
    let banner = Banner {
        listen,
        admin_listen,
        upstream: configuration.settings.upstream(),
        simulated: simulated.as_deref(),
        keys: &configuration.keys,
        asks_token,
    };
    // nobody may be reading
    let _ = write!(io::stdout(), "{banner}").and_then(|()| io::stdout().flush());

    tokio::spawn(heartbeat());
    tokio::spawn(runner.admin().now().events.run(runner.admin()));
    while let Asked::Reload = signals.next().await {
        if let Err(why) = runner.reload() {
            error!("the configuration was read again and is not used, what ran before runs on: {why}");
        }
    }
    let drain_timeout = runner.configuration().settings.drain_timeout.0;
    info!(for_at_most = ?drain_timeout, "stopping: nothing new is taken, what runs is finished; a second signal ends it at once");
    drain.start();
    let ended_in_time = tokio::select! {
        _ = ended.recv() => true,
        () = sleep(drain_timeout) => {
            warn!("the drain timeout has passed: what still runs is cut");
            false
        }
        () = signals.stop() => {
            warn!("second signal: what still runs is cut");
            false
        }
    };
    if !ended_in_time {
        drain.cut();
        let _ = timeout(LAST_WORDS, ended.recv()).await;
    }
    // with no request to wait for, the process would end before those who look are told that it does
    let _ = timeout(LAST_WORDS, runner.admin().now().events.left()).await;
    if let Some(recorder) = recorder {
        recorder.flush();
    }
    Ok(())
}

/// A timer that is the next to ring wakes its runtime, which costs a busy thread two system calls: with a single request in
/// flight each of its timers is the next. While this runs, none is. It also tells who debugs how many tasks there are.
async fn heartbeat() {
    let metrics = Handle::current().metrics();
    loop {
        sleep(Duration::from_secs(1)).await;
        trace!(target: "tower_openrouter::tasks", alive = metrics.num_alive_tasks());
    }
}

async fn bind(address: std::net::SocketAddr, flag: &str) -> Result<TcpListener, String> {
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

/// What the process is asked by a signal.
pub(crate) enum Asked {
    Stop,
    #[cfg_attr(not(unix), expect(dead_code, reason = "there is no such signal"))]
    Reload,
}

#[cfg(unix)]
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

#[cfg(not(unix))]
pub(crate) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) -> Asked {
        if tokio::signal::ctrl_c().await.is_err() {
            // nothing can ask: it runs until it is killed
            std::future::pending().await
        }
        Asked::Stop
    }
}

impl Signals {
    /// Resolves once it is asked to stop.
    async fn stop(&mut self) {
        while !matches!(self.next().await, Asked::Stop) {}
    }
}
