//! Instructions against what they should give, over edge cases and random operands.

use crate::{Case, random};

/// Operands worth trying.
const EDGES: [u32; 24] = [
    0,
    1,
    2,
    7,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x3f80_0000,
    0x0000_1f05,
    0x3300_0001,
];

/// Runs code in 256 threads with operands a, b, c in `%r3`, `%r4`, `%r5` (and as a pair b:a in `%rd8`, c:b in
/// `%rd9`) and the result in `%r10`, or `%rd10`.
fn check(code: &str, expected: impl Fn(u32, u32, u32) -> u64) {
    const THREADS: usize = 256;
    let mut random = random(code.len() as u64);
    let mut pick = || {
        let bits = random();
        if bits & 3 == 0 { (bits >> 32) as u32 } else { EDGES[(bits >> 8) as usize % EDGES.len()] }
    };
    let from: Vec<u32> = (0..3 * THREADS).map(|_| pick()).collect();
    let body = format!(
        "ld.global.u32 %r3, [%rd1];
        ld.global.u32 %r4, [%rd1+{}];
        ld.global.u32 %r5, [%rd1+{}];
        mov.b64 %rd8, {{%r3, %r4}};
        mov.b64 %rd9, {{%r4, %r5}};
        cvt.u16.u32 %rs3, %r3;
        cvt.u16.u32 %rs4, %r4;
        cvt.u16.u32 %rs5, %r5;
        mov.b32 %f3, %r3;
        mov.b32 %f4, %r4;
        mov.b32 %f5, %r5;
        mov.u32 %r10, 0;
        mov.u64 %rd10, 0;
        {code}
        cvt.u64.u32 %rd11, %r10;
        or.b64 %rd10, %rd10, %rd11;
        mov.b64 {{%r11, %r12}}, %rd10;
        st.global.u32 [%rd2], %r11;
        st.global.u32 [%rd2+{}], %r12;",
        4 * THREADS,
        8 * THREADS,
        4 * THREADS
    );
    let case = Case { threads: THREADS as u32, ..Case::default() };
    let (words, _) = case.run(&body, &from, 2 * THREADS).unwrap_or_else(|trap| panic!("{trap}"));
    for i in 0..THREADS {
        let [a, b, c] = [0, 1, 2].map(|k| from[i + k * THREADS]);
        let got = u64::from(words[i]) | u64::from(words[i + THREADS]) << 32;
        let expected = expected(a, b, c);
        assert_eq!(got, expected, "`{code}` of {a:#x}, {b:#x}, {c:#x}: {got:#x}, not {expected:#x}");
    }
}

/// The same for a result of 32 bits.
fn check32(code: &str, expected: impl Fn(u32, u32, u32) -> u32) {
    check(code, |a, b, c| u64::from(expected(a, b, c)));
}

fn float(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[test]
fn words() {
    check32("add.s32 %r10, %r3, %r4;", |a, b, _| a.wrapping_add(b));
    check32("sub.s32 %r10, %r3, %r4;", |a, b, _| a.wrapping_sub(b));
    check32("mul.lo.s32 %r10, %r3, %r4;", |a, b, _| a.wrapping_mul(b));
    check32("mul.hi.u32 %r10, %r3, %r4;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check32("mul.hi.s32 %r10, %r3, %r4;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    });
    check32("mad.lo.s32 %r10, %r3, %r4, %r5;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("div.u32 %r10, %r3, %r4;", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    check32("rem.s32 %r10, %r3, 7;", |a, _, _| (a as i32 % 7) as u32);
    check32("min.s32 %r10, %r3, %r4;", |a, b, _| (a as i32).min(b as i32) as u32);
    check32("max.u32 %r10, %r3, %r4;", |a, b, _| a.max(b));
    check32("neg.s32 %r10, %r3;", |a, _, _| 0_u32.wrapping_sub(a));
    check32("abs.s32 %r10, %r3;", |a, _, _| (a as i32).wrapping_abs() as u32);
    check32("sad.s32 %r10, %r3, %r4, %r5;", |a, b, c| {
        { (i64::from(a as i32) - i64::from(b as i32)).unsigned_abs() as u32 }.wrapping_add(c)
    });
    check32("@%p1 mov.u32 %r10, 3; not.b32 %r10, %r3;", |a, _, _| !a);
}

#[test]
fn shifts_clamp() {
    let shift = |a: u64, b: u32| if b > 63 { 0 } else { a << b };
    check32("shl.b32 %r10, %r3, %r4;", |a, b, _| shift(a.into(), b) as u32);
    check32("shr.u32 %r10, %r3, %r4;", |a, b, _| if b > 31 { 0 } else { a >> b });
    check32("shr.s32 %r10, %r3, %r4;", |a, b, _| (i64::from(a as i32) >> b.min(40)) as u32);
    check("shl.b64 %rd10, %rd8, %r5;", |a, b, c| shift(pair(a, b), c));
    check("shr.s64 %rd10, %rd8, %r5;", |a, b, c| (i128::from(pair(a, b) as i64) >> c.min(70)) as u64);
    check32("shl.b16 %rs6, %rs3, %r4; cvt.u32.u16 %r10, %rs6;", |a, b, _| shift(a.into(), b) as u32 & 0xffff);
    check32("shr.s16 %rs6, %rs3, %r4; cvt.u32.u16 %r10, %rs6;", |a, b, _| {
        (i32::from(a as i16) >> b.min(20)) as u32 & 0xffff
    });
    check32("shf.l.wrap.b32 %r10, %r3, %r4, %r5;", |a, b, c| (pair(a, b) << (c & 31) >> 32) as u32);
    check32("shf.r.wrap.b32 %r10, %r3, %r4, %r5;", |a, b, c| (pair(a, b) >> (c & 31)) as u32);
    check32("shf.l.clamp.b32 %r10, %r3, %r4, %r5;", |a, b, c| (pair(a, b) << c.min(32) >> 32) as u32);
    check32("shf.r.clamp.b32 %r10, %r3, %r4, %r5;", |a, b, c| (pair(a, b) >> c.min(32)) as u32);
}

#[test]
fn bits_and_bytes() {
    check32("clz.b32 %r10, %r3;", |a, _, _| a.leading_zeros());
    check32("popc.b64 %r10, %rd8;", |a, b, _| a.count_ones() + b.count_ones());
    check32("brev.b32 %r10, %r3;", |a, _, _| a.reverse_bits());
    check32("bfind.u32 %r10, %r3;", |a, _, _| 31_u32.wrapping_sub(a.leading_zeros()));
    check32("bfind.shiftamt.s32 %r10, %r3;", |a, _, _| {
        let a = if (a as i32) < 0 { !a } else { a };
        if a == 0 { u32::MAX } else { a.leading_zeros() }
    });
    check32("lop3.b32 %r10, %r3, %r4, %r5, 0x96;", |a, b, c| a ^ b ^ c);
    check32("lop3.b32 %r10, %r3, %r4, %r5, 0xea;", |a, b, c| (a & b) | c);
    check32("prmt.b32 %r10, %r3, %r4, 0x6240;", |a, b, _| {
        let [a, b] = [a.to_le_bytes(), b.to_le_bytes()];
        u32::from_le_bytes([a[0], b[0], a[2], b[2]])
    });
    check32("prmt.b32 %r10, %r3, 0, 0xba98;", |a, _, _| {
        u32::from_le_bytes(a.to_le_bytes().map(|byte| if byte > 127 { 255 } else { 0 }))
    });
    check32("bfe.u32 %r10, %r3, 8, 12;", |a, _, _| a >> 8 & 0xfff);
    check32("bfe.s32 %r10, %r3, 8, 12;", |a, _, _| ((a << 12) as i32 >> 20) as u32);
    check32("bfe.s32 %r10, %r3, 24, 16;", |a, _, _| (a as i32 >> 24) as u32);
    check32("bfi.b32 %r10, %r3, %r4, 4, 8;", |a, b, _| (b & !0xff0) | (a & 0xff) << 4);
    check32("bfi.b32 %r10, %r3, %r4, 1, 31;", |a, b, _| (b & 1) | a << 1);
    check32("dp4a.s32.s32 %r10, %r3, %r4, %r5;", |a, b, c| {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        products.fold(c, |c, (a, b)| c.wrapping_add((i32::from(a as i8) * i32::from(b as i8)) as u32))
    });
    check32("dp4a.u32.s32 %r10, %r3, %r4, %r5;", |a, b, c| {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        products.fold(c, |c, (a, b)| c.wrapping_add((i32::from(a) * i32::from(b as i8)) as u32))
    });
    check32("dp2a.hi.s32.s32 %r10, %r3, %r4, %r5;", |a, b, c| {
        let b = b.to_le_bytes();
        let halves = [(a as i16, b[2] as i8), ((a >> 16) as i16, b[3] as i8)];
        halves.into_iter().fold(c, |c, (a, b)| c.wrapping_add((i32::from(a) * i32::from(b)) as u32))
    });
}

#[test]
fn doubles() {
    check("add.s64 %rd10, %rd8, %rd9;", |a, b, c| pair(a, b).wrapping_add(pair(b, c)));
    check("mul.lo.s64 %rd10, %rd8, %rd9;", |a, b, c| pair(a, b).wrapping_mul(pair(b, c)));
    check("mul.hi.u64 %rd10, %rd8, %rd9;", |a, b, c| {
        ((u128::from(pair(a, b)) * u128::from(pair(b, c))) >> 64) as u64
    });
    check("mul.wide.s32 %rd10, %r3, %r4;", |a, b, _| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    check("mul.wide.u32 %rd10, %r3, %r4;", |a, b, _| u64::from(a) * u64::from(b));
    check("mad.wide.u32 %rd10, %r3, %r4, %rd9;", |a, b, c| {
        (u64::from(a) * u64::from(b)).wrapping_add(pair(b, c))
    });
    check("min.u64 %rd10, %rd8, %rd9;", |a, b, c| pair(a, b).min(pair(b, c)));
    check("cvt.s64.s32 %rd10, %r3;", |a, _, _| a as i32 as u64);
    check("cvt.u64.u16 %rd10, %rs3;", |a, _, _| u64::from(a as u16));
    check32("cvt.u32.u64 %r10, %rd9;", |_, b, _| b);
    check("add.cc.u32 %r20, %r3, %r4; addc.u32 %r21, %r5, 0; mov.b64 %rd10, {%r20, %r21};", |a, b, c| {
        pair(a, c).wrapping_add(u64::from(b))
    });
    check("sub.cc.u32 %r20, %r3, %r4; subc.u32 %r21, %r5, 0; mov.b64 %rd10, {%r20, %r21};", |a, b, c| {
        pair(a, c).wrapping_sub(u64::from(b))
    });
}

#[test]
fn floats() {
    check32("add.rn.f32 %f6, %f3, %f4; mov.b32 %r10, %f6;", |a, b, _| float(f(a) + f(b)));
    check32("sub.rn.f32 %f6, %f3, %f4; mov.b32 %r10, %f6;", |a, b, _| float(f(a) - f(b)));
    check32("mul.rn.f32 %f6, %f3, %f4; mov.b32 %r10, %f6;", |a, b, _| float(f(a) * f(b)));
    check32("div.rn.f32 %f6, %f3, %f4; mov.b32 %r10, %f6;", |a, b, _| float(f(a) / f(b)));
    check32("fma.rn.f32 %f6, %f3, %f4, %f5; mov.b32 %r10, %f6;", |a, b, c| float(f(a).mul_add(f(b), f(c))));
    check32("sqrt.rn.f32 %f6, %f3; mov.b32 %r10, %f6;", |a, _, _| float(f(a).sqrt()));
    check32("rcp.rn.f32 %f6, %f3; mov.b32 %r10, %f6;", |a, _, _| float(1.0 / f(a)));
    check32("neg.f32 %f6, %f3; mov.b32 %r10, %f6;", |a, _, _| a ^ 0x8000_0000);
    check32("abs.f32 %f6, %f3; mov.b32 %r10, %f6;", |a, _, _| a & 0x7fff_ffff);
    check32("mov.f32 %f6, 0fBF800000; mov.b32 %r10, %f6;", |_, _, _| (-1f32).to_bits());
}

#[test]
fn conversions() {
    check32("cvt.rn.f32.s32 %f6, %r3; mov.b32 %r10, %f6;", |a, _, _| (a as i32 as f32).to_bits());
    check32("cvt.rn.f32.u64 %f6, %rd8; mov.b32 %r10, %f6;", |a, b, _| (pair(a, b) as f32).to_bits());
    check32("cvt.rp.f32.u64 %f6, %rd8; mov.b32 %r10, %f6;", |a, b, _| {
        let nearest = pair(a, b) as f32;
        let below = (nearest as u128) < u128::from(pair(a, b));
        (if below { nearest.next_up() } else { nearest }).to_bits()
    });
    check32("cvt.rni.s32.f32 %r10, %f3;", |a, _, _| f(a).round_ties_even() as i32 as u32);
    check32("cvt.rzi.u32.f32 %r10, %f3;", |a, _, _| f(a) as u32);
    check("cvt.rzi.u64.f32 %rd10, %f3;", |a, _, _| if f(a).is_nan() { 1 << 63 } else { f(a) as u64 });
    check32("cvt.rmi.f32.f32 %f6, %f3; mov.b32 %r10, %f6;", |a, _, _| float(f(a).floor()));
    check32("cvt.f32.f16 %f6, %rs3; mov.b32 %r10, %f6;", |a, _, _| {
        float(half::f16::from_bits(a as u16).to_f32())
    });
    check32("cvt.rn.f16.f32 %rs6, %f3; cvt.u32.u16 %r10, %rs6;", |a, _, _| {
        if f(a).is_nan() { 0x7fff } else { half::f16::from_f32(f(a)).to_bits().into() }
    });
    check32("cvt.rn.f32.s16 %f6, %rs3; mov.b32 %r10, %f6;", |a, _, _| f32::from(a as i16).to_bits());
    check32("cvt.rn.f16.s32 %rs6, %r3; cvt.u32.u16 %r10, %rs6;", |a, _, _| {
        half::f16::from_f64(f64::from(a as i32)).to_bits().into()
    });
    check32("cvt.sat.u8.s32 %r10, %r3;", |a, _, _| (a as i32).clamp(0, 255) as u32);
    check32("cvt.s32.s8 %r10, %r3;", |a, _, _| a as i8 as u32);
    check32("cvt.s16.s8 %rs6, %rs3; cvt.u32.u16 %r10, %rs6;", |a, _, _| u32::from(a as i8 as u16));
    check32("cvt.u32.u8 %r10, %r3;", |a, _, _| a & 0xff);
    check32("cvt.s32.s16 %r10, %rs3;", |a, _, _| a as i16 as u32);
}

#[test]
fn comparisons() {
    let test = |code: &str, holds: &dyn Fn(u32, u32, u32) -> bool| {
        check32(&format!("{code} selp.u32 %r10, 1, 0, %p1;"), |a, b, c| holds(a, b, c).into());
    };
    test("setp.lt.s32 %p1, %r3, %r4;", &|a, b, _| (a as i32) < b as i32);
    test("setp.hi.u32 %p1, %r3, %r4;", &|a, b, _| a > b);
    test("setp.ge.u64 %p1, %rd8, %rd9;", &|a, b, c| pair(a, b) >= pair(b, c));
    test("setp.le.s16 %p1, %rs3, %rs4;", &|a, b, _| a as i16 <= b as i16);
    test("setp.ne.s16 %p1, %rs3, -1;", &|a, _, _| a as u16 != 0xffff);
    let nan = |a, b| f(a).is_nan() || f(b).is_nan();
    test("setp.eq.f32 %p1, %f3, %f4;", &|a, b, _| f(a) == f(b));
    test("setp.ne.f32 %p1, %f3, %f4;", &|a, b, _| f(a) != f(b) && !nan(a, b));
    test("setp.neu.f32 %p1, %f3, %f4;", &|a, b, _| f(a) != f(b));
    test("setp.gtu.f32 %p1, %f3, %f4;", &|a, b, _| f(a) > f(b) || nan(a, b));
    test("setp.le.f32 %p1, %f3, %f4;", &|a, b, _| f(a) <= f(b));
    test("setp.nan.f32 %p1, %f3, %f4;", &|a, b, _| nan(a, b));
    test("setp.num.f32 %p1, %f3, %f4;", &|a, b, _| !nan(a, b));
    test("setp.eq.u32 %p2, %r4, 1; setp.lt.and.u32 %p1|%p3, %r3, %r5, !%p2;", &|a, b, c| a < c && b != 1);
    test("setp.eq.u32 %p2, %r4, 1; setp.lt.or.u32 %p3|%p1, %r3, %r5, %p2;", &|a, b, c| a >= c || b == 1);
    check32("set.lt.u32.u32 %r10, %r3, %r4;", |a, b, _| if a < b { u32::MAX } else { 0 });
    check32("slct.u32.s32 %r10, %r3, %r4, %r5;", |a, b, c| if c as i32 >= 0 { a } else { b });
}

#[test]
fn memory_of_all_widths() {
    let body = "
    shl.b32 %r3, %r1, 4;
    cvt.u64.u32 %rd6, %r3;
    add.s64 %rd7, %rd3, %rd6;
    add.s64 %rd8, %rd4, %rd6;
    ld.global.nc.L1::no_allocate.v4.u32 {%r4, %r5, %r6, %r7}, [%rd7];
    ld.global.v2.u64 {%rd9, %rd10}, [%rd7];
    ld.global.s8 %r8, [%rd7+3];
    ld.global.u16 %rs1, [%rd7+14];
    add.s64 %rd11, %rd7, 8;
    ld.volatile.global.v2.u32 {_, %r9}, [%rd11];
    st.shared.v4.u32 [%r3], {%r7, %r6, %r5, %r4};
    mov.u64 %rd12, static;
    cvta.shared.u64 %rd12, %rd12;
    add.s64 %rd12, %rd12, %rd6;
    ld.v2.u32 {%r10, %r11}, [%rd12];
    st.u32 [%rd8], %r8;
    cvt.u32.u16 %r12, %rs1;
    st.global.v2.u32 [%rd8+8], {%r10, %r12};
    sub.s32 %r13, %r11, %r6;
    sub.s32 %r14, %r9, %r7;
    cvt.u32.u64 %r15, %rd9;
    sub.s32 %r15, %r15, %r4;
    or.b32 %r13, %r13, %r14;
    or.b32 %r13, %r13, %r15;
    st.global.u32 [%rd8+4], %r13;";
    let from: Vec<u32> = (0..128_u32).map(|i| i.wrapping_mul(0x8123_4567_u32)).collect();
    for (words, from) in crate::Case::default().run(body, &from, 128).unwrap().0.chunks(4).zip(from.chunks(4))
    {
        let [a, _, _, d] = from else { unreachable!() };
        assert_eq!(words, [(a >> 24) as i8 as u32, 0, *d, d >> 16]);
    }
}

#[test]
fn local_memory_belongs_to_a_thread() {
    let module = "
    .local .align 8 .b8 depot[16];
    mov.u64 %rd6, depot;
    cvta.local.u64 %rd7, %rd6;
    st.local.u32 [%rd6+4], %r1;
    add.s64 %rd7, %rd7, 4;
    ld.u32 %r3, [%rd7];
    st.global.u32 [%rd2], %r3;";
    assert_eq!(crate::warp(module, &[]), (0..32).collect::<Vec<u32>>());
}

#[test]
fn atomics() {
    let body = "
    atom.global.add.u32 %r3, [%rd3], 2;
    atom.global.max.s32 %r4, [%rd3+4], %r1;
    red.global.min.u32 [%rd3+8], %r1;
    atom.global.inc.u32 %r5, [%rd3+12], 9;
    atom.global.exch.b32 %r6, [%rd3+16], %r1;
    setp.eq.u32 %p1, %r1, 5;
    @%p1 atom.global.cas.b32 %r7, [%rd3+20], 40, 41;
    atom.relaxed.gpu.global.add.u64 %rd6, [%rd3+24], 4294967296;
    bar.sync 0;
    setp.ge.u32 %p2, %r1, 8;
    @%p2 bra $end;
    ld.global.u32 %r8, [%rd1];
    st.global.u32 [%rd2], %r8;
    $end:";
    let run = Case { threads: 64, ..Case::default() }.run(body, &[100, u32::MAX, 7, 3, 0, 40, 1, 2], 8);
    assert_eq!(run.unwrap().0, [228, 63, 0, 7, 63, 41, 1, 66]);
}
