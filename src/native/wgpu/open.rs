//! A device of our own, for those who have none: the best adapter there is, with all that it offers.
//!
//! Knows nothing of the environment: which adapter is taken is the caller's choice. A machine without a driver is an error that says
//! what was found instead.

use ::wgpu::{
    Adapter, AdapterInfo, Backends, DeviceDescriptor, DeviceType, Features, Instance, InstanceDescriptor, MemoryHints,
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
    /// The first whose name holds this text, in any case of letters.
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
    /// The adapter gives no device.
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
/// wgpu is told to keep little memory of its own beneath. The device is [`Allocator::device`].
///
/// # Errors
/// No such adapter; an adapter that gives no device; a config that contradicts itself or the device.
pub fn open(choice: &Choice, wished: Features, config: Config) -> Result<Allocator<Wgpu>, OpenError> {
    let adapters = found();
    let taken = adapters.iter().find(|adapter| choice.takes(&adapter.get_info()));
    let name = |adapter: &Adapter| adapter.get_info().name;
    let Some(adapter) = taken else {
        return Err(OpenError::NoAdapter { choice: choice.clone(), found: adapters.iter().map(name).collect() });
    };
    let device = adapter.request_device(&DeviceDescriptor {
        label: Some("larder"),
        required_features: adapter.features() & wished,
        required_limits: adapter.limits(),
        memory_hints: MemoryHints::MemoryUsage,
        ..DeviceDescriptor::default()
    });
    let (device, queue) = pollster::block_on(device)
        .map_err(|error| OpenError::NoDevice { adapter: name(adapter), reason: error.to_string() })?;
    Ok(allocator(&device, &queue, config)?)
}
