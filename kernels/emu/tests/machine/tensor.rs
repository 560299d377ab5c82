//! Tensor core products against plain ones, by the layouts of the PTX manual.

use crate::{random, warp};

/// Rows of A and its row and column for register `i` and byte `b` in a lane, by shape.
struct Shape {
    name: &'static str,
    rows: usize,
    length: usize,
    a: fn(lane: usize, i: usize, b: usize) -> (usize, usize),
    a_registers: usize,
    b_registers: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "m8n8k16",
        rows: 8,
        length: 16,
        a: |lane, _, b| (lane >> 2, (lane % 4) * 4 + b),
        a_registers: 1,
        b_registers: 1,
    },
    Shape {
        name: "m16n8k16",
        rows: 16,
        length: 16,
        a: |lane, i, b| ((lane >> 2) + 8 * i, (lane % 4) * 4 + b),
        a_registers: 2,
        b_registers: 1,
    },
    Shape {
        name: "m16n8k32",
        rows: 16,
        length: 32,
        // Element index e = 4 i + b: row is g where e < 4 or 8 <= e < 12; the column has 16 more from e = 8 on.
        a: |lane, i, b| {
            let e = 4 * i + b;
            let upper = !(e < 4 || (8..12).contains(&e));
            let column = (lane % 4) * 4 + (e & 3) + if e >= 8 { 16 } else { 0 };
            ((lane >> 2) + if upper { 8 } else { 0 }, column)
        },
        a_registers: 4,
        b_registers: 2,
    },
];

#[test]
fn products_are_those_of_matrices() {
    for shape in &SHAPES {
        for (seed, types) in
            [[true, true], [true, false], [false, true], [false, false]].into_iter().enumerate()
        {
            check(shape, types, seed as u64);
        }
    }
}

fn value(byte: u32, signed: bool) -> i32 {
    if signed { i32::from(byte as u8 as i8) } else { i32::from(byte as u8) }
}

fn check(shape: &Shape, [a_signed, b_signed]: [bool; 2], seed: u64) {
    let mut random = random(seed);
    let c_registers = shape.rows / 4;
    let registers = shape.a_registers + shape.b_registers + c_registers;
    // Register r of lane l is word 32 r + l.
    let from: Vec<u32> = (0..32 * registers).map(|_| random() as u32).collect();
    let got = run(shape, [a_signed, b_signed], &from);
    let (mut a, mut b) = (vec![vec![0; shape.length]; shape.rows], vec![vec![0; 8]; shape.length]);
    for lane in 0..32 {
        for byte in 0..4 {
            for i in 0..shape.a_registers {
                let (row, column) = (shape.a)(lane, i, byte);
                a[row][column] = value(from[32 * i + lane] >> (8 * byte), a_signed);
            }
            for i in 0..shape.b_registers {
                let row = (lane % 4) * 4 + byte + 16 * i;
                b[row][lane >> 2] = value(from[32 * (shape.a_registers + i) + lane] >> (8 * byte), b_signed);
            }
        }
    }
    for lane in 0..32 {
        for i in 0..c_registers {
            let (row, column) = ((lane >> 2) + 8 * (i / 2), (lane % 4) * 2 + i % 2);
            let sum: i32 = (0..shape.length).map(|k| a[row][k] * b[k][column]).sum();
            let c = from[32 * (shape.a_registers + shape.b_registers + i) + lane];
            assert_eq!(got[32 * i + lane], c.wrapping_add(sum as u32), "{} lane {lane}, d{i}", shape.name);
        }
    }
}

fn run(shape: &Shape, signed: [bool; 2], from: &[u32]) -> Vec<u32> {
    let [a, b] = signed.map(|signed| if signed { "s8" } else { "u8" });
    let name = |first: usize, count: usize| {
        let list: Vec<String> = (first..first + count).map(|i| format!("%r{i}")).collect();
        format!("{{{}}}", list.join(", "))
    };
    let c_registers = shape.rows / 4;
    let total = shape.a_registers + shape.b_registers + c_registers;
    let mut body: String =
        (0..total).map(|i| format!("ld.global.u32 %r{}, [%rd1+{}];\n", 10 + i, 128 * i)).collect();
    let (fa, fb) = (name(10, shape.a_registers), name(10 + shape.a_registers, shape.b_registers));
    let fc = name(10 + shape.a_registers + shape.b_registers, c_registers);
    let fd = name(40, c_registers);
    body += &format!("mma.sync.aligned.{}.row.col.s32.{a}.{b}.s32 {fd}, {fa}, {fb}, {fc};\n", shape.name);
    let stores = (0..c_registers).map(|i| format!("st.global.u32 [%rd2+{}], %r{};\n", 128 * i, 40 + i));
    body.extend(stores);
    let case = crate::Case::default();
    let (words, counts) = case.run(&body, from, 32 * c_registers).unwrap_or_else(|trap| panic!("{trap}"));
    assert_eq!((counts.mma.warps, counts.mma_products), (1, (shape.rows * 8 * shape.length) as u64));
    words
}

/// A swapped pair of fragments shows in the result.
#[test]
fn swapped_fragments_show() {
    let mut random = random(9);
    let from: Vec<u32> = (0..32 * 10).map(|_| random() as u32).collect();
    let right = run(&SHAPES[2], [true, true], &from);
    let mut swapped = from.clone();
    swapped[..64].rotate_left(32);
    assert_ne!(run(&SHAPES[2], [true, true], &swapped), right);
}

#[test]
fn matrices_are_loaded_by_rows_or_columns() {
    let load = |modifier: &str, count: usize| {
        let names: Vec<String> = (20..20 + count).map(|i| format!("%r{i}")).collect();
        // Element e of the shared array is e.
        let body = format!(
            "mov.u32 %r3, 0;
            $fill:
            shl.b32 %r4, %r1, 3;
            add.u32 %r4, %r4, %r3;
            shl.b32 %r5, %r4, 1;
            cvt.u16.u32 %rs1, %r4;
            st.shared.u16 [%r5], %rs1;
            add.u32 %r3, %r3, 1;
            setp.lt.u32 %p1, %r3, 8;
            @%p1 bra $fill;
            bar.warp.sync 0xffffffff;
            shl.b32 %r6, %r1, 4;
            ldmatrix.sync.aligned.m8n8.x{count}{modifier}.shared.b16 {{{}}}, [%r6];
            st.global.u32 [%rd2], %r{};",
            names.join(", "),
            20 + count - 1
        );
        warp(&body, &[])
    };
    for count in [1, 2, 4] {
        let first = 64 * (count as u32 - 1);
        for (lane, (&plain, &turned)) in load("", count).iter().zip(&load(".trans", count)).enumerate() {
            let (g, t) = (lane as u32 / 4, lane as u32 % 4);
            assert_eq!(plain, (first + 8 * g + 2 * t) | (first + 8 * g + 2 * t + 1) << 16);
            assert_eq!(turned, (first + 16 * t + g) | (first + 16 * t + 8 + g) << 16);
        }
    }
    let body = "
    shr.u32 %r3, %r1, 2; and.b32 %r4, %r1, 3; shl.b32 %r5, %r3, 3; mad.lo.u32 %r5, %r4, 2, %r5;
    add.u32 %r6, %r5, 1; shl.b32 %r6, %r6, 16; or.b32 %r5, %r5, %r6;
    movmatrix.sync.aligned.m8n8.trans.b16 %r7, %r5;
    st.global.u32 [%rd2], %r7;";
    for (lane, &word) in warp(body, &[]).iter().enumerate() {
        let (g, t) = (lane as u32 / 4, lane as u32 % 4);
        assert_eq!(word, (16 * t + g) | (16 * t + 8 + g) << 16);
    }
}
