//! Stacks from files: any order and choice of the layers, with any of their settings.
//!
//! A comparison is worth as much as the likeness of what is compared to what will run. So a stack's file is the gateway's: its
//! sections of [policies](crate::stack::settings), and what it makes of them is the default [`Balancer`], built by the same
//! lines. An empty file is the gateway without one.
//!
//! ```toml
//! name = "patient"
//! about = "breakers that open later, and keys by their speed"
//!
//! [breaker]
//! failures = 10
//!
//! [select]
//! pick = "peak-ewma"
//! ```
//!
//! To see what a layer is good for, leave it out, or put it elsewhere: `layers` names those that a request passes, from the
//! first to the last. This is the default, and what else there is:
//!
//! ```toml
//! layers = [
//!   "respond", "deadline", "buffer", "retry", "provider", "hedge", "commit-gate", "select",
//!   "monitor", "breaker", "limit", "authorize", "timeouts",
//! ]
//! # "keep-alive": comments for streams that have nothing to say yet; it goes first
//! # "hear-out": answers are read on whose clients have left; it goes first, too
//! # "route": the models of models.fallback; after "buffer"
//! ```
//!
//! What stands after `select` is made for each key; `monitor`, `breaker`, `limit` and `authorize` can stand nowhere else. A setting of a layer that is
//! left out is an error, as is one that nobody knows: a sweep over either would show a difference that is none.
//!
//! What a client bears is the scenario's: `deadline` and `waiting.max_wait` are its [`Patience`] unless
//! the file says otherwise. Beside the stack an [`AccountPoller`] asks what the keys may still spend, as in the gateway.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use toml::{
    Table, Value,
    de::{DeTable, Deserializer},
    map::Map,
};
use tower::{BoxError, ServiceBuilder};

use super::super::{Built, Patience, Stack, World};
use crate::{
    AccountPoller, Balancer, RespondLayer,
    buffer::ReplayBody,
    lab::stack::erase,
    select::Pick,
    stack::{
        BalancerBuilder,
        settings::{SettingError, Settings, Shared, Span, Time, Unrouted},
    },
};

mod layers;
mod order;
#[cfg(test)]
mod tests;

use layers::{Erased, Layers, routes};
use order::Order;
pub use order::Place;

/// A stack from a file. See the [module](self).
///
/// ```
/// use tower_openrouter::lab::{Stack, stacks::Composed};
///
/// let stack = Composed::from_toml("gentle", "breaker.failures = 10\npace.requests_per_minute = 60")?;
/// assert_eq!(stack.name(), "gentle");
/// assert_eq!(stack.settings().breaker.failures.get(), 10);
///
/// let gentler = stack.set("pace.requests_per_minute", "30")?;
/// let error = gentler.set("breaker.failurez", "5").unwrap_err();
/// assert!(error.to_string().starts_with("breaker.failurez = 5: unknown field `failurez`"));
/// # Ok::<(), tower_openrouter::lab::stacks::composed::ComposedError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Composed {
    head: Head,
    order: Option<Order>,
    settings: Settings,
    /// All that is said, to be said otherwise.
    said: Table,
}

/// What a stack's file has beside the policies.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Head {
    name: String,
    about: String,
    layers: Option<Vec<Place>>,
}

impl Head {
    const NAMES: [&str; 3] = ["name", "about", "layers"];
}

/// Why a file is no stack, and where: a line, or the path of a setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ComposedError(pub(super) String);

impl From<SettingError> for ComposedError {
    fn from(error: SettingError) -> Self {
        Self(error.to_string())
    }
}

impl Composed {
    /// Reads a stack and checks it. It is called `name` unless the text says otherwise.
    ///
    /// # Errors
    /// When the text is not TOML, names what there is not, holds values that cannot be meant, or has layers where they cannot
    /// stand.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, ComposedError> {
        let told = |mut error: toml::de::Error| {
            error.set_input(Some(text));
            ComposedError(error.to_string().trim_end().to_owned())
        };
        let mut rest = DeTable::parse(text).map_err(told)?;
        let head = split(rest.get_mut());
        let head = Head::deserialize(Deserializer::from(toml::Spanned::new(rest.span(), head))).map_err(told)?;
        let settings = Settings::deserialize(Deserializer::from(rest)).map_err(told)?;
        let mut said: Table = toml::from_str(text).map_err(told)?;
        let name = if head.name.is_empty() { name.to_owned() } else { head.name };
        said.insert("name".to_owned(), Value::String(name.clone()));
        Self::checked(Head { name, ..head }, settings, said)
    }

    /// The same with one setting changed, by its path as in `breaker.failures`. The value is TOML, or text if it is none: `5`,
    /// `true`, `["a/b"]`, `30s`.
    ///
    /// # Errors
    /// When there is no such setting, or the value cannot be meant: as for a file.
    pub fn set(&self, path: &str, value: &str) -> Result<Self, ComposedError> {
        self.set_all(&[(path, value)])
    }

    /// The same with several settings changed at once, which may be valid together only.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_all(&self, changes: &[(&str, &str)]) -> Result<Self, ComposedError> {
        let changed = || {
            let mut said = self.said.clone();
            changes.iter().try_for_each(|(path, value)| say(&mut said, path, value))?;
            let mut rest = said.clone();
            Self::checked(read(split(&mut rest))?, read(rest)?, said)
        };
        changed().map_err(|error: ComposedError| {
            let changes: Vec<_> = changes.iter().map(|(path, value)| format!("{path} = {value}")).collect();
            ComposedError(format!("{}: {error}", changes.join(", ")))
        })
    }

    fn checked(head: Head, settings: Settings, said: Table) -> Result<Self, ComposedError> {
        settings.check()?;
        if settings.models.unrouted == Unrouted::Refuse {
            return Err(ComposedError("models.unrouted: without routes every model would be refused".into()));
        }
        routes((), &settings.models.fallback).map_err(|error| ComposedError(format!("models.fallback: {error}")))?;
        let order = head.layers.as_deref().map(Order::new).transpose()?;
        if let Some(order) = &order {
            order.check(&said)?;
        }
        Ok(Self { head, order, settings, said })
    }

    /// The same under another name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.head.name = name.into();
        self.said.insert("name".to_owned(), Value::String(self.head.name.clone()));
        self
    }

    /// What is set, and what holds where nothing is. Its deadline and longest wait are the world's unless they are set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn says(&self, section: &str, name: &str) -> bool {
        self.said.get(section).and_then(Value::as_table).is_some_and(|section| section.contains_key(name))
    }

    /// What is set, with the world's patience where nothing is.
    fn settings_in(&self, patience: Patience) -> Result<Settings, ComposedError> {
        let mut settings = self.settings.clone();
        if !self.said.contains_key("deadline") {
            let time = Time::new(seconds("deadline_s", patience.deadline_s)?);
            settings.deadline =
                time.map_err(|error| ComposedError(format!("the scenario's patience.deadline_s: {error}")))?;
        }
        if !self.says("waiting", "max_wait") {
            settings.waiting.max_wait = Span(seconds("max_wait_s", patience.max_wait_s)?);
        }
        Ok(settings)
    }

    /// What goes outermost in the default order; the gateway's keep-alive only where the file speaks of it, as what is compared
    /// has no clients that give up on silence.
    fn outermost(&self) -> Vec<Place> {
        let speaks = self.says("stream", "keep_alive_after") || self.says("stream", "keep_alive_interval");
        let hears = !self.settings.timeouts.hear_out.0.is_zero();
        [(speaks, Place::KeepAlive), (hears, Place::HearOut)]
            .into_iter()
            .filter_map(|(is, place)| is.then_some(place))
            .collect()
    }
}

/// The deployed stack, literally.
fn default_order(
    settings: &Settings,
    builder: BalancerBuilder<Box<dyn Pick>>,
    world: &World,
) -> Result<Erased, BoxError> {
    let models = &settings.models.fallback;
    if models.is_empty() {
        return Ok(erase(builder.build::<_, _, ReplayBody>(world.leaf())));
    }
    let buffer = builder.stages.buffer.clone();
    // the bodies are in memory already, within the budget of the whole
    let all = builder.buffer(settings.limits.buffer().budget(u64::MAX)).build::<_, _, ReplayBody>(world.leaf());
    Ok(erase(ServiceBuilder::new().layer(RespondLayer::new()).layer(buffer).service(routes(all, models)?)))
}

/// Takes what is no policy out of a file.
fn split<K: Ord + std::hash::Hash + std::borrow::Borrow<str>, V>(table: &mut Map<K, V>) -> Map<K, V> {
    Head::NAMES.iter().filter_map(|name| table.remove_entry(*name)).collect()
}

/// What a scenario has as a number.
fn seconds(name: &str, number: f64) -> Result<Duration, ComposedError> {
    Duration::try_from_secs_f64(number)
        .map_err(|error| ComposedError(format!("the scenario's patience.{name}: {error}")))
}

/// Says that the setting at `path` has this value.
fn say(said: &mut Table, path: &str, value: &str) -> Result<(), ComposedError> {
    let (mut table, mut name) = (said, path);
    while let Some((section, rest)) = name.split_once('.') {
        let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else { return Err(ComposedError(format!("{section} is no section"))) };
        (table, name) = (inner, rest);
    }
    table.insert(name.to_owned(), value.parse().unwrap_or_else(|_| Value::String(value.to_owned())));
    Ok(())
}

fn read<T: DeserializeOwned>(table: Table) -> Result<T, ComposedError> {
    T::deserialize(table).map_err(|error| ComposedError(error.message().to_owned()))
}

impl Stack for Composed {
    fn name(&self) -> &str {
        &self.head.name
    }

    fn about(&self) -> &str {
        &self.head.about
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        let runtime = tokio::runtime::Handle::try_current()?;
        let settings = self.settings_in(world.patience())?;
        let builder = settings.stack(Balancer::builder(world.pool()?), &Shared::new(&settings)?)?;
        let handle = builder.handle();
        let interval = settings.credit.poll_interval.0;
        if !interval.is_zero() {
            // it ends with the pool
            runtime.spawn(AccountPoller::new(handle.pool(), world.leaf()).interval(interval)?.run());
        }
        let spawn = runtime.clone();
        let hear_out = settings.timeouts.hear_out(move |rest| drop(spawn.spawn(rest)));
        let layers = Layers::new(&settings, builder.clone(), hear_out)?;
        let service = match &self.order {
            Some(order) => layers.stack(order, world),
            None => layers.put_all(&self.outermost(), None, default_order(&settings, builder, world)?),
        };
        Ok(Built::new(layers::replayable(service)).watch(handle))
    }
}
