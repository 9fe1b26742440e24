//! What the gateway says when it is up.

use std::{fmt, net::SocketAddr};

use tower_openrouter::ApiKey;

/// A model that costs nothing, for the line to try.
const FREE: &str = "openrouter/free";

/// Addresses, keys by label, and lines to paste.
#[derive(Debug)]
pub(super) struct Banner<'a> {
    pub(super) listen: SocketAddr,
    pub(super) admin_listen: SocketAddr,
    pub(super) upstream: &'a str,
    /// The model to try in the simulator, if that is what answers.
    pub(super) simulated: Option<&'a str>,
    pub(super) keys: &'a [ApiKey],
    pub(super) asks_token: bool,
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (api, admin) = (reachable(self.listen), reachable(self.admin_listen));
        writeln!(f, "tower-openrouter gateway {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "  API       http://{api}/v1")?;
        writeln!(f, "  admin     http://{admin}/  /stats  /explain/{{id}}  /readyz  /healthz")?;
        match self.simulated {
            None => writeln!(f, "  upstream  {}", self.upstream)?,
            Some(_) => {
                writeln!(
                    f,
                    "  upstream  SIMULATED inside this process, because no key was given: answers are made up and"
                )?;
                writeln!(f, "            cost nothing. To use OpenRouter, set OPENROUTER_API_KEY and start again.")?;
            }
        }
        writeln!(f, "  keys      {}", self.keys.len())?;
        let width = self.keys.iter().map(|key| key.name().chars().count()).max().unwrap_or(0);
        for key in self.keys {
            write!(f, "    {:<width$}", key.name())?;
            if let Some(account) = key.account_name() {
                write!(f, "  account {account}")?;
            }
            writeln!(f)?;
        }
        let token = if self.asks_token { r#" -H "Authorization: Bearer $TOWER_OPENROUTER_ACCESS_TOKEN""# } else { "" };
        let model = self.simulated.unwrap_or(FREE);
        for (what, flag, stream) in [("try it", "", ""), ("as a stream", " -N", r#","stream":true"#)] {
            writeln!(f, "\n{what}:")?;
            writeln!(
                f,
                r#"curl{flag} http://{api}/v1/chat/completions{token} -H 'Content-Type: application/json' -d '{{"model":"{model}"{stream},"messages":[{{"role":"user","content":"Hello"}}]}}'"#
            )?;
        }
        Ok(())
    }
}

/// The address to ask from this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    address
}
