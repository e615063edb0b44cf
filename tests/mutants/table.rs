//! The mutants: defects that a person could well write, each a change of a few words.
//!
//! The old text of an edit occurs exactly once in its file; where the sources have changed, change it here too.

/// A planted defect.
pub struct Mutant {
    /// What is wrong in it.
    pub name: &'static str,
    /// The changes that make it.
    pub edits: &'static [Edit],
    /// The test that must fail.
    pub caught_by: &'static str,
}

/// A change of a source.
pub struct Edit {
    /// Under `src`.
    pub file: &'static str,
    pub old: &'static str,
    pub new: &'static str,
}

const fn edit(file: &'static str, old: &'static str, new: &'static str) -> Edit {
    Edit { file, old, new }
}

const fn stream(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "stream_model" }
}

const fn history(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "history" }
}

const fn debug(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "debug" }
}

const fn cuda(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "cuda" }
}

const fn cudarc(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "cudarc" }
}

const fn heap(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "heap_laws" }
}

const fn accounting(name: &'static str, edits: &'static [Edit]) -> Mutant {
    Mutant { name, edits, caught_by: "allocator_laws" }
}

const BUFFER: &str = "native/cudarc.rs";
const ORDERING: &str = "native/ordering.rs";
const PINNED: &str = "native/pinned.rs";
const VMM: &str = "backend/cuda/vmm.rs";
const ORDER: &str = "backend/cuda/order.rs";
const DRIVER: &str = "backend/cuda/driver.rs";
const FENCE: &str = "fence.rs";
const CORE: &str = "allocator/core.rs";
const POOL: &str = "allocator/pool.rs";
const STREAMS: &str = "allocator/streams.rs";
const PAGES: &str = "allocator/pages.rs";
const PARTS: &str = "heap/parts.rs";
const HISTORY: &str = "allocator/history.rs";
const WRITTEN: &str = "trace/history.rs";
const DEBUG: &str = "allocator/debug.rs";
const EDIT: &str = "heap/edit.rs";
const STATS: &str = "stats.rs";

pub const MUTANTS: &[Mutant] = &[
    debug(
        "the first byte behind a block is not guarded",
        &[edit(
            DEBUG,
            "offset: span.offset + requested, size: span.size - requested,",
            "offset: span.offset + requested + 1, size: span.size - requested - 1,",
        )],
    ),
    debug(
        "the newest leaves the quarantine first",
        &[edit(DEBUG, "ledger.quarantine.pop_front()", "ledger.quarantine.pop_back()")],
    ),
    debug(
        "poison is not looked at when a block leaves the quarantine",
        &[edit(DEBUG, "self.look_at_poison(backend, key, &entry, &mut ledger.finds);\n            left", "left")],
    ),
    debug(
        "the quarantine keeps its core",
        &[edit(POOL, "if meter.read().blocks.current == self.quarantined {", "if false && meter.is_idle() {")],
    ),
    debug(
        "memory runs out before the quarantine ends",
        &[edit("allocator/ladder.rs", "if self.ends_quarantine()\n            && ", "if false\n            && ")],
    ),
    history(
        "what a history overwrites is not counted",
        &[edit(HISTORY, "match written.saturating_sub(self.slots.len() as u64) {", "match 0 * written {")],
    ),
    history(
        "a pool's stamps know nothing of other pools",
        &[edit(HISTORY, "let stamp = self.clock.last.load(Relaxed) + STAMP;", "let stamp = self.laps * STAMP;")],
    ),
    history(
        "a full ring is read from its slot 0",
        &[edit(
            HISTORY,
            "(if self.laps == 0 { &[] } else { older }, newer)",
            "(newer, if self.laps == 0 { &[] } else { older })",
        )],
    ),
    history(
        "a trace forgets what was live before its window",
        &[edit(WRITTEN, "if !known.contains(&key) {", "if false && !known.contains(&key) {")],
    ),
    Mutant {
        name: "a graph's pages go while it may be launched",
        edits: &[edit(
            "allocator/reclaim.rs",
            "if self.pool(id).is_pinned() {",
            "if false && self.pool(id).is_pinned() {",
        )],
        caught_by: "captures",
    },
    Mutant {
        name: "a graph's pages go while its last launch is under way",
        edits: &[edit(
            "allocator/recording.rs",
            "if !self.backend.done(*event)? {",
            "if false && !self.backend.done(*event)? {",
        )],
        caught_by: "captures",
    },
    Mutant {
        name: "the last owner takes a running graph its memory",
        edits: &[edit("allocator/reclaim.rs", "!matches!(self.wait_unpinned(&mut slow, until), Ok(true))", "false")],
        caught_by: "captures",
    },
    Mutant {
        name: "a graph does not keep its stream",
        edits: &[edit("allocator/recording.rs", "streams: vec![stream.clone()] }", "streams: Vec::new() }")],
        caught_by: "captures",
    },
    Mutant {
        name: "a graph's memory serves others",
        edits: &[edit("allocator/recording.rs", "true => Err(AllocError::GraphPool { pool }),", "true => Ok(pool),")],
        caught_by: "captures",
    },
    Mutant {
        name: "the last of a device is not had by small segments",
        edits: &[edit("allocator/segments.rs", "for smaller in [least, own]", "for smaller in [least]")],
        caught_by: "regressions",
    },
    Mutant {
        name: "a stream under capture climbs the whole ladder",
        edits: &[edit(
            "allocator/ladder.rs",
            "        if self.captured {\n            return self.while_captured",
            "        if false {\n            return self.while_captured",
        )],
        caught_by: "captures",
    },
    Mutant {
        name: "memory of a captured stream is waited for",
        edits: &[edit(FENCE, "Access::AfterWait => self.is_reachable(fence),", "Access::AfterWait => true,")],
        caught_by: "captures",
    },
    heap(
        "what is behind a taken piece is in no bin",
        &[edit(
            EDIT,
            "self.table[rest].fence = fences.copy(self.table[taken].fence);\n            self.parts().insert_free(rest);",
            "self.table[rest].fence = fences.copy(self.table[taken].fence);",
        )],
    ),
    heap("a block that grows stays in its bin", &[edit(PARTS, "if old != new {", "if old > new {")]),
    heap(
        "a void stays apart from the one behind it",
        &[edit(EDIT, "if self.table[next].state == State::Void {", "if false {")],
    ),
    heap("a void that goes stays in the list", &[edit(EDIT, "_ => self.table[prev].bin_next = next,", "_ => {}")]),
    heap(
        "what is pending is not counted down",
        &[edit(
            PARTS,
            "*self.pending -= size;\n        }\n        self.unlink(bin_of(size), index);",
            "}\n        self.unlink(bin_of(size), index);",
        )],
    ),
    accounting(
        "what was asked for stays counted when it is freed",
        &[edit(STATS, "meter.requested.take(requested);", "let _ = requested;")],
    ),
    accounting("a freed block stays counted", &[edit(STATS, "meter.blocks.take(1);", "")]),
    accounting(
        "what went back stays counted as held",
        &[edit(STATS, "self.write(|meter| meter.reserved.take(bytes));", "let _ = bytes;")],
    ),
    accounting(
        "the peak of what is active leaves out what is pending",
        &[edit(STATS, "if live + pending > meter.calm.get() {", "if live > meter.calm.get() {")],
    ),
    Mutant {
        name: "what is guaranteed to a pool is given to others",
        edits: &[edit(
            "allocator/ladder.rs",
            ".saturating_sub(pool.config.read().guarantee).min(stats.idle())",
            ".min(stats.idle())",
        )],
        caught_by: "regressions",
    },
    Mutant {
        name: "memory grows beyond the slack before pages are moved",
        edits: &[edit(
            "allocator/ladder.rs",
            "let room = self.slack_room().min(self.room());",
            "let room = self.room();",
        )],
        caught_by: "policy",
    },
    stream("a wait is dropped", &[edit(STREAMS, "self.backend.stream_wait(stream, event)?;", "")]),
    stream(
        "a wait is for an event that is too old",
        &[edit(FENCE, "find(|e| e.clock.get(stream) >= counter)", "find(|_| counter > 0)")],
    ),
    stream("a neighbour's fence is lost when blocks join", &[edit(PARTS, "fences.join(fence, behind.fence)", "fence")]),
    stream(
        "the fence of the neighbour in front is lost when blocks join",
        &[edit(PARTS, "self.grown(prev, old, own, fences.join(fence, own))", "self.grown(prev, old, own, fence)")],
    ),
    stream(
        "the fence of the neighbour behind is lost when blocks join",
        &[edit(PARTS, "self.grown(next, old, own, fences.join(fence, own))", "self.grown(next, old, own, fence)")],
    ),
    stream("a pair is lost when fences join", &[edit(FENCE, "self.pairs(a).chain(self.pairs(b))", "self.pairs(a)")]),
    stream(
        "of one stream's two counters the older stays",
        &[edit(FENCE, "FenceId(a.0.max(b.0))", "FenceId(a.0.min(b.0))")],
    ),
    stream(
        "of a pair's two counters the older stays",
        &[edit(FENCE, "*counter = (*counter).max(pair.1)", "*counter = (*counter).min(pair.1)")],
    ),
    stream(
        "of held blocks only the older work is waited for",
        &[edit(PAGES, "known.1 = known.1.max(pair.1)", "known.1 = known.1.min(pair.1)")],
    ),
    stream(
        "the rest of a block that is split loses its fence",
        &[edit(EDIT, "fences.copy(self.table[taken].fence)", "crate::ids::FenceId::NONE")],
    ),
    stream(
        "a further user's counter is advanced at used_on, not at the drop",
        &[
            edit(POOL, "users.push(stream);", "users.push(stream); let _ = self.clocks.freed_on(stream);"),
            edit(FENCE, "let also = self.freed_on(*other);", "let also = single(*other, self.now(*other));"),
        ],
    ),
    stream("a drop does not advance the counter", &[edit(FENCE, "clock.now += 1;", "clock.now = clock.now.max(1);")]),
    stream(
        "a wait is taken to carry the clock of now",
        &[edit(
            FENCE,
            "= self.event_clock(other, event)",
            "= self.event_clock(other, event).map(|_| self.clock(other))",
        )],
    ),
    stream(
        "a completed event is taken to carry the clock of now",
        &[edit(
            FENCE,
            "= self.event_clock(stream, event)",
            "= self.event_clock(stream, event).map(|_| self.clock(stream))",
        )],
    ),
    stream(
        "completion on one stream marks another's later work",
        &[edit(
            FENCE,
            "*done = (*done).max(*counter);",
            "*done = (*done).max(*counter); if at != stream.0 as usize { let now = self.now(StreamId(at as u16)); \
             self.stream(StreamId(at as u16)).done = now; }",
        )],
    ),
    stream("completion is taken one free too far", &[edit(FENCE, "s.done >= counter", "s.done + 1 >= counter")]),
    stream(
        "every event is taken to be done",
        &[
            edit(STREAMS, "Some(event) => self.backend.done(event)?.then_some(event)", "Some(event) => Some(event)"),
            edit(STREAMS, "Ok(event) => self.backend.done(event)?.then_some(event),", "Ok(event) => Some(event),"),
        ],
    ),
    stream(
        "an event is recorded on the wrong stream",
        &[edit(
            STREAMS,
            "let event = self.backend.record(stream).inspect_err",
            "let event = self.backend.record(StreamId(0)).inspect_err",
        )],
    ),
    stream(
        "the host is treated as an ordered stream",
        &[edit(CORE, "Clocks::new(self.caps.host_ordered)", "Clocks::new(false)")],
    ),
    stream(
        "one pair of its own lets a stream pass a shared fence",
        &[edit(
            FENCE,
            "pairs.iter().all(|pair| self.passed(*pair, stream))",
            "pairs.iter().any(|pair| self.passed(*pair, stream))",
        )],
    ),
    stream(
        "follows is taken the wrong way round",
        &[edit(STREAMS, "ordered_behind(self.id(), other.id())", "ordered_behind(other.id(), self.id())")],
    ),
    stream(
        "further users are forgotten at the drop",
        &[edit(POOL, "freed_by_all(note.stream(), &users)", "freed_by_all(note.stream(), &[])")],
    ),
    stream(
        "a stream's number goes back while a block names it",
        &[edit(STREAMS, "self.pools().any(|pool| pool.state.lock().is_used_on(stream))", "false")],
    ),
    stream(
        "a stream's number goes back before its last event is done",
        &[edit(STREAMS, "if !self.backend.done(event)? {", "if !self.backend.done(event)? && false {")],
    ),
    stream(
        "a retired page is unmapped early",
        &[edit(PAGES, "state.clocks.complete(state.heap.fence(*index))", "*index > 0")],
    ),
    stream("a void is used again before it is unmapped", &[edit(PAGES, "if core.leaves_mapped {", "if false {")]),
    stream(
        "a config without aliases is taken to unmap what the device leaves mapped",
        &[edit(PAGES, "if core.leaves_mapped {", "if core.caps.alias {")],
    ),
    stream(
        "pages of an idle pool are given to a stream that did not wait for them",
        &[
            edit(PAGES, "let access = Access::Now(stream);", "let access = Access::AfterWait;"),
            edit(
                PAGES,
                "wait_between(pool, wish.stream, &pairs)",
                "wait_between(pool, wish.stream, if wish.prefer == Preference::Lowest { &[] } else { &pairs })",
            ),
            edit(
                PAGES,
                "fill(core, id, slow, wish, how, |_, _, _| ())?",
                "fill(core, id, slow, wish, how, |state, index, start| { \
                 let taken = state.heap.carve(index, start, size, &mut state.clocks); \
                 let fence = state.clocks.freed_on(stream); \
                 state.heap.put(taken, fence, &mut state.clocks); })?",
            ),
        ],
    ),
    stream(
        "pages of an idle pool are waited for to come together",
        &[edit(PAGES, "let access = Access::Now(stream);", "let access = Access::AfterWait;")],
    ),
    stream(
        "pages of an idle pool come together without an alias",
        &[edit(PAGES, "core.caps.alias && !pool.is_pinned()", "core.caps.remap && !pool.is_pinned()")],
    ),
    stream(
        "a window does not inherit the fences of the pages moved into it",
        &[edit(PAGES, "state.clocks.copy(state.heap.fence(from))", "FenceId::NONE")],
    ),
    stream(
        "pages with unfinished work are moved without an alias",
        &[edit(
            "allocator/ladder.rs",
            "{ self.now() } else { Access::Completed }",
            "{ self.now() } else { self.now() }",
        )],
    ),
    stream(
        "pages with unfinished work go back to the device",
        &[edit("allocator/reclaim.rs", "sources(Access::Completed,", "sources(Access::AfterWait,")],
    ),
    stream(
        "a segment with unfinished work is released",
        &[edit(POOL, "segment.3 && segment.0 <= most", "segment.0 <= most")],
    ),
    Mutant {
        name: "bytes are copied into a block before the work that it is in use by",
        edits: &[edit(
            "device/transfer.rs",
            "self.settle()?;\n        if let Some(view) = self.host_bytes_mut()",
            "if let Some(view) = self.host_bytes_mut()",
        )],
        caught_by: "device_cuda",
    },
    Mutant {
        name: "space on the disk is not taken beforehand",
        edits: &[edit("backend/host/mapping.rs", "file::fill(file, range.clone())?;", "let _ = file;")],
        caught_by: "file_memory",
    },
    Mutant {
        name: "files pass the process's limit of their size",
        edits: &[edit("backend/host/file.rs", "wanted.min(size_limit())", "wanted")],
        caught_by: "file_memory",
    },
    Mutant {
        name: "an error that is no lack of memory is hidden by the next memory",
        edits: &[edit("fallback.rs", "let passes_on = passes_on(&error);", "let passes_on = true;")],
        caught_by: "fallback",
    },
    Mutant {
        name: "what a memory refused is not counted",
        edits: &[edit("fallback.rs", "refused_bytes.fetch_add(bytes, Relaxed)", "refused_bytes.load(Relaxed)")],
        caught_by: "fallback",
    },
    cuda(
        "CUDA: an event is taken to be done",
        &[edit(
            ORDER,
            "self.device.enter()?.is_done(&event)\n",
            "self.device.enter()?.is_done(&event).map(|_| true)\n",
        )],
    ),
    cuda(
        "CUDA: a wait of the host ends at once",
        &[edit(ORDER, "if self.device.enter()?.is_done(&event)? {", "if self.device.enter().is_ok() {")],
    ),
    cuda(
        "CUDA: a stream's wait is not given to the driver",
        &[edit(
            ORDER,
            "refuse_capture(&current, &stream, id)?;\n        current.wait(&stream, &event)",
            "refuse_capture(&current, &stream, id)",
        )],
    ),
    cuda(
        "CUDA: an event is recorded on the default stream",
        &[edit(
            ORDER,
            "let stream = self.stream(\"record\", id)?;",
            "let stream = self.stream(\"record\", StreamId(u16::from(id.0 > 99)))?;",
        )],
    ),
    cuda(
        "CUDA: an event is used again while it is waited for",
        &[
            edit(
                ORDER,
                "Ok(()) => Ok(events.keep(event)),",
                "Ok(()) => { events.idle.push(Event::again(&event)); Ok(events.keep(event)) }",
            ),
            edit(
                DRIVER,
                "pub(super) struct Event(usize);",
                "pub(super) struct Event(usize);\n\nimpl Event {\n    pub(super) fn again(&self) -> Event {\n        Event(self.0)\n    }\n}",
            ),
        ],
    ),
    cuda(
        "CUDA: events are recorded on captured streams",
        &[
            edit(ORDER, "refuse_capture(&current, &stream, id)?;\n        let idle", "let idle"),
            edit(ORDER, ".and_then(|()| refuse_capture(&current, &stream, id));", ";"),
        ],
    ),
    cuda(
        "CUDA: calls are not made in the relaxed capture mode",
        &[edit(DRIVER, "let mut mode = RELAXED;", "let mut mode = 0 * RELAXED;")],
    ),
    cuda("CUDA: the context that was current is not put back", &[edit(DRIVER, "current.context = Some(was);", "")]),
    cuda(
        "CUDA: zeros are written on the default stream",
        &[edit(
            "backend/cuda/mod.rs",
            "let stream = self.order.stream(\"zero\", stream)?;",
            "let stream = self.order.stream(\"zero\", StreamId(stream.0 / 1000))?;",
        )],
    ),
    cuda(
        "CUDA: what was mapped before a failure stays mapped",
        &[edit(VMM, "for at in range.take(mapped) {", "for at in range.take(mapped.min(0)) {")],
    ),
    cuda(
        "CUDA: pages of a growth that failed are forgotten",
        &[edit(
            VMM,
            "pages.into_iter().for_each(|page| self.stock.let_go(current, page));\n                Err(error)",
            "std::mem::forget(pages);\n                Err(error)",
        )],
    ),
    cuda(
        "CUDA: pages unmapped before a failure are not mapped again",
        &[edit(VMM, "if gone.is_empty() { Ok(()) }", "if gone.start < usize::MAX { Ok(()) }")],
    ),
    cuda(
        "CUDA: access is set for the first page of a run",
        &[edit(
            VMM,
            "current.set_access(start, size, &self.access)",
            "current.set_access(start, size.min(self.page), &self.access)",
        )],
    ),
    cuda(
        "CUDA: unmapped pages are neither kept nor released",
        &[edit(
            VMM,
            "for_each(|page| self.stock.let_go(&current, page));\n            Ok(())",
            "for_each(std::mem::forget);\n            Ok(())",
        )],
    ),
    cuda(
        "CUDA: a page mapped twice goes to the stock at the first unmapping",
        &[
            edit(
                VMM,
                "let Some(page) = Arc::into_inner(page) else { return };",
                "let page = Arc::try_unwrap(page).unwrap_or_else(|page| page.again());",
            ),
            edit(
                DRIVER,
                "pub(super) struct PhysicalPage(u64);",
                "pub(super) struct PhysicalPage(u64);\n\nimpl PhysicalPage {\n    pub(super) fn again(&self) -> PhysicalPage {\n        PhysicalPage(self.0)\n    }\n}",
            ),
        ],
    ),
    cuda(
        "CUDA: a page that the driver does not take back is forgotten",
        &[edit(
            VMM,
            "if let Err(page) = current.release_page(page) {\n            self.pages.lock().push(page);",
            "if let Err(page) = current.release_page(page) {\n            std::mem::forget(page);",
        )],
    ),
    cuda(
        "CUDA: a segment is not freed",
        &[edit("backend/cuda/plain.rs", "segment.device.enter()?.free(segment.start)?;", "segment.device.enter()?;")],
    ),
    cuda("CUDA: a lost device is asked again", &[edit(DRIVER, "self.device.give_up();\n            }", "}")]),
    cudarc(
        "a write does not follow the reads",
        &[edit(
            ORDERING,
            "let readers = if reads { &[][..] } else { &self.readers };",
            "let readers: &[StreamId] = &[];",
        )],
    ),
    cudarc(
        "a use does not follow the first writer",
        &[edit(ORDERING, "writers.iter().chain(readers)", "writers.iter().skip(1).chain(readers)")],
    ),
    cudarc(
        "the first use elsewhere follows nobody",
        &[edit(
            ORDERING,
            "Uses { writers: streams, ..Uses::default() }",
            "Uses { readers: streams, ..Uses::default() }",
        )],
    ),
    cudarc(
        "work on a stream that is not known is not waited for",
        &[edit(ORDERING, "SyncOnDrop::sync_stream(stream)", "SyncOnDrop::Sync(None)")],
    ),
    cudarc(
        "the CPU looks before the copy is done",
        &[edit(ORDERING, "        wait_for(M::streams(core), &before)?;", "        let _ = (core, before);")],
    ),
    cudarc(
        "a buffer's block does not know its streams",
        &[edit(ORDERING, "block.used_on_number(id);", "let _ = block;")],
    ),
    cudarc(
        "an order that failed is believed",
        &[edit(ORDERING, "uses.note(how, id, ordered.is_ok());", "uses.note(how, id, true);")],
    ),
    cudarc(
        "a half that is written is taken for followed by old readers",
        &[edit(
            ORDERING,
            "                add(&mut self.writers);\n                self.behind.clear();",
            "                add(&mut self.writers);",
        )],
    ),
    cudarc(
        "a capture of a stream that is not known is waited for",
        &[edit(ORDERING, "captured.and_then(refuse_unknown)", "captured.map(drop)")],
    ),
    cudarc(
        "a buffer forgets that a use was captured",
        &[edit(ORDERING, "if !matches!(captured, Ok(false)) {", "if false {")],
    ),
    cudarc(
        "copies of page-locked memory are captured unasked",
        &[edit(PINNED, "Ok(false) => return true,", "Ok(_) => return true,")],
    ),
    cudarc(
        "halves of a split forget each other",
        &[edit(BUFFER, "share: Share::Split, only", "share: Share::Whole, only")],
    ),
    cudarc("a lent slice frees the memory", &[edit(BUFFER, "let _ = slice.leak();", "drop(slice);")]),
    cudarc(
        "a lent slice does not say that it was written",
        &[edit(BUFFER, "drop(slice.device_ptr_mut(stream));", "let _ = &mut slice;")],
    ),
    cudarc(
        "a pinned block is looked at before its copies are done",
        &[edit(PINNED, "        self.wait()?;\n        Ok(self.bytes())", "        Ok(self.bytes())")],
    ),
    cudarc(
        "a stream that is being retired keeps its number",
        &[edit(
            STREAMS,
            "match handles.iter().filter(|(id, _)| is_it(*id)).find_map(|(_, handle)| handle.upgrade()) {\n            Some(inner) => Ok(Stream { inner }),",
            "match handles.iter().find(|(id, _)| is_it(*id)).map(|(id, _)| *id) {\n            Some(id) => Ok(Stream::new(self.clone(), id)),",
        )],
    ),
    cuda(
        "CUDA: page-locked memory is used again in the order of streams",
        &[edit("backend/cuda/pinned.rs", "host_ordered: true,", "host_ordered: false,")],
    ),
    cuda(
        "CUDA: peers are given no access",
        &[edit("backend/cuda/mod.rs", "access.push(Access::of(peer));", "let _ = peer;")],
    ),
];
