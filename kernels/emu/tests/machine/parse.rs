//! What is not understood is refused, and nothing breaks the reader.

use proptest::prelude::*;
use ptx_machine::Module;

use crate::module;

fn refused(body: &str) -> String {
    let error = Module::parse(&module(body)).expect_err(body);
    assert_eq!(error.line, 21, "{error}");
    error.to_string()
}

#[test]
fn unknown_text_is_refused_by_name() {
    for (body, reason) in [
        ("frob.u32 %r3, %r1;", "unknown instruction"),
        ("add.f32 %f1, %f2, %f3;", "`.rn` expected"),
        ("add.rn.ftz.f32 %f1, %f2, %f3;", "unknown modifier `.ftz`"),
        ("div.full.f32 %f1, %f2, %f3;", "`.rn` expected"),
        ("sqrt.approx.f32 %f1, %f2;", "`.rn` expected"),
        ("add.u32 %r3, %r1;", "no `add` of 2 operands"),
        ("add.u32 %r3, %r99, 1;", "unknown name `%r99`"),
        ("add.u32 %r3, %rd1, 1;", "`%rd1` has not 32 bits"),
        ("bra $nowhere;", "no label `$nowhere`"),
        ("ld.global.u32 %r3, [static];", "another state space"),
        ("red.global.add.f32 [%rd1], %f1;", "no atomic `add` of F32"),
        ("mov.u32 %r3, %clock;", "unknown name `%clock`"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};",
            "8-bit",
        ),
    ] {
        let error = refused(body);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn kernels_are_listed() {
    let module = Module::parse(&module("")).unwrap();
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["k"]);
}

/// The kernels of the product.
const SHIPPED: &str = include_str!("../../../cu/ptx/80/copy.ptx");

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mangled_text_is_read_or_refused(
        cuts in prop::collection::vec((0_usize..4000, 0_usize..60, 0_usize..4000), 1..6),
        junk in "[a-z0-9%\\[\\]{}<>.,;:@!|+ \"/*-]{0,12}",
    ) {
        let mut text: Vec<char> = format!("{SHIPPED}{}", module("mov.b64 {%r3, _}, %rd1;")).chars().collect();
        for (at, length, to) in cuts {
            let at = at % text.len();
            let end = (at + length).min(text.len());
            let piece: Vec<char> = text.drain(at..end).collect();
            let to = to % (text.len() + 1);
            text.splice(to..to, piece.into_iter().chain(junk.chars()));
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = Module::parse(&text) {
            prop_assert!(error.line as usize <= text.lines().count().max(1));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = Module::parse(&text);
    }
}
