//! The `tower-openrouter` command.

mod batch;
mod gateway;
mod keys;
mod lab;
mod simulator;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Balance LLM requests over many OpenRouter keys, one by one or in batches, ask what they may spend, simulate
/// OpenRouter, or compare policies on it.
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
    Lab(Box<lab::Arguments>),
    Simulator(simulator::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Gateway(arguments) => gateway::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Batch(arguments) => batch::run(*arguments),
        Command::Keys(arguments) => keys::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Lab(arguments) => lab::run(&arguments).map(|()| ExitCode::SUCCESS),
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
