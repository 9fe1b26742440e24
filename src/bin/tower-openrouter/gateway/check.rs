//! `--check`: what a configuration comes to, without running it.

use std::fmt;

use bytes::Bytes;
use http_body_util::Full;
use tower_openrouter::{
    ApiKey,
    buffer::ReplayBody,
    openrouter::HyperTransport,
    stack::settings::{Adaptive, AdaptivePer, PickName, Select, Stream, Timeouts, Unrouted, Waiting, WhenFull},
};

use super::{
    config::{Configuration, Settings, Trouble},
    stack::Stack,
    traces::Explained,
    upstream,
};

/// Builds everything that it takes to run it.
pub(super) fn check(configuration: &Configuration) -> Result<(), Trouble> {
    let stack = Stack::build(configuration, None)?;
    let leaf = upstream::leaf(&configuration.settings, HyperTransport::<ReplayBody>::new())?;
    stack.routes::<_, Full<Bytes>>(&configuration.settings, &leaf).map(drop)
}

/// The stack that a configuration makes, in the order a request passes it. No secret shows.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) simulated: bool,
}

/// Writes a line: the name of a stage, and what it does.
type Line<'a> = dyn FnMut(&str, fmt::Arguments<'_>) -> fmt::Result + 'a;

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Configuration { settings, keys, .. } = self.configuration;
        let asks = |token: bool| if token { "asks for a token" } else { "asks for no token" };
        let upstream = if self.simulated { "the simulator, since there is no key" } else { settings.upstream() };
        writeln!(f, "the configuration is valid")?;
        let mut line = |name: &str, what: fmt::Arguments<'_>| writeln!(f, "  {name:<10}{what}");
        if let Some(file) = self.configuration.file() {
            line("file", format_args!("{file}"))?;
        }
        line("API", format_args!("{}, {}", settings.listen, asks(settings.access_token.is_some())))?;
        line("admin", format_args!("{}, {}", settings.admin_listen, asks(settings.admin_token.is_some())))?;
        let explained = match settings.explain {
            Explained::Off => "no request",
            Explained::Asked => "requests that ask",
            Explained::All => "every request",
        };
        line("explain", format_args!("{explained}"))?;
        if let Some(file) = &settings.record {
            line("record", format_args!("every request, in {}", file.display()))?;
        }
        outer(settings, &mut line)?;
        routes(settings, keys, &mut line)?;
        line("select", format_args!("{}", Selecting(&settings.select, settings.waiting, keys)))?;
        inner(settings, &mut line)?;
        line("upstream", format_args!("{upstream}"))?;
        line("keys", format_args!("{}", keys.len()))?;
        table(keys, f)
    }
}

/// The stages above the routes, and around each.
fn outer(settings: &Settings, line: &mut Line<'_>) -> fmt::Result {
    let Settings { deadline, retry, limits, .. } = settings;
    let Stream { keep_alive_after: after, keep_alive_interval: interval, .. } = settings.stream;
    match after.0.is_zero() {
        true => line("keepalive", format_args!("none"))?,
        false => line("keepalive", format_args!("streams are open after {after}, with a comment every {interval}"))?,
    }
    line("deadline", format_args!("{deadline} for a request in all"))?;
    line(
        "buffer",
        format_args!(
            "bodies up to {}, replayable up to {}, {} in memory for all together",
            limits.body_limit, limits.replay_cap, limits.memory
        ),
    )?;
    let unclear = if retry.unclear { "; repeats what may have run" } else { "" };
    line(
        "retry",
        format_args!(
            "{} attempts, {} to {} apart, hints up to {}; at most {} a request and {} a second for all together{unclear}",
            retry.attempts,
            retry.min_backoff,
            retry.max_backoff,
            retry.longest_hint,
            retry.budget_ratio,
            retry.budget_per_second
        ),
    )?;
    match retry.when_provider_full {
        WhenFull::Wait => Ok(()),
        WhenFull::IgnoreProvider => line("", format_args!("a provider without room is ignored")),
        WhenFull::NextModel => {
            line("", format_args!("after a provider without room: {}", retry.next_models.join(", ")))
        }
    }
}

/// Each route, and what becomes of the rest.
fn routes(settings: &Settings, keys: &[ApiKey], line: &mut Line<'_>) -> fmt::Result {
    for route in &settings.routes {
        let group: Vec<_> = route.group(keys).cloned().collect();
        let labels: Vec<_> = group.iter().map(ApiKey::name).collect();
        let own = if route.provider.is_some() { "; provider preferences of its own" } else { "" };
        line("route", format_args!("{} to {}", route.models.join(", "), labels.join(", ")))?;
        line(
            "",
            format_args!(
                "{}{own}",
                Selecting(&route.select(&settings.select), route.waiting(settings.waiting), &group)
            ),
        )?;
    }
    let models = &settings.models;
    if !settings.routes.is_empty() {
        match models.unrouted {
            Unrouted::AllKeys => line("route", format_args!("every other model to all keys"))?,
            Unrouted::Refuse => line("route", format_args!("every other model is refused"))?,
        }
    }
    if !models.fallback.is_empty() {
        line("fallback", format_args!("{}, when a model cannot serve", models.fallback.join(", ")))?;
    }
    Ok(())
}

/// The stages below.
fn inner(settings: &Settings, line: &mut Line<'_>) -> fmt::Result {
    let Settings { models, hedge, provider, credit, breaker, limits, pace, timeouts, .. } = settings;
    if hedge.enabled {
        let at_most = hedge.max_cost.map(|cost| format!(" and cost {cost} at most")).unwrap_or_default();
        line(
            "hedge",
            format_args!(
                "a second attempt for requests later than {} of their kind{at_most}; {} of the requests",
                hedge.percentile, hedge.share
            ),
        )?;
    }
    if let Some(variant) = models.variant {
        line("variant", format_args!(":{}, where a request has none", variant.as_str()))?;
    }
    if !models.upstream_fallback.is_empty() {
        line("models", format_args!("{}, where a request names none", models.upstream_fallback.join(", ")))?;
    }
    let preferences = serde_json::to_string(provider).map_err(|_| fmt::Error)?;
    if preferences != "{}" {
        line("provider", format_args!("{preferences}, where a request does not say"))?;
    }
    let Stream { hold, hold_bytes, .. } = settings.stream;
    match hold.0.is_zero() || hold_bytes.0 == 0 {
        true => line("gate", format_args!("none"))?,
        false => line("gate", format_args!("heads are held for output, {hold} and {hold_bytes} at most"))?,
    }
    if credit.poll_interval.0.is_zero() {
        line("credit", format_args!("never asked about"))?;
    } else {
        line("credit", format_args!("asked about every {}", credit.poll_interval))?;
    }
    if credit.limit {
        let tokens = credit.max_tokens_unsaid;
        line("", format_args!("only where the worst case can be paid; {tokens} tokens where a request sets no bound"))?;
    }
    if credit.floor.get() > 0.0 {
        line("", format_args!("a key with less than {} rests", credit.floor))?;
    }
    line(
        "breaker",
        format_args!(
            "each key's: {} failures in {} open it, for {} growing to {}",
            breaker.failures,
            breaker.window,
            breaker.cooldown,
            breaker.longest()
        ),
    )?;
    let per = match limits.adaptive_per {
        AdaptivePer::Account => "an account",
        AdaptivePer::Model => "a model of an account",
    };
    let (min, max) = (limits.adaptive_min, limits.adaptive_max);
    match limits.adaptive {
        Adaptive::Off => {}
        Adaptive::Aimd => line("learned", format_args!("{min} to {max} at once on {per}, by refusals"))?,
        Adaptive::Gradient => {
            line(
                "learned",
                format_args!("{min} to {max} at once on {per}, by refusals and times to the first output"),
            )?;
        }
    }
    match limits.max_in_flight {
        Some(cap) => line("limit", format_args!("{cap} at once on a key that has no limit of its own"))?,
        None => line("limit", format_args!("none on a key that has no limit of its own"))?,
    }
    let given = [
        (pace.requests_per_minute, "requests a minute"),
        (pace.tokens_per_minute, "tokens a minute"),
        (pace.requests_per_day, "requests a UTC day"),
    ];
    let given: Vec<_> = given.iter().filter_map(|(limit, of)| Some(format!("{} {of}", (*limit)?))).collect();
    let learn = if pace.learn { "learned from each account's refusals" } else { "not learned" };
    match given.as_slice() {
        [] => line("pace", format_args!("{learn}"))?,
        given => line("pace", format_args!("{learn}; {} for {}", given.join(", "), pace.scope))?,
    }
    let Timeouts { headers, first_output, gap, total, hear_out, hear_out_bytes } = timeouts;
    let limits = format_args!("head {headers}, first output {first_output}, gap {gap}, an attempt in all {total}");
    line("timeouts", limits)?;
    if hear_out.0.is_zero() {
        return Ok(());
    }
    line("", format_args!("when a client leaves, the rest is heard out for {hear_out} and {hear_out_bytes} at most"))
}

/// How one selects among these keys.
struct Selecting<'a>(&'a Select, Waiting, &'a [ApiKey]);

impl fmt::Display for Selecting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(select, waiting, keys) = self;
        write!(f, "{}", select.pick)?;
        if select.pick == PickName::Sticky {
            write!(f, ", on to the next key below {}", select.sticky_floor)?;
            if let Some(back) = select.sticky_back {
                write!(f, " and back above {back}")?;
            }
        }
        if select.sessions {
            write!(f, "; conversations stay on one account")?;
        }
        let mut tiers: Vec<_> = keys.iter().map(ApiKey::tier_of).collect();
        tiers.sort_unstable();
        tiers.dedup();
        if tiers.len() > 1 {
            let tiers: Vec<_> = tiers.iter().map(u32::to_string).collect();
            write!(f, "; tiers {}", tiers.join(" before "))?;
        }
        write!(f, "; waits up to {}, {} requests at once", waiting.max_wait, waiting.max_waiters)?;
        if select.max_ejected.get() < 1.0 {
            write!(f, "; at most {} of the keys out for failing", select.max_ejected)?;
        }
        if select.panic_below.get() > 0.0 {
            write!(f, "; all used again below {} of the keys", select.panic_below)?;
        }
        Ok(())
    }
}

/// One line a key: its label, and what is set of it.
fn table(keys: &[ApiKey], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let width = keys.iter().map(|key| key.name().chars().count()).max().unwrap_or(0);
    for key in keys {
        let mut facts = Vec::new();
        let mut fact = |name: &str, value: Option<String>| facts.extend(value.map(|value| format!("{name} {value}")));
        fact("account", key.account_name().map(str::to_owned));
        fact("workspace", key.workspace_name().map(str::to_owned));
        fact("tier", (key.tier_of() != 1).then(|| key.tier_of().to_string()));
        fact("weight", (key.weight_of() != 1.0).then(|| key.weight_of().to_string()));
        fact("tags", (!key.tags_of().is_empty()).then(|| key.tags_of().join(" ")));
        fact("at most", key.in_flight_cap().map(|cap| format!("{cap} at once")));
        let served = key.model_patterns().iter().map(ToString::to_string);
        let models: Vec<_> = served.chain(key.refused_patterns().iter().map(|pattern| format!("!{pattern}"))).collect();
        fact("models", (!models.is_empty()).then(|| models.join(" ")));
        fact("at", key.base().map(ToString::to_string));
        writeln!(f, "    {}", format!("{:<width$}  {}", key.name(), facts.join(", ")).trim_end())?;
    }
    Ok(())
}
