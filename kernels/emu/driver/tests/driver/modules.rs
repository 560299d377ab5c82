//! Loading PTX.

use cudarc::driver::{
    DriverError,
    sys::{self, CUfunction_attribute_enum::*, CUresult::*},
};
use stand_in_driver::StandIn;

use crate::{
    COPY, assert_fails,
    raw::{Module, context, load_log},
};

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
    let (outcome, log) = load_log(&COPY.replace("ld.global.u32", "lead.global.u32"));
    assert_eq!(outcome, CUDA_ERROR_INVALID_PTX);
    assert!(log.contains("line ") && log.contains("lead.global.u32"), "{log}");
}

#[test]
fn kernels_are_found_with_what_they_declare() {
    let stand_in = StandIn::fresh("cards=8.6");
    let context = context();
    let module = Module::load(&context, COPY).unwrap();
    assert_fails(module.function("scatter"), CUDA_ERROR_NOT_FOUND);
    let gather = module.function("gather").unwrap();
    let attribute = |which| gather.attribute(which);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK).unwrap(), 256);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).unwrap(), 0);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_PTX_VERSION).unwrap(), 75);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_BINARY_VERSION).unwrap(), 86);
    assert_eq!(attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).unwrap(), 48 << 10);
    assert_fails(attribute(CU_FUNC_ATTRIBUTE_NUM_REGS), CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(gather.active_blocks().unwrap(), 1);
    assert_eq!(gather.shared_of_two_blocks().unwrap(), 49 << 10);
    let more = |bytes| gather.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
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
