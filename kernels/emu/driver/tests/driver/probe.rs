//! Finding cards.

use std::{env, process::Command};

use cudarc::driver::{
    CudaContext,
    sys::{CUdevice_attribute::*, CUresult::*},
};
use stand_in_driver::{Alive, StandIn, folder};

use crate::{
    COPY, assert_fails,
    raw::{Module, can_access_peer, driver_is_present, driver_version},
};

#[test]
fn cards_are_found() {
    let stand_in = StandIn::fresh("cards=9.0:First,7.5;memory=3g");
    assert!(driver_is_present());
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let [first, second] = [0, 1].map(|ordinal| CudaContext::new(ordinal).unwrap());
    assert_eq!(first.name().unwrap(), "First");
    assert_eq!(second.name().unwrap(), "Stand-in 7.5");
    assert_eq!(first.compute_capability().unwrap(), (9, 0));
    assert_eq!(second.compute_capability().unwrap(), (7, 5));
    assert_eq!(first.total_mem().unwrap(), 3 << 30);
    assert_eq!(first.mem_get_info().unwrap(), (3 << 30, 3 << 30));
    assert_ne!(first.uuid().unwrap(), second.uuid().unwrap());
    assert!(first.has_async_alloc());
    assert_eq!(first.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).unwrap(), 227 << 10);
    assert_eq!(second.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).unwrap(), 64 << 10);
    assert_fails(first.attribute(CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_WIDTH), CUDA_ERROR_NOT_SUPPORTED);
    assert_fails(CudaContext::new(2), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(can_access_peer(0, 1).unwrap(), 0);
    assert_fails(can_access_peer(1, 1), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(stand_in.alive().contexts, 2);
    drop((first, second));
    assert_eq!(stand_in.alive(), Alive::default());
}

#[test]
fn a_card_may_be_old() {
    let _stand_in = StandIn::fresh("cards=6.1");
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.compute_capability().unwrap(), (6, 1));
    assert_fails(Module::load(&context, COPY), CUDA_ERROR_NO_BINARY_FOR_GPU);
}

#[test]
fn a_machine_may_have_no_card() {
    let _stand_in = StandIn::fresh("cards=");
    assert_fails(CudaContext::device_count(), CUDA_ERROR_NO_DEVICE);
    assert_fails(CudaContext::new(0), CUDA_ERROR_NO_DEVICE);
}

#[test]
fn a_driver_may_be_old() {
    let _stand_in = StandIn::fresh("driver=11080");
    assert_eq!(driver_version(), 11080);
}

/// Runs itself in a process that is only told where the driver's folder is.
#[test]
fn another_process_finds_the_driver() {
    const SETTINGS: &str = "cards=7.5:The only one";
    if env::var("DOLPHIN_STANDIN").is_ok_and(|settings| settings == SETTINGS) {
        assert_eq!(CudaContext::new(0).unwrap().name().unwrap(), "The only one");
        return;
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "probe::another_process_finds_the_driver", "--nocapture"]);
    child.env("LD_LIBRARY_PATH", folder().unwrap()).env("DOLPHIN_STANDIN", SETTINGS);
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}
