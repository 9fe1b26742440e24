//! The gateway as a process of its own, and what it takes of the memory.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

/// A command that may have as many sockets as the machine allows.
pub(crate) fn roomy(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$(ulimit -Hn)\"; exec \"$@\"", "sh", program]).args(arguments);
    command
}

/// A gateway with three keys; killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) api: SocketAddr,
}

impl Gateway {
    pub(crate) fn before(upstream: SocketAddr) -> Self {
        let base = format!("http://{upstream}/api/v1");
        let program = env!("CARGO_BIN_EXE_tower-openrouter");
        let flags = ["gateway", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--upstream", &base];
        let mut command = roomy(program, &flags);
        command.env_clear().env("OPENROUTER_API_KEYS", "sk-or-v1-a,sk-or-v1-b,sk-or-v1-c");
        command.env("TOWER_OPENROUTER_POLL_INTERVAL", "0s").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a shell and the gateway's binary");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let line = lines.find(|line| line.trim_start().starts_with("API")).expect("a gateway that comes up");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        Self { child, api: address.and_then(|address| address.parse().ok()).expect("its address") }
    }

    /// Bytes of memory it has now.
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("/proc tells no VmRSS"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
