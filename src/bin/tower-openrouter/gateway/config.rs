//! Where a setting comes from: a flag, else the environment, else the configuration file, else its default.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{keys::KeyEntry, span::Span};

/// What the help shows of the configuration file.
const EXAMPLE: &str = r#"Example of a configuration file:

  listen = "127.0.0.1:8080"
  deadline = "5m"

  [[keys]]
  label = "team-a"            # how it is named in answers, logs and /stats
  key_env = "TEAM_A_KEY"      # or key = "sk-or-v1-…", or key_file = "team-a.key"
  account = "acme"            # keys of one account share its credit
  models = ["openai/*", "*:free"]
  max_in_flight = 8

  [[keys]]
  key_file = "more.keys"      # one key a line; relative to this file
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

    /// Address of /healthz, /readyz and /stats [default: 127.0.0.1:9090]
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

    /// The same for /stats; required when the admin address is not on loopback
    #[arg(
        long,
        env = "TOWER_OPENROUTER_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Listeners"
    )]
    admin_token: Option<SecretString>,

    /// How long a connection may take to send a request's head, and may idle [default: 30s]
    #[arg(long, env = "TOWER_OPENROUTER_HEADER_TIMEOUT", value_name = "TIME", help_heading = "Listeners")]
    header_timeout: Option<Span>,

    /// How long running requests may go on after SIGTERM or SIGINT [default: 30s]
    #[arg(long, env = "TOWER_OPENROUTER_DRAIN_TIMEOUT", value_name = "TIME", help_heading = "Listeners")]
    drain_timeout: Option<Span>,

    /// Leave x-balancer-key and x-balancer-attempts out of answers
    #[arg(long, env = "TOWER_OPENROUTER_NO_BALANCER_HEADERS", value_parser = BoolishValueParser::new(), help_heading = "Listeners")]
    no_balancer_headers: bool,

    /// Configuration file (TOML), see the example in --help
    ///
    /// It holds the settings named here with `_` for `-`, and [[keys]] with one of key, key_env and key_file, and with label,
    /// weight, account, workspace, models, base_url, max_in_flight as needed.
    #[arg(short, long, env = "TOWER_OPENROUTER_CONFIG", value_name = "FILE", help_heading = "Upstream and keys")]
    config: Option<PathBuf>,

    /// Base URL of the upstream [default: https://openrouter.ai/api/v1]
    #[arg(long, env = "TOWER_OPENROUTER_UPSTREAM", value_name = "URL", help_heading = "Upstream and keys")]
    upstream: Option<String>,

    /// How many requests may run on one key at once, unless the key has its own limit [default: none]
    #[arg(long, env = "TOWER_OPENROUTER_MAX_IN_FLIGHT", value_name = "N", help_heading = "Upstream and keys")]
    max_in_flight: Option<usize>,

    /// How long a request may take, with all its waits and attempts [default: 10m]
    #[arg(long, env = "TOWER_OPENROUTER_DEADLINE", value_name = "TIME", help_heading = "Balancing")]
    deadline: Option<Span>,

    /// How long a request may wait for a key when none can serve [default: 30s]
    #[arg(long, env = "TOWER_OPENROUTER_MAX_WAIT", value_name = "TIME", help_heading = "Balancing")]
    max_wait: Option<Span>,

    /// Attempts per request, at most 5; moving on from a key that was refused does not count [default: 3]
    #[arg(long, env = "TOWER_OPENROUTER_ATTEMPTS", value_name = "N", help_heading = "Balancing")]
    attempts: Option<u32>,

    /// Failures within the window that open a key's breaker [default: 3]
    #[arg(long, env = "TOWER_OPENROUTER_BREAKER_FAILURES", value_name = "N", help_heading = "Balancing")]
    breaker_failures: Option<u32>,

    /// The window in which they count [default: 60s]
    #[arg(long, env = "TOWER_OPENROUTER_BREAKER_WINDOW", value_name = "TIME", help_heading = "Balancing")]
    breaker_window: Option<Span>,

    /// How long a breaker stays open at first [default: 60s]
    #[arg(long, env = "TOWER_OPENROUTER_BREAKER_COOLDOWN", value_name = "TIME", help_heading = "Balancing")]
    breaker_cooldown: Option<Span>,
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
}

/// The configuration file.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    access_token: Option<String>,
    admin_token: Option<String>,
    header_timeout: Option<Span>,
    drain_timeout: Option<Span>,
    no_balancer_headers: bool,
    upstream: Option<String>,
    max_in_flight: Option<usize>,
    deadline: Option<Span>,
    max_wait: Option<Span>,
    attempts: Option<u32>,
    breaker_failures: Option<u32>,
    breaker_window: Option<Span>,
    breaker_cooldown: Option<Span>,
    keys: Vec<KeyEntry>,
}

/// Everything set, checked as far as one value alone can be.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(super) listen: SocketAddr,
    pub(super) admin_listen: SocketAddr,
    pub(super) access_token: Option<Token>,
    pub(super) admin_token: Option<Token>,
    pub(super) header_timeout: Duration,
    pub(super) drain_timeout: Duration,
    pub(super) balancer_headers: bool,
    /// `None` when not set: OpenRouter, or the simulator when there is no key either.
    pub(super) upstream: Option<String>,
    pub(super) max_in_flight: Option<usize>,
    pub(super) deadline: Duration,
    pub(super) max_wait: Duration,
    pub(super) attempts: u32,
    pub(super) breaker_failures: u32,
    pub(super) breaker_window: Duration,
    pub(super) breaker_cooldown: Duration,
    pub(crate) keys: Vec<KeyEntry>,
    /// Where relative paths in the file start.
    pub(crate) folder: PathBuf,
}

/// A token somebody must show.
#[derive(Debug, Clone)]
pub(super) struct Token(SecretString);

impl Token {
    pub(super) fn new(text: &str, name: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!("{name} is empty: give a token, or leave it out"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{name} holds white space or other characters that a header cannot carry"));
        }
        Ok(Self(text.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl Arguments {
    /// Puts flags, environment, file and defaults together.
    pub(crate) fn settle(self) -> Result<Settings, String> {
        let file = match &self.config {
            None => File::default(),
            Some(path) => {
                let name = path.display();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("--config {name}: {error}; give the path of a TOML file"))?;
                parse(&text).map_err(|trouble| format!("{name}: {trouble}"))?
            }
        };
        let token = |flag: Option<SecretString>, file: Option<String>, name| match (flag, file) {
            (Some(token), _) => Token::new(token.expose_secret(), name).map(Some),
            (None, Some(token)) => Token::new(&token, name).map(Some),
            (None, None) => Ok(None),
        };
        let span = |flag: Option<Span>, file: Option<Span>, seconds| {
            flag.or(file).map_or(Duration::from_secs(seconds), |Span(span)| span)
        };
        let settings = Settings {
            listen: self.listen.or(file.listen).unwrap_or(([127, 0, 0, 1], 8080).into()),
            admin_listen: self.admin_listen.or(file.admin_listen).unwrap_or(([127, 0, 0, 1], 9090).into()),
            access_token: token(self.access_token, file.access_token, "access_token")?,
            admin_token: token(self.admin_token, file.admin_token, "admin_token")?,
            header_timeout: span(self.header_timeout, file.header_timeout, 30),
            drain_timeout: span(self.drain_timeout, file.drain_timeout, 30),
            balancer_headers: !(self.no_balancer_headers || file.no_balancer_headers),
            upstream: self.upstream.or(file.upstream),
            max_in_flight: self.max_in_flight.or(file.max_in_flight),
            deadline: span(self.deadline, file.deadline, 600),
            max_wait: span(self.max_wait, file.max_wait, 30),
            attempts: self.attempts.or(file.attempts).unwrap_or(3),
            breaker_failures: self.breaker_failures.or(file.breaker_failures).unwrap_or(3),
            breaker_window: span(self.breaker_window, file.breaker_window, 60),
            breaker_cooldown: span(self.breaker_cooldown, file.breaker_cooldown, 60),
            keys: file.keys,
            folder: self.config.as_deref().and_then(|path| path.parent()).unwrap_or("".as_ref()).to_owned(),
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check(&self) -> Result<(), String> {
        for (name, zero) in [
            ("header_timeout", self.header_timeout.is_zero()),
            ("deadline", self.deadline.is_zero()),
            ("max_in_flight", self.max_in_flight == Some(0)),
            ("attempts", self.attempts == 0),
            ("breaker_failures", self.breaker_failures == 0),
            ("breaker_window", self.breaker_window.is_zero()),
            ("breaker_cooldown", self.breaker_cooldown.is_zero()),
        ] {
            if zero {
                return Err(format!("{name} is 0: it must be more, or left out for its default"));
            }
        }
        if !self.admin_listen.ip().is_loopback() && self.admin_token.is_none() {
            return Err(format!(
                "the admin address {} can be reached from other machines: set --admin-token (TOWER_OPENROUTER_ADMIN_TOKEN), \
                 or keep --admin-listen on 127.0.0.1",
                self.admin_listen
            ));
        }
        Ok(())
    }
}

/// Reads the file. What is wrong is told by line and never shows a value, which could be a key.
fn parse(text: &str) -> Result<File, Located> {
    toml::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(|error| Located {
        line: error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1),
        message: without_values(error.message()),
    })
}

/// What is wrong in the file, and where.
#[derive(Debug, PartialEq)]
struct Located {
    line: Option<usize>,
    message: String,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// serde quotes the value it did not expect, as in `invalid type: string "sk-or-…", expected u32`.
fn without_values(message: &str) -> String {
    match (message.find("string \""), message.rfind("\", expected")) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", &message[..from + "string".len()], &message[to + 1..])
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(flags: &[&str]) -> Arguments {
        Cli::try_parse_from([&["gateway"], flags].concat()).unwrap().arguments
    }

    fn trouble(text: &str) -> String {
        parse(text).err().expect("should be refused").to_string()
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_the_defaults() {
        let path = std::env::temp_dir().join(format!("tower-openrouter-{}.toml", std::process::id()));
        std::fs::write(&path, "listen = \"127.0.0.1:1\"\ndeadline = \"7s\"\nattempts = 2\n").unwrap();
        let settings =
            arguments(&["--config", path.to_str().unwrap(), "--attempts", "5", "--max-wait", "0s"]).settle().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(settings.listen, ([127, 0, 0, 1], 1).into());
        assert_eq!(settings.deadline, Duration::from_secs(7));
        assert_eq!((settings.attempts, settings.max_wait), (5, Duration::ZERO));
        assert_eq!(settings.admin_listen, ([127, 0, 0, 1], 9090).into());
        assert_eq!(settings.folder, std::env::temp_dir());
        assert!(settings.balancer_headers);
    }

    #[test]
    fn the_example_in_the_help_is_a_configuration_file() {
        let (_, example) = EXAMPLE.split_once('\n').unwrap();
        let file = parse(example).unwrap_or_else(|trouble| panic!("{trouble}"));
        assert_eq!((file.deadline, file.keys.len()), (Some(Span(Duration::from_secs(300))), 2));
    }

    #[test]
    fn r121_an_unknown_setting_is_an_error_with_its_line() {
        let trouble = trouble("listen = \"127.0.0.1:1\"\nlisten_admin = \"127.0.0.1:2\"\n");
        assert!(trouble.starts_with("line 2: unknown field `listen_admin`, expected one of `listen`"), "{trouble}");
    }

    #[test]
    fn r099_a_mistake_in_the_file_is_told_without_the_value() {
        for (text, line) in [
            ("\nkeys = [\"sk-or-v1-canary\"]\n", 2),
            ("keys = \"sk-or-v1-canary\"\n", 1),
            ("[[keys]]\nkey = sk-or-v1-canary\n", 2),
            ("[[keys]]\nkey = \"sk-or-v1-canary\n", 2),
            ("[[keys]]\nmax_in_flight = \"sk-or-v1-canary\"\n", 2),
            ("deadline = \"sk-or-v1-canary\"\n", 1),
            ("listen = \"sk-or-v1-canary\"\n", 1),
            ("[[keys]]\nkey = { secret = \"sk-or-v1-canary\" }\n", 2),
            ("[[keys]]\nkey = [\"sk-or-v1-canary\\\", expected\"]\n", 2),
        ] {
            let trouble = trouble(text);
            assert!(trouble.starts_with(&format!("line {line}: ")), "{text} -> {trouble}");
            assert!(!trouble.contains("canary"), "{text} -> {trouble}");
        }
    }

    #[test]
    fn r117_settings_that_cannot_be_meant_are_refused_by_name() {
        for (flags, name) in [
            (["--deadline", "0s"], "deadline"),
            (["--attempts", "0"], "attempts"),
            (["--max-in-flight", "0"], "max_in_flight"),
            (["--header-timeout", "0ms"], "header_timeout"),
            (["--breaker-failures", "0"], "breaker_failures"),
            (["--breaker-window", "0s"], "breaker_window"),
            (["--breaker-cooldown", "0s"], "breaker_cooldown"),
            (["--access-token", ""], "access_token"),
            (["--access-token", "two words"], "access_token"),
            (["--admin-token", "é"], "admin_token"),
        ] {
            let trouble = arguments(&flags).settle().unwrap_err();
            assert!(trouble.starts_with(name), "{trouble}");
            assert!(!trouble.contains("two words"), "{trouble}");
        }
    }

    #[test]
    fn an_admin_address_others_can_reach_needs_a_token() {
        for address in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090"] {
            let trouble = arguments(&["--admin-listen", address]).settle().unwrap_err();
            assert!(trouble.contains("--admin-token"), "{trouble}");
            arguments(&["--admin-listen", address, "--admin-token", "t"]).settle().unwrap();
        }
        arguments(&["--admin-listen", "[::1]:9090"]).settle().unwrap();
    }

    #[test]
    fn tokens_do_not_show() {
        let arguments = arguments(&["--access-token", "canary", "--admin-token", "canary"]);
        assert!(!format!("{arguments:?}").contains("canary"));
        assert!(!format!("{:?}", arguments.settle().unwrap()).contains("canary"));
    }
}
