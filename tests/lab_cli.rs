//! R126, for the command: what `lab` writes is the same to the byte, however many threads and whatever the environment.

use std::{env, fs, path::PathBuf, process::Command};

use sha2::{Digest, Sha256};

/// SHA-256 of the JSON of the runs below. It changes only with what the stacks decide, how the simulator answers, or what is
/// written about it; a change that means none of these has broken the promise.
const GOLDEN: &str = "39c29473ea35750e8b9163b8ca7acfb3ab21ab42d611bd7d011d1e03aed6d621";

/// The hash of what the command writes with so many jobs, in a folder and an environment of its own.
fn written(name: &str, jobs: &str, environment: &[(&str, &str)]) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    let json = folder.join("lab.json");
    let scenario = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/determinism/scenario.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-openrouter"));
    command.args(["lab", "--seeds", "2", "--jobs", jobs, "--scenario"]).arg(scenario);
    command.args(["--stack", "default", "--stack", "cooldown", "--stack", "oracle", "--json"]).arg(&json);
    command.current_dir(&folder).env_clear().envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let digest = Sha256::digest(fs::read(json).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn r126_the_json_is_the_same_whatever_the_jobs_and_the_environment() {
    let plain = written("plain", "1", &[]);
    let other = [
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "tr_TR.UTF-8"),
        ("TZ", "Asia/Kathmandu"),
        ("RUST_LOG", "trace"),
        ("NO_COLOR", "1"),
        ("TOKIO_WORKER_THREADS", "7"),
    ];
    assert_eq!(written("other", "2", &other), plain);
    assert_eq!(plain, GOLDEN, "what the lab finds has changed; see GOLDEN");
}
