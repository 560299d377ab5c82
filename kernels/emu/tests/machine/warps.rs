//! What lanes do together, and apart.

use ptx_machine::{Counts, Launch, Memory, Module, Options, Tally, run, run_blocks};

use crate::{Case, module, warp};

fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

/// Runs code with a result in `%r10`.
fn result(code: &str) -> Vec<u32> {
    warp(&format!("{code} st.global.u32 [%rd2], %r10;"), &[])
}

#[test]
fn shuffles() {
    let square = "mul.lo.u32 %r3, %r1, %r1;";
    let shuffled = |code: &str| result(&format!("{square} {code}"));
    assert_eq!(shuffled("shfl.sync.bfly.b32 %r10, %r3, 5, 31, -1;"), lanes(|i| (i ^ 5).pow(2)));
    assert_eq!(shuffled("shfl.sync.idx.b32 %r10, %r3, 9, 31, -1;"), lanes(|_| 81));
    assert_eq!(
        shuffled("shfl.sync.up.b32 %r10, %r3, 3, 0, -1;"),
        lanes(|i| if i < 3 { i * i } else { (i - 3).pow(2) })
    );
    assert_eq!(
        shuffled("shfl.sync.down.b32 %r10, %r3, 3, 31, -1;"),
        lanes(|i| if i > 28 { i * i } else { (i + 3).pow(2) })
    );
    // Segments of 8 lanes; the predicate says where the source was in range.
    let code = "shfl.sync.down.b32 %r4|%p1, %r3, 2, 0x181f, -1; selp.u32 %r10, %r4, 7777, %p1;";
    assert_eq!(shuffled(code), lanes(|i| if i % 8 > 5 { 7777 } else { (i + 2).pow(2) }));
    let code = "shfl.sync.idx.b32 %r10, %r3, 1, 0x181f, -1;";
    assert_eq!(shuffled(code), lanes(|i| (i / 8 * 8 + 1).pow(2)));
}

#[test]
fn votes_and_reductions() {
    let odd = "and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 1;";
    let voted = |code: &str| result(&format!("{odd} {code}"));
    assert_eq!(voted("vote.sync.ballot.b32 %r10, %p1, -1;"), lanes(|_| 0xaaaa_aaaa));
    assert_eq!(voted("vote.sync.any.pred %p2, %p1, -1; selp.u32 %r10, 1, 0, %p2;"), lanes(|_| 1));
    assert_eq!(voted("vote.sync.all.pred %p2, !%p1, -1; selp.u32 %r10, 1, 0, %p2;"), lanes(|_| 0));
    assert_eq!(voted("match.any.sync.b32 %r10, %r3, -1;"), lanes(|i| 0x5555_5555 << (i & 1)));
    assert_eq!(voted("redux.sync.add.u32 %r10, %r1, -1;"), lanes(|_| 496));
    assert_eq!(voted("sub.s32 %r4, 5, %r1; redux.sync.min.s32 %r10, %r4, -1;"), lanes(|_| -26_i32 as u32));
    assert_eq!(
        voted("@%p1 activemask.b32 %r10; @!%p1 mov.u32 %r10, 0;"),
        lanes(|i| if i & 1 == 1 { u32::MAX } else { 0 })
    );
}

#[test]
fn halves_of_a_warp_have_their_own_collectives() {
    let code = "
    setp.lt.u32 %p1, %r1, 16;
    @%p1 bra $low;
    shfl.sync.bfly.b32 %r10, %r1, 1, 31, 0xffff0000;
    bra $end;
    $low:
    mov.u32 %r3, 100;
    shfl.sync.idx.b32 %r10, %r3, 0, 31, 0xffff;
    $end:
    bar.warp.sync -1;";
    assert_eq!(result(code), lanes(|i| if i < 16 { 100 } else { i ^ 1 }));
    let named =
        "setp.lt.u32 %p1, %r1, 16; selp.b32 %r3, 0xffff, 0xffff0000, %p1; redux.sync.max.u32 %r10, %r1, %r3;";
    assert_eq!(result(named), lanes(|i| if i < 16 { 15 } else { 31 }));
}

/// Each lane loops as often as its number says; they come together behind the loop.
#[test]
fn lanes_come_together_again() {
    let code = "
    mov.u32 %r10, 0;
    mov.u32 %r3, 0;
    $loop:
    setp.ge.u32 %p1, %r3, %r1;
    @%p1 bra $done;
    add.u32 %r3, %r3, 1;
    add.u32 %r10, %r10, %r3;
    and.b32 %r4, %r3, 1;
    setp.eq.u32 %p2, %r4, 0;
    @%p2 bra $loop;
    add.u32 %r10, %r10, 1000;
    bra.uni $loop;
    $done:
    activemask.b32 %r5;
    add.u32 %r5, %r5, 1;
    add.u32 %r10, %r10, %r5;";
    assert_eq!(result(code), lanes(|i| i * (i + 1) / 2 + i.div_ceil(2) * 1000));
}

#[test]
fn indexed_branches() {
    let code = "
    $targets: .branchtargets $a, $b, $c;
    rem.u32 %r3, %r1, 3;
    brx.idx %r3, $targets;
    $a: mov.u32 %r10, 10; bra $end;
    $b: mov.u32 %r10, 20; bra $end;
    $c: mov.u32 %r10, 30;
    $end:";
    assert_eq!(result(code), lanes(|i| [10, 20, 30][i as usize % 3]));
}

#[test]
fn barriers_reduce_and_have_numbers() {
    let case = Case { threads: 128, ..Case::default() };
    let code = "
    setp.lt.u32 %p1, %r1, 70;
    barrier.cta.red.popc.aligned.u32 %r10, 3, %p1;
    setp.ge.u32 %p2, %r1, 64;
    @%p2 bra $others;
    bar.sync 5, 64;
    $others:
    st.global.u32 [%rd2], %r10;";
    for case in case.orders() {
        assert_eq!(case.run(code, &[], 128).unwrap().0, [70; 128]);
    }
}

#[test]
fn dynamic_memory_follows_static() {
    let code = "
    mov.u32 %r10, dynamic;
    mov.u32 %r3, static;
    sub.u32 %r10, %r10, %r3;
    mov.u32 %r4, %dynamic_smem_size;
    add.u32 %r10, %r10, %r4;";
    assert_eq!(result(code), lanes(|_| 4096 + 1024));
}

#[test]
fn work_is_counted() {
    let body = "
    ld.global.u32 %r3, [%rd1];
    fma.rn.f32 %f1, %f2, %f3, %f4;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 st.global.u32 [%rd2], %r3;
    shl.b32 %r4, %r1, 3;
    st.shared.u32 [%r4], %r3;
    bar.sync 0;
    shfl.sync.idx.b32 %r5, %r3, 0, 31, -1;";
    let (_, counts) = Case::default().run(body, &[1; 32], 32).unwrap();
    assert_eq!(counts.float, Tally { warps: 1, lanes: 32 });
    assert_eq!(counts.memory, Tally { warps: 3, lanes: 2 * 32 + 8 });
    assert_eq!((counts.barrier.warps, counts.shuffle.warps, counts.control.warps), (1, 1, 1));
    assert_eq!((counts.global_read.bytes, counts.global_read.sectors), (128, 4));
    assert_eq!((counts.global_written.bytes, counts.global_written.sectors), (32, 1));
    assert_eq!((counts.shared_written.cycles, counts.shared_written.conflicts), (2, 1));
    assert_eq!((counts.integer.warps, counts.movement.warps), (5, 4));
    assert_eq!(counts.instructions().warps, 5 + 4 + 1 + 3 + 3);
}

#[test]
fn parts_of_a_launch_count_their_share() {
    let module = Module::parse(&module("st.global.u32 [%rd2], %r2;")).unwrap();
    let mut memory = Memory::new(1 << 12);
    let output = memory.allocate(128).unwrap();
    let params: Vec<u8> = [output; 2].into_iter().flat_map(u64::to_le_bytes).collect();
    let launch = Launch { kernel: "k", grid: [3, 2, 1], block: [32, 1, 1], shared: 0, params: &params };
    let options = Options::default();
    let mut part = |blocks| run_blocks(&module, &mut memory, &launch, &options, blocks);
    let mut sum = part(0..2).unwrap();
    assert_eq!(sum, part(5..6).unwrap().times(2));
    assert_eq!(sum.global_written.bytes, 2 * 128);
    sum += part(2..6).unwrap();
    assert!(part(0..7).is_err(), "there are six blocks");
    assert_eq!(part(0..0).unwrap(), Counts::default());
    assert_eq!(run(&module, &mut memory, &launch, &options).unwrap(), sum);
}
