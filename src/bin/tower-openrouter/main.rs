//! The `tower-openrouter` command.

mod batch;
mod gateway;
mod keys;
mod simulator;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Balance LLM requests over many OpenRouter keys, one by one or in batches, ask what they may spend, or simulate OpenRouter.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Gateway(Box<gateway::Arguments>),
    Batch(Box<batch::Arguments>),
    Keys(keys::Arguments),
    Simulator(simulator::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Gateway(arguments) => gateway::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Batch(arguments) => batch::run(*arguments),
        Command::Keys(arguments) => keys::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Simulator(arguments) => simulator::run(arguments).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
