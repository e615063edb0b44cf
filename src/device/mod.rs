//! A device chosen at run time: the host, files, a GPU through CUDA or wgpu, or the simulated device, behind one erased allocator.
//!
//! Knows how each is opened and described, and nothing of what is done with its memory; what a kind of device needs of a feature
//! is in the file of that feature. Opening never panics: what is not there is an [`Unavailable`] with its reason.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::allocator::{AllocError, Allocator, Any, Block};
use crate::backend::Budget;
use crate::backend::sim::{Sim, SimConfig};
use crate::policy::Config;

mod absent;
#[cfg(feature = "cuda")]
mod cuda;
mod transfer;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(not(feature = "cuda"))]
use absent::cuda;
#[cfg(not(feature = "wgpu"))]
use absent::wgpu;

pub use transfer::TransferError;

/// What kind of device. Written and read as `host`, `file:FOLDER`, `sim`, `cuda:0` (or `cuda`, the same) and `wgpu`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// This machine's memory.
    Host,
    /// Files in a folder of this machine.
    File(PathBuf),
    /// The simulated device, which holds no bytes.
    Simulated,
    /// The CUDA device of this number.
    Cuda(u32),
    /// The best adapter that wgpu finds.
    Wgpu,
}

/// Why a text is no [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of device: it must be host, file:FOLDER, sim, cuda, cuda:NUMBER or wgpu")]
pub struct ParseKindError(pub String);

impl FromStr for Kind {
    type Err = ParseKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        match (name, rest) {
            ("host", None) => Ok(Kind::Host),
            ("file", Some(folder)) if !folder.is_empty() => Ok(Kind::File(folder.into())),
            ("sim", None) => Ok(Kind::Simulated),
            ("cuda", None) => Ok(Kind::Cuda(0)),
            ("cuda", Some(number)) => number.parse().map(Kind::Cuda).map_err(|_| ParseKindError(text.into())),
            ("wgpu", None) => Ok(Kind::Wgpu),
            _ => Err(ParseKindError(text.into())),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Host => f.pad("host"),
            Kind::File(folder) => f.pad(&format!("file:{}", folder.display())),
            Kind::Simulated => f.pad("sim"),
            Kind::Cuda(number) => f.pad(&format!("cuda:{number}")),
            Kind::Wgpu => f.pad("wgpu"),
        }
    }
}

/// Why a device cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// This build has no code for it.
    #[error("larder was built without the feature `{feature}`")]
    NotBuilt {
        /// The feature that has it.
        feature: &'static str,
    },
    /// No driver, or one that does not serve; in its own words.
    #[error("{reason}")]
    NoDriver {
        /// What is wrong.
        reason: String,
    },
    /// The driver is there, and this device is not.
    #[error("there is no device {number}, only {count} of them")]
    NoSuchDevice {
        /// What was asked for.
        number: u32,
        /// How many there are, numbered from 0.
        count: u32,
    },
    /// It is the CPU in disguise: it serves, and slower than [`Kind::Host`]. Only [`Device::best`] refuses it.
    #[error("{name} is software on the CPU, slower than the host's memory used directly")]
    Software {
        /// What it calls itself.
        name: String,
    },
    /// The device is there and its allocator was refused.
    #[error(transparent)]
    Refused(#[from] AllocError),
}

/// A device and the allocator over its memory. Cheap to clone; all clones share everything.
///
/// ```
/// use larder::{Config, Device, units::MIB};
///
/// let device = Device::best(Config::default().limit(64 * MIB))?; // CUDA, else wgpu, else this machine's memory
/// let mut block = device.alloc(4 * MIB)?;
/// block.upload(b"the same on every device")?;
/// assert_eq!(&block.read()?[..8], b"the same");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Device {
    kind: Kind,
    name: String,
    software: bool,
    allocator: Allocator<Any>,
    passed_over: Vec<(Kind, Unavailable)>,
}

/// What a device offers.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Offer {
    /// What the device calls itself.
    pub name: String,
    /// The backend's name.
    pub backend: &'static str,
    /// What the device says about its memory, if it says anything.
    pub memory: Option<Budget>,
    /// The most that an allocator without a limit of its own takes, if anything bounds it.
    pub limit: Option<u64>,
    /// Bytes of a page; `None` where memory comes in segments.
    pub page: Option<u64>,
    /// Bytes of addresses of a pool (pages), or of the largest segment.
    pub region_max: u64,
    /// Whether free pages can be moved together.
    pub remap: bool,
    /// Whether that needs no completed work.
    pub alias: bool,
    /// Whether there are several streams. Without, work is done in one order.
    pub streams: bool,
    /// Whether streams can be captured into graphs.
    pub captures: bool,
    /// Whether it is software on the CPU.
    pub software: bool,
}

/// What came of looking for one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Availability {
    /// Which.
    pub kind: Kind,
    /// What it offers, or why it cannot be had.
    pub offer: Result<Offer, Unavailable>,
}

impl Device {
    /// This machine's memory.
    ///
    /// # Errors
    /// As [`Allocator::host`].
    pub fn host(config: Config) -> Result<Self, AllocError> {
        Ok(Device::new(Kind::Host, "memory of this machine", Allocator::host(config)?.erase()))
    }

    /// Files in a folder.
    ///
    /// # Errors
    /// As [`Allocator::host_file`]; elsewhere than on Unix there are none.
    pub fn file(folder: PathBuf, config: Config) -> Result<Self, Unavailable> {
        let allocator = files(&folder, config)?;
        Ok(Device::new(Kind::File(folder), "files of this machine", allocator))
    }

    /// A simulated device, and the handle by which it is told what to do.
    ///
    /// # Errors
    /// As [`Allocator::simulated`].
    pub fn simulated(device: SimConfig, config: Config) -> Result<(Self, Sim), AllocError> {
        let (allocator, sim) = Allocator::simulated(device, config)?;
        Ok((Device::new(Kind::Simulated, "simulated device", allocator.erase()), sim))
    }

    /// The CUDA device of this number, through its primary context.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn cuda(number: u32, config: Config) -> Result<Self, Unavailable> {
        cuda::open(number, config)
    }

    /// The best adapter that wgpu finds; software if there is nothing better.
    ///
    /// # Errors
    /// Why there is none.
    pub fn wgpu(config: Config) -> Result<Self, Unavailable> {
        wgpu::open(config)
    }

    /// The device of this kind; simulated: one of the default make.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn open(kind: &Kind, config: Config) -> Result<Self, Unavailable> {
        match kind {
            Kind::Host => Ok(Device::host(config)?),
            Kind::File(folder) => Device::file(folder.clone(), config),
            Kind::Simulated => Ok(Device::simulated(SimConfig::default(), config)?.0),
            Kind::Cuda(number) => Device::cuda(*number, config),
            Kind::Wgpu => Device::wgpu(config),
        }
    }

    /// The best device there is: the first CUDA device, else what wgpu finds if it is hardware, else this machine's memory. Why the
    /// better ones were not taken is told by [`Device::passed_over`].
    ///
    /// # Errors
    /// A config that contradicts itself, or a host that refuses addresses; no missing device.
    pub fn best(config: Config) -> Result<Self, AllocError> {
        config.validate()?;
        let mut passed_over = Vec::new();
        for kind in [Kind::Cuda(0), Kind::Wgpu] {
            match Device::open(&kind, config.clone()) {
                Ok(device) if device.software => passed_over.push((kind, Unavailable::Software { name: device.name })),
                Ok(device) => return Ok(Device { passed_over, ..device }),
                Err(reason) => passed_over.push((kind, reason)),
            }
        }
        Ok(Device { passed_over, ..Device::host(config)? })
    }

    /// Every device that could be had, best first, each with what it offers or the reason why it cannot be had. Opens each for a moment.
    pub fn available() -> Vec<Availability> {
        let kinds = cuda::kinds().into_iter().chain([Kind::Wgpu, Kind::Host, Kind::Simulated]);
        let look = |kind: Kind| {
            let offer = Device::open(&kind, Config::default()).map(|device| device.offer());
            Availability { kind, offer }
        };
        kinds.map(look).collect()
    }

    fn new(kind: Kind, name: impl Into<String>, allocator: Allocator<Any>) -> Self {
        Device { kind, name: name.into(), software: false, allocator, passed_over: Vec::new() }
    }

    /// What kind of device it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What the device calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is software on the CPU that passes for a device.
    pub fn is_software(&self) -> bool {
        self.software
    }

    /// The better kinds that [`Device::best`] did not take, and why; empty for a device that was asked for by name.
    pub fn passed_over(&self) -> &[(Kind, Unavailable)] {
        &self.passed_over
    }

    /// The allocator of its memory: statistics, pressure, snapshots, trimming, pools, streams. Its kind comes back by
    /// [`Allocator::downcast`].
    pub fn allocator(&self) -> &Allocator<Any> {
        &self.allocator
    }

    /// A block of `bytes` bytes for the default stream.
    ///
    /// # Errors
    /// As [`Allocator::alloc`].
    #[track_caller]
    pub fn alloc(&self, bytes: u64) -> Result<Block<Any>, AllocError> {
        self.allocator.alloc(bytes)
    }

    /// What it offers.
    pub fn offer(&self) -> Offer {
        let able = self.allocator.capabilities();
        let snapshot = self.allocator.snapshot();
        Offer {
            name: self.name.clone(),
            backend: able.name,
            memory: snapshot.budget,
            limit: snapshot.limit,
            page: able.page,
            region_max: able.region_max,
            remap: able.remap,
            alias: able.alias,
            // wgpu has one queue.
            streams: able.streams && self.kind != Kind::Wgpu,
            captures: able.captures,
            software: self.software,
        }
    }
}

#[cfg(unix)]
fn files(folder: &std::path::Path, config: Config) -> Result<Allocator<Any>, Unavailable> {
    Ok(Allocator::host_file(folder, config)?.erase())
}

#[cfg(not(unix))]
fn files(_folder: &std::path::Path, _config: Config) -> Result<Allocator<Any>, Unavailable> {
    Err(Unavailable::NoDriver { reason: "memory in files is had on Linux only".into() })
}
