//! What the heap promises, on the smallest regions that can show it.

use super::*;
struct NoFences;
impl Fences for NoFences {
    fn passes(&self, _: FenceId, _: Access) -> bool {
        true
    }
    fn join(&mut self, a: FenceId, _: FenceId) -> FenceId {
        a
    }
    fn simplify(&mut self, f: FenceId) -> FenceId {
        f
    }
    fn copy(&mut self, f: FenceId) -> FenceId {
        f
    }
    fn release(&mut self, _: FenceId) {}
}
#[test]
fn splits_and_joins() {
    let mut heap: Heap<u64> = Heap::new(64);
    heap.add_region(RegionId(0), 1 << 20, None).unwrap();
    let a = heap.take(128, Access::AfterWait, &mut NoFences).unwrap();
    let b = heap.take(256, Access::AfterWait, &mut NoFences).unwrap();
    heap.check().unwrap();
    assert_eq!(heap.place(b), (0, 128, 256));
    heap.put(a, FenceId::NONE, &mut NoFences);
    heap.check().unwrap();
    heap.put(b, FenceId::NONE, &mut NoFences);
    heap.check().unwrap();
    assert_eq!(heap.largest_free(), 1 << 20);
}
