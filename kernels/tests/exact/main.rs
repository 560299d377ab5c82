//! Every backend against the scalar reference, by equality.

mod case;
mod faults;
mod golden;
mod layers;
mod linear;
mod rng;
mod trace;

use kernels::cpu::{Cpu, Isa};

/// Every instruction set of this machine, on one and on two threads.
fn cpus() -> Vec<Cpu> {
    let cpu = |isa, threads| Cpu::new(threads, isa).expect("an available instruction set");
    Isa::available().into_iter().flat_map(|isa| [1, 2].map(|threads| cpu(isa, threads))).collect()
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
