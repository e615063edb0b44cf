//! gpu-allocator over a stand-in for a Vulkan device: one heap, one type of memory, calls that only count bytes. What is measured is
//! the allocator and no driver.

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::ptr;

use ash::vk::{self, Handle};
use gpu_allocator::MemoryLocation;
use gpu_allocator::vulkan::{Allocation, AllocationCreateDesc, AllocationScheme, Allocator, AllocatorCreateDesc};

use crate::{Placer, UNIT, rounded};

/// The device. Its address is its handle; the handle of a piece of its memory is the size of the piece.
struct StandIn {
    capacity: u64,
    used: Cell<u64>,
}

impl StandIn {
    fn function(name: &CStr) -> *const c_void {
        match name.to_bytes() {
            b"vkGetPhysicalDeviceProperties" => properties as *const c_void,
            b"vkGetPhysicalDeviceMemoryProperties" => memory_properties as *const c_void,
            b"vkAllocateMemory" => allocate as *const c_void,
            b"vkFreeMemory" => free as *const c_void,
            _ => ptr::null(), // ash answers with a function that panics
        }
    }
}

unsafe extern "system" fn properties(_: vk::PhysicalDevice, properties: *mut vk::PhysicalDeviceProperties) {
    let mut answer = vk::PhysicalDeviceProperties::default();
    answer.limits.buffer_image_granularity = 1;
    // SAFETY: the address is one of properties to be written.
    unsafe { *properties = answer };
}

unsafe extern "system" fn memory_properties(
    device: vk::PhysicalDevice,
    properties: *mut vk::PhysicalDeviceMemoryProperties,
) {
    // SAFETY: the handle is the address of a stand-in that lives, the other one of properties to be written.
    let (device, properties) = unsafe { (&*(device.as_raw() as *const StandIn), &mut *properties) };
    *properties = vk::PhysicalDeviceMemoryProperties::default();
    (properties.memory_type_count, properties.memory_heap_count) = (1, 1);
    properties.memory_types[0].property_flags = vk::MemoryPropertyFlags::DEVICE_LOCAL;
    properties.memory_heaps[0].size = device.capacity;
}

unsafe extern "system" fn allocate(
    device: vk::Device,
    info: *const vk::MemoryAllocateInfo<'_>,
    _: *const vk::AllocationCallbacks<'_>,
    memory: *mut vk::DeviceMemory,
) -> vk::Result {
    // SAFETY: the handle is the address of a stand-in that lives; the others are as the function's contract says.
    let (device, bytes) = unsafe { (&*(device.as_raw() as *const StandIn), (*info).allocation_size) };
    if bytes > device.capacity - device.used.get() {
        return vk::Result::ERROR_OUT_OF_DEVICE_MEMORY;
    }
    device.used.set(device.used.get() + bytes);
    // SAFETY: as above.
    unsafe { *memory = vk::DeviceMemory::from_raw(bytes) };
    vk::Result::SUCCESS
}

unsafe extern "system" fn free(device: vk::Device, memory: vk::DeviceMemory, _: *const vk::AllocationCallbacks<'_>) {
    // SAFETY: the handle is the address of a stand-in that lives.
    let device = unsafe { &*(device.as_raw() as *const StandIn) };
    device.used.set(device.used.get() - memory.as_raw());
}

/// gpu-allocator with its default sizes of blocks, logging off.
pub struct Gpu {
    // Before the device: it frees its memory when dropped.
    allocator: Allocator,
    _device: Box<StandIn>,
}

// SAFETY: the stand-in is reached through this allocator alone, and both move together.
unsafe impl Send for Gpu {}

impl Placer for Gpu {
    type Block = Allocation;

    fn over(range: u64, _: usize) -> Self {
        let device = Box::new(StandIn { capacity: range, used: Cell::new(0) });
        let handle = ptr::from_ref(&*device) as u64;
        // SAFETY: the functions are of the types that their names stand for.
        let (instance, logical) = unsafe {
            (
                ash::Instance::load_with(StandIn::function, vk::Instance::from_raw(handle)),
                ash::Device::load_with(StandIn::function, vk::Device::from_raw(handle)),
            )
        };
        let allocator = Allocator::new(&AllocatorCreateDesc {
            instance,
            device: logical,
            physical_device: vk::PhysicalDevice::from_raw(handle),
            debug_settings: Default::default(),
            buffer_device_address: false,
            allocation_sizes: Default::default(),
        });
        Gpu { allocator: allocator.expect("a device with a type of memory"), _device: device }
    }

    #[inline]
    fn place(&mut self, bytes: u64) -> Option<Self::Block> {
        let requirements = vk::MemoryRequirements { size: rounded(bytes), alignment: UNIT, memory_type_bits: 1 };
        let request = AllocationCreateDesc {
            name: "",
            requirements,
            location: MemoryLocation::GpuOnly,
            linear: true,
            allocation_scheme: AllocationScheme::GpuAllocatorManaged,
        };
        self.allocator.allocate(&request).ok()
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        self.allocator.free(block).expect("a block of this allocator");
    }
}
