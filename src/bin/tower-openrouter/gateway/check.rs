//! `--check`: what a configuration comes to, without running it.

use std::fmt;

use tower_openrouter::ApiKey;

use super::config::{Configuration, Settings};

/// The stack that a configuration makes, in the order a request passes it. No secret shows.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) simulated: bool,
}

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
        line("upstream", format_args!("{upstream}"))?;
        let every = settings.poll_interval;
        if every.0.is_zero() {
            line("accounts", format_args!("never asked about"))?;
        } else {
            line("accounts", format_args!("asked about every {every}"))?;
        }
        stages(settings, &mut line)?;
        writeln!(f, "  {:<10}{}", "keys", keys.len())?;
        table(keys, f)
    }
}

/// The stages, from the outside in.
fn stages(settings: &Settings, line: &mut impl FnMut(&str, fmt::Arguments<'_>) -> fmt::Result) -> fmt::Result {
    let Settings { deadline, select, breaker, retry, limits, .. } = settings;
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
    line(
        "select",
        format_args!("{}; waits up to {}, {} requests at once", select.pick, select.max_wait, select.max_waiters),
    )?;
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
    match limits.max_in_flight {
        Some(cap) => line("limit", format_args!("{cap} at once on a key that has no limit of its own")),
        None => line("limit", format_args!("none on a key that has no limit of its own")),
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
        fact("weight", (key.weight_of() != 1.0).then(|| key.weight_of().to_string()));
        fact("at most", key.in_flight_cap().map(|cap| format!("{cap} at once")));
        let models: Vec<_> = key.model_patterns().iter().map(ToString::to_string).collect();
        fact("models", (!models.is_empty()).then(|| models.join(" ")));
        fact("at", key.base().map(ToString::to_string));
        writeln!(f, "    {:<width$}  {}", key.name(), facts.join(", "))?;
    }
    Ok(())
}
