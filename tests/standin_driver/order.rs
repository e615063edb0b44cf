//! What is ordered and what is not: nothing runs by itself, races are found, and ordered work is no race.

use cudarc::driver::sys;

use crate::driver::standin;
use crate::gpu::Gpu;

#[test]
fn nothing_runs_until_somebody_waits() {
    let Some(driver) = standin() else { return };
    driver.patience(0);
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let at = gpu.alloc(4096).unwrap();
    gpu.fill(at, 1, 4096, &stream);
    let event = stream.record_event(None).unwrap();
    for _ in 0..1000 {
        assert!(!event.try_is_complete().unwrap());
    }
    assert_eq!(driver.step(stream.cu_stream() as usize, 1), 1);
    assert!(!event.try_is_complete().unwrap());
    event.synchronize().unwrap();
    assert!(event.try_is_complete().unwrap());
    gpu.free(at).unwrap();
    driver.assert_clean();
}

#[test]
fn who_asks_long_enough_sees_the_end() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (one, two) = (gpu.stream(), gpu.stream());
    let at = gpu.alloc(64).unwrap();
    (0..10).for_each(|byte| gpu.fill(at, byte, 64, &one));
    two.wait(&one.record_event(None).unwrap()).unwrap();
    let event = two.record_event(None).unwrap();
    let queries = (0..100_000).take_while(|_| !event.try_is_complete().unwrap()).count();
    assert!((10 * 64..100 * 64).contains(&queries), "{queries}");
    driver.assert_clean();
}

/// A block is read on one stream and used again on another.
fn reuse(wait: bool) -> (Vec<String>, u8) {
    let driver = standin().unwrap();
    let gpu = Gpu::new();
    let (writer, reader) = (gpu.stream(), gpu.stream());
    let (block, copy) = (gpu.alloc(4096).unwrap(), gpu.alloc(4096).unwrap());
    gpu.fill(block, 0x11, 4096, &writer);
    reader.wait(&writer.record_event(None).unwrap()).unwrap();
    gpu.copy(copy, block, 4096, &reader);
    if wait {
        writer.wait(&reader.record_event(None).unwrap()).unwrap();
    }
    gpu.fill(block, 0x22, 4096, &writer);
    driver.step(writer.cu_stream() as usize, 10);
    let found = gpu.read(copy, 1, &reader)[0];
    gpu.context.synchronize().unwrap();
    (driver.violations(), found)
}

#[test]
fn reuse_behind_a_wait_is_right_and_without_one_a_race() {
    if standin().is_none() {
        return;
    }
    let (violations, found) = reuse(false);
    assert!(violations.len() == 1 && violations[0].contains("race: copy by"), "{violations:?}");
    assert_eq!(found, 0x22, "and the bytes were damaged");
    assert_eq!(reuse(true), (vec![], 0x11));
}

#[test]
fn two_reads_are_no_race_and_both_must_be_waited_for() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (writer, one, two) = (gpu.stream(), gpu.stream(), gpu.stream());
    let (block, copies) = (gpu.alloc(4096).unwrap(), gpu.alloc(8192).unwrap());
    gpu.fill(block, 1, 4096, &writer);
    let written = writer.record_event(None).unwrap();
    for (reader, to) in [(&one, copies), (&two, copies + 4096)] {
        reader.wait(&written).unwrap();
        gpu.copy(to, block, 4096, reader);
    }
    gpu.context.synchronize().unwrap();
    driver.assert_clean();
    // The host knows: what it submits from now on is ordered behind all that.
    gpu.fill(block, 2, 4096, &two);
    let after_two = two.record_event(None).unwrap();
    gpu.copy(copies, block, 4096, &two);
    one.wait(&after_two).unwrap();
    gpu.copy(copies + 4096, block, 4096, &one);
    writer.wait(&one.record_event(None).unwrap()).unwrap();
    gpu.fill(block, 3, 4096, &writer);
    gpu.context.synchronize().unwrap();
    assert_eq!(driver.violations().len(), 1, "the second read of `two` was not waited for: {:?}", driver.violations());
}

#[test]
fn a_wait_is_for_the_record_before_it_only() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (one, two) = (gpu.stream(), gpu.stream());
    let at = gpu.alloc(64).unwrap();
    let event = gpu.context.new_event(None).unwrap();
    two.wait(&event).unwrap();
    gpu.fill(at, 1, 32, &one);
    event.record(&one).unwrap();
    two.wait(&event).unwrap();
    gpu.fill(at + 32, 1, 32, &one);
    event.record(&one).unwrap();
    gpu.fill(at, 2, 32, &two);
    gpu.context.synchronize().unwrap();
    driver.assert_clean();
    let after = gpu.alloc(64).unwrap();
    gpu.fill(after, 1, 64, &one);
    gpu.fill(after + 63, 2, 1, &two);
    gpu.context.synchronize().unwrap();
    assert_eq!(driver.violations().len(), 1, "one byte is enough");
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let legacy = gpu.context.default_stream();
    let mut blocking = std::ptr::null_mut();
    // SAFETY: a place for the handle.
    unsafe { sys::cuStreamCreate(&mut blocking, 0) }.result().unwrap();
    let at = gpu.alloc(64).unwrap();
    let fill = |byte| {
        // SAFETY: the stand-in checks the address.
        unsafe { sys::cuMemsetD8Async(at, byte, 64, blocking) }.result().unwrap();
    };
    fill(1);
    gpu.fill(at, 2, 64, &legacy);
    fill(3);
    gpu.fill(at, 4, 64, &legacy);
    assert_eq!(driver.step(0, 10), 0, "the legacy stream waits");
    assert_eq!(gpu.read(at, 1, &legacy), [4]);
    driver.assert_clean();
    let apart = gpu.stream();
    gpu.fill(at, 5, 64, &apart);
    gpu.fill(at, 6, 64, &legacy);
    gpu.context.synchronize().unwrap();
    assert_eq!(driver.violations().len(), 1, "a non-blocking stream is not waited for: {:?}", driver.violations());
    // SAFETY: the handle is open.
    unsafe { sys::cuStreamDestroy_v2(blocking) }.result().unwrap();
}

#[test]
fn events_and_streams_may_be_destroyed_while_work_needs_them() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let at = gpu.alloc(64).unwrap();
    let (one, two) = (gpu.stream(), gpu.stream());
    gpu.fill(at, 1, 64, &one);
    let event = one.record_event(None).unwrap();
    two.wait(&event).unwrap();
    drop((event, one));
    gpu.fill(at, 2, 64, &two);
    assert_eq!(gpu.read(at, 1, &two), [2]);
    gpu.free(at).unwrap();
    drop(two);
    driver.assert_clean();
    assert!(driver.totals().is_clean(), "{:?}", driver.totals());
}

#[test]
fn stream_ordered_memory_is_used_in_order_only() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (one, two) = (gpu.stream(), gpu.stream());
    let block = one.alloc_zeros::<u8>(64).unwrap();
    let at = cudarc::driver::DevicePtr::device_ptr(&block, &one).0;
    gpu.fill(at, 1, 64, &two);
    gpu.context.synchronize().unwrap();
    let found = driver.violations();
    assert!(!found.is_empty() && found.iter().all(|line| line.contains("race")), "{found:?}");
    driver.clear_violations();
    gpu.fill(at, 2, 64, &two);
    drop(block);
    driver.step(two.cu_stream() as usize, 1);
    gpu.context.synchronize().unwrap();
    assert!(driver.violations()[0].contains("race: free"), "{:?}", driver.violations());
}

#[test]
fn every_read_since_the_last_write_counts() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let (writer, one, two) = (gpu.stream(), gpu.stream(), gpu.stream());
    let (block, copies) = (gpu.alloc(4096).unwrap(), gpu.alloc(8192).unwrap());
    for waited in [&one, &two] {
        gpu.copy(copies, block, 4096, &one);
        gpu.copy(copies + 4096, block, 4096, &two);
        writer.wait(&waited.record_event(None).unwrap()).unwrap();
        gpu.fill(block, 3, 4096, &writer);
        gpu.context.synchronize().unwrap();
        assert_eq!(driver.violations().len(), 1, "one read was not waited for: {:?}", driver.violations());
        driver.clear_violations();
    }
}

#[test]
fn the_host_knows_what_a_query_told_it_and_what_streams_did_that_are_gone() {
    let Some(driver) = standin() else { return };
    let gpu = Gpu::new();
    let stream = gpu.stream();
    let at = gpu.alloc(64).unwrap();
    gpu.fill(at, 1, 64, &stream);
    let event = stream.record_event(None).unwrap();
    driver.step(stream.cu_stream() as usize, 2);
    assert!(event.try_is_complete().unwrap());
    gpu.free(at).unwrap();
    let at = gpu.alloc(64).unwrap();
    gpu.fill(at, 1, 64, &stream);
    driver.step(stream.cu_stream() as usize, 1);
    drop(stream);
    gpu.context.synchronize().unwrap();
    gpu.free(at).unwrap();
    driver.assert_clean();
}
