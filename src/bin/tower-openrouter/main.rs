//! The `tower-openrouter` command.

mod gateway;
mod keys;
mod simulator;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Balance LLM requests over many OpenRouter keys, ask what they may spend, or simulate OpenRouter.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Gateway(Box<gateway::Arguments>),
    Keys(keys::Arguments),
    Simulator(simulator::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Gateway(arguments) => gateway::run(*arguments),
        Command::Keys(arguments) => keys::run(arguments),
        Command::Simulator(arguments) => simulator::run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
