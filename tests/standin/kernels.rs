//! Kernels that this device can run, by name. A new one is a row in [`KERNELS`].
//!
//! A kernel says beforehand which bytes it touches (`uses`): that is checked like any other touch, and is all that it is given.

use crate::work::Use;

/// A kernel of this device.
pub struct Kernel {
    pub name: &'static str,
    /// The sizes of its arguments in bytes: 4 or 8.
    pub arguments: &'static [usize],
    pub uses: fn(&[u64]) -> Vec<Use>,
    /// What the bytes that it writes become, from its arguments and the bytes that it reads; one for each use, in their order.
    pub run: fn(&[u64], &[Vec<u8>]) -> Vec<u8>,
}

/// Every kernel reads all its uses but the last, which it writes.
pub static KERNELS: &[Kernel] = &[
    Kernel {
        name: "fill_u8", // (destination, value: u32, bytes)
        arguments: &[8, 4, 8],
        uses: |a| vec![Use::write(a[0], a[2])],
        run: |a, _| vec![a[1] as u8; a[2] as usize],
    },
    Kernel {
        name: "fill_u32", // (destination, value, elements)
        arguments: &[8, 4, 8],
        uses: |a| vec![Use::write(a[0], a[2] * 4)],
        run: |a, _| (a[1] as u32).to_le_bytes().repeat(a[2] as usize),
    },
    Kernel {
        name: "fill_u64", // (destination, value, elements)
        arguments: &[8, 8, 8],
        uses: |a| vec![Use::write(a[0], a[2] * 8)],
        run: |a, _| a[1].to_le_bytes().repeat(a[2] as usize),
    },
    Kernel {
        name: "fill_u128", // (destination, low half, high half, elements)
        arguments: &[8, 8, 8, 8],
        uses: |a| vec![Use::write(a[0], a[3] * 16)],
        run: |a, _| [a[1].to_le_bytes(), a[2].to_le_bytes()].concat().repeat(a[3] as usize),
    },
    Kernel {
        name: "fill_u64", // (destination, value, elements)
        arguments: &[8, 8, 8],
        uses: |a| vec![Use::write(a[0], a[2] * 8)],
        run: |a, _| a[1].to_le_bytes().repeat(a[2] as usize),
    },
    Kernel {
        name: "fill_u128", // (destination, low half, high half, elements)
        arguments: &[8, 8, 8, 8],
        uses: |a| vec![Use::write(a[0], a[3] * 16)],
        run: |a, _| [a[1].to_le_bytes(), a[2].to_le_bytes()].concat().repeat(a[3] as usize),
    },
    Kernel {
        name: "copy_u8", // (destination, source, bytes)
        arguments: &[8, 8, 8],
        uses: |a| vec![Use::read(a[1], a[2]), Use::write(a[0], a[2])],
        run: |_, inputs| inputs[0].clone(),
    },
    Kernel {
        name: "add_f32", // (destination, left, right, elements)
        arguments: &[8, 8, 8, 8],
        uses: |a| vec![Use::read(a[1], a[3] * 4), Use::read(a[2], a[3] * 4), Use::write(a[0], a[3] * 4)],
        run: |_, inputs| {
            let numbers = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect()
            };
            let (left, right) = (numbers(&inputs[0]), numbers(&inputs[1]));
            left.iter().zip(right).flat_map(|(one, two)| (one + two).to_le_bytes()).collect()
        },
    },
];
