//! A device of our own, for those who have none: the best adapter there is, with all that it offers.
//!
//! Knows nothing of the environment: which adapter is taken is the caller's choice. A machine without a driver is an error that says
//! what was found instead.

use ::wgpu::{
    Adapter, AdapterInfo, Backends, Device, DeviceDescriptor, DeviceType, Features, Instance, InstanceDescriptor,
    MemoryHints, Queue,
};

use super::{Wgpu, allocator};
use crate::allocator::{AllocError, Allocator};
use crate::policy::Config;

/// Which adapter to take.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// A discrete GPU before an integrated one, that before a virtual one, and software last.
    #[default]
    Best,
    /// The CPU, by software.
    Software,
    /// The best whose name holds this text, in any case of letters.
    Named(String),
}

impl Choice {
    fn takes(&self, info: &AdapterInfo) -> bool {
        match self {
            Choice::Best => true,
            Choice::Software => info.device_type == DeviceType::Cpu,
            Choice::Named(name) => info.name.to_lowercase().contains(&name.to_lowercase()),
        }
    }
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// No driver offers such an adapter.
    #[error("no adapter for {choice:?}; there is {}", if .found.is_empty() { "none at all".to_string() } else { .found.join(", ") })]
    NoAdapter {
        /// What was wanted.
        choice: Choice,
        /// The names of those there are.
        found: Vec<String>,
    },
    /// No such adapter gives a device; this is what came of the best one.
    #[error("{adapter} gives no device: {reason}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// What wgpu says.
        reason: String,
    },
    /// The device is there, the allocator is not.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}

fn found() -> Vec<Adapter> {
    let backends = Backends::PRIMARY;
    let instance = Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let mut adapters = pollster::block_on(instance.enumerate_adapters(backends));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    adapters
}

fn rank(device: DeviceType) -> u8 {
    match device {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

/// What this machine offers, the best first.
pub fn adapters() -> Vec<AdapterInfo> {
    found().iter().map(Adapter::get_info).collect()
}

/// An allocator over a device of the best adapter.
///
/// # Errors
/// See [`open`].
pub fn best(config: Config) -> Result<Allocator<Wgpu>, OpenError> {
    open(&Choice::Best, Features::empty(), config)
}

/// An allocator over a device of its own, with all the limits of its adapter, and those of the wished features that the adapter has.
/// wgpu is told to keep little memory of its own beneath. An adapter that gives no device is passed over. The device is [`Allocator::device`].
///
/// # Errors
/// No such adapter; none that gives a device; a config that contradicts itself or the device.
pub fn open(choice: &Choice, wished: Features, config: Config) -> Result<Allocator<Wgpu>, OpenError> {
    let adapters = found();
    let taken = adapters.iter().filter(|adapter| choice.takes(&adapter.get_info()));
    let Some(device) = first_that_works(taken, |adapter| request(adapter, wished)) else {
        let found = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        return Err(OpenError::NoAdapter { choice: choice.clone(), found });
    };
    let (device, queue) = device?;
    Ok(allocator(&device, &queue, config)?)
}

/// What the first that works gives, or why the first of all did not; `None` where there is none.
fn first_that_works<T, R, E>(
    all: impl Iterator<Item = T>,
    mut work: impl FnMut(T) -> Result<R, E>,
) -> Option<Result<R, E>> {
    let mut first = None;
    for one in all {
        match work(one) {
            Ok(result) => return Some(Ok(result)),
            Err(error) => first = first.or(Some(Err(error))),
        }
    }
    first
}

fn request(adapter: &Adapter, wished: Features) -> Result<(Device, Queue), OpenError> {
    let device = adapter.request_device(&DeviceDescriptor {
        label: Some("larder"),
        required_features: adapter.features() & wished,
        required_limits: adapter.limits(),
        memory_hints: MemoryHints::MemoryUsage,
        ..DeviceDescriptor::default()
    });
    pollster::block_on(device)
        .map_err(|error| OpenError::NoDevice { adapter: adapter.get_info().name, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::first_that_works;

    #[test]
    fn one_that_fails_is_passed_over_and_the_first_says_why_all_did() {
        let work = |number: i32| if number > 0 { Ok(number) } else { Err(number) };
        assert_eq!(first_that_works([].into_iter(), work), None);
        assert_eq!(first_that_works([-1, 2, 3].into_iter(), work), Some(Ok(2)));
        assert_eq!(first_that_works([-1, -2].into_iter(), work), Some(Err(-1)));
    }
}
