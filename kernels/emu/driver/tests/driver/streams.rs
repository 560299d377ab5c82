//! What is ordered and what is not.

use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DriverError, result,
    sys::{CUevent_flags, CUresult::*},
};
use proptest::prelude::*;
use stand_in_driver::StandIn;

use crate::{
    GATHERED, Rows, SHAPE, assert_fails,
    raw::{Pinned, address, context, copy_in_async, destroy, fill_bytes, free, synchronise},
};

#[test]
fn a_kernel_runs() {
    for mode in ["lazy", "eager", "order=descending; races", "order=5; races"] {
        let stand_in = StandIn::fresh(mode);
        let rows = Rows::new(&context().new_stream().unwrap()).unwrap();
        rows.launch().unwrap();
        assert_eq!(rows.gathered().unwrap(), GATHERED);
        assert_eq!(stand_in.tally().launches, 1);
    }
}

#[test]
fn parameters_may_come_in_a_buffer() {
    let _stand_in = StandIn::fresh("");
    let rows = Rows::new(&context().new_stream().unwrap()).unwrap();
    assert_fails(rows.gather.launch_buffer(&rows.stream, SHAPE, rows.params(), 31), CUDA_ERROR_INVALID_VALUE);
    rows.gather.launch_buffer(&rows.stream, SHAPE, rows.params(), 32).unwrap();
    assert_eq!(rows.gathered().unwrap(), GATHERED);
}

/// Copies to pinned memory; what it holds before and after waiting.
fn read_pinned(
    wait: impl FnOnce(&CudaStream, &CudaEvent) -> Result<(), DriverError>,
) -> (Vec<u32>, Vec<u32>) {
    let context = context();
    let stream = context.new_stream().unwrap();
    let buffer = stream.clone_htod(&[1_u32, 2, 3]).unwrap();
    let event = context.new_event(None).unwrap();
    let pinned = Pinned::new(&context, &[7; 3]);
    pinned.copy_out(address(&buffer), &stream).unwrap();
    event.record(&stream).unwrap();
    let before = pinned.read();
    wait(&stream, &event).unwrap();
    (before, pinned.read())
}

#[test]
fn pinned_memory_is_old_until_the_stream_is_waited_for() {
    let _stand_in = StandIn::fresh("");
    let old_new = (vec![7; 3], vec![1, 2, 3]);
    assert_eq!(read_pinned(|stream, _| stream.synchronize()), old_new);
    assert_eq!(read_pinned(|_, event| event.synchronize()), old_new);
    assert_eq!(read_pinned(|stream, _| stream.context().synchronize()), old_new);
    assert_eq!(read_pinned(|_, _| Ok(())), (vec![7; 3], vec![7; 3]));
}

#[test]
fn eager_work_is_done_at_once() {
    let _stand_in = StandIn::fresh("eager");
    assert_eq!(read_pinned(|_, _| Ok(())), (vec![1, 2, 3], vec![1, 2, 3]));
}

#[test]
fn pinned_sources_are_read_late_and_pageable_ones_at_once() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let [from_pinned, from_pageable] = [(); 2].map(|()| stream.alloc_zeros::<u32>(1).unwrap());
    let (mut pinned, mut pageable) = (Pinned::new(&context, &[5]), vec![5]);
    pinned.copy_in(address(&from_pinned), &stream).unwrap();
    copy_in_async(address(&from_pageable), &pageable, &stream).unwrap();
    pinned.write(&[6]);
    pageable.fill(6);
    assert_eq!(stream.clone_dtoh(&from_pinned).unwrap(), [6]);
    assert_eq!(stream.clone_dtoh(&from_pageable).unwrap(), [5]);
}

#[test]
fn only_an_event_orders_streams() {
    for ordered in [false, true] {
        let _stand_in = StandIn::fresh("");
        let context = context();
        let [writer, reader] = [(); 2].map(|()| context.new_stream().unwrap());
        let mut buffer = writer.clone_htod(&[1_u32]).unwrap();
        writer.synchronize().unwrap();
        writer.memset_zeros(&mut buffer).unwrap();
        if ordered {
            reader.join(&writer).unwrap();
        }
        let read = reader.clone_dtoh(&buffer).unwrap();
        assert_eq!(read, [if ordered { 0 } else { 1 }]);
    }
}

#[test]
fn the_default_stream_does_not_wait_for_non_blocking_streams() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let mut buffer = context.default_stream().clone_htod(&[1_u32]).unwrap();
    context.synchronize().unwrap();
    stream.memset_zeros(&mut buffer).unwrap();
    assert_eq!(context.default_stream().clone_dtoh(&buffer).unwrap(), [1]);
    stream.synchronize().unwrap();
    assert_eq!(context.default_stream().clone_dtoh(&buffer).unwrap(), [0]);
}

#[test]
fn the_default_stream_waits_for_blocking_streams() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let default = context.default_stream();
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    let buffer = default.clone_htod(&[1_u32]).unwrap();
    fill_bytes(address(&buffer), 0, 4, blocking).unwrap();
    assert_eq!(default.clone_dtoh(&buffer).unwrap(), [0]);
    destroy(blocking).unwrap();
}

#[test]
fn asking_brings_work_on() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let event = context.new_event(None).unwrap();
    assert!(event.try_is_complete().unwrap());
    let mut buffer = stream.clone_htod(&[1_u32]).unwrap();
    stream.memset_zeros(&mut buffer).unwrap();
    event.record(&stream).unwrap();
    let asked = (0..10).take_while(|_| !event.try_is_complete().unwrap()).count();
    assert_eq!(asked, 3);
}

#[test]
fn events_take_the_time() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let timed = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    let (start, end, never) = (timed(), timed(), timed());
    start.record(&stream).unwrap();
    end.record(&stream).unwrap();
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    assert_fails(start.elapsed_ms(&never), CUDA_ERROR_INVALID_HANDLE);
    let untimed = stream.record_event(None).unwrap();
    assert_fails(start.elapsed_ms(&untimed), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn contexts_are_kept_apart() {
    let _stand_in = StandIn::fresh("cards=8.9,8.9");
    let [first, second] = [0, 1].map(|ordinal| CudaContext::new(ordinal).unwrap());
    let [here, there] = [&first, &second].map(|context| context.new_stream().unwrap());
    let values = here.clone_htod(&[1_u32, 2]).unwrap();
    let own = address(&values);
    first.bind_to_thread().unwrap();
    let outcome = fill_bytes(own, 0, 8, there.cu_stream());
    assert_fails(outcome, CUDA_ERROR_INVALID_HANDLE);
    second.bind_to_thread().unwrap();
    assert_fails(free(own), CUDA_ERROR_INVALID_VALUE);
    let copied = there.clone_dtod(&values).unwrap();
    assert_eq!(there.clone_dtoh(&copied).unwrap(), [1, 2]);
}

#[test]
fn a_destroyed_stream_still_does_its_work() {
    let stand_in = StandIn::fresh("");
    let context = context();
    let mut buffer = context.default_stream().clone_htod(&[1_u32]).unwrap();
    let stream = context.new_stream().unwrap();
    stream.memset_zeros(&mut buffer).unwrap();
    let handle = stream.cu_stream();
    drop(stream);
    assert_eq!(stand_in.alive().streams, 0);
    assert_fails(synchronise(handle), CUDA_ERROR_INVALID_HANDLE);
    context.synchronize().unwrap();
    assert_eq!(context.default_stream().clone_dtoh(&buffer).unwrap(), [0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Fills from many streams, each of which waits for the one before, come in their order.
    #[test]
    fn what_events_order_is_ordered(fills in prop::collection::vec((0..3_usize, 0..4_usize, any::<u8>()), 1..30)) {
        for settings in ["lazy", "eager"] {
            let _stand_in = StandIn::fresh(settings);
            let context = context();
            let streams = [(); 3].map(|()| context.new_stream().unwrap());
            let buffers = [(); 4].map(|()| streams[0].alloc_zeros::<u8>(3).unwrap());
            let (mut last, mut expected) = (0, [0; 4]);
            for &(stream, buffer, value) in &fills {
                streams[stream].join(&streams[last]).unwrap();
                fill_bytes(address(&buffers[buffer]), value, 3, streams[stream].cu_stream()).unwrap();
                (last, expected[buffer]) = (stream, value);
            }
            for (buffer, value) in buffers.iter().zip(expected) {
                prop_assert_eq!(streams[last].clone_dtoh(buffer).unwrap(), [value; 3]);
            }
        }
    }
}
