//! What runs, and how another configuration takes its place: whole or not at all.
//!
//! The new stack is built in full beside the old one, which may fail and then changes nothing. Only then is it put in place,
//! at once for all connections. A request ends on the stack it came in on; keys that have not changed are the same in both.

use std::{env, path::PathBuf};

use tower_openrouter::ApiKey;
use tracing::{info, warn};

use super::{
    access::Access,
    admin::Admin,
    config::{Arguments, Configuration, Settings, Trouble},
    drain::Drain,
    events::Events,
    live::Live,
    stack::Stack,
    traces::Traces,
};

/// Runs a configuration: `make` makes the application of one and its stack.
pub(super) struct Runner<A, M> {
    arguments: Arguments,
    configuration: Configuration,
    stack: Stack,
    make: M,
    api: Live<A>,
    admin: Live<Admin>,
    drain: Drain,
    traces: Traces,
    events: Events,
    simulated: bool,
}

impl<A, M> Runner<A, M>
where
    M: Fn(&Configuration, &Stack) -> Result<A, Trouble>,
{
    pub(super) fn new(
        arguments: Arguments,
        configuration: Configuration,
        make: M,
        drain: Drain,
        traces: Traces,
        simulated: bool,
    ) -> Result<Self, String> {
        let tell = |trouble| configuration.tell(&trouble);
        let stack = Stack::build(&configuration, None).map_err(tell)?;
        let api = Live::new(make(&configuration, &stack).map_err(tell)?);
        let events = Events::new();
        let admin = Live::new(admin(&configuration.settings, &stack, &drain, &traces, &events, simulated));
        let runner = Self { arguments, configuration, stack, make, api, admin, drain, traces, events, simulated };
        runner.caution(&[]);
        Ok(runner)
    }

    /// The application for what comes next.
    pub(super) fn api(&self) -> Live<A> {
        self.api.clone()
    }

    pub(super) fn admin(&self) -> Live<Admin> {
        self.admin.clone()
    }

    pub(super) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Reads the configuration again and runs it, or says why not; then what ran before runs on.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        let next = self.arguments.load(&env::vars_os().collect())?;
        if next.file().is_none() {
            return Err("there is no file to read again: start with --config".into());
        }
        match (self.simulated, next.keys.is_empty()) {
            (true, false) => {
                return Err("the simulator answers here, which keys cannot change: start again to use them".into());
            }
            (true, true) => {
                return Err("the simulator answers here, and there is still no key: add one and start again".into());
            }
            (false, true) => return Err("there is no key left: set OPENROUTER_API_KEY, or [[keys]] in --config".into()),
            (false, false) => {}
        }
        let tell = |trouble| next.tell(&trouble);
        let stack = Stack::build(&next, Some((&self.stack, &self.configuration))).map_err(tell)?;
        let api = (self.make)(&next, &stack).map_err(tell)?;
        // from here on nothing can fail
        let Self { drain, traces, events, simulated, .. } = self;
        self.admin.replace(admin(&next.settings, &stack, drain, traces, events, *simulated));
        self.api.replace(api);
        self.stack = stack;
        let before = std::mem::replace(&mut self.configuration, next);
        self.report(&before);
        Ok(())
    }

    /// Says what has changed, and what cannot.
    fn report(&mut self, before: &Configuration) {
        let (old, new) = (&before.settings, &mut self.configuration.settings);
        for (setting, runs, asked) in [
            ("listen", old.listen.to_string(), new.listen.to_string()),
            ("admin_listen", old.admin_listen.to_string(), new.admin_listen.to_string()),
            ("header_timeout", old.header_timeout.to_string(), new.header_timeout.to_string()),
            ("record", file(&old.record), file(&new.record)),
        ] {
            if runs != asked {
                warn!(
                    setting,
                    runs, asked, "this setting cannot change while the gateway runs: start it again to apply it"
                );
            }
        }
        // what runs is what the next reload is compared with
        (new.listen, new.admin_listen, new.header_timeout) = (old.listen, old.admin_listen, old.header_timeout);
        new.record.clone_from(&old.record);
        let kept = |key: &&ApiKey| before.keys.contains(key);
        let keys = &self.configuration.keys;
        let gone = before.keys.iter().filter(|key| !keys.contains(key)).count();
        let unchanged = keys.iter().filter(kept).count();
        info!(
            keys = keys.len(),
            unchanged,
            new_or_changed = keys.len() - unchanged,
            gone_or_changed = gone,
            "the configuration was read again and holds from here on"
        );
        self.caution(&before.keys);
    }

    /// Says what is allowed and probably not meant; of `known` keys it was said before.
    fn caution(&self, known: &[ApiKey]) {
        if self.simulated {
            return;
        }
        let Configuration { settings, keys, .. } = &self.configuration;
        for key in keys.iter().filter(|key| !key.looks_like_openrouter() && !known.contains(key)) {
            warn!(key = key.name(), "this key does not start with sk-or-: is it one of OpenRouter's?");
        }
        if !settings.listen.ip().is_loopback() && settings.access_token.is_none() {
            let listen = settings.listen;
            warn!(%listen, "whoever reaches this address can spend your keys: set --access-token");
        }
    }
}

fn file(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(|| "none".into(), |path| path.display().to_string())
}

fn admin(
    settings: &Settings,
    stack: &Stack,
    drain: &Drain,
    traces: &Traces,
    events: &Events,
    simulated: bool,
) -> Admin {
    Admin {
        balancer: stack.handle(),
        traces: traces.clone(),
        drain: drain.clone(),
        access: Access(settings.admin_token.clone()),
        events: events.clone(),
        explain: settings.explain,
        simulated,
    }
}
