//! The rows of wgpu: its backend without a device, and the best adapter of this machine.

use std::any::Any;
use std::time::Duration;

use larder::backend::wgpu::{Wgpu, WgpuConfig};
use larder::backend::{Backend, Region};
use larder::wgpu::api::{Device, DeviceDescriptor};
use larder::wgpu::{Choice, api, open};

use super::{Fresh, Row, Touch};

/// Memory that is reached through the backend's own transfers.
struct Transfers;

fn wgpu(backend: &dyn Backend) -> &Wgpu {
    let any: &dyn Any = backend;
    any.downcast_ref().expect("a row of wgpu")
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Touch for Transfers {
    fn write(&self, backend: &dyn Backend, region: Region, offset: u64, size: u64, byte: u8) {
        // Transfers are of whole words: what lies beside the bytes is read and written back.
        let (start, end) = (offset / 4 * 4, (offset + size).next_multiple_of(4));
        let mut bytes = vec![byte; (end - start) as usize];
        let inside = (offset - start) as usize..(offset - start + size) as usize;
        for edge in [0, (end - start - 4) as usize] {
            let mut word = [0; 4];
            assert!(wgpu(backend).read(region.id, start + edge as u64, &mut word, PATIENCE).unwrap());
            for (at, old) in (edge..).zip(word) {
                if !inside.contains(&at) {
                    bytes[at] = old;
                }
            }
        }
        wgpu(backend).upload(region.id, start, &bytes).unwrap();
    }

    fn read(&self, backend: &dyn Backend, region: Region, offset: u64) -> Option<u8> {
        let mut byte = [0];
        assert!(wgpu(backend).read(region.id, offset, &mut byte, PATIENCE).unwrap());
        Some(byte[0])
    }
}

fn row(name: &'static str, make: fn() -> Box<dyn Backend>) -> Row {
    Row { name, make, touch: &Transfers, fresh: Some(Fresh::Zero) }
}

pub fn rows() -> Vec<Row> {
    let mut rows = vec![row("wgpu, noop", || {
        let (device, queue) = Device::noop(&DeviceDescriptor::default());
        Box::new(Wgpu::new(&device, &queue, WgpuConfig::default()).unwrap())
    })];
    let adapter = open(&Choice::Best, api::Features::empty(), larder::Config::default());
    match adapter {
        Ok(_) => rows.push(row("wgpu, the best adapter", || {
            let gpu = open(&Choice::Best, api::Features::empty(), larder::Config::default()).unwrap();
            Box::new(Wgpu::new(gpu.device(), gpu.queue(), WgpuConfig::default()).unwrap())
        })),
        Err(error) if std::env::var("LARDER_REQUIRE_WGPU").is_ok_and(|value| value == "1") => panic!("{error}"),
        Err(error) => println!("not run on a wgpu adapter: {error}"),
    }
    rows
}
