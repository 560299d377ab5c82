//! Each fault, and beside it the same kernel without it.

use ptx_machine::{Fault, Trap};

use crate::Case;

fn case(blocks: u32, threads: u32) -> Case {
    Case { blocks, threads, ..Case::default() }
}

/// A kernel is right in every order; without the line that it needs it is caught in every order.
fn needs(case: Case, body: &str, line: &str, words: usize, caught: impl Fn(&Fault) -> bool) {
    assert!(body.contains(line));
    let from: Vec<u32> = (0..2048).collect();
    for case in case.orders() {
        let right = case.run(body, &from, words);
        assert!(right.is_ok(), "{:?}: {}", case.options, right.unwrap_err());
        let trap = case.run(&body.replacen(line, "", 1), &from, words).expect_err("the fault is there");
        assert!(caught(&trap.fault), "{:?}: {trap}", case.options);
        assert!(trap.place.is_some());
    }
}

fn race(fault: &Fault) -> bool {
    matches!(fault, Fault::Race { .. } | Fault::Uninitialised { .. })
}

fn trap(case: Case, body: &str) -> Trap {
    case.run(body, &[0; 64], 64).expect_err("a trap")
}

const EXCHANGE: &str = "
    shl.b32 %r3, %r1, 2;
    xor.b32 %r4, %r3, 128;
    st.shared.u32 [%r3], %r1;
    bar.sync 0;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%rd2], %r5;";

#[test]
fn a_dropped_barrier_between_warps() {
    needs(case(1, 64), EXCHANGE, "bar.sync 0;", 64, race);
}

#[test]
fn a_dropped_barrier_at_the_end_of_a_loop() {
    let body = "
    shl.b32 %r3, %r1, 2;
    xor.b32 %r4, %r3, 128;
    mov.u32 %r6, 0;
    $again:
    st.shared.u32 [%r3], %r6;
    bar.sync 0;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%rd2], %r5;
    barrier.cta.sync 0;
    add.u32 %r6, %r6, 1;
    setp.lt.u32 %p1, %r6, 3;
    @%p1 bra $again;";
    needs(case(1, 64), body, "barrier.cta.sync 0;", 64, race);
}

#[test]
fn a_dropped_warp_barrier() {
    let body = "
    shl.b32 %r3, %r1, 2;
    xor.b32 %r4, %r3, 4;
    st.shared.u32 [%r3], %r1;
    bar.warp.sync -1;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%rd2], %r5;";
    needs(case(1, 32), body, "bar.warp.sync -1;", 32, race);
}

#[test]
fn a_dropped_wait_for_a_copy() {
    let body = "
    shl.b32 %r3, %r1, 2;
    cp.async.ca.shared.global [%r3], [%rd1], 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.u32 %r5, [%r3];
    st.global.u32 [%rd2], %r5;";
    needs(case(1, 64), body, "cp.async.wait_group 0;", 64, race);
    needs(case(1, 64), body, "cp.async.commit_group;", 64, race);
    // One group too few.
    let pending = body.replace("wait_group 0", "wait_group 1");
    assert!(case(1, 64).run(&pending, &[1; 64], 64).is_err());
}

#[test]
fn a_copy_that_only_its_thread_waited_for() {
    let body = EXCHANGE.replace(
        "st.shared.u32 [%r3], %r1;",
        "cp.async.ca.shared.global [%r3], [%rd1], 4; cp.async.wait_all;",
    );
    needs(case(1, 64), &body, "bar.sync 0;", 64, race);
}

#[test]
fn a_tail_that_is_off_by_one() {
    let body = "
    mad.lo.u32 %r3, %r2, 32, %r1;
    setp.gt.u32 %p1, %r3, 40;
    @%p1 bra $end;
    mul.wide.u32 %rd6, %r3, 4;
    add.s64 %rd7, %rd4, %rd6;
    st.global.u32 [%rd7], %r3;
    $end:";
    let trap = case(2, 32).run(body, &[], 40).unwrap_err();
    assert!(matches!(trap.fault, Fault::OutOfBounds { bytes: 4, .. }), "{trap}");
    let place = trap.place.as_ref().unwrap();
    assert_eq!((place.block, place.thread), ([1, 0, 0], [8, 0, 0]));
    assert!(place.text.starts_with("st.global.u32"));
    assert!(trap.to_string().contains("byte 160 of an allocation of 160 bytes"), "{trap}");
}

#[test]
fn warps_that_write_the_same_place() {
    let body = "and.b32 %r3, %r1, 31; shl.b32 %r3, %r3, 2; st.shared.u32 [%r3], %r3;";
    assert!(matches!(trap(case(1, 64), body).fault, Fault::Race { space: "shared", .. }));
    let body = "st.global.u32 [%rd4], %r1;";
    assert!(matches!(trap(case(1, 32), body).fault, Fault::Race { space: "global", .. }));
    // Lanes may agree on what they write.
    assert!(case(1, 32).run("st.global.u32 [%rd4], 7;", &[], 1).is_ok());
    assert!(matches!(trap(case(1, 64), "st.global.u32 [%rd4], 7;").fault, Fault::Race { .. }));
}

#[test]
fn neighbouring_bytes_do_not_race() {
    let body = "
    cvt.u64.u32 %rd6, %r1;
    add.s64 %rd7, %rd4, %rd6;
    st.global.u8 [%rd7], %r1;
    bar.sync 0;
    xor.b32 %r3, %r1, 60;
    cvt.u64.u32 %rd6, %r3;
    add.s64 %rd7, %rd4, %rd6;
    ld.global.u8 %r4, [%rd7];
    st.shared.u8 [%r1], %r4;";
    needs(case(1, 64), body, "bar.sync 0;", 16, race);
}

#[test]
fn blocks_that_write_what_others_read() {
    let body = "st.global.u32 [%rd2], %r2;";
    assert!(matches!(trap(case(2, 32), body).fault, Fault::Race { space: "global", .. }));
    let body = "
    setp.ne.u32 %p1, %r2, 0;
    @%p1 ld.global.u32 %r3, [%rd1];
    @!%p1 st.global.u32 [%rd1], %r1;";
    for case in case(2, 32).orders() {
        assert!(matches!(case.run(body, &[0; 32], 1).unwrap_err().fault, Fault::Race { .. }));
    }
}

/// Every block writes a word; the one that comes last adds them up.
const LAST_BLOCK: &str = "
    mul.wide.u32 %rd6, %r2, 4;
    add.s64 %rd7, %rd4, %rd6;
    setp.ne.u32 %p1, %r1, 0;
    setp.ne.u32 %p3, %r1, 33;
    @%p3 bra $written;
    st.global.u32 [%rd7+64], %r2;
    $written:
    bar.sync 0;
    @%p1 bra $counted;
    membar.gl;
    atom.global.add.u32 %r3, [%rd3], 1;
    fence.acq_rel.gpu;
    st.shared.u32 [static], %r3;
    $counted:
    bar.sync 1;
    ld.shared.u32 %r4, [static];
    setp.ne.u32 %p2, %r4, 7;
    or.pred %p2, %p2, %p1;
    @%p2 bra $end;
    mov.u32 %r5, 0;
    mov.u32 %r6, 0;
    mov.u64 %rd8, %rd4;
    $sum:
    ld.global.u32 %r7, [%rd8+64];
    add.u32 %r5, %r5, %r7;
    add.s64 %rd8, %rd8, 4;
    add.u32 %r6, %r6, 1;
    setp.lt.u32 %p4, %r6, 8;
    @%p4 bra $sum;
    st.global.u32 [%rd4], %r5;
    $end:";

#[test]
fn the_last_block_may_read_what_the_others_wrote() {
    for line in ["membar.gl;", "fence.acq_rel.gpu;", "bar.sync 0;"] {
        needs_zeroed(case(8, 64), LAST_BLOCK, line);
    }
}

/// As [`needs`], with a counter that starts at 0.
fn needs_zeroed(case: Case, body: &str, line: &str) {
    for case in case.orders() {
        let (words, _) = case.run(body, &[0], 24).unwrap_or_else(|trap| panic!("{:?}: {trap}", case.options));
        assert_eq!(words[0], 28);
        let trap = case.run(&body.replacen(line, "", 1), &[0], 24).expect_err(line);
        assert!(race(&trap.fault), "{line}: {trap}");
    }
}

/// All threads fence what they wrote, then one counts for all: this is enough as well.
#[test]
fn the_writers_may_fence() {
    let body =
        LAST_BLOCK.replacen("membar.gl;", "", 1).replacen("bar.sync 0;", "fence.sc.gpu; bar.sync 0;", 1);
    needs_zeroed(case(8, 64), &body, "fence.sc.gpu;");
}

#[test]
fn memory_that_nobody_wrote() {
    assert!(matches!(trap(case(1, 32), "ld.global.u32 %r3, [%rd2];").fault, Fault::Uninitialised { .. }));
    assert!(matches!(trap(case(1, 32), "ld.shared.u32 %r3, [static];").fault, Fault::Uninitialised { .. }));
}

#[test]
fn addresses_that_lead_nowhere() {
    let bad = |body| trap(case(1, 32), body).fault;
    assert!(matches!(bad("ld.global.u32 %r3, [%rd3+2];"), Fault::Misaligned { bytes: 4, .. }));
    assert!(matches!(bad("ld.global.u32 %r3, [%rd3-4];"), Fault::OutOfBounds { space: "global", .. }));
    assert!(matches!(bad("st.shared.u32 [dynamic+1024], 1;"), Fault::OutOfBounds { space: "shared", .. }));
    assert!(matches!(bad("mov.u64 %rd6, 0; ld.u32 %r3, [%rd6];"), Fault::OutOfBounds { .. }));
    assert!(matches!(bad("ld.param.u64 %rd6, [from+16];"), Fault::OutOfBounds { space: "parameter", .. }));
}

#[test]
fn barriers_in_divergent_code() {
    let half = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $over; bar.sync 0; $over: add.u32 %r3, %r1, 1;";
    assert!(matches!(trap(case(1, 32), half).fault, Fault::Deadlock(_)));
    let ended = "setp.lt.u32 %p1, %r1, 16; @%p1 ret; bar.sync 0;";
    assert!(matches!(trap(case(1, 32), ended).fault, Fault::Deadlock(_)));
    let different = "setp.lt.u32 %p1, %r1, 32; @%p1 bra $one; bar.sync 0; ret; $one: bar.sync 1;";
    let fault = trap(case(1, 64), different).fault;
    assert_eq!(fault, Fault::Deadlock("warp 0 at barrier 1, warp 1 at barrier 0".to_owned()));
    let gone = "setp.lt.u32 %p1, %r1, 32; @%p1 ret; bar.sync 0;";
    assert!(matches!(trap(case(1, 64), gone).fault, Fault::Deadlock(_)));
}

#[test]
fn collectives_without_all_their_members() {
    let gone = "setp.lt.u32 %p1, %r1, 16; @%p1 ret; bar.warp.sync -1;";
    assert!(matches!(trap(case(1, 32), gone).fault, Fault::Collective(_)));
    let elsewhere = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $a; bar.warp.sync -1; ret; $a: bar.warp.sync -1;";
    assert!(matches!(trap(case(1, 32), elsewhere).fault, Fault::Deadlock(_)));
    let outside = "shfl.sync.idx.b32 %r3, %r1, 20, 31, 0xffff;";
    assert!(matches!(trap(case(1, 16), outside).fault, Fault::Collective(_)));
}

#[test]
fn what_does_not_end() {
    assert_eq!(trap(case(1, 32), "$l: bra $l;").fault, Fault::Budget(1 << 20));
    assert_eq!(trap(case(1, 32), "trap;").fault, Fault::Explicit);
}
