//! Addresses, physical handles, and what leads from one to the other.

use std::ffi::{c_int, c_ulonglong};

use super::{entries, put};
use crate::code;
use crate::memory::{Device, Location, Properties};
use crate::world::World;

const LOCATION_DEVICE: c_int = 1;

const ALLOCATION_PINNED: c_int = 1;

/// `CUmemAccessDesc`.
#[repr(C)]
pub struct Access {
    location: Location,
    flags: c_int,
}

impl World {
    fn located(&self, location: Location) -> Result<Device, code::Code> {
        if location.kind != LOCATION_DEVICE {
            return Err(code::INVALID_VALUE);
        }
        self.checked_device(location.id)
    }

    fn has_virtual_memory(&self) -> Result<(), code::Code> {
        if self.machine.virtual_memory { Ok(()) } else { Err(code::NOT_SUPPORTED) }
    }
}

entries! {
    Unsafe fn cuMemAddressReserve(world, out: *mut u64, size: usize, align: usize, wish: u64, flags: c_ulonglong) {
        world.has_virtual_memory()?;
        let at = world.memory.reserve(size as u64, align as u64)?;
        put(out, at)
    }

    Unsafe fn cuMemAddressFree(world, at: u64, size: usize) { world.memory.unreserve(at, size as u64) }

    Unsafe fn cuMemCreate(world, out: *mut u64, size: usize, properties: *const Properties, flags: c_ulonglong) {
        world.has_virtual_memory()?;
        // SAFETY: the caller passes the driver's structure.
        let Some(properties) = (unsafe { properties.as_ref() }) else { return Err(code::INVALID_VALUE) };
        if properties.kind != ALLOCATION_PINNED {
            return Err(code::INVALID_VALUE);
        }
        let device = world.located(properties.location)?;
        let handle = world.memory.create(device, size as u64, *properties)?;
        put(out, handle)
    }

    Context fn cuMemGetAllocationPropertiesFromHandle(world, out: *mut Properties, handle: u64) {
        let (extent, _) = world.memory.handles.get(&handle).ok_or(code::INVALID_VALUE)?;
        put(out, world.memory.properties[extent])
    }

    Unsafe fn cuMemRelease(world, handle: u64) { world.memory.release(handle) }

    Context fn cuMemRetainAllocationHandle(world, out: *mut u64, at: u64) {
        let handle = world.memory.retain(at)?;
        put(out, handle)
    }

    Unsafe fn cuMemMap(world, at: u64, size: usize, offset: usize, handle: u64, flags: c_ulonglong) {
        if offset != 0 || flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        let mapped = world.memory.map(at, size as u64, handle);
        if mapped == Err(code::ALREADY_MAPPED) {
            world.violation(format!("cuMemMap of {at:#x}: something is mapped there"));
        }
        mapped
    }

    Unsafe fn cuMemUnmap(world, at: u64, size: usize) {
        let starts = world.memory.whole_mappings(at, size as u64)?;
        world.must_be_finished("cuMemUnmap", at, size as u64);
        starts.into_iter().for_each(|start| world.memory.unmap(start, "it was unmapped"));
        Ok(())
    }

    Unsafe fn cuMemSetAccess(world, at: u64, size: usize, accesses: *const Access, count: usize) {
        let starts = world.memory.whole_mappings(at, size as u64)?;
        for index in 0..count {
            // SAFETY: the caller passes `count` of the driver's structures.
            let access = unsafe { &*accesses.add(index) };
            let device = world.located(access.location)?;
            for start in &starts {
                let mapping = world.memory.mappings.get_mut(start).expect("just found");
                mapping.access.insert(device, (access.flags & 1 != 0, access.flags & 2 != 0));
            }
        }
        Ok(())
    }

    Context fn cuMemGetAccess(world, out: *mut c_ulonglong, location: *const Location, at: u64) {
        // SAFETY: the caller passes the driver's structure.
        let device = world.located(unsafe { *location })?;
        let (_, mapping) = world.memory.mapping(at).ok_or(code::INVALID_VALUE)?;
        let (read, write) = mapping.access.get(&device).copied().unwrap_or((false, false));
        put(out, u64::from(read) | u64::from(write) << 1)
    }
}
