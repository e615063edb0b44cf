//! Labels for accounting: a scoped, per-thread tag that blocks made under it carry.

use std::cell::Cell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;

use crate::sync::thread_local;

/// Names of all tags of this process; a tag's number is its place. Names are constants of a program: they are not given back.
static NAMES: LazyLock<RwLock<Names>> = LazyLock::new(RwLock::default);

#[derive(Default)]
struct Names {
    by_number: Vec<Arc<str>>,
    /// Only ever looked up, never walked: the order of a hash table decides nothing.
    numbers: HashMap<Arc<str>, TagId>,
}

thread_local! {
    static CURRENT: Cell<TagId> = const { Cell::new(TagId::NONE) };
}

/// A tag's number; 0 is "no tag".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TagId(pub(crate) u16);

impl TagId {
    /// No tag.
    pub const NONE: TagId = TagId(0);

    /// The number of a name. The same name has the same number; the empty name, and every name after the
    /// 65,534th of a process, is no tag.
    pub fn of(name: &str) -> TagId {
        if name.is_empty() {
            return TagId::NONE;
        }
        if let Some(tag) = NAMES.read().numbers.get(name) {
            return *tag;
        }
        let mut names = NAMES.write();
        if let Some(tag) = names.numbers.get(name) {
            return *tag;
        }
        if names.by_number.len() >= usize::from(u16::MAX) - 1 {
            return TagId::NONE;
        }
        let name: Arc<str> = name.into();
        names.by_number.push(name.clone());
        let tag = TagId(names.by_number.len() as u16);
        names.numbers.insert(name, tag);
        tag
    }

    /// The name; empty for no tag.
    pub fn name(self) -> String {
        match self.0 {
            0 => String::new(),
            at => NAMES.read().by_number.get(usize::from(at) - 1).map(|name| name.to_string()).unwrap_or_default(),
        }
    }

    /// The tag of this thread now.
    #[inline]
    pub(crate) fn current() -> TagId {
        CURRENT.with(Cell::get)
    }
}

/// While it lives, blocks made by this thread carry its tag.
#[must_use = "the tag ends when this guard is dropped"]
pub struct TagGuard {
    before: TagId,
    /// Not `Send`: it restores the tag of its own thread.
    thread: PhantomData<*const ()>,
}

impl Drop for TagGuard {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(self.before));
    }
}

/// Labels the blocks that this thread makes from now on until the guard is dropped. Scopes nest.
///
/// ```
/// let _tag = larder::tag("kv-cache");
/// ```
pub fn tag(name: &str) -> TagGuard {
    TagGuard { before: CURRENT.with(|current| current.replace(TagId::of(name))), thread: PhantomData }
}
