//! The driver's entry points. Each is a name, what it needs ([`crate::world::Gate`]), and a few lines over the world.

pub mod compiler;
mod device;
mod graph;
mod memory;
mod stream;
mod unsupported;
mod virtual_memory;

/// Declares entry points: `Gate fn name(world, argument: Type, ...) { body that ends in an Outcome }`.
macro_rules! entries {
    ($($(#[$meta:meta])* $gate:ident fn $name:ident($world:ident $(, $arg:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        // SAFETY: nothing else in the library has this name; the library is loaded in place of the one that has.
        #[unsafe(no_mangle)]
        #[allow(unused_variables)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $crate::code::Code {
            $crate::world::enter(stringify!($name), $crate::world::Gate::$gate, |$world| $body)
        }
    )*};
}
pub(crate) use entries;

use crate::code::{self, Outcome};

/// Writes an answer where the caller wants it.
fn put<T>(place: *mut T, value: T) -> Outcome {
    if place.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the driver's contract: a pointer for an answer is null or good for one.
    unsafe { place.write(value) };
    Ok(())
}
