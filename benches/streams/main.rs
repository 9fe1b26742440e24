//! What streams through the gateway cost: the delay it adds to each event, and its memory for each stream.
//!
//! Upstream, gateway and clients are processes of their own on loopback. The clients start by the clock and stamp each event
//! when it is here against the time the upstream wrote into it. It prints the figures and fails while a mark is missed.
//! `-- --quick` has fewer streams and shorter ones, to see that all works; its figures are no measurement.

use std::{
    env,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

mod gateway;
mod load;
mod upstream;

use gateway::{Gateway, roomy};
use load::{Load, Seen};

/// The marks: the delay added to 99 of 100 events, and the memory for each stream that flows and for each whose client does
/// not read.
const ADDED: Duration = Duration::from_millis(5);
const HELD: u64 = 64 * 1024;
const STALLED: u64 = 128 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure(1),
        ["--quick"] => measure(10),
        ["--upstream"] => runtime().block_on(async {
            let (listener, address) = upstream::listen()?;
            println!("{address}");
            upstream::serve(listener).await.map(|()| true)
        }),
        ["--clients", target, streams, events, micros, bytes, ramp, stall] => {
            clients(target, [streams, events, micros, bytes, ramp, stall]).map(|()| true)
        }
        _ => Err(io::Error::other("it takes --quick, or nothing")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Another process of this program, killed when dropped.
struct Role(Child);

impl Role {
    fn start(arguments: &[&str]) -> io::Result<Self> {
        let program = env::current_exe()?;
        let mut command: Command = roomy(program.to_str().ok_or_else(|| io::Error::other("an odd path"))?, arguments);
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    /// The first line it says.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let output = self.0.stdout.as_mut().ok_or_else(|| io::Error::other("not piped"))?;
        BufReader::new(output).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The clients' process: says what they saw in one line.
fn clients(target: &str, numbers: [&str; 6]) -> io::Result<()> {
    let parsed: Result<Vec<u64>, _> = numbers.iter().map(|number| number.parse()).collect();
    let (Ok(target), Ok(&[streams, events, micros, bytes, ramp, stall])) = (target.parse(), parsed.as_deref()) else {
        return Err(io::Error::other("the clients were told something odd"));
    };
    let load = Load {
        streams: streams as usize,
        events,
        every: Duration::from_micros(micros),
        bytes: bytes as usize,
        ramp: Duration::from_millis(ramp),
        stall: (stall > 0).then(|| Duration::from_millis(stall)),
    };
    let Seen { delays, failed } = &runtime().block_on(load.run(target));
    println!("{failed} {}", delays.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    Ok(())
}

/// Puts a load on `target` from another process; `watch` is called every 100 ms while it runs.
fn put(load: Load, target: SocketAddr, mut watch: impl FnMut() -> io::Result<()>) -> io::Result<Seen> {
    let Load { streams, events, every, bytes, ramp, stall } = load;
    let stall = stall.unwrap_or_default().as_millis();
    let numbers = [streams as u128, events.into(), every.as_micros(), bytes as u128, ramp.as_millis(), stall];
    let numbers = numbers.map(|number| number.to_string());
    let target = target.to_string();
    let mut arguments = vec!["--clients", &target];
    arguments.extend(numbers.iter().map(String::as_str));
    let mut role = Role::start(&arguments)?;
    let mut output = BufReader::new(role.0.stdout.take().ok_or_else(|| io::Error::other("not piped"))?);
    let said = thread::spawn(move || {
        let mut line = String::new();
        output.read_line(&mut line).map(|_| line)
    });
    while !said.is_finished() {
        watch()?;
        thread::sleep(Duration::from_millis(100));
    }
    let line = said.join().map_err(|_| io::Error::other("a thread panicked"))??;
    let (failed, delays) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let failed = failed.parse().map_err(|_| io::Error::other("the clients' process failed"))?;
    Ok(Seen { failed, delays: delays.split(',').filter_map(|delay| delay.parse().ok()).collect() })
}

fn measure(part: u32) -> io::Result<bool> {
    let mut role = Role::start(&["--upstream"])?;
    let upstream: SocketAddr = role.line()?.parse().map_err(|_| io::Error::other("the upstream did not come up"))?;
    let marks = [delay(upstream, part)?, held(upstream, part)?, stalled(upstream, part)?];
    Ok(marks.iter().all(|reached| *reached))
}

fn told(mark: bool) -> &'static str {
    if mark { "reached" } else { "MISSED" }
}

/// 200 streams of 50 events a second for 30 s.
fn delay(upstream: SocketAddr, part: u32) -> io::Result<bool> {
    let load = Load {
        streams: 200,
        events: u64::from(1500 / part),
        every: Duration::from_millis(20),
        bytes: 200,
        ramp: Duration::from_secs(1),
        stall: None,
    };
    let gateway = Gateway::before(upstream);
    // connections, code and memory that the first streams would pay for
    put(Load { events: 50, ..load }, gateway.api, || Ok(()))?;
    println!("{} streams, {} events each, {:?} apart\n", load.streams, load.events, load.every);
    println!("| | events | p50 | p90 | p99 | p99.9 | worst | streams failed |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut seen = Vec::new();
    // in turns, so that a busy spell of the machine is everybody's
    for (name, target) in [("direct", upstream), ("through the gateway", gateway.api)].repeat(2) {
        let found = put(load, target, || Ok(()))?;
        let [p50, p90, p99, p999, worst] = [0.5, 0.9, 0.99, 0.999, 1.0].map(|share| found.quantile(share));
        let (events, failed) = (found.delays.len(), found.failed);
        println!("| {name} | {events} | {p50:?} | {p90:?} | {p99:?} | {p999:?} | {worst:?} | {failed} |");
        seen.push(found);
    }
    let whole = seen.iter().all(|seen| seen.failed == 0);
    // the usual event's way without the gateway is all that is taken off: what else delays the slowest counts as added
    let added = |direct: &Seen, through: &Seen| through.quantile(0.99).saturating_sub(direct.quantile(0.5));
    let added = added(&seen[0], &seen[1]).max(added(&seen[2], &seen[3]));
    let reached = whole && added <= ADDED;
    println!("\nadded to 99 of 100 events: {added:?} at most, wanted {ADDED:?}: {}\n", told(reached));
    Ok(reached)
}

/// The most that a gateway takes above what it had after a few streams, for each of the load's.
fn growth(load: Load, upstream: SocketAddr, mut watch: impl FnMut() -> io::Result<()>) -> io::Result<(u64, usize)> {
    let gateway = Gateway::before(upstream);
    put(
        Load { streams: 20, events: 20, every: Duration::from_millis(5), stall: None, ..load },
        gateway.api,
        || Ok(()),
    )?;
    let before = gateway.memory()?;
    let mut most = before;
    let seen = put(load, gateway.api, || {
        most = most.max(gateway.memory()?);
        watch()
    })?;
    Ok((most.saturating_sub(before) / load.streams as u64, seen.failed))
}

/// 1,000 streams of 60 s, an event a second.
fn held(upstream: SocketAddr, part: u32) -> io::Result<bool> {
    let load = Load {
        streams: 1000 / part as usize,
        events: u64::from(60 / part),
        every: Duration::from_secs(1),
        bytes: 200,
        ramp: Duration::from_secs(1),
        stall: None,
    };
    let (each, failed) = growth(load, upstream, || Ok(()))?;
    let reached = failed == 0 && each <= HELD;
    let Load { streams, events, .. } = load;
    println!(
        "{streams} streams of {events} s held at once, {failed} failed: {each} bytes each, wanted {HELD}: {}",
        told(reached)
    );
    Ok(reached)
}

/// 1,000 clients that stop reading while the upstream sends all it can, for 20 s.
fn stalled(upstream: SocketAddr, part: u32) -> io::Result<bool> {
    let stall = Duration::from_secs(20) / part;
    let load = Load {
        streams: 1000 / part as usize,
        events: 1_000_000,
        every: Duration::ZERO,
        bytes: 1000,
        ramp: Duration::from_secs(1),
        stall: Some(stall),
    };
    let (runtime, mut sent) = (runtime(), 0);
    let before = runtime.block_on(load::sent(upstream))?;
    let (each, failed) = growth(load, upstream, || {
        sent = runtime.block_on(load::sent(upstream))? - before;
        Ok(())
    })?;
    let reached = failed == 0 && each <= STALLED;
    let Load { streams, .. } = load;
    let of_each = sent / streams as u64;
    println!(
        "{streams} clients that do not read for {stall:?}, {failed} failed: {each} bytes each, wanted {STALLED}: {}; of the \
         gigabyte for each, the upstream could send {of_each} bytes before the kernels' buffers on the way were full",
        told(reached)
    );
    Ok(reached)
}
