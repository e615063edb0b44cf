//! Start, devices, contexts, errors.

use std::ffi::{c_char, c_int, c_uint};

use super::{entries, put};
use crate::code::{self, describe};
use crate::memory::Device;

const NAME: &[u8] = b"Stand-in device\0";

/// What a device says of itself, by `CUdevice_attribute`; what is not here is 0.
fn attribute(machine: &crate::world::Machine, attribute: c_int) -> c_int {
    match attribute {
        1 | 2 => 1024,                                          // threads in a block, and in x
        10 => 32,                                               // warp
        16 => 132,                                              // multiprocessors
        39 => 2048,                                             // threads of a multiprocessor
        5 => c_int::MAX,                                        // grid in x
        6 | 7 => 65535,                                         // grid in y, z
        19 | 31 | 40 | 41 | 78 => 1, // mapped host memory, concurrency, unified addresses, priorities
        75 => 9,                     // compute capability
        102 | 103 | 110 => c_int::from(machine.virtual_memory), // and exportable handles, and RDMA
        115 => c_int::from(machine.pools),
        116 => 1,                          // RDMA
        119 => c_int::from(machine.pools), // pools exportable as file descriptors
        _ => 0,
    }
}

entries! {
    Driver fn cuInit(world, flags: c_uint) { Ok(()) }

    None fn cuDriverGetVersion(world, out: *mut c_int) { put(out, world.machine.version) }

    Driver fn cuDeviceGetCount(world, out: *mut c_int) { put(out, world.machine.devices) }

    Driver fn cuDeviceGet(world, out: *mut Device, ordinal: c_int) { put(out, world.checked_device(ordinal)?) }

    Driver fn cuDeviceGetName(world, out: *mut c_char, room: c_int, device: Device) {
        world.checked_device(device)?;
        if (room as usize) < NAME.len() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller gave that much room.
        unsafe { out.copy_from_nonoverlapping(NAME.as_ptr().cast(), NAME.len()) };
        Ok(())
    }

    Driver fn cuDeviceGetUuid_v2(world, out: *mut [u8; 16], device: Device) {
        put(out, [world.checked_device(device)? as u8 + 1; 16])
    }

    Driver fn cuDeviceGetUuid(world, out: *mut [u8; 16], device: Device) {
        put(out, [world.checked_device(device)? as u8 + 1; 16])
    }

    Driver fn cuDeviceTotalMem_v2(world, out: *mut usize, device: Device) {
        world.checked_device(device)?;
        put(out, world.memory.capacity as usize)
    }

    Driver fn cuDeviceGetAttribute(world, out: *mut c_int, wanted: c_int, device: Device) {
        world.checked_device(device)?;
        put(out, attribute(&world.machine, wanted))
    }

    Driver fn cuDeviceCanAccessPeer(world, out: *mut c_int, device: Device, peer: Device) {
        let other = world.checked_device(device)? != world.checked_device(peer)?;
        put(out, c_int::from(other && world.machine.peers))
    }

    Driver fn cuDevicePrimaryCtxRetain(world, out: *mut usize, device: Device) {
        world.checked_device(device)?;
        *world.retained.entry(device).or_insert(0) += 1;
        put(out, world.context_of(device))
    }

    Driver fn cuDevicePrimaryCtxRelease_v2(world, device: Device) {
        world.checked_device(device)?;
        let held = world.retained.get_mut(&device).filter(|held| **held > 0).ok_or(code::INVALID_CONTEXT)?;
        *held -= 1;
        // What is loaded goes with the context.
        if *held == 0 {
            world.modules.retain(|_, (owner, _)| *owner != device);
            world.forget_functions();
        }
        Ok(())
    }

    Driver fn cuCtxGetCurrent(world, out: *mut usize) {
        let current = world.contexts().last().copied().unwrap_or(0);
        put(out, current)
    }

    Driver fn cuCtxSetCurrent(world, context: usize) {
        if context != 0 {
            world.device_of(context)?;
        }
        world.contexts().pop();
        if context != 0 {
            world.contexts().push(context);
        }
        Ok(())
    }

    Driver fn cuCtxPushCurrent_v2(world, context: usize) {
        world.device_of(context)?;
        world.contexts().push(context);
        Ok(())
    }

    Driver fn cuCtxPopCurrent_v2(world, out: *mut usize) {
        let context = world.contexts().pop().ok_or(code::INVALID_CONTEXT)?;
        if out.is_null() { Ok(()) } else { put(out, context) }
    }

    Context fn cuCtxGetDevice(world, out: *mut Device) {
        let device = world.device()?;
        put(out, device)
    }

    Context fn cuCtxSetFlags(world, flags: c_uint) { Ok(()) }

    Context fn cuCtxGetStreamPriorityRange(world, least: *mut c_int, greatest: *mut c_int) {
        put(least, 0)?;
        put(greatest, -5)
    }

    Context fn cuCtxEnablePeerAccess(world, peer: usize, flags: c_uint) {
        let (device, peer) = (world.device()?, world.device_of(peer)?);
        if !world.machine.peers || device == peer {
            return Err(code::INVALID_DEVICE);
        }
        if !world.memory.peers.insert((device, peer)) {
            return Err(code::PEER_ACCESS_ALREADY_ENABLED);
        }
        Ok(())
    }

    Context fn cuCtxSynchronize(world) {
        world.refuse_any_capture()?;
        world.finish_everything();
        Ok(())
    }

    None fn cuGetErrorName(world, error: c_int, out: *mut *const c_char) {
        put(out, describe(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr()))?;
        describe(error).map(drop).ok_or(code::INVALID_VALUE)
    }

    None fn cuGetErrorString(world, error: c_int, out: *mut *const c_char) {
        put(out, describe(error).map_or(std::ptr::null(), |(_, words)| words.as_ptr()))?;
        describe(error).map(drop).ok_or(code::INVALID_VALUE)
    }
}
