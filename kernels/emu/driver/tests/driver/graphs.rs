//! Captures and their graphs.

use std::thread;

use cudarc::driver::sys::{
    CUgraphInstantiate_flags as Flags, CUresult::*, CUstreamCaptureMode as Mode,
    CUstreamCaptureStatus as Status,
};
use stand_in_driver::{Alive, StandIn};

use crate::{
    GATHERED, Rows, assert_fails,
    raw::{Pinned, address, allocate, context, copy_in_async, copy_out_async, fill_bytes, nodes},
};

const RELAXED: Mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
const THREAD: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const GLOBAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;

#[test]
fn a_graph_is_replayed_on_changed_data() {
    let stand_in = StandIn::fresh("");
    {
        let mut rows = Rows::new(&context().new_stream().unwrap()).unwrap();
        let stream = rows.stream.clone();
        stream.synchronize().unwrap();
        let before = stand_in.tally();
        stream.begin_capture(THREAD).unwrap();
        assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        rows.launch().unwrap();
        let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
        assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
        assert_eq!(rows.gathered().unwrap(), [0.0; 3], "a capture runs nothing");
        assert_eq!(nodes(&graph), 1);
        graph.upload().unwrap();
        graph.launch().unwrap();
        assert_eq!(rows.gathered().unwrap(), GATHERED);
        stream.memcpy_htod(&[1, 3, 3], &mut rows.rows).unwrap();
        graph.launch().unwrap();
        assert_eq!(rows.gathered().unwrap(), [1000.0, 3000.0, 3000.0]);
        let after = stand_in.tally();
        assert_eq!((after.launches - before.launches, after.graph_launches), (2, 2));
        assert_eq!((stand_in.alive().graphs, stand_in.alive().executables), (1, 1));
    }
    assert_eq!(stand_in.alive(), Alive::default());
}

#[test]
fn flags_of_a_graph_are_checked() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    stream.begin_capture(THREAD).unwrap();
    let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
        | Flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    assert_fails(stream.end_capture(flags), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn waiting_for_a_captured_stream_breaks_the_capture() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    stream.begin_capture(RELAXED).unwrap();
    assert_fails(stream.begin_capture(RELAXED), CUDA_ERROR_ILLEGAL_STATE);
    assert_fails(stream.synchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    let event = stream.context().new_event(None).unwrap();
    assert_fails(event.record(&stream), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_fails(stream.end_capture(Flags(0)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_fails(stream.end_capture(Flags(0)), CUDA_ERROR_ILLEGAL_STATE);
    stream.synchronize().unwrap();
}

#[test]
fn calls_that_may_wait_break_a_capture_in_reach() {
    for (mode, breaks) in [(GLOBAL, true), (THREAD, true), (RELAXED, false)] {
        let _stand_in = StandIn::fresh("");
        let stream = context().new_stream().unwrap();
        stream.begin_capture(mode).unwrap();
        let allocated = allocate(16);
        let ended = stream.end_capture(Flags(0));
        if breaks {
            assert_fails(allocated, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            assert_fails(ended, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        } else {
            allocated.unwrap();
            assert!(ended.unwrap().is_some());
        }
    }
}

#[test]
fn another_thread_breaks_a_global_capture_alone() {
    for (mode, breaks) in [(GLOBAL, true), (THREAD, false)] {
        let _stand_in = StandIn::fresh("");
        let context = context();
        let stream = context.new_stream().unwrap();
        stream.begin_capture(mode).unwrap();
        let allocated = thread::scope(|scope| {
            let other = scope.spawn(|| context.bind_to_thread().and_then(|()| allocate(16)));
            other.join().unwrap()
        });
        assert_eq!(allocated.is_err(), breaks);
        let ended_elsewhere =
            thread::scope(|scope| scope.spawn(|| stream.end_capture(Flags(0)).map(|_| ())).join().unwrap());
        assert_fails(ended_elsewhere, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }
}

#[test]
fn a_forked_stream_is_captured_and_must_join() {
    for joined in [true, false] {
        let _stand_in = StandIn::fresh("");
        let context = context();
        let [main, side] = [(); 2].map(|()| context.new_stream().unwrap());
        let mut buffer = main.clone_htod(&[1_u32]).unwrap();
        main.synchronize().unwrap();
        main.begin_capture(THREAD).unwrap();
        side.join(&main).unwrap();
        side.memset_zeros(&mut buffer).unwrap();
        if joined {
            main.join(&side).unwrap();
        }
        let ended = main.end_capture(Flags(0));
        if !joined {
            assert_fails(ended, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
            continue;
        }
        ended.unwrap().unwrap().launch().unwrap();
        assert_eq!(main.clone_dtoh(&buffer).unwrap(), [0]);
    }
}

#[test]
fn branches_of_a_graph_run_in_no_order_but_their_own() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let [main, side] = [(); 2].map(|()| context.new_stream().unwrap());
    let buffer = main.clone_htod(&[1_u32]).unwrap();
    main.synchronize().unwrap();
    main.begin_capture(THREAD).unwrap();
    side.join(&main).unwrap();
    // Both write the same bytes, and nothing orders them: the one that was issued last goes first.
    fill_bytes(address(&buffer), 1, 4, main.cu_stream()).unwrap();
    fill_bytes(address(&buffer), 2, 4, side.cu_stream()).unwrap();
    main.join(&side).unwrap();
    main.end_capture(Flags(0)).unwrap().unwrap().launch().unwrap();
    assert_eq!(main.clone_dtoh(&buffer).unwrap(), [0x0101_0101]);
}

#[test]
fn a_capture_waits_for_nothing_outside_of_it() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let [main, other] = [(); 2].map(|()| context.new_stream().unwrap());
    let before = other.record_event(None).unwrap();
    main.begin_capture(THREAD).unwrap();
    assert_fails(main.wait(&before), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_fails(main.end_capture(Flags(0)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_fails(context.default_stream().begin_capture(THREAD), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

#[test]
fn captured_events_are_not_waited_for_by_the_host() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    stream.begin_capture(RELAXED).unwrap();
    let event = stream.record_event(None).unwrap();
    assert_fails(event.synchronize(), CUDA_ERROR_CAPTURED_EVENT);
    stream.end_capture(Flags(0)).unwrap();
}

#[test]
fn a_graph_copies_pinned_memory_as_it_is_then() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u32>(1).unwrap();
    let (mut from, to) = (Pinned::new(&context, &[1]), Pinned::new(&context, &[0]));
    let mut pageable = [0];
    stream.begin_capture(RELAXED).unwrap();
    assert_fails(copy_in_async(address(&buffer), &pageable, &stream), CUDA_ERROR_NOT_SUPPORTED);
    assert_fails(copy_out_async(&mut pageable, address(&buffer), &stream), CUDA_ERROR_NOT_SUPPORTED);
    from.copy_in(address(&buffer), &stream).unwrap();
    to.copy_out(address(&buffer), &stream).unwrap();
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    for value in [5, 6] {
        from.write(&[value]);
        graph.launch().unwrap();
        stream.synchronize().unwrap();
        assert_eq!(to.read(), [value]);
    }
    drop(from);
    graph.launch().unwrap();
    assert_fails(stream.synchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_graph_does_not_outlive_its_module() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let rows = Rows::new(&stream).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(THREAD).unwrap();
    rows.launch().unwrap();
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    drop(rows);
    graph.launch().unwrap();
    assert_fails(stream.synchronize(), CUDA_ERROR_LAUNCH_FAILED);
}
