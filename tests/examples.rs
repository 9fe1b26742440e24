//! Every example runs to its end, does what it asserts, and says something.

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

/// What each prints among other things.
const EXAMPLES: [(&str, &str); 7] = [
    ("async_openai", "alpha-1"),
    ("axum", "20 at once: 8 served, 12 shed"),
    ("custom_pipeline", "[200, 200, 200, 200, 429, 429, 429, 429]"),
    ("custom_policy", "own policies"),
    ("policies", "`RoundRobin::default()`"),
    ("reqwest_client", "400 Bad Request"),
    ("tonic", "after three failures in a row: Unavailable"),
];

/// Many times what the slowest takes where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(300);

/// Cargo puts examples beside the tests, and builds them for `cargo test`, though not for `cargo test --test examples`.
fn built(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let example = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name);
    let example = example.with_extension(env::consts::EXE_EXTENSION);
    assert!(example.is_file(), "{} is not built: cargo build --examples", example.display());
    example
}

async fn run(name: &str, says: &str) {
    let mut command = Command::new(built(name));
    // whatever keys are at hand, no test spends money
    command.env_remove("OPENROUTER_API_KEYS").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{name} runs for longer than {PATIENCE:?}")).unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{said}\n{wrong}", output.status);
    assert!(said.contains(says), "{name} says nothing of {says:?}:\n{said}");
    assert_eq!(wrong, "", "{name}: on stderr");
}

#[tokio::test]
async fn every_example_runs_to_its_end() {
    for (name, says) in EXAMPLES {
        run(name, says).await;
    }
}

#[test]
fn no_example_is_forgotten() {
    let folder = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let is_example =
        |path: &PathBuf| path.extension().is_some_and(|kind| kind == "rs") || path.join("main.rs").is_file();
    let there = folder.map(|entry| entry.unwrap().path()).filter(is_example);
    let there: BTreeSet<_> = there.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(there, EXAMPLES.iter().map(|(name, _)| (*name).to_owned()).collect());
}
