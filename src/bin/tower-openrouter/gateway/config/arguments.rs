//! The flags, and their environment variables.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use clap::{Args, Command, FromArgMatches, builder::BoolishValueParser};
use secrecy::{ExposeSecret, SecretString};
use tower_openrouter::stack::settings::{Span, Time};

use super::{
    super::traces::Explained,
    settings::{Settings, Token},
    trouble::Trouble,
};

/// What the help shows of the configuration file.
const EXAMPLE: &str = r#"Example of a configuration file:

  listen = "127.0.0.1:8080"
  deadline = "5m"

  [retry]
  attempts = 2

  [[keys]]
  label = "team-a"            # how it is named in answers, logs and /stats
  key_env = "TEAM_A_KEY"      # or key = "sk-or-v1-…", or key_file = "team-a.key"
  account = "acme"            # keys of one account share its credit
  models = ["openai/*", "*:free"]
  max_in_flight = 8

  [[keys]]
  key_file = "more.keys"      # one key a line; relative to this file

examples/gateway.toml in the repository names every setting. On SIGHUP the file is read again.
"#;

/// Serve an OpenAI-compatible API that spreads requests over many OpenRouter keys.
///
/// Keys come from the configuration file and from OPENROUTER_API_KEY, OPENROUTER_API_KEYS (separated by commas),
/// OPENROUTER_API_KEY_1…, OPENROUTER_KEY_1…; all are used together. Without any, an OpenRouter simulated inside this process
/// answers, so that everything can be tried at no cost.
///
/// A flag beats its environment variable, that beats the configuration file, that beats the default. The log goes to standard
/// error; RUST_LOG sets its level (default: info).
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLE)]
pub(crate) struct Arguments {
    /// Address of the API; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "TOWER_OPENROUTER_LISTEN", value_name = "ADDR:PORT", value_parser = address, help_heading = "Listeners")]
    listen: Option<SocketAddr>,

    /// Address of /healthz, /readyz, /stats, /metrics and /explain/{id} [default: 127.0.0.1:9090]
    #[arg(long, env = "TOWER_OPENROUTER_ADMIN_LISTEN", value_name = "ADDR:PORT", value_parser = address, help_heading = "Listeners")]
    admin_listen: Option<SocketAddr>,

    /// Token clients must send as `Authorization: Bearer` or `x-api-key` [default: none asked]
    ///
    /// Better given by the environment, where other users of the machine cannot see it.
    #[arg(
        long,
        env = "TOWER_OPENROUTER_ACCESS_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Listeners"
    )]
    access_token: Option<SecretString>,

    /// The same for /stats, /metrics and /explain; required when the admin address is not on loopback
    #[arg(
        long,
        env = "TOWER_OPENROUTER_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Listeners"
    )]
    admin_token: Option<SecretString>,

    /// How long a connection may take to send a request's head, and may idle [default: 30s]
    ///
    /// A body must come in as long, and in a second more for each 500 bytes; who is slower is answered with a 408.
    #[arg(long, env = "TOWER_OPENROUTER_HEADER_TIMEOUT", value_name = "TIME", help_heading = "Listeners")]
    header_timeout: Option<Time>,

    /// How long running requests may go on after SIGTERM or SIGINT [default: 30s]
    #[arg(long, env = "TOWER_OPENROUTER_DRAIN_TIMEOUT", value_name = "TIME", help_heading = "Listeners")]
    drain_timeout: Option<Span>,

    /// Leave x-balancer-key, x-balancer-attempts and x-balancer-explain out of answers
    #[arg(long, env = "TOWER_OPENROUTER_NO_BALANCER_HEADERS", value_parser = BoolishValueParser::new(), help_heading = "Listeners")]
    no_balancer_headers: bool,

    /// Which requests are explained: /explain/{id} on the admin address tells how each came to its key [default: asked]
    ///
    /// The id is that of the answer's x-request-id; the latest 1000 are kept. Who sends x-balancer-explain: 1 is answered in
    /// that header too.
    #[arg(long, env = "TOWER_OPENROUTER_EXPLAIN", value_name = "WHICH", value_enum, help_heading = "Listeners")]
    explain: Option<Explained>,

    /// Record each request in this file, a line of JSON each, to be played again by `tower-openrouter lab` [default: none]
    ///
    /// Times, sizes, models, causes and the labels of keys; never content, keys or tokens, and of a session a hash only.
    /// The file is appended to; when the disk cannot keep up, lines are left out, and counted there.
    #[arg(long, env = "TOWER_OPENROUTER_RECORD", value_name = "FILE.jsonl", help_heading = "Listeners")]
    record: Option<PathBuf>,

    /// Configuration file (TOML), see the example in --help
    ///
    /// It is read again on SIGHUP: a good one replaces what runs, without dropping a request, and a bad one changes nothing.
    #[arg(short, long, env = "TOWER_OPENROUTER_CONFIG", value_name = "FILE", help_heading = "Upstream and keys")]
    pub(super) config: Option<PathBuf>,

    /// Only say whether the configuration is valid, and what stack it makes
    #[arg(long, help_heading = "Upstream and keys")]
    pub(crate) check: bool,

    /// Base URL of the upstream [default: https://openrouter.ai/api/v1]
    ///
    /// Over https its certificate must be good by Mozilla's list of authorities, which is built in. Proxies named in the
    /// environment (HTTPS_PROXY …) are not used.
    #[arg(long, env = "TOWER_OPENROUTER_UPSTREAM", value_name = "URL", help_heading = "Upstream and keys")]
    upstream: Option<String>,

    /// How often to ask the upstream what each key and account may spend; 0s: never [default: 60s]
    #[arg(long, env = "TOWER_OPENROUTER_POLL_INTERVAL", value_name = "TIME", help_heading = "Upstream and keys")]
    poll_interval: Option<Span>,

    /// How many requests may run on one key at once, unless the key has its own limit [default: none]
    #[arg(long, env = "TOWER_OPENROUTER_MAX_IN_FLIGHT", value_name = "N", help_heading = "Upstream and keys")]
    max_in_flight: Option<NonZeroUsize>,

    /// How long a request may take, with all its waits and attempts [default: 10m]
    #[arg(long, env = "TOWER_OPENROUTER_DEADLINE", value_name = "TIME", help_heading = "Balancing")]
    deadline: Option<Time>,

    /// How long a request may wait for a key when none can serve [default: 30s]
    #[arg(long, env = "TOWER_OPENROUTER_MAX_WAIT", value_name = "TIME", help_heading = "Balancing")]
    max_wait: Option<Span>,

    /// Attempts per request, at most 5; moving on from a key that was refused does not count [default: 3]
    #[arg(long, env = "TOWER_OPENROUTER_ATTEMPTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=5), help_heading = "Balancing")]
    attempts: Option<u32>,

    /// Failures within the window that open a key's breaker [default: 3]
    #[arg(long, env = "TOWER_OPENROUTER_BREAKER_FAILURES", value_name = "N", help_heading = "Balancing")]
    breaker_failures: Option<NonZeroU32>,

    /// The window in which they count [default: 60s]
    #[arg(long, env = "TOWER_OPENROUTER_BREAKER_WINDOW", value_name = "TIME", help_heading = "Balancing")]
    breaker_window: Option<Time>,

    /// How long a breaker stays open at first [default: 60s]
    #[arg(long, env = "TOWER_OPENROUTER_BREAKER_COOLDOWN", value_name = "TIME", help_heading = "Balancing")]
    breaker_cooldown: Option<Time>,
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
}

impl Arguments {
    /// What is set by no flags but these, and the environment.
    pub(crate) fn of(config: Option<PathBuf>, upstream: Option<String>) -> Self {
        let command = Self::augment_args(Command::new("gateway").no_binary_name(true));
        let matches = command.get_matches_from([] as [&str; 0]);
        let mut arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        (arguments.config, arguments.upstream) = (config.or(arguments.config), upstream.or(arguments.upstream));
        arguments
    }

    /// Sets what flags and environment say.
    pub(super) fn apply(&self, settings: &mut Settings) -> Result<(), Trouble> {
        fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
            if let Some(flag) = flag {
                setting.clone_from(flag);
            }
        }
        set(&mut settings.listen, &self.listen);
        set(&mut settings.admin_listen, &self.admin_listen);
        for (name, setting, flag) in [
            ("access_token", &mut settings.access_token, &self.access_token),
            ("admin_token", &mut settings.admin_token, &self.admin_token),
        ] {
            if let Some(token) = flag {
                *setting = Some(Token::new(token.expose_secret()).map_err(|what| Trouble::with(name, what))?);
            }
        }
        set(&mut settings.header_timeout, &self.header_timeout);
        set(&mut settings.drain_timeout, &self.drain_timeout);
        settings.balancer_headers &= !self.no_balancer_headers;
        set(&mut settings.explain, &self.explain);
        if self.record.is_some() {
            settings.record.clone_from(&self.record);
        }
        if self.upstream.is_some() {
            settings.upstream.clone_from(&self.upstream);
        }
        set(&mut settings.credit.poll_interval, &self.poll_interval);
        if self.max_in_flight.is_some() {
            settings.limits.max_in_flight = self.max_in_flight;
        }
        set(&mut settings.deadline, &self.deadline);
        set(&mut settings.waiting.max_wait, &self.max_wait);
        set(&mut settings.retry.attempts, &self.attempts);
        set(&mut settings.breaker.failures, &self.breaker_failures);
        set(&mut settings.breaker.window, &self.breaker_window);
        set(&mut settings.breaker.cooldown, &self.breaker_cooldown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::gateway::config::{Configuration, trouble::Source};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn load(flags: &[&str]) -> Result<Configuration, String> {
        let cli = Cli::try_parse_from([&["gateway"], flags].concat()).map_err(|error| error.to_string())?;
        cli.arguments.load(&Vec::new())
    }

    /// Loads a file of this text.
    fn load_file(name: &str, text: &str, flags: &[&str]) -> Result<Configuration, String> {
        let path = std::env::temp_dir().join(format!("tower-openrouter-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let loaded = load(&[&["--config", path.to_str().unwrap()], flags].concat());
        std::fs::remove_file(&path).unwrap();
        loaded.map_err(|said| said.replace(path.to_str().unwrap(), "FILE"))
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_the_defaults() {
        let text = "listen = \"127.0.0.1:1\"\ndeadline = \"7s\"\nretry.attempts = 2\n";
        let settings = load_file("order", text, &["--attempts", "5", "--max-wait", "0s"]).unwrap().settings;
        assert_eq!(settings.listen, ([127, 0, 0, 1], 1).into());
        assert_eq!(settings.deadline.get(), Duration::from_secs(7));
        assert_eq!((settings.retry.attempts, settings.waiting.max_wait), (5, Span::seconds(0)));
        assert_eq!(settings.admin_listen, ([127, 0, 0, 1], 9090).into());
        assert!(settings.balancer_headers);
    }

    #[test]
    fn the_example_in_the_help_is_a_configuration_file() {
        let (_, example) = EXAMPLE.split_once('\n').unwrap();
        let (example, _) = example.rsplit_once("\n\n").unwrap();
        let settings: Settings = Source::new("help", example).parse().unwrap_or_else(|trouble| panic!("{trouble}"));
        assert_eq!((settings.deadline.get(), settings.keys.len()), (Duration::from_secs(300), 2));
    }

    #[test]
    fn r099_a_mistake_in_the_file_is_told_by_line_without_the_value() {
        for (text, line) in [
            ("\nkeys = [\"sk-or-v1-canary\"]\n", 2),
            ("keys = \"sk-or-v1-canary\"\n", 1),
            ("[[keys]]\nkey = sk-or-v1-canary\n", 2),
            ("[[keys]]\nkey = \"sk-or-v1-canary\n", 2),
            ("[[keys]]\nmax_in_flight = \"sk-or-v1-canary\"\n", 2),
            ("deadline = \"sk-or-v1-canary\"\n", 1),
            ("listen = \"sk-or-v1-canary\"\n", 1),
            ("access_token = \"a canary\"\n", 1),
            ("upstream = \"\"\n\nsk-or-v1-canary = \"\"\n", 3),
            ("[select]\npick = \"sk-or-v1-canary\"\n", 2),
            ("[[keys]]\nkey = { secret = \"sk-or-v1-canary\" }\n", 2),
            ("[[keys]]\nkey = [\"sk-or-v1-canary\\\", expected\"]\n", 2),
            ("[[keys]]\n[[keys]]\nkey_env = \"sk-or-v1-canary\"\n", 1),
            ("[[keys]]\nkey = \"a\"\n[[keys]]\nkey_env = \"sk-or-v1-canary\"\n", 3),
            ("[[keys]]\nkey = \"a\"\nlabel = \"sk-or-v1-canary\"\n", 1),
            ("[[keys]]\nkey_file = \"sk-or-v1-canary\"\n", 1),
            ("[[keys]]\nkey = \"a\"\nmodels = [\"sk-or-v1-canary \"]\n", 1),
            ("[[keys]]\nkey = \"a\"\nbase_url = \"https://canary@host\"\n", 1),
        ] {
            let said = load_file("canary", text, &[]).unwrap_err();
            assert!(said.starts_with(&format!("FILE, line {line}: ")), "{text} -> {said}");
            assert!(!said.contains("canary"), "{text} -> {said}");
        }
    }

    #[test]
    fn r117_settings_that_cannot_be_meant_are_refused_with_their_line() {
        for (text, told) in [
            ("deadline = \"0s\"", "FILE, line 2: deadline: it is 0"),
            ("header_timeout = \"0ms\"", "FILE, line 2: header_timeout: it is 0"),
            ("limits.max_in_flight = 0", "FILE, line 2: "),
            ("[breaker]\nfailures = 0", "FILE, line 3: failures: "),
            ("[breaker]\nwindow = \"0s\"", "FILE, line 3: window: it is 0"),
            ("[breaker]\nmax_cooldown = \"30s\"", "FILE, line 3: breaker.max_cooldown: 30s is shorter than"),
            ("[select]\nmax_wait = \"5s\"", "FILE, line 3: unknown field `max_wait` here: it belongs in [waiting]"),
            ("[retry]\nattempts = 0", "FILE, line 3: attempts is 0: it must be 1"),
            ("[retry]\nattempts = 6", "FILE, line 3: attempts is 6"),
            ("[retry]\nbudget_ratio = 1.5", "FILE, line 3: budget_ratio: it is 1.5: it must be a share"),
            ("[retry]\nmin_backoff = \"2m\"", "FILE, line 2: retry.max_backoff: 30s is shorter than min_backoff, 2m"),
            ("[limits]\nmemory = \"1MiB\"", "FILE, line 3: limits.memory: 1MiB is less than replay_cap, 16MiB"),
            (
                "admin_listen = \"0.0.0.0:1\"",
                "FILE, line 2: admin_listen: other machines can reach 0.0.0.0:1: set --admin-token",
            ),
            ("breaker_failures = 2", "FILE, line 2: unknown field `breaker_failures`, expected one of `listen`"),
        ] {
            let said = load_file("meant", &format!("#\n{text}\n"), &[]).unwrap_err();
            assert!(said.starts_with(told), "{said}");
        }
        for (flags, name) in [
            (["--deadline", "0s"], "--deadline"),
            (["--attempts", "0"], "--attempts"),
            (["--attempts", "6"], "--attempts"),
            (["--max-in-flight", "0"], "--max-in-flight"),
            (["--breaker-failures", "0"], "--breaker-failures"),
            (["--breaker-window", "0s"], "--breaker-window"),
            (["--access-token", ""], "access_token"),
            (["--access-token", "two words"], "access_token"),
            (["--admin-token", "é"], "admin_token"),
        ] {
            let trouble = load(&flags).unwrap_err();
            assert!(trouble.contains(name), "{trouble}");
            assert!(!trouble.contains("two words"), "{trouble}");
        }
    }

    #[test]
    fn an_admin_address_others_can_reach_needs_a_token() {
        for address in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090"] {
            let trouble = load(&["--admin-listen", address]).unwrap_err();
            assert!(trouble.contains("--admin-token"), "{trouble}");
            load(&["--admin-listen", address, "--admin-token", "t"]).unwrap();
        }
        load(&["--admin-listen", "[::1]:9090"]).unwrap();
    }

    #[test]
    fn tokens_do_not_show() {
        let flags = ["gateway", "--access-token", "canary", "--admin-token", "canary"];
        let arguments = Cli::try_parse_from(flags).unwrap().arguments;
        assert!(!format!("{arguments:?}").contains("canary"));
        assert!(!format!("{:?}", arguments.load(&Vec::new()).unwrap()).contains("canary"));
    }
}
