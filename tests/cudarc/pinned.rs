//! Page-locked memory: when the CPU may see it, when it is used again, and where it lies.

use crate::*;

#[test]
fn pinned_memory_is_seen_when_its_copies_are_done() {
    story(|standin| {
        let world = World::new();
        let (World { gpu, one, two, s, .. }, pinned) = (&world, world.pinned());
        let _known = pinned.stream_of(one).unwrap();
        let mut device = gpu.buffer_on::<u32>(s, 1024).unwrap();
        let mut host = pinned.buffer::<u32>(1024).unwrap();
        host.as_mut_slice().unwrap().copy_from_slice(&numbers(1, 1024));
        one.memcpy_htod(&host, &mut device).unwrap();
        assert!(standin.totals().queued > 0, "the copy has not run");
        assert_eq!(host.as_slice().unwrap(), numbers(1, 1024), "it only reads, so nobody waits");
        assert!(standin.totals().queued > 0);
        host.as_mut_slice().unwrap().fill(0);
        assert_eq!(standin.totals().queued, 0, "before it is written it is waited for");
        one.memcpy_dtoh(&device, &mut host).unwrap();
        assert_eq!(host.as_slice().unwrap(), numbers(1, 1024));
        // A stream that the pinned allocator does not know.
        two.memset_zeros(&mut device).unwrap();
        two.memcpy_dtoh(&device, &mut host).unwrap();
        assert_eq!(host.as_slice().unwrap(), [0; 1024]);
        // As a block, behind a copy that was given and not waited for.
        one.memcpy_htod(&numbers(9, 1024), &mut device).unwrap();
        one.memcpy_dtoh(&device, &mut host).unwrap();
        let block = host.into_block();
        assert_eq!(block.as_bytes().unwrap()[..4], 9_u32.to_le_bytes());
        assert_eq!(block.typed::<u32>().unwrap().as_slice().unwrap(), numbers(9, 1024));
    });
}

#[test]
fn pinned_memory_is_used_again_when_its_copies_are_done() {
    story(|standin| {
        let world = World::new();
        let (World { gpu, one, s, .. }, pinned) = (&world, world.pinned());
        let _known = pinned.stream_of(one).unwrap();
        let mut device = gpu.buffer_on::<u8>(s, 4096).unwrap();
        for round in 0..20_u8 {
            let mut host = pinned.buffer::<u8>(4096).unwrap();
            host.as_mut_slice().unwrap().fill(round);
            standin.host_touch(host.block().address(), 4096, true);
            one.memcpy_htod(&host, &mut device).unwrap();
            drop(host);
            standin.assert_clean();
        }
        assert_eq!(one.clone_dtoh(&device).unwrap(), [19; 4096]);
        pinned.check().unwrap();
        drop(device);
    });
}

#[test]
fn pinned_memory_is_exact_split_and_joined() {
    story(|standin| {
        let pinned = cuda::pinned(World::new().gpu.context(), Config::default().limit(2 * MIB)).unwrap();
        let mut blocks: Vec<_> = (0..100).map(|at| pinned.alloc(20_000 + at).unwrap()).collect();
        assert_eq!(standin.calls("cuMemHostAlloc"), 1);
        let stats = pinned.stats();
        assert!(stats.live.current - stats.requested.current < 100 * 64, "{stats:?}");
        let (first, _last) = (blocks[0].address(), blocks.pop());
        drop(blocks);
        let whole = pinned.alloc(1_900_000).unwrap();
        assert_eq!((whole.address(), standin.calls("cuMemHostAlloc")), (first, 1), "holes have joined");
    });
}
