//! Device memory and copies.

use cudarc::driver::sys::CUresult::*;
use stand_in_driver::StandIn;

use crate::{
    assert_fails,
    raw::{
        Pinned, address, allocate, context, copy_in, copy_in_async, copy_out, fill_bytes, fill_words, free,
        free_async, registered, uninitialised,
    },
};

#[test]
fn bytes_come_back() {
    let stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let values: Vec<u32> = (0..1000).collect();
    let mut buffer = stream.clone_htod(&values).unwrap();
    let copy = stream.clone_dtod(&buffer).unwrap();
    stream.memset_zeros(&mut buffer).unwrap();
    assert_eq!(stream.clone_dtoh(&copy).unwrap(), values);
    assert_eq!(stream.clone_dtoh(&buffer.slice(10..20)).unwrap(), [0; 10]);
    let (free, total) = context.mem_get_info().unwrap();
    assert_eq!(total - free, 2 * 4000);
    assert_eq!((stand_in.alive().allocations, stand_in.alive().allocated_bytes), (2, 8000));
    let tally = stand_in.tally();
    assert_eq!((tally.allocations, tally.bytes_in, tally.bytes_out), (2, 4000, 4040));
    drop((buffer, copy));
    stream.synchronize().unwrap();
    assert_eq!(stand_in.alive().allocations, 0);
}

#[test]
fn fresh_memory_is_loud() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    let buffer = uninitialised(&stream, 4).unwrap();
    assert!(stream.clone_dtoh(&buffer).unwrap().iter().all(|value| value.is_nan()));
}

#[test]
fn patterns_are_repeated() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u32>(4).unwrap();
    let to = address(&buffer);
    fill_words(to + 4, 0x0102_0304, 2, stream.cu_stream()).unwrap();
    fill_bytes(to + 15, 9, 1, stream.cu_stream()).unwrap();
    assert_fails(fill_words(to + 2, 0, 1, stream.cu_stream()), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(stream.clone_dtoh(&buffer).unwrap(), [0, 0x0102_0304, 0x0102_0304, 9 << 24]);
    let long = stream.alloc_zeros::<u32>(100_000).unwrap();
    fill_words(address(&long), 7, 99_999, stream.cu_stream()).unwrap();
    let long = stream.clone_dtoh(&long).unwrap();
    assert!(long[..99_999].iter().all(|value| *value == 7) && long[99_999] == 0);
}

#[test]
fn memory_ends() {
    let _stand_in = StandIn::fresh("memory=1m");
    let context = context();
    let stream = context.new_stream().unwrap();
    let most = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    assert_fails(stream.alloc_zeros::<u8>(1), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(context.mem_get_info().unwrap(), (0, 1 << 20));
    // A free that is queued is waited for.
    drop(most);
    stream.alloc_zeros::<u8>(1 << 20).unwrap();
}

#[test]
fn what_is_not_allocated_is_refused() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u8>(100).unwrap();
    let own = address(&buffer);
    let mut host = [0; 2];
    assert_fails(copy_out(&mut host, own + 93), CUDA_ERROR_INVALID_VALUE);
    assert_fails(copy_in(own - 1, &host), CUDA_ERROR_INVALID_VALUE);
    assert_fails(copy_in_async(own + 96, &host, &stream), CUDA_ERROR_INVALID_VALUE);
    assert_fails(free(own + 1), CUDA_ERROR_INVALID_VALUE);
    assert_fails(allocate(0), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn memory_is_freed_once() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    let first = allocate(10).unwrap();
    free(first).unwrap();
    assert_fails(free(first), CUDA_ERROR_INVALID_VALUE);
    let second = allocate(10).unwrap();
    free_async(second, &stream).unwrap();
    assert_fails(free_async(second, &stream), CUDA_ERROR_INVALID_VALUE);
    assert_fails(free(second), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn an_allocation_fails_on_demand() {
    let stand_in = StandIn::fresh("oom-at=2");
    let stream = context().new_stream().unwrap();
    let _first = stream.alloc_zeros::<u8>(1).unwrap();
    assert_fails(stream.alloc_zeros::<u8>(1), CUDA_ERROR_OUT_OF_MEMORY);
    let _third = stream.alloc_zeros::<u8>(1).unwrap();
    stand_in.set("oom-at=1");
    assert_fails(stream.alloc_zeros::<u8>(1), CUDA_ERROR_OUT_OF_MEMORY);
}

#[test]
fn pinned_memory_that_is_freed_is_done_with() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let stream = context.new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u32>(2).unwrap();
    let pinned = Pinned::new(&context, &[3, 4]);
    pinned.copy_in(address(&buffer), &stream).unwrap();
    drop(pinned);
    assert_eq!(stream.clone_dtoh(&buffer).unwrap(), [3, 4]);
}

#[test]
fn registered_memory_is_read_late() {
    let stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u32>(2).unwrap();
    let mut memory = vec![1, 2, 3];
    registered(&mut memory, |memory| {
        assert_eq!(stand_in.alive().pinned, 1);
        copy_in_async(address(&buffer), &memory[1..], &stream).unwrap();
        memory.fill(9);
        assert_fails(registered(&mut memory[2..], |_| ()), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    })
    .unwrap();
    assert_eq!(stand_in.alive().pinned, 0);
    assert_eq!(stream.clone_dtoh(&buffer).unwrap(), [9, 9]);
}
