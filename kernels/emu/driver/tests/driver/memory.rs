//! Device memory and copies.

use cudarc::driver::{DevicePtr, result, sys::CUresult::*};
use stand_in_driver::StandIn;

use crate::{assert_fails, context};

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
    // SAFETY: what it holds is looked at as plain numbers.
    let buffer = unsafe { stream.alloc::<f32>(4) }.unwrap();
    assert!(stream.clone_dtoh(&buffer).unwrap().iter().all(|value| value.is_nan()));
}

#[test]
fn patterns_are_repeated() {
    let _stand_in = StandIn::fresh("");
    let stream = context().new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u32>(4).unwrap();
    let (address, _synchronised) = buffer.device_ptr(&stream);
    // SAFETY: within the buffer.
    unsafe {
        cudarc::driver::sys::cuMemsetD32Async(address + 4, 0x0102_0304, 2, stream.cu_stream())
            .result()
            .unwrap();
        cudarc::driver::sys::cuMemsetD8Async(address + 15, 9, 1, stream.cu_stream()).result().unwrap();
        let misaligned =
            cudarc::driver::sys::cuMemsetD32Async(address + 2, 0, 1, stream.cu_stream()).result();
        assert_fails(misaligned, CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(stream.clone_dtoh(&buffer).unwrap(), [0, 0x0102_0304, 0x0102_0304, 9 << 24]);
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
    let context = context();
    let stream = context.new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u8>(100).unwrap();
    let (address, _synchronised) = buffer.device_ptr(&stream);
    let mut host = [0_u8; 8];
    // SAFETY: the driver refuses what is not allocated.
    unsafe {
        assert_fails(result::memcpy_dtoh_sync(&mut host, address + 93), CUDA_ERROR_INVALID_VALUE);
        assert_fails(result::memcpy_htod_sync(address - 1, &host), CUDA_ERROR_INVALID_VALUE);
        assert_fails(result::free_sync(address + 1), CUDA_ERROR_INVALID_VALUE);
        let own = result::malloc_sync(10).unwrap();
        result::free_sync(own).unwrap();
        assert_fails(result::free_sync(own), CUDA_ERROR_INVALID_VALUE);
        let own = result::malloc_sync(10).unwrap();
        result::free_async(own, stream.cu_stream()).unwrap();
        assert_fails(result::free_async(own, stream.cu_stream()), CUDA_ERROR_INVALID_VALUE);
        assert_fails(result::malloc_sync(0), CUDA_ERROR_INVALID_VALUE);
    }
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
