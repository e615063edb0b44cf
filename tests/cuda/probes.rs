//! What the probe says of machines that cannot be used, and of those that can.

use larder::cuda::{CudaUnavailable, probe};

use crate::driver::{Machine, standin};

#[test]
fn every_machine_gets_its_reason() {
    let Some(driver) = standin() else { return };
    let usual = driver.machine();
    let probe_of = |machine| {
        driver.reset(machine);
        probe()
    };
    assert_eq!(probe_of(Machine { init: 100, ..usual }).unwrap_err(), CudaUnavailable::NoDevice);
    assert_eq!(probe_of(Machine { devices: 0, ..usual }).unwrap_err(), CudaUnavailable::NoDevice);
    for (code, name) in [(34, "CUDA_ERROR_STUB_LIBRARY"), (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")] {
        let expected = CudaUnavailable::Init { code, name: name.into() };
        assert_eq!(probe_of(Machine { init: code, ..usual }).unwrap_err(), expected);
    }
    let old = probe_of(Machine { version: 10020, ..usual }).unwrap_err();
    assert!(matches!(old, CudaUnavailable::DriverTooOld { version: 10020, .. }), "{old}");
    let found = probe_of(Machine { devices: 2, virtual_memory: false, ..usual }).unwrap();
    assert_eq!((found.version, found.devices.len()), (usual.version, 2));
    let devices: Vec<_> = found.devices.iter().map(|device| device.as_ref().unwrap()).collect();
    assert!(devices.iter().all(|device| !device.virtual_memory && device.memory == usual.capacity));
    assert_eq!((devices[1].ordinal, devices[1].capability), (1, (9, 0)));
    let context = found.context(1).unwrap();
    let allocator = larder::cuda::allocator(&context, larder::Config::default()).unwrap();
    assert_eq!(allocator.capabilities().page, None, "segments where there is no virtual memory");
    assert_eq!(allocator.device(), 1);
    drop((allocator.alloc(1000).unwrap(), allocator, context));
    driver.assert_clean();
}

#[test]
fn a_device_that_does_not_describe_itself_hides_no_other() {
    let Some(driver) = standin() else { return };
    driver.reset(Machine { devices: 2, ..driver.machine() });
    driver.fail("cuDeviceGetName", 1, 999);
    let found = probe().unwrap();
    let silent = found.devices[0].as_ref().unwrap_err();
    assert!(matches!(silent, CudaUnavailable::Device { device: 0, .. }), "{silent}");
    assert_eq!(found.devices[1].as_ref().unwrap().ordinal, 1);
    assert!(found.context(1).is_ok());
}
