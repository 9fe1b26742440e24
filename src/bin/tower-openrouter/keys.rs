//! `tower-openrouter keys`: what each key may still spend.

use std::{
    collections::HashSet,
    error::Error,
    io::{self, Write},
    mem,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Empty;
use tokio::{sync::Semaphore, task::JoinSet};
use tower::{BoxError, Service};
use tower_openrouter::{
    ApiKey, OpenRouter,
    endpoint::Money,
    openrouter::{AccountClient, HyperTransport, LookupError, account::KeyInfo},
};

use crate::gateway::{self, Trouble, Upstream};

mod status;
mod table;

use status::Status;

/// Questions under way at once, as gentle as the gateway is.
const AT_ONCE: usize = 8;
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Show what OpenRouter tells about each key: limit, use, what is left, and whether it can be used.
///
/// The keys are those the gateway would use: of the configuration file, and of OPENROUTER_API_KEY, OPENROUTER_API_KEYS,
/// OPENROUTER_API_KEY_1…, OPENROUTER_KEY_1…. Without any, those of an OpenRouter simulated inside this process are shown.
/// Asking costs nothing. The status is 1 when no key can be used.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Configuration file (TOML), as of `gateway`
    #[arg(short, long, env = "TOWER_OPENROUTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Base URL of the upstream [default: https://openrouter.ai/api/v1]
    #[arg(long, env = "TOWER_OPENROUTER_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,

    /// Write JSON, for programs
    #[arg(long)]
    json: bool,
}

/// One key, and what was told about it.
struct Asked {
    key: ApiKey,
    info: Result<KeyInfo, LookupError>,
    /// What its account has left, where the key may know.
    balance: Option<Money>,
}

/// Asks about every key, and shows the answers.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let (mut configuration, upstream) = gateway::configured(arguments.config, arguments.upstream)?;
    let keys = mem::take(&mut configuration.keys);
    let settings = &configuration.settings;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async {
        match &upstream {
            Upstream::Real => Ok(ask(gateway::leaf(settings, HyperTransport::new())?, keys).await),
            Upstream::Simulated(simulator, _) => {
                eprintln!("no key is set: these are the keys of the simulator");
                Ok(ask(OpenRouter::new(simulator.service()), keys).await)
            }
        }
    });
    runtime.shutdown_background();
    let asked = asked.map_err(|trouble: Trouble| configuration.tell(&trouble))?;
    let shown = if arguments.json {
        serde_json::to_string_pretty(&table::json(&asked))? + "\n"
    } else {
        table::Table(&asked).to_string()
    };
    match io::stdout().write_all(shown.as_bytes()) {
        // whoever reads has seen enough
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    for Asked { key, info, .. } in &asked {
        if let Err(error) = info {
            eprintln!("{}: {}", key.name(), told(error));
        }
    }
    if asked.iter().any(|asked| Status::of(asked).is_usable()) {
        return Ok(());
    }
    Err(match asked.len() {
        1 => "the key cannot be used".into(),
        number => format!("none of the {number} keys can be used").into(),
    })
}

/// An error with what caused it, and what to do where something can be.
fn told(error: &LookupError) -> String {
    let mut text = error.to_string();
    let mut cause = match error {
        LookupError::Failed { source, .. } => source.source(),
        _ => None,
    };
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    let advice = match error.status().map(|status| status.as_u16()) {
        Some(401) => "; it is unknown, disabled, deleted or expired: replace it",
        Some(404) => "; the upstream does not tell about keys: is --upstream right?",
        None if matches!(error, LookupError::Failed { .. }) => "; is --upstream right, and the network there?",
        _ => "",
    };
    text + advice
}

/// Asks about all keys, and about the balance of each account once.
async fn ask<S, B>(leaf: S, keys: Vec<ApiKey>) -> Vec<Asked>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let client = AccountClient::new(leaf).timeout(PATIENCE);
    let infos = each(keys.iter().cloned(), {
        let client = client.clone();
        move |key| {
            let client = client.clone();
            async move { client.key(&key).await }
        }
    })
    .await;
    let mut asked: Vec<_> = keys.into_iter().zip(infos).map(|(key, info)| Asked { key, info, balance: None }).collect();
    // the first of its keys asks for an account; one without a known account asks for itself
    let mut seen = HashSet::new();
    let askers: Vec<_> = asked
        .iter()
        .filter(|asked| asked.info.is_ok() && seen.insert(asked.owner().to_owned()))
        .map(|asked| (asked.owner().to_owned(), asked.key.clone()))
        .collect();
    let balances = each(askers, move |(owner, key)| {
        let client = client.clone();
        async move { Some((owner, client.credits(&key).await.ok()?.balance())) }
    })
    .await;
    for (owner, balance) in balances.into_iter().flatten() {
        for asked in asked.iter_mut().filter(|asked| asked.info.is_ok() && asked.owner() == owner) {
            asked.balance = Some(balance);
        }
    }
    asked
}

impl Asked {
    /// The account it belongs to: as configured, else as told.
    fn account(&self) -> Option<&str> {
        self.key.account_name().or_else(|| self.info.as_ref().ok()?.account.as_deref())
    }

    /// Its account, or itself.
    fn owner(&self) -> &str {
        self.account().unwrap_or(self.key.hash())
    }
}

/// What comes of each item, in their order, a few at once.
async fn each<T, R, F>(items: impl IntoIterator<Item = T>, run: impl Fn(T) -> F) -> Vec<R>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (at, item) in items.into_iter().enumerate() {
        let (turns, task) = (turns.clone(), run(item));
        tasks.spawn(async move {
            // nobody closes it
            let _turn = turns.acquire_owned().await;
            (at, task.await)
        });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
