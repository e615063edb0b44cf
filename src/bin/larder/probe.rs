//! `larder probe`: every device that could be had, what it offers, or why it cannot be had.

use std::io::{self, Write};

use serde::Serialize;

use larder::device::{Availability, Kind, Offer};
use larder::units::Bytes;
use larder::{Config, Device};

use crate::Exit;
use crate::args::Probe;
use crate::output;

/// What is said of one device.
#[derive(Serialize)]
struct Line<'a> {
    device: String,
    available: bool,
    /// Whether it is what programs get that ask for the best.
    best: bool,
    reason: Option<String>,
    offer: Option<&'a Offer>,
}

/// Prints what is here.
///
/// # Errors
/// When the output cannot be written.
pub fn run(arguments: &Probe) -> io::Result<Exit> {
    let available = Device::available();
    let best = match Device::best(Config::default()) {
        Ok(device) => device,
        Err(error) => {
            output::complain(&error.to_string());
            return Ok(Exit::Missing);
        }
    };
    let mut out = io::stdout().lock();
    for one in &available {
        let is_best = one.kind == *best.kind();
        if arguments.json {
            serde_json::to_writer(&mut out, &line(one, is_best))?;
            writeln!(out)?;
        } else {
            write!(out, "{}", text(one))?;
        }
    }
    if !arguments.json {
        writeln!(out, "\nthe best for programs that let larder choose: {} ({})", best.kind(), best.name())?;
        for (kind, reason) in best.passed_over() {
            writeln!(out, "  not {kind}: {reason}")?;
        }
    }
    out.flush()?;
    Ok(Exit::Passed)
}

fn line(one: &Availability, best: bool) -> Line<'_> {
    Line {
        device: one.kind.to_string(),
        available: one.offer.is_ok(),
        best,
        reason: one.offer.as_ref().err().map(ToString::to_string),
        offer: one.offer.as_ref().ok(),
    }
}

fn text(one: &Availability) -> String {
    let kind = &one.kind;
    match &one.offer {
        Err(reason) => format!("{kind:<8} not available: {reason}\n"),
        Ok(offer) => {
            let name = match kind {
                Kind::Simulated => format!("{}, for tests: it holds no bytes", offer.name),
                _ if offer.software => format!("{} (software on the CPU)", offer.name),
                _ => offer.name.clone(),
            };
            format!("{kind:<8} {name}\n{:8} {}\n{:8} {}\n", "", memory(offer), "", how(offer))
        }
    }
}

fn memory(offer: &Offer) -> String {
    let said = match offer.memory {
        Some(memory) => format!("{} of {} free", Bytes(memory.free), Bytes(memory.total)),
        None => "how much memory there is, it does not say".into(),
    };
    match offer.limit {
        Some(limit) => format!("{said}; at most {} are taken unless told otherwise", Bytes(limit)),
        None => said,
    }
}

fn how(offer: &Offer) -> String {
    let mut parts = vec![match offer.page {
        Some(page) => format!("{}: pages of {}", offer.backend, Bytes(page)),
        None => format!("{}: segments of at most {}", offer.backend, Bytes(offer.region_max)),
    }];
    if offer.page.is_some() {
        parts.push(match (offer.remap, offer.alias) {
            (true, true) => "moved together when nothing else fits, without waiting".into(),
            (true, false) => "moved together when nothing else fits".into(),
            (false, _) => "not moved".into(),
        });
    }
    parts.extend(offer.streams.then(|| "streams".into()));
    parts.extend(offer.captures.then(|| "graphs".into()));
    parts.join(", ")
}
