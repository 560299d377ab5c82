//! Every backend against the scalar reference, by equality.

mod case;
mod faults;
mod golden;
mod layers;
mod linear;
mod rng;
mod trace;

use kernels::{
    backend::{Backend, Batch, Profile, Row, StepShape},
    cpu::{Cpu, Isa},
    reference::Reference,
};

use case::Case;
use trace::{Stage, assert_equal, trace};

/// A pass over `rows` rows at position 0 with a page each, in the middle of its beginning and its end.
fn begin<B: Backend>(backend: &B, rows: usize, sources: &[u32], profile: Profile) -> B::Step {
    let shape = StepShape { rows, pages: rows, positions: 1, profile, attention: None, vocabulary: 0 };
    let mut step = backend.step(shape).expect("a small step");
    let pages: Vec<u32> = (0..rows as u32).rev().collect();
    let rows: Vec<Row> = (0..rows).map(|row| Row { position: 0, pages: row..row + 1 }).collect();
    backend.begin(&mut step, Batch { rows: &rows, pages: &pages, sources });
    step
}

/// Every instruction set of this machine, on one and on two threads.
fn cpus() -> Vec<Cpu> {
    let cpu = |isa, threads| Cpu::new(threads, isa).expect("an available instruction set");
    Isa::available().into_iter().flat_map(|isa| [1, 2].map(|threads| cpu(isa, threads))).collect()
}

/// Runs `case` on the reference and on every CPU backend.
fn check(case: &Case) {
    let expected = trace(&Reference, case);
    for cpu in cpus() {
        assert_equal(&format!("{cpu:?}"), case, &expected, &trace(&cpu, case));
    }
}

/// [`check`], and that no row is faulty.
fn check_sound(case: &Case) {
    let faulty = |stage: &Stage| stage.faults.iter().any(Option::is_some);
    let stages = trace(&Reference, case);
    assert!(!stages.iter().any(faulty), "a fault in {case:?}");
    check(case);
}

#[test]
fn unavailable_devices_are_refused() {
    println!("instruction sets: {:?}", Isa::available());
    for isa in [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Amx] {
        assert_eq!(Cpu::new(1, isa).is_ok(), Isa::available().contains(&isa));
    }
    assert!(Cpu::new(0, Isa::Portable).is_err());
    assert!(Cpu::new(Cpu::MAX_THREADS + 1, Isa::Portable).is_err());
    assert!(Isa::available().contains(&Isa::detect()));
}
