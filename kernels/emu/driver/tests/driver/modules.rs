//! Loading PTX.

use cudarc::driver::{
    DriverError,
    result::{function, occupancy},
    sys::{self, CUfunction_attribute_enum::*, CUjit_option, CUresult::*},
};
use stand_in_driver::StandIn;

use crate::{COPY, Module, assert_fails, context};

#[test]
fn bad_modules_are_refused() {
    let _stand_in = StandIn::fresh("cards=7.5; driver=12020");
    let context = context();
    let load = |text: &str| Module::load(&context, text).map(|_| ());
    assert_fails(load("no PTX at all"), CUDA_ERROR_INVALID_IMAGE);
    assert_fails(load(COPY), CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    let older = COPY.replace(".version 8.4", ".version 8.2");
    load(&older).unwrap();
    assert_fails(load(&older.replace("sm_75", "sm_80")), CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_fails(load(&older.replace("ld.global.u32", "lead.global.u32")), CUDA_ERROR_INVALID_PTX);
}

#[test]
fn the_log_says_what_is_wrong() {
    let _stand_in = StandIn::fresh("");
    let _context = context();
    let text = std::ffi::CString::new(COPY.replace("ld.global.u32", "lead.global.u32")).unwrap();
    let mut log = vec![0_u8; 200];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
    let mut module = std::ptr::null_mut();
    // SAFETY: the buffer has the size that is given with it, and the arrays have two elements each.
    let outcome = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    assert_eq!(outcome, CUDA_ERROR_INVALID_PTX);
    let written = values[1].addr();
    assert_eq!(log[written - 1], 0);
    let log = String::from_utf8(log[..written - 1].to_vec()).unwrap();
    assert!(log.contains("line ") && log.contains("lead.global.u32"), "{log}");
}

#[test]
fn kernels_are_found_with_what_they_declare() {
    let stand_in = StandIn::fresh("cards=8.6");
    let context = context();
    let module = Module::load(&context, COPY).unwrap();
    assert_fails(module.function("scatter"), CUDA_ERROR_NOT_FOUND);
    let gather = module.function("gather").unwrap();
    // SAFETY: the function exists.
    let attribute = |which| unsafe { function::get_function_attribute(gather, which) };
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK).unwrap(), 256);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).unwrap(), 0);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_PTX_VERSION).unwrap(), 75);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_BINARY_VERSION).unwrap(), 86);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).unwrap(), 48 << 10);
    assert_fails(attribute(CU_FUNC_ATTRIBUTE_NUM_REGS), CUDA_ERROR_NOT_SUPPORTED);
    // SAFETY: the function exists.
    unsafe {
        assert_eq!(occupancy::max_active_block_per_multiprocessor(gather, 256, 0).unwrap(), 1);
        assert_eq!(occupancy::available_dynamic_shared_mem_per_block(gather, 2, 256).unwrap(), 49 << 10);
    }
    const MOST: sys::CUfunction_attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function exists.
    let more = |bytes| unsafe { function::set_function_attribute(gather, MOST, bytes) };
    more(99 << 10).unwrap();
    assert_fails(more((99 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    drop(module);
    assert_eq!(stand_in.alive().modules, 0);
}

#[test]
fn what_is_not_supported_says_so() {
    let _stand_in = StandIn::fresh("");
    let context = context();
    let unsupported: [Result<(), DriverError>; 2] = [
        context.get_limit(sys::CUlimit::CU_LIMIT_STACK_SIZE).map(|_| ()),
        context.get_cache_config().map(|_| ()),
    ];
    for outcome in unsupported {
        assert_fails(outcome, CUDA_ERROR_NOT_SUPPORTED);
    }
}
