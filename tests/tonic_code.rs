//! The code that ships with the example `tonic` is what its `chat.proto` gives.

use std::{env, fs, path::Path};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tonic");

/// After a change of the proto: `WRITE=1 cargo test --test tonic_code`.
#[test]
fn the_generated_code_is_that_of_the_proto() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // protox parses as protoc does, and needs nothing installed
    let set = protox::compile(["chat.proto"], [HERE]).unwrap();
    tonic_prost_build::configure().out_dir(out).emit_rerun_if_changed(false).compile_fds(set).unwrap();
    let made = fs::read_to_string(out.join("chat.rs")).unwrap();
    let shipped = Path::new(HERE).join("chat.rs");
    if env::var_os("WRITE").is_some() {
        fs::write(&shipped, &made).unwrap();
    }
    let shipped = fs::read_to_string(shipped).unwrap_or_default();
    assert!(
        made == shipped,
        "examples/tonic/chat.rs is not made from chat.proto: WRITE=1 cargo test --test tonic_code"
    );
}
