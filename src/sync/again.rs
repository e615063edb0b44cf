//! How long to let pass before looking again at what another thread is about to change.

use std::time::Duration;

use super::spin_loop;

/// Looks with pauses between them, each twice as long as the one before: some microseconds in all.
const PAUSES: u32 = 8;
/// Looks before the naps: after those with pauses, behind other threads' turns.
const YIELDS: u32 = PAUSES + 8;
/// The longest nap between two looks.
const NAP_MAX: Duration = Duration::from_micros(500);

/// The looks so far. A thread that was interrupted gets the processor in the naps, whatever the priorities are.
#[derive(Default)]
pub(crate) struct Again {
    looks: u32,
    nap: Duration,
}

impl Again {
    /// Lets time pass, more at each call.
    #[cold]
    pub(crate) fn later(&mut self) {
        match self.looks {
            0..PAUSES => (0..4 << self.looks).for_each(|_| spin_loop()),
            PAUSES..YIELDS => yield_now(),
            _ => {
                self.nap = (self.nap * 2).clamp(Duration::from_micros(8), NAP_MAX);
                nap(self.nap);
            }
        }
        self.looks += 1;
    }
}

#[cfg(not(larder_shuttle))]
use std::thread::{sleep as nap, yield_now};

#[cfg(larder_shuttle)]
use shuttle::thread::{sleep as nap, yield_now};
