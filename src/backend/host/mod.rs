//! Memory of this machine.
