//! `--check`, and the sample file it is shown with.

use std::{fs, path::PathBuf};

use super::support::*;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway.toml");
const KEYS: [(&str, &str); 4] = [
    ("SEARCH_KEY", "sk-or-v1-canary-1"),
    ("CHAT_KEY", "sk-or-v1-canary-2"),
    ("BATCH_KEY", "sk-or-v1-canary-3"),
    ("SPARE_KEY", "sk-or-v1-canary-4"),
];

/// A file of this text, removed in the end.
struct File(PathBuf);

impl File {
    fn of(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tower-openrouter-check-{}-{name}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What `--check` says: on standard output if the configuration is valid, else on standard error.
fn check(path: &str, variables: &[(&str, &str)]) -> Result<String, String> {
    let output = command(&["--config", path, "--check"], variables).output().unwrap();
    let [said, errors] = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    match output.status.code() {
        Some(0) => {
            assert_eq!(errors, "");
            Ok(said)
        }
        Some(1) => {
            assert_eq!(said, "");
            Err(errors)
        }
        other => panic!("{other:?}: {said} {errors}"),
    }
}

#[test]
fn the_sample_file_passes_and_its_stack_is_shown_without_a_secret() {
    let said = check(SAMPLE, &KEYS).unwrap();
    assert!(said.starts_with("the configuration is valid\n"), "{said}");
    for told in [
        "examples/gateway.toml\n",
        "127.0.0.1:8080, asks for no token",
        "https://openrouter.ai/api/v1\n",
        "explain   requests that ask\n",
        "10m for a request",
        "3 attempts, 500ms to 30s apart, hints up to 2m; at most 0.2 a request and 10 a second",
        "route     anthropic/* to search, chat\n            peak-ewma; conversations stay on one account; waits up to 30s",
        "route     openai/*, google/* to chat, spare\n            least-in-flight; tiers 1 before 2; waits up to 5s",
        "route     *:free to batch, spare\n            least-in-flight; tiers 1 before 2; waits up to 30s, 4096 requests at once; \
         provider preferences of its own\n",
        "every other model to all keys\n",
        "select    least-in-flight; tiers 1 before 2; waits up to 30s",
        "{\"data_collection\":\"deny\"}, where a request does not say",
        "asked about every 1m\n",
        "3 failures in 1m open it, for 1m growing to 5m",
        "search  account acme, workspace search, weight 2, tags interactive, at most 8 at once, \
         models anthropic/* openai/* *:free !openai/o1-pro, at https://eu.",
        "batch   account acme-batch\n",
        "spare   account acme-batch, tier 2\n",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn r121_what_is_wrong_is_told_with_file_and_line() {
    let sample = fs::read_to_string(SAMPLE).unwrap();
    let line = |text: &str| sample.lines().position(|line| line == text).unwrap() + 1;
    for (from, to, place, told) in [
        (
            "[select]",
            "[select]\nmax_weight = 3",
            line("[select]") + 1,
            "unknown field `max_weight`, expected one of `pick`",
        ),
        (
            "#pick = \"least",
            "pick = \"sk-or-v1-canary",
            line("#pick = \"least-in-flight\""),
            "pick: not one of its values",
        ),
        ("#attempts = 3", "attempts = 9", line("#attempts = 3"), "attempts is 9: it must be 1"),
        (
            "#window = \"60s\"",
            "window = \"60\"",
            line("#window = \"60s\""),
            "window: expected a whole number with a unit",
        ),
        (
            "#max_cooldown = \"5m\"",
            "max_cooldown = \"5s\"",
            line("#max_cooldown = \"5m\""),
            "breaker.max_cooldown: 5s is shorter",
        ),
        (
            "weight = 2.0",
            "weight = -2.0",
            line("[[keys]]"),
            "[[keys]] number 1, `search`, SEARCH_KEY: the key's weight is -2",
        ),
        (
            "\"SEARCH_KEY\"",
            "\"sk-or-v1-canary\"",
            line("[[keys]]"),
            "[[keys]] number 1, `search`: the variable that key_env names",
        ),
        (
            "#upstream = \"https:",
            "upstream = \"canary:",
            line("#upstream = \"https://openrouter.ai/api/v1\""),
            "upstream: ",
        ),
        (
            "models = [\"openai/*\", \"google/*\"]",
            "models = [\"openai/*\", \"anthropic/*\"]",
            line("models = [\"openai/*\", \"google/*\"]") - 1,
            "[[routes]] number 2: `anthropic/*` has a route already",
        ),
        (
            "tags = [\"interactive\"]\npick",
            "tags = [\"sk-or-v1-canary\"]\npick",
            line("models = [\"anthropic/*\"]") - 1,
            "[[routes]] number 1: tags: no key has the tag `…`",
        ),
        (
            "keys = [\"chat\", \"sp*\"]",
            "keys = [\"chat\"]\naccounts = [\"acme-batch\"]",
            line("models = [\"openai/*\", \"google/*\"]") - 1,
            "[[routes]] number 2: no key is in all of its lists",
        ),
        (
            "provider = { allow",
            "provider = { only = [], allow",
            line("models = [\"*:free\"]") - 1,
            "[[routes]] number 3: only is empty",
        ),
        ("# zdr = true", "sort = \"sk-or-v1-canary\"", line("# zdr = true"), "sort: "),
        (
            "# ignore = [",
            "ignore = [\"sk-or-v1-canary\", \"sk-or-v1-canary\", ",
            line("[provider]"),
            "provider: ignore holds \"…\" twice",
        ),
        (
            "#when_provider_full = \"wait\"",
            "when_provider_full = \"next-model\"",
            line("[retry]"),
            "retry.next_models: name models here",
        ),
        ("#floor = 0.0", "floor = -1", line("#floor = 0.0"), "floor: it is -1: it must be an amount"),
        (
            "#panic_below = 0.0",
            "panic_below = 2",
            line("#panic_below = 0.0"),
            "panic_below: it is 2: it must be a share",
        ),
        ("#listen = \"127.0.0.1:8080\"", "listen = 8080", line("#listen = \"127.0.0.1:8080\""), "listen: invalid type"),
    ] {
        assert!(sample.contains(from), "{from}");
        let file = File::of("wrong", &sample.replacen(from, to, 1));
        let path = file.0.to_str().unwrap();
        let said = check(path, &KEYS).unwrap_err();
        let start = format!("error: {path}, line {place}: ");
        assert!(said.starts_with(&start) && said[start.len()..].starts_with(told), "{to}: {said}");
        assert!(!said.contains("canary"), "{said}");
    }
}

#[test]
fn without_a_file_flags_and_variables_are_checked() {
    let output = command(&["--check", "--attempts", "2"], &KEYS).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("the simulator") && said.contains("2 attempts"), "{said}");
    let output = command(&["--check", "--attempts", "9"], &KEYS).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a flag that cannot be read is a mistake of usage");
}
