//! Tests of the tests: the committed PTX with one mistake in it must not pass.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kernels::{
    cuda::launch::{Level, Source},
    tensor::Format,
};

use crate::{card::Card, linear::check};

/// Where the text of a kernel begins and ends.
fn kernel(ptx: &str, name: &str) -> (usize, usize) {
    let from = ptx.find(&format!(".entry {name}(")).expect("the kernel is there");
    let length = ptx[from..].find("\n}").expect("it ends");
    (from, from + length)
}

/// Puts the lines of a kernel that begin with `what` through `change`, one at a time. How many mistakes that made, and
/// with how many of them `passes` passed.
fn mistakes(
    source: Source,
    name: &str,
    what: &str,
    change: impl Fn(&str) -> String,
    passes: impl Fn(&mut Card) + Copy,
) -> (usize, usize) {
    let ptx = source.ptx(Level::Ampere);
    let (from, to) = kernel(ptx, name);
    let (mut made, mut passed) = (0, 0);
    let mut at = from;
    for line in ptx[from..to].split_inclusive('\n') {
        if line.trim_start().starts_with(what) {
            made += 1;
            let wrong = format!("{}{}{}", &ptx[..at], change(line), &ptx[at + line.len()..]);
            let mut card = Card::replacing(source, &wrong);
            passed += usize::from(catch_unwind(AssertUnwindSafe(|| passes(&mut card))).is_ok());
        }
        at += line.len();
    }
    (made, passed)
}

/// Tiles of 96 x 128 with ragged ends, over several steps of K.
fn many_rows(card: &mut Card) {
    check(card, Format::Q8, 100, 129, 1024, 1);
}

fn few_rows(card: &mut Card) {
    check(card, Format::Q8, 5, 129, 1024, 1);
}

#[test]
fn without_a_mistake_it_passes() {
    let card = |source: Source| Card::replacing(source, source.ptx(Level::Ampere));
    many_rows(&mut card(Source::Gemm));
    few_rows(&mut card(Source::Linear));
}

#[test]
fn dropped_barriers_are_caught() {
    let dropped = |_: &str| "\n".to_owned();
    assert_eq!(mistakes(Source::Gemm, "gemm_q8", "bar.sync", dropped, many_rows), (3, 0));
}

#[test]
fn dropped_waits_are_caught() {
    let dropped = |_: &str| "\n".to_owned();
    assert_eq!(mistakes(Source::Gemm, "gemm_q8", "cp.async.wait_group", dropped, many_rows), (1, 0));
}

/// Swaps the first two registers after the accumulators: two pieces of the weights.
fn swapped(line: &str) -> String {
    let open = line.match_indices('{').nth(1).expect("the weights").0;
    let close = open + line[open..].find('}').expect("they end");
    let mut registers: Vec<&str> = line[open + 1..close].split(", ").collect();
    registers.swap(0, 1);
    format!("{}{}{}", &line[..=open], registers.join(", "), &line[close..])
}

#[test]
fn swapped_fragments_are_caught() {
    let (made, passed) = mistakes(Source::Gemm, "gemm_q8", "mma.sync", swapped, many_rows);
    assert!(made > 0 && passed == 0, "{passed} of {made} pass");
    let (made, passed) = mistakes(Source::Linear, "linear_q8_8", "mma.sync", swapped, few_rows);
    assert!(made > 0 && passed == 0, "{passed} of {made} pass");
}

#[test]
fn rows_past_the_end_are_caught() {
    // One more row than there are is taken, or one fewer.
    let more = |line: &str| line.replace("setp.ge.u32", "setp.gt.u32");
    let (made, passed) = mistakes(Source::Copy, "gather", "setp.ge.u32", more, |card| {
        let (from, rows) = (card.upload(&[1.0_f32; 64]), card.upload(&[3_u32, 0]));
        let out = card.blank::<f32>(32);
        let params = kernels::cuda::ops::copy::Gather { from, rows, out, width: 16, count: 2 };
        card.launch(&kernels::cuda::ops::copy::gather(params));
        assert_eq!(card.download::<f32>(out, 32), [1.0; 32]);
    });
    assert_eq!((made, passed), (1, 0));
}
