//! `SoftFloat.sol` against this processor's arithmetic, by equality.

use std::{thread, time::Instant};

use alloy_sol_types::{SolCall, sol};

use crate::{
    exact::{bits, exp, from_half, silu, to_brain, to_half, to_int8},
    machine::{Machine, Numbers},
};

sol! {
    function run(uint8 operation, bytes operands) returns (bytes results);
}

/// Operands of one call.
const BATCH: usize = 10_000;

/// An operation in the harness's order: how many of its operands are drawn, and what it gives.
struct Operation {
    name: &'static str,
    count: usize,
    operands: fn(&mut Numbers, usize) -> [u32; 3],
    expected: fn([f32; 3]) -> u64,
}

const OPERATIONS: [Operation; 15] = [
    Operation { name: "add", count: 100_000, operands: sums, expected: |[a, b, _]| word(a + b) },
    Operation { name: "sub", count: 40_000, operands: sums, expected: |[a, b, _]| word(a - b) },
    Operation { name: "mul", count: 100_000, operands: any, expected: |[a, b, _]| word(a * b) },
    Operation { name: "fma", count: 200_000, operands: chains, expected: |[a, b, c]| word(a.mul_add(b, c)) },
    Operation { name: "div", count: 90_000, operands: any, expected: |[a, b, _]| word(a / b) },
    Operation { name: "sqrt", count: 50_000, operands: any, expected: |[a, ..]| word(a.sqrt()) },
    Operation { name: "gt", count: 100_000, operands: sums, expected: |[a, b, _]| u64::from(a > b) },
    Operation {
        name: "from an integer",
        count: 60_000,
        operands: any,
        expected: |[a, ..]| word(a.to_bits() as i32 as f32),
    },
    Operation {
        name: "from binary16",
        count: 1 << 16,
        operands: |_, index| [index as u32, 0, 0],
        expected: |[a, ..]| word(from_half(a.to_bits() as u16)),
    },
    Operation {
        name: "to binary16",
        count: 100_000,
        operands: halves,
        expected: |[a, ..]| u64::from(to_half(a)),
    },
    Operation {
        name: "to bfloat16",
        count: 60_000,
        operands: any,
        expected: |[a, ..]| word(to_brain(a)) >> 16,
    },
    Operation {
        name: "to int8",
        count: 60_000,
        operands: |numbers, index| small(numbers, index, 160.0),
        expected: |[a, ..]| u64::from(to_int8(a) as u8),
    },
    Operation {
        name: "to fixed point",
        count: 10_000,
        operands: |numbers, index| small(numbers, index, 1.0),
        expected: |[a, ..]| (if a > 1.0 { 1.0 } else { a } * (1u64 << 40) as f32) as u64,
    },
    Operation {
        name: "exp",
        count: 10_000,
        operands: |numbers, index| small(numbers, index, 88.0),
        expected: |[a, ..]| word(exp(a)),
    },
    Operation {
        name: "silu",
        count: 5_000,
        operands: |numbers, index| small(numbers, index, 100.0),
        expected: |[a, ..]| word(silu(a)),
    },
];

fn word(x: f32) -> u64 {
    bits(x).into()
}

/// Where something changes: zeros, subnormals, powers of two and their neighbours, the largest, no numbers.
const EDGES: [u32; 28] = [
    0x0000_0000,
    0x0000_0001,
    0x0000_0002,
    0x003f_ffff,
    0x0040_0000,
    0x007f_ffff,
    0x0080_0000,
    0x0080_0001,
    0x00ff_ffff,
    0x0100_0000,
    0x3300_0000,
    0x3380_0000,
    0x3387_ffff,
    0x33c0_0000,
    0x3880_0000,
    0x3eff_ffff,
    0x3f00_0000,
    0x3f7f_ffff,
    0x3f80_0000,
    0x3f80_0001,
    0x4b00_0001,
    0x4b7f_ffff,
    0x7e80_0000,
    0x7f00_0000,
    0x7f7f_fffe,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7fc0_0000,
];

/// Every third set of operands has edges in it, with any sign.
fn any(numbers: &mut Numbers, index: usize) -> [u32; 3] {
    let mut edge = || EDGES[numbers.below(EDGES.len())] | numbers.bits() & 0x8000_0000;
    let edges = [edge(), edge(), edge()];
    let drawn = [numbers.bits(), numbers.bits(), numbers.bits()];
    match index % 9 {
        0 => edges,
        3 => [edges[0], drawn[1], edges[2]],
        6 => [drawn[0], edges[1], drawn[2]],
        _ => drawn,
    }
}

/// Half of the pairs lie near each other, so that they cancel, round and tie.
fn sums(numbers: &mut Numbers, index: usize) -> [u32; 3] {
    let [a, b, c] = any(numbers, index);
    if index.is_multiple_of(2) {
        return [a, b, c];
    }
    let apart = numbers.bits() % 0x0d00_0000;
    let near = if index % 4 == 1 { apart } else { numbers.bits() % 8 };
    [a, (a ^ numbers.bits() & 0x8000_0000).wrapping_sub(near), c]
}

/// Half of the addends are near the product: they cancel it, or meet its last places.
fn chains(numbers: &mut Numbers, index: usize) -> [u32; 3] {
    let [a, b, c] = any(numbers, index);
    let near = (f32::from_bits(a) * f32::from_bits(b)).to_bits() ^ numbers.bits() & 0x8000_0000;
    match index % 4 {
        1 => [a, b, near.wrapping_sub(numbers.bits() % 8).wrapping_add(4)],
        3 => {
            let apart = (numbers.bits() % 120) << 23;
            [a, b, near.wrapping_add(apart).wrapping_sub(60 << 23) ^ numbers.bits() & 0xff]
        }
        _ => [a, b, c],
    }
}

/// Near the range of binary16, a quarter of them between two of its numbers.
fn halves(numbers: &mut Numbers, index: usize) -> [u32; 3] {
    let [a, ..] = any(numbers, index);
    match index % 4 {
        0 => [a, 0, 0],
        1 => {
            let (low, high) = (from_half(a as u16), from_half((a as u16).wrapping_add(1)));
            [f32::midpoint(low, high).to_bits().wrapping_add(numbers.bits() % 3).wrapping_sub(1), 0, 0]
        }
        _ => [(0x3200_0000 + numbers.bits() % 0x1600_0000) | a & 0x8000_0000, 0, 0],
    }
}

/// Numbers up to `most` away from zero, evenly; of those that are halves, some; edges below it.
fn small(numbers: &mut Numbers, index: usize, most: f32) -> [u32; 3] {
    let [a, ..] = any(numbers, index);
    let edge = f32::from_bits(a);
    let part = (numbers.bits() as i32 as f32) / (1u32 << 31) as f32;
    let x = match index % 4 {
        0 if edge.is_nan() || edge <= most => edge,
        1 => (part * most).round() - 0.5,
        2 => part * part * part * most,
        _ => part * most,
    };
    [x.to_bits(), 0, 0]
}

/// A million operands, edges among them, from a fixed seed.
#[test]
fn contracts_compute_as_this_processor_does() {
    let begun = Instant::now();
    let halves = OPERATIONS.split_at(4);
    thread::scope(|scope| {
        scope.spawn(|| compare(0, halves.0));
        compare(halves.0.len(), halves.1);
    });
    let compared: usize = OPERATIONS.iter().map(|operation| operation.count).sum();
    println!("{compared} results are equal, in {:.1?}", begun.elapsed());
}

fn compare(first: usize, operations: &[Operation]) {
    let machine = Machine::new("SoftFloatHarness");
    for (number, operation) in (first..).zip(operations) {
        let mut numbers = Numbers(number as u64);
        let drawn = (0..operation.count).map(|index| (operation.operands)(&mut numbers, index));
        for batch in drawn.collect::<Vec<_>>().chunks(BATCH) {
            for (operands, result) in batch.iter().zip(run(&machine, number as u8, batch)) {
                let expected = (operation.expected)(operands.map(f32::from_bits));
                let name = operation.name;
                assert_eq!(result, expected, "{name} of {operands:08x?}: {result:08x}, {expected:08x}");
            }
        }
    }
}

fn run(machine: &Machine, operation: u8, operands: &[[u32; 3]]) -> Vec<u64> {
    let packed: Vec<u8> = operands.as_flattened().iter().flat_map(|word| word.to_be_bytes()).collect();
    let call = runCall { operation, operands: packed.into() };
    let answer = machine.call(&call.abi_encode()).expect("no operand is refused");
    let results = runCall::abi_decode_returns(&answer).expect("bytes are returned");
    assert_eq!(results.len(), 8 * operands.len());
    results.as_chunks().0.iter().map(|result| u64::from_be_bytes(*result)).collect()
}
