//! The command-line tool: reads arguments, calls the library, prints. Does nothing that the library cannot.
//!
//! Results go to the standard output, everything else to the standard error. It ends with 0 when all went well, 1 when a
//! trace did not pass, 2 when the usage or a file was wrong, 3 when a device that was asked for cannot be had; a closed output pipe
//! ends it quietly.

#![forbid(unsafe_code)]

mod args;
mod output;
mod play;
mod probe;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Replay(replay) => play::run(&replay),
        Command::Probe(probe) => probe::run(&probe),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("cannot write: {error}"));
            Exit::Unusable.into()
        }
    }
}

/// How the tool ends; of several, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exit {
    /// All went well.
    Passed,
    /// A trace did not pass.
    Stopped,
    /// The usage or a file was wrong.
    Unusable,
    /// A device that was asked for cannot be had.
    Missing,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}
