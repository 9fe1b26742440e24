//! `tower-openrouter batch` as a process, before a simulator on loopback: what it writes, and what a kill costs.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime};
use tower_openrouter::simulator::{Fault, Scenario, Simulator, What, serve};

/// More than anything here should take.
const PATIENCE: Duration = Duration::from_secs(20);

const SCENARIO: &str = r#"
    reply = { min_tokens = 6, max_tokens = 6 }
    accounts = [{ name = "alpha", credits = 50.0 }]
    keys = [
      { label = "one", account = "alpha", secret = "sk-or-v1-batch-one" },
      { label = "two", account = "alpha", secret = "sk-or-v1-batch-two" },
    ]
    models = [{ id = "acme/swift" }, { id = "acme/full" }]
    endpoints = [
      { model = "acme/swift", provider = "DeepInfra", completion_price = 0.6,
        accept_ms = 4, first_token_ms = 4, tokens_per_second = 1000 },
      { model = "acme/full", provider = "DeepInfra", completion_price = 0.6 },
    ]
"#;

/// A simulated OpenRouter, and a folder, both gone at the end.
struct World {
    simulator: Simulator,
    base: String,
    folder: PathBuf,
    _runtime: Runtime,
}

impl World {
    fn new(name: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let simulator = runtime.block_on(async { Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap() });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let base = format!("http://{}/api/v1", listener.local_addr().unwrap());
        runtime.spawn(serve(listener, simulator.clone()));
        let folder = std::env::temp_dir().join(format!("tower-openrouter-batch-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self { simulator, base, folder, _runtime: runtime }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Prompts without a model, one a line.
    fn write_prompts(&self, name: &str, count: usize) {
        let lines: String = (1..=count).map(|number| format!("{{\"prompt\":\"prompt {number}\"}}\n")).collect();
        self.write(name, lines);
    }

    fn command_with(&self, keys: &str, input: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tower-openrouter"));
        command.env_clear().env("OPENROUTER_API_KEYS", keys);
        command.args(["batch", &self.path(input), "--out", &self.path("out.jsonl"), "--upstream", &self.base]);
        command.args(["--model", "acme/swift"]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn command(&self, input: &str, flags: &[&str]) -> Command {
        self.command_with("sk-or-v1-batch-one,sk-or-v1-batch-two", input, flags)
    }

    /// Runs it to its end; its exit code, standard output and standard error.
    fn run(&self, input: &str, flags: &[&str]) -> (i32, String, String) {
        said(&self.command(input, flags).output().unwrap())
    }

    /// The lines of the output, by row, each there once.
    fn rows(&self) -> BTreeMap<u64, Value> {
        let mut rows = BTreeMap::new();
        for line in self.read("out.jsonl").lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let row = line["row"].as_u64().unwrap();
            assert!(rows.insert(row, line).is_none(), "row {row} is there twice");
        }
        rows
    }

    fn lines_written(&self) -> usize {
        self.read("out.jsonl").matches('\n').count()
    }

    fn wait_for_lines(&self, count: usize, child: &mut Child) {
        let start = Instant::now();
        while self.lines_written() < count {
            assert!(child.try_wait().unwrap().is_none(), "it ended early");
            assert!(start.elapsed() < PATIENCE, "it hangs at {} of {count}", self.lines_written());
            // a process of its own, whose clock cannot be paused: this is how often it is looked at, and nothing is judged by it
            thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn killed_twenty_times_at_random_rows_every_row_is_answered_exactly_once() {
    const ROWS: usize = 320;
    /// More than are finished between the row at which a kill is due and the kill, on a busy machine too.
    const KEPT: usize = 120;
    const KILLS: usize = 20;
    let world = World::new("killed");
    world.write_prompts("in.jsonl", ROWS);
    let mut in_flight = 0;
    for kill in 0..KILLS {
        let written = world.lines_written();
        // so that on average the last kill comes where the rows begin that are kept for the last run
        let left = (ROWS - KEPT).saturating_sub(written);
        let target = written + fastrand::usize(0..=(left / (KILLS - kill) * 2).min(left));
        let mut child = world.command("in.jsonl", &["--concurrency", "8"]).spawn().unwrap();
        world.wait_for_lines(target, &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        let journal = world.read("out.jsonl.running");
        let sent = journal.lines().filter(|line| line.starts_with('+')).count();
        in_flight = sent - world.lines_written();
        if kill % 3 == 0 {
            let mut out = fs::OpenOptions::new().append(true).create(true).open(world.path("out.jsonl")).unwrap();
            out.write_all(b"{\"row\":7,\"custom_id\":null,\"resp").unwrap();
        }
    }
    assert!(world.lines_written() < ROWS, "nothing was left for the last run");
    let (code, summary, log) = world.run("in.jsonl", &["--concurrency", "8", "--sort"]);
    assert_eq!(code, 0, "{summary}{log}");
    assert!(summary.contains(&format!("{ROWS} of {ROWS} rows answered, 0 failed, 0 bad")), "{summary}");

    let rows = world.rows();
    assert!(rows.keys().copied().eq(1..=ROWS as u64), "{:?}", rows.keys());
    assert!(rows.values().all(|line| line["error"].is_null() && line["response"]["status_code"] == 200));
    let order: Vec<u64> = world.read("out.jsonl").lines().map(row_of).collect();
    assert!(order.is_sorted());
    // what the other side saw is what the summary admits
    let told = format!("{in_flight} rows were sent by earlier runs that were killed");
    assert!(in_flight < 2 || summary.contains(&told), "{told}: {summary}");
    let seen = world.simulator.counts().attempts as usize;
    assert!((ROWS..=ROWS + in_flight).contains(&seen), "{seen} requests, {in_flight} in flight at kills");
    assert!(in_flight <= KILLS * 8);
    assert!(!fs::exists(world.path("out.jsonl.running")).unwrap());
}

fn row_of(line: &str) -> u64 {
    serde_json::from_str::<Value>(line).unwrap()["row"].as_u64().unwrap()
}

#[test]
fn every_kind_of_row_is_answered_and_bad_ones_are_told_by_line() {
    let world = World::new("kinds");
    let lines = [
        r#"{"custom_id":"first","model":"acme/swift","messages":[{"role":"user","content":"Hi"}],"stream":true}"#,
        "",
        r#"{"custom_id":2,"prompt":"Hi","system":"Be brief.","temperature":0}"#,
        "what is this?",
        r#"{"custom_id":"c","method":"POST","url":"/v1/messages","body":{"max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}}"#,
        r#"{"prompt":"Hi","model":"acme/none"}"#,
    ];
    world.write("in.jsonl", lines.join("\r\n"));
    let (code, summary, log) = world.run("in.jsonl", &[]);
    assert_eq!(code, 3, "{summary}{log}");
    assert!(log.contains("in.jsonl line 4: it is neither a JSON object nor a prompt in quotes"), "{log}");
    assert!(summary.contains("3 of 5 rows answered, 1 failed, 1 bad"), "{summary}");
    for key in ["api-keys-1", "api-keys-2", "all"] {
        assert!(summary.lines().any(|line| line.starts_with(key)), "{summary}");
    }
    let rows = world.rows();
    assert_eq!(rows[&1]["response"]["body"]["object"], "chat.completion");
    assert_eq!((&rows[&1]["custom_id"], &rows[&2]["custom_id"]), (&json!("first"), &json!(2)));
    assert_eq!(rows[&3]["error"]["code"], "bad_row");
    assert!(rows[&3]["error"]["message"].as_str().unwrap().starts_with("line 4: "), "{}", rows[&3]);
    assert_eq!((&rows[&4]["response"]["body"]["type"], &rows[&4]["attempts"]), (&json!("message"), &json!(1)));
    assert_eq!(
        (&rows[&5]["error"]["code"], &rows[&5]["response"]["status_code"]),
        (&json!("bad_request"), &json!(400))
    );
    assert!(rows[&1]["cost"].as_f64().unwrap() > 0.0);
    assert!(!world.read("out.jsonl").contains("sk-or-v1"));
}

#[test]
fn failed_and_bad_rows_are_asked_again_when_told_and_only_those() {
    let world = World::new("again");
    world.write("in.jsonl", "\"one\"\nbad\n{\"prompt\":\"three\",\"model\":\"acme/none\"}\n\"four\"\n");
    assert_eq!(world.run("in.jsonl", &[]).0, 3);
    assert_eq!(world.simulator.counts().attempts, 3);
    let (code, summary, log) = world.run("in.jsonl", &[]);
    assert!(code == 3 && log.contains("nothing is left to ask"), "{summary}{log}");
    world.write("in.jsonl", "\"one\"\n\"two\"\n{\"prompt\":\"three\",\"model\":\"acme/swift\"}\n\"four\"\n\"five\"\n");
    let (code, _, log) = world.run("in.jsonl", &[]);
    assert!(code == 1 && log.contains("now asks something else") && log.contains("--retry-failed"), "{log}");
    let (code, summary, log) = world.run("in.jsonl", &["--retry-failed"]);
    assert_eq!(code, 0, "{summary}{log}");
    assert!(summary.contains("5 of 5 rows answered") && summary.contains("this run: 3 rows"), "{summary}");
    assert_eq!((world.rows().len(), world.simulator.counts().attempts), (5, 6));
}

#[test]
fn a_table_with_a_column_of_prompts_is_an_input_too() {
    let world = World::new("table");
    world.write("in.CSV", "\u{feff}custom_id,note,prompt\n1,x,\"Say \"\"hi\"\",\nplease\"\n2,y,Hello, you\n3,z,Bye\n");
    let (code, summary, log) = world.run("in.CSV", &["--max-tokens", "3", "--sort"]);
    assert!(code == 3 && log.contains("in.CSV line 4: it has 4 columns and the header 3"), "{summary}{log}");
    let ids: Vec<_> = world.rows().values().map(|line| line["custom_id"].clone()).collect();
    assert_eq!(ids, [json!("1"), json!(null), json!("3")]);
    assert_eq!(world.rows()[&3]["response"]["body"]["usage"]["completion_tokens"], 3);
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
    let world = World::new("refused");
    world.write_prompts("in.jsonl", 3);
    let refused = |input: &str, flags: &[&str], told: &[&str]| {
        let (code, summary, log) = world.run(input, flags);
        assert!(code == 1 && summary.is_empty(), "{code} {summary}{log}");
        for part in told {
            assert!(log.contains(part), "{log}");
        }
    };
    refused("none.jsonl", &[], &["none.jsonl", "give the path of a file of rows"]);
    assert!(!fs::exists(world.path("out.jsonl")).unwrap());
    world.write("empty.jsonl", "\n\n");
    refused("empty.jsonl", &[], &["empty.jsonl: there is no row in it"]);
    assert_eq!(fs::read_dir(&world.folder).unwrap().count(), 2, "nothing is left behind");
    world.write("no-prompt.csv", "question,answer\na,b\n");
    refused("no-prompt.csv", &[], &["no-prompt.csv line 1: it has no column `prompt`, only `question`, `answer`"]);
    world.write("out.jsonl", "{\"somebody\":\"else's\"}\n");
    refused("in.jsonl", &[], &["out.jsonl: line 1 is not an answer of this command", "another --out"]);
    assert_eq!(world.read("out.jsonl"), "{\"somebody\":\"else's\"}\n");
    assert!(!fs::exists(world.path("out.jsonl.running")).unwrap());
    refused("out.jsonl", &[], &["--out", "is the input"]);
    fs::remove_file(world.path("out.jsonl")).unwrap();
    refused("in.jsonl", &["--config", "none.toml"], &["none.toml"]);
    assert_eq!(world.simulator.counts().attempts, 0);

    assert_eq!(world.run("in.jsonl", &[]).0, 0);
    refused("in.jsonl", &["--max-tokens", "9"], &["out.jsonl line", "in.jsonl line 1 now asks something else"]);
    world.write_prompts("in.jsonl", 2);
    refused("in.jsonl", &[], &["answers row 3, but", "has only 2 rows"]);
    assert_eq!(world.simulator.counts().attempts, 3);
    let usage = world.run("in.jsonl", &["--concurrency", "0"]);
    assert_eq!(usage.0, 2, "{}", usage.2);
}

#[test]
fn two_runs_cannot_write_one_output() {
    let world = World::new("two");
    world.write_prompts("in.jsonl", 40);
    let mut first = world.command("in.jsonl", &["--concurrency", "1"]).spawn().unwrap();
    world.wait_for_lines(2, &mut first);
    let (code, _, log) = world.run("in.jsonl", &[]);
    assert!(code == 1 && log.contains("another run is writing it"), "{log}");
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!((world.rows().len(), world.simulator.counts().attempts), (40, 40));
}

#[test]
fn after_ctrl_c_what_is_on_its_way_is_finished_and_nothing_is_asked_twice() {
    let world = World::new("ctrl-c");
    world.write_prompts("in.jsonl", 100);
    let mut first = world.command("in.jsonl", &["--concurrency", "4"]).spawn().unwrap();
    world.wait_for_lines(10, &mut first);
    signal(&first, "INT");
    let (code, summary, log) = said(&first.wait_with_output().unwrap());
    assert!(code == 130 && log.contains("run the same command again to go on"), "{code} {summary}{log}");
    assert!(summary.contains(" to come"), "{summary}");
    let (code, summary, log) = world.run("in.jsonl", &["--concurrency", "4"]);
    assert!(code == 0 && log.contains("going on from there"), "{summary}{log}");
    assert!(!summary.contains("billed twice"), "{summary}");
    assert_eq!((world.rows().len(), world.simulator.counts().attempts), (100, 100));
}

#[test]
fn a_full_provider_is_waited_for() {
    let world = World::new("full");
    world.write_prompts("in.jsonl", 20);
    let full = Fault::new(What::PoolFull { retry_after: Some(1) }).window(0.0, 2.5);
    world.simulator.inject(full).unwrap();
    let (code, summary, log) = world.run("in.jsonl", &["--attempts", "1", "--max-wait", "0s"]);
    assert_eq!(code, 0, "{summary}{log}");
    assert!(world.rows().values().all(|line| line["error"].is_null()));
}

#[test]
fn a_row_whose_provider_stays_full_fails_while_others_are_served() {
    let world = World::new("stays-full");
    let lines = ["{\"prompt\":\"Hi\",\"model\":\"acme/full\"}\n".to_owned(), "\"Hi\"\n".repeat(400)];
    world.write("in.jsonl", lines.concat());
    world.simulator.inject(Fault::new(What::PoolFull { retry_after: Some(1) }).model("acme/full")).unwrap();
    let flags = ["--concurrency", "2", "--attempts", "1", "--max-wait", "0s", "--patience", "2s"];
    let (code, summary, log) = world.run("in.jsonl", &flags);
    assert!(code == 3 && summary.contains("400 of 401 rows answered, 1 failed"), "{code} {summary}{log}");
    let full = &world.rows()[&1];
    assert!(full["attempts"].as_u64().unwrap() > 1, "{full}");
    assert!(full["seconds"].as_f64().unwrap() >= 2.0, "{full}");
}

#[test]
fn when_no_key_can_serve_it_stops_and_goes_on_later() {
    let world = World::new("no-key");
    world.write_prompts("in.jsonl", 30);
    let start = Instant::now();
    let (code, summary, log) =
        said(&world.command_with("sk-or-v1-bad-a,sk-or-v1-bad-b", "in.jsonl", &["--patience", "9s"]).output().unwrap());
    assert!(code == 4 && log.contains("api-keys-1 invalid_key, api-keys-2 invalid_key"), "{code} {summary}{log}");
    assert!(summary.contains("0 of 30 rows answered, 0 failed, 0 bad, 30 to come"), "{summary}");
    assert!(start.elapsed() < Duration::from_secs(5) && world.rows().is_empty());
    let refused = world.simulator.counts().attempts;
    let (code, summary, log) = world.run("in.jsonl", &[]);
    assert!(code == 0 && !summary.contains("billed twice"), "{summary}{log}");
    assert_eq!(world.simulator.counts().attempts, refused + 30);
}
