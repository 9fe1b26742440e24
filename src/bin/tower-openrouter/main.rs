//! The `tower-openrouter` command.

fn main() {}
