//! What the host finds, and what it says of what it cannot use.

use kernels::{
    backend::{Backend, BackendError},
    cuda::{CardError, Cuda, cards, driver_version},
};
use stand_in_driver::StandIn;

#[test]
fn cards_are_listed_and_chosen() {
    let _stand_in = StandIn::fresh("cards=9.0:Large card,7.5:Small card,6.1:Old card; memory=64m");
    assert_eq!(driver_version().expect("a driver"), 12040);
    let cards = cards().expect("cards");
    let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
    assert_eq!(names, ["Large card", "Small card", "Old card"]);
    assert!(cards.iter().all(|card| card.memory_bytes == 64 << 20));
    let second = Cuda::open(1).expect("a card of compute capability 7.5");
    assert!(second.describe().contains("Small card"), "{}", second.describe());
    let old = Cuda::open(2).expect_err("too old");
    assert!(matches!(old, CardError::OldCard { capability: (6, 1), .. }), "{old}");
    let none = Cuda::open(3).expect_err("there are three");
    assert!(matches!(none, CardError::NoCard { index: 3, count: 3 }), "{none}");
}

#[test]
fn an_old_driver_says_what_is_needed() {
    let _stand_in = StandIn::fresh("driver=12020");
    let error = Cuda::open(0).expect_err("too old").to_string();
    assert!(error.contains("CUDA 12.2") && error.contains("550"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let stand_in = StandIn::fresh("memory=64m");
    let cuda = Cuda::open(0).expect("a card");
    let error = cuda.buffer(1 << 20, 1 << 10).expect_err("4 GiB");
    assert!(matches!(error, BackendError::OutOfMemory { what: "a buffer of rows", .. }), "{error}");
    stand_in.set("oom-at=1");
    assert!(matches!(cuda.buffer(1, 1), Err(BackendError::OutOfMemory { .. })));
    cuda.buffer(1, 1).expect("there is room");
}
