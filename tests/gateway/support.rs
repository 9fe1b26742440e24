//! A gateway process, an upstream made for the test, and raw sockets to speak to both.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// More than anything here should take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A chat request's body.
pub(crate) const CHAT: &str = r#"{"model":"acme/swift-1","messages":[{"role":"user","content":"Hi"}]}"#;

/// A gateway, killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) banner: String,
    log: Arc<Mutex<String>>,
}

/// A configuration file that is removed with the test.
pub(crate) struct File(PathBuf);

impl File {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tower-openrouter-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub(crate) fn flag(&self) -> [&str; 2] {
        ["--config", self.0.to_str().unwrap()]
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A command that knows nothing of the machine's own keys and settings.
pub(crate) fn command(flags: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-openrouter"));
    command.env_clear().arg("gateway").args(flags).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a gateway that should not come up; what it says on standard error.
pub(crate) fn refused(flags: &[&str], variables: &[(&str, &str)]) -> String {
    let output = command(flags, variables).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

impl Gateway {
    /// Starts one on free ports.
    pub(crate) fn start(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::up(flags, variables, |command| command)
    }

    /// The same within limits that a shell sets.
    #[cfg(unix)]
    pub(crate) fn within(limits: &str, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::up(flags, variables, |command| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("{limits}; exec \"$@\""), "sh"])
                .arg(command.get_program())
                .args(command.get_args());
            shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            shell
        })
    }

    fn up(flags: &[&str], variables: &[(&str, &str)], around: impl Fn(Command) -> Command) -> Self {
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        // asking about the keys is no part of what most tests count; a variable of the test's own beats this one
        let quiet = [("TOWER_OPENROUTER_POLL_INTERVAL", "0s")];
        let command = command(&[&ports, flags].concat(), &[&quiet, variables].concat());
        let mut child = around(command).spawn().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let written = log.clone();
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut banner = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // the second of the two lines to paste is the last
        while banner.matches("\ncurl").count() < 2 {
            let read = lines.read_line(&mut banner).unwrap();
            assert_ne!(read, 0, "it did not come up: {banner}{}", log.lock().unwrap());
        }
        let address = |name: &str| {
            let line = banner.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
            line.split("http://").nth(1).unwrap().split('/').next().unwrap().parse().unwrap()
        };
        Self { api: address("API"), admin: address("admin"), child, banner, log }
    }

    /// Starts one with a single key, `sk-or-v1-one`, before `upstream`.
    pub(crate) fn before(upstream: &Upstream, flags: &[&str]) -> Self {
        Self::start(&[&["--upstream", &upstream.base()], flags].concat(), &[("OPENROUTER_API_KEY", "sk-or-v1-one")])
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end; how it ended and how long that took.
    pub(crate) fn ended(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, start.elapsed());
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The bytes it has in memory.
    #[cfg(target_os = "linux")]
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn chat(&self, headers: &str) -> Reply {
        post(self.api, "/v1/chat/completions", headers, CHAT)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An upstream that notes what it is asked and answers as the test likes.
pub(crate) struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    /// Answers each request, which comes alone on its connection, by `answer`.
    pub(crate) fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let (noted, answer) = (seen.clone(), Arc::new(answer));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (noted, answer) = (noted.clone(), answer.clone());
                thread::spawn(move || {
                    let Some(request) = read_request(&mut stream) else { return };
                    noted.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream);
                });
            }
        });
        Self { address, seen }
    }

    /// Answers everything with this.
    pub(crate) fn answering(status: &str, headers: &str, body: &str) -> Self {
        let answer = response(status, headers, body);
        Self::start(move |_, stream| stream.write_all(answer.as_bytes()).unwrap())
    }

    /// Answers everything with a completion.
    pub(crate) fn fine() -> Self {
        Self::answering("200 OK", "content-type: application/json\r\n", r#"{"id":"gen-1","choices":[]}"#)
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}/api/v1", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests so far, as they were sent.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

pub(crate) fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The head of an event stream that goes on until the connection closes its chunks.
pub(crate) const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";

/// An event of a chat stream that says something.
pub(crate) fn token(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

pub(crate) fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let done = match length {
            Some(length) => body.len() >= length.parse().unwrap(),
            None => !head.contains("transfer-encoding: chunked") || body.ends_with("0\r\n\r\n"),
        };
        if done {
            return Some(text.into_owned());
        }
    }
}

/// An answer, read until the connection closed.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    /// As it came: chunks are not joined.
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self { status: status.unwrap_or_else(|| panic!("no answer: {text:?}")), head: head.into(), body: body.into() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes and reads until the connection closes.
pub(crate) fn raw(address: SocketAddr, bytes: &str) -> Reply {
    let mut stream = connect(address);
    stream.write_all(bytes.as_bytes()).unwrap();
    Reply::parse(&rest(&mut stream))
}

/// What else comes until the connection closes.
pub(crate) fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _reset_or_closed = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads until `text` has come.
pub(crate) fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = String::new();
    let mut buffer = [0; 4096];
    while !read.contains(text) {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "closed before {text:?}: {read:?}");
        read.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    read
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

pub(crate) fn post(address: SocketAddr, path: &str, headers: &str, body: &str) -> Reply {
    raw(address, &request("POST", path, headers, body))
}

pub(crate) fn get(address: SocketAddr, path: &str, headers: &str) -> Reply {
    raw(address, &request("GET", path, headers, ""))
}
