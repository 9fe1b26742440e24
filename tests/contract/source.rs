//! R122, R123: what the source must hold, and what it must not.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(under: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(under).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn r123_no_unsafe_no_unbounded_queue_and_no_exception_from_the_lints() {
    let mut seen = 0;
    for path in sources(&root().join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        seen += 1;
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for banned in [
                "unsafe ",
                "allow(unsafe_code",
                "unbounded_channel",
                "channel::unbounded",
                "mpsc::channel()",
                "await_holding_lock",
                "std::time::Instant::now",
            ] {
                // the origin of the crate's own count of nanoseconds is the one instant that no test can pause
                let is_origin = banned == "std::time::Instant::now" && path.ends_with("clock.rs");
                assert!(is_origin || !code.contains(banned), "{}:{}: {banned}", path.display(), number + 1);
            }
        }
    }
    assert!(seen > 50);
}

#[test]
fn r123_the_lints_that_guard_this_are_on() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for lint in ["unsafe_code = \"forbid\"", "await_holding_lock = \"deny\""] {
        assert!(manifest.contains(lint), "{lint}");
    }
}

#[test]
fn r122_every_lock_free_core_has_a_model() {
    for (core, file) in [
        ("permit hand-off", "src/limit/permits/model.rs"),
        ("half-open admission", "src/breaker/model.rs"),
        ("retry budget", "src/retry/budget.rs"),
        ("key-set swap", "src/select/swap.rs"),
        ("buffer budget", "src/buffer/collect.rs"),
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains("loom::model") || text.contains("use loom::"), "{core}: no model in {file}");
    }
}
