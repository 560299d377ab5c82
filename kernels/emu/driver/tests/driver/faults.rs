//! Failures of cards and kernels, and what is left behind.

use std::{sync::mpsc, thread};

use cudarc::driver::{CudaContext, result, sys::CUresult::*};
use stand_in_driver::{Alive, StandIn};

use crate::{
    GATHERED, Rows, SHAPE, assert_fails,
    raw::{Gather, Pinned, Shape, allocate, context, set_current},
};

#[test]
fn a_kernel_that_leaves_its_memory_breaks_the_context() {
    let stand_in = StandIn::fresh("");
    let first = context();
    let rows = Rows::new(&first.new_stream().unwrap()).unwrap();
    let params = Gather { count: 4, ..rows.params() };
    let shape = Shape { grid: (4, 1, 1), ..SHAPE };
    rows.gather.launch(&rows.stream, shape, params).unwrap();
    for _ in 0..2 {
        assert_fails(rows.stream.synchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    }
    assert_fails(rows.launch(), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_fails(rows.gathered(), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_fails(first.new_stream(), CUDA_ERROR_ILLEGAL_ADDRESS);
    drop((rows, first));
    assert_eq!(stand_in.alive(), Alive::default());
    // Whoever lets go of the context may begin again.
    let again = Rows::new(&context().new_stream().unwrap()).unwrap();
    again.launch().unwrap();
    assert_eq!(again.gathered().unwrap(), GATHERED);
}

#[test]
fn a_freed_buffer_is_not_read() {
    let _stand_in = StandIn::fresh("");
    let mut rows = Rows::new(&context().new_stream().unwrap()).unwrap();
    let params = rows.params();
    rows.from = rows.stream.alloc_zeros(1).unwrap();
    rows.gather.launch(&rows.stream, SHAPE, params).unwrap();
    assert_fails(rows.stream.synchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_launch_faults_on_demand() {
    let _stand_in = StandIn::fresh("fault-at=2");
    let rows = Rows::new(&context().new_stream().unwrap()).unwrap();
    rows.launch().unwrap();
    rows.launch().unwrap();
    assert_fails(rows.gathered(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn launches_that_cannot_be_are_refused() {
    let _stand_in = StandIn::fresh("");
    let rows = Rows::new(&context().new_stream().unwrap()).unwrap();
    for bad in [
        Shape { grid: (0, 1, 1), ..SHAPE },
        Shape { grid: (1, 65536, 1), ..SHAPE },
        Shape { block: (257, 1, 1), ..SHAPE },
        Shape { block: (0, 1, 1), ..SHAPE },
        Shape { shared: (48 << 10) + 1, ..SHAPE },
    ] {
        assert_fails(rows.gather.launch(&rows.stream, bad, rows.params()), CUDA_ERROR_INVALID_VALUE);
    }
    rows.launch().unwrap();
    assert_eq!(rows.gathered().unwrap(), GATHERED);
}

#[test]
fn too_many_instructions_are_a_timeout() {
    let _stand_in = StandIn::fresh("budget=10");
    let rows = Rows::new(&context().new_stream().unwrap()).unwrap();
    rows.launch().unwrap();
    assert_fails(rows.stream.synchronize(), CUDA_ERROR_LAUNCH_TIMEOUT);
}

#[test]
fn a_launch_hangs_until_it_is_told_to_go_on() {
    let stand_in = StandIn::fresh("hang-at=1");
    let context = context();
    let [hanging, other] = [(); 2].map(|()| context.new_stream().unwrap());
    let rows = Rows::new(&hanging).unwrap();
    let event = context.new_event(None).unwrap();
    rows.launch().unwrap();
    event.record(&hanging).unwrap();
    assert!((0..10).all(|_| !event.try_is_complete().unwrap()));
    // Streams that do not wait for it go on.
    let buffer = other.clone_htod(&[1_u32]).unwrap();
    assert_eq!(other.clone_dtoh(&buffer).unwrap(), [1]);
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| done.send(rows.gathered()).unwrap());
        assert!(ended.try_recv().is_err());
        assert!(!event.try_is_complete().unwrap());
        stand_in.set("resume");
        assert_eq!(ended.recv().unwrap().unwrap(), GATHERED);
    });
    assert!(event.try_is_complete().unwrap());
}

#[test]
fn a_card_is_lost_while_it_hangs() {
    let stand_in = StandIn::fresh("hang-at=1; cards=8.9,8.9");
    let context = context();
    let rows = Rows::new(&context.new_stream().unwrap()).unwrap();
    rows.launch().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| rows.stream.synchronize());
        stand_in.set("lose=0");
        assert_fails(waiting.join().unwrap(), CUDA_ERROR_UNKNOWN);
    });
    assert_fails(rows.launch(), CUDA_ERROR_UNKNOWN);
    drop((rows, context));
    assert_fails(CudaContext::new(0), CUDA_ERROR_DEVICE_UNAVAILABLE);
    let other = CudaContext::new(1).unwrap();
    assert_eq!(
        other.default_stream().clone_dtoh(&other.default_stream().clone_htod(&[1]).unwrap()).unwrap(),
        [1]
    );
}

#[test]
fn calls_need_the_driver_and_a_context() {
    let _stand_in = StandIn::fresh("");
    assert_fails(result::device::get_count(), CUDA_ERROR_NOT_INITIALIZED);
    result::init().unwrap();
    set_current(0).unwrap();
    assert_fails(allocate(1), CUDA_ERROR_INVALID_CONTEXT);
    assert_fails(set_current(0x1234), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn what_is_left_is_counted() {
    let stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u8>(5).unwrap();
    let pinned = Pinned::new(&context, &[1]);
    let alive = stand_in.alive();
    assert_eq!((alive.contexts, alive.streams, alive.events), (1, 1, 1));
    assert_eq!((alive.allocations, alive.allocated_bytes, alive.pinned), (1, 5, 1));
    assert_eq!(alive.queued, 1);
    drop((buffer, pinned, stream, context));
    assert_eq!(stand_in.alive(), Alive::default());
}
