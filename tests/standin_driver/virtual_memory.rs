//! Addresses and physical handles: what may be mapped, unmapped and touched, and one handle at two addresses.

use cudarc::driver::sys::{self, CUresult};

use crate::driver::standin;
use crate::gpu::Gpu;

const PAGE: usize = 2 << 20;
const INVALID: Result<(), CUresult> = Err(CUresult::CUDA_ERROR_INVALID_VALUE);

#[test]
fn memory_spans_handles_and_lives_while_anything_holds_it() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let base = gpu.reserve(8 * PAGE).unwrap();
    let handles = [gpu.create(PAGE).unwrap(), gpu.create(PAGE).unwrap()];
    for (index, handle) in handles.iter().enumerate() {
        gpu.map(base + (index * PAGE) as u64, PAGE, 0, *handle).unwrap();
    }
    gpu.allow(base, 2 * PAGE).unwrap();
    gpu.fill(base + PAGE as u64 - 8, 3, 16, &stream);
    assert_eq!(gpu.read(base + PAGE as u64 - 8, 16, &stream), [3; 16]);
    handles.iter().for_each(|handle| gpu.release(*handle).unwrap());
    assert_eq!(driver.totals().used_bytes, 2 * PAGE as u64, "mapped, so alive");
    assert_eq!(gpu.read(base + PAGE as u64, 1, &stream), [3]);
    assert_eq!(gpu.unreserve(base, 8 * PAGE), INVALID, "something is mapped");
    gpu.unmap(base, 2 * PAGE).unwrap();
    gpu.unreserve(base, 8 * PAGE).unwrap();
    driver.assert_clean();
    assert_eq!(driver.totals().used_bytes, 0);
}

#[test]
fn what_the_driver_refuses_is_refused() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    assert_eq!(gpu.reserve(PAGE + 1), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(gpu.create(PAGE / 2), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(gpu.reserve(1 << 50), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    let base = gpu.reserve(8 * PAGE).unwrap();
    let (small, large) = (gpu.create(PAGE).unwrap(), gpu.create(4 * PAGE).unwrap());
    assert_eq!(gpu.map(base, PAGE, PAGE, large), INVALID, "no offset");
    assert_eq!(gpu.map(base, PAGE, 0, large), INVALID, "no part");
    assert_eq!(gpu.map(base + 1, PAGE, 0, small), INVALID, "no odd address");
    assert_eq!(gpu.map(base + 6 * PAGE as u64, 4 * PAGE, 0, large), INVALID, "past the end");
    gpu.map(base, 4 * PAGE, 0, large).unwrap();
    driver.assert_clean();
    assert_eq!(gpu.map(base + PAGE as u64, PAGE, 0, small), Err(CUresult::CUDA_ERROR_ALREADY_MAPPED));
    assert!(driver.violations()[0].contains("something is mapped there"));
    driver.clear_violations();
    assert_eq!(gpu.unmap(base, PAGE), INVALID, "no part of a mapping");
    assert_eq!(gpu.unmap(base + PAGE as u64, 3 * PAGE), INVALID, "no rest of a mapping");
    assert_eq!(gpu.allow(base, 5 * PAGE), INVALID, "nothing is mapped at the end");
    gpu.unmap(base, 4 * PAGE).unwrap();
    assert_eq!(gpu.unmap(base, 4 * PAGE), INVALID, "twice");
    gpu.release(large).unwrap();
    assert_eq!(gpu.release(large), INVALID, "twice");
    assert_eq!(gpu.unreserve(base, PAGE), INVALID, "no part of a reservation");
    assert_eq!(driver.leaks().len(), 3, "a handle, addresses, the context: {:?}", driver.leaks());
}

#[test]
fn access_is_given_to_each_mapping() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let base = gpu.reserve(2 * PAGE).unwrap();
    let handle = gpu.create(PAGE).unwrap();
    let touch = |at| {
        gpu.fill(at, 1, 64, &stream);
        stream.synchronize().unwrap();
        let found = driver.violations();
        driver.clear_violations();
        found.first().cloned().unwrap_or_default()
    };
    assert!(touch(base).contains("nothing was ever mapped there"));
    gpu.map(base, PAGE, 0, handle).unwrap();
    assert!(touch(base).contains("has no access"));
    gpu.allow(base, PAGE).unwrap();
    assert_eq!(touch(base), "");
    gpu.unmap(base, PAGE).unwrap();
    assert!(touch(base).contains("it was unmapped"));
    gpu.map(base, PAGE, 0, handle).unwrap();
    assert!(touch(base).contains("has no access"), "access ends with the mapping");
}

#[test]
fn one_handle_at_two_addresses_is_the_same_bytes() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (one, two) = (gpu.stream(), gpu.stream());
    let base = gpu.reserve(4 * PAGE).unwrap();
    let other = base + 2 * PAGE as u64;
    let handle = gpu.create(PAGE).unwrap();
    for at in [base, other] {
        gpu.map(at, PAGE, 0, handle).unwrap();
        gpu.allow(at, PAGE).unwrap();
    }
    gpu.fill(base, 7, 64, &one);
    assert_eq!(gpu.read(other + 63, 1, &one), [7]);
    driver.assert_clean();
    gpu.fill(base, 8, 64, &one);
    gpu.fill(other, 9, 64, &two);
    gpu.context.synchronize().unwrap();
    assert!(driver.violations()[0].contains("race: memset"), "through two addresses: {:?}", driver.violations());
    driver.clear_violations();
    // The old address goes while the new one is in use: only work through the old one matters.
    gpu.fill(other, 1, 64, &one);
    gpu.unmap(base, PAGE).unwrap();
    driver.assert_clean();
    gpu.unmap(other, PAGE).unwrap();
    assert!(driver.violations()[0].contains("cuMemUnmap"), "{:?}", driver.violations());
}

#[test]
fn a_handle_remembers_what_it_was_asked_to_be() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let handle = gpu.create(PAGE).unwrap();
    // SAFETY: zeros are a value of this plain structure.
    let mut found: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    // SAFETY: a place for the structure.
    unsafe { sys::cuMemGetAllocationPropertiesFromHandle(&mut found, handle) }.result().unwrap();
    assert_eq!(found.type_, sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED);
    assert_eq!(found.location.type_, sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE);
    gpu.release(handle).unwrap();
    driver.assert_clean();
}

#[test]
fn addresses_are_limited_apart_from_memory() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    driver.address_limit(4 * PAGE as u64);
    assert_eq!(gpu.reserve(8 * PAGE), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    let base = gpu.reserve(4 * PAGE).unwrap();
    assert_eq!(gpu.reserve(PAGE), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    gpu.unreserve(base, 4 * PAGE).unwrap();
    assert!(gpu.reserve(PAGE).unwrap() > base, "addresses are never given twice");
}
