//! What `cudarc` leaves unsafe, for tests: the stand-in driver checks what it is given, and that is what is tested.

use std::{
    ffi::{CString, c_void},
    ptr,
    sync::Arc,
};

use cudarc::driver::{
    CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, PinnedHostSlice,
    result,
    sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult, CUstream},
};

/// Device 0, whose buffers are not followed by events, as captures ask for.
pub(crate) fn context() -> Arc<CudaContext> {
    let context = CudaContext::new(0).expect("there is a card");
    // SAFETY: the tests order their streams themselves.
    unsafe { context.disable_event_tracking() };
    context
}

pub(crate) fn driver_is_present() -> bool {
    // SAFETY: it looks for the library and calls nothing.
    unsafe { sys::is_culib_present() }
}

pub(crate) fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the place of a number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().expect("the driver has a version");
    version
}

/// Makes a context current that may not be one.
pub(crate) fn set_current(context: usize) -> Result<(), DriverError> {
    // SAFETY: the driver reads nothing at the address.
    unsafe { sys::cuCtxSetCurrent(ptr::without_provenance_mut(context)) }.result()
}

pub(crate) fn address<T>(buffer: &CudaSlice<T>) -> u64 {
    buffer.device_ptr(buffer.stream()).0
}

pub(crate) fn uninitialised(stream: &Arc<CudaStream>, values: usize) -> Result<CudaSlice<f32>, DriverError> {
    // SAFETY: any bytes are a number.
    unsafe { stream.alloc(values) }
}

pub(crate) fn allocate(bytes: usize) -> Result<u64, DriverError> {
    // SAFETY: memory of the stand-in driver, which checks its use.
    unsafe { result::malloc_sync(bytes) }
}

pub(crate) fn free(address: u64) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { result::free_sync(address) }
}

pub(crate) fn free_async(address: u64, stream: &CudaStream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { result::free_async(address, stream.cu_stream()) }
}

pub(crate) fn copy_in(to: u64, from: &[u32]) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { result::memcpy_htod_sync(to, from) }
}

pub(crate) fn copy_in_async(to: u64, from: &[u32], stream: &CudaStream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address, and copies pageable memory before the call returns.
    unsafe { result::memcpy_htod_async(to, from, stream.cu_stream()) }
}

pub(crate) fn copy_out(to: &mut [u32], from: u64) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { result::memcpy_dtoh_sync(to, from) }
}

pub(crate) fn copy_out_async(to: &mut [u32], from: u64, stream: &CudaStream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address, and completes a copy to pageable memory before the call returns.
    unsafe { result::memcpy_dtoh_async(to, from, stream.cu_stream()) }
}

/// Repeats a byte.
pub(crate) fn fill_bytes(to: u64, value: u8, count: usize, stream: CUstream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { result::memset_d8_async(to, value, count, stream) }
}

/// Repeats a word.
pub(crate) fn fill_words(to: u64, value: u32, count: usize, stream: CUstream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { sys::cuMemsetD32Async(to, value, count, stream) }.result()
}

pub(crate) fn synchronise(stream: CUstream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the handle.
    unsafe { result::stream::synchronize(stream) }
}

pub(crate) fn destroy(stream: CUstream) -> Result<(), DriverError> {
    // SAFETY: the driver checks the handle.
    unsafe { result::stream::destroy(stream) }
}

pub(crate) fn can_access_peer(device: i32, peer: i32) -> Result<i32, DriverError> {
    let mut can = -1;
    // SAFETY: the place of a number.
    unsafe { sys::cuDeviceCanAccessPeer(&mut can, device, peer) }.result().map(|()| can)
}

/// Pins memory of the host for as long as `within` runs.
pub(crate) fn registered(memory: &mut [u32], within: impl FnOnce(&mut [u32])) -> Result<(), DriverError> {
    let address = memory.as_mut_ptr().cast();
    // SAFETY: the memory is there until it is unpinned below, which waits for copies.
    unsafe { sys::cuMemHostRegister_v2(address, size_of_val(memory), 0) }.result()?;
    within(memory);
    // SAFETY: pinned above.
    unsafe { sys::cuMemHostUnregister(address) }.result()
}

pub(crate) fn nodes(graph: &CudaGraph) -> usize {
    let mut count = 0;
    // SAFETY: without a list the driver only counts.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), ptr::null_mut(), &mut count) }
        .result()
        .expect("a live graph");
    count
}

/// Pinned memory that is looked at without waiting for anybody.
pub(crate) struct Pinned {
    memory: PinnedHostSlice<u32>,
    address: *mut u32,
}

impl Pinned {
    pub(crate) fn new(context: &Arc<CudaContext>, values: &[u32]) -> Self {
        // SAFETY: written right below.
        let mut memory = unsafe { context.alloc_pinned(values.len()) }.expect("memory is had");
        memory.as_mut_slice().expect("nobody uses it").copy_from_slice(values);
        let address = memory.as_mut_ptr().expect("nobody uses it");
        Self { memory, address }
    }

    pub(crate) fn read(&self) -> Vec<u32> {
        // SAFETY: within the memory; the driver writes it only while it is called.
        (0..self.memory.len()).map(|index| unsafe { self.address.add(index).read_volatile() }).collect()
    }

    pub(crate) fn write(&mut self, values: &[u32]) {
        assert!(values.len() <= self.memory.len());
        for (index, value) in values.iter().enumerate() {
            // SAFETY: within the memory; the driver reads it only while it is called.
            unsafe { self.address.add(index).write_volatile(*value) };
        }
    }

    pub(crate) fn copy_in(&self, to: u64, stream: &CudaStream) -> Result<(), DriverError> {
        let (from, bytes) = (self.address.cast(), self.memory.num_bytes());
        // SAFETY: the driver checks the device's address, and runs what is queued before it frees pinned memory.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream.cu_stream()) }.result()
    }

    pub(crate) fn copy_out(&self, from: u64, stream: &CudaStream) -> Result<(), DriverError> {
        let (to, bytes) = (self.address.cast(), self.memory.num_bytes());
        // SAFETY: as for `copy_in`.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream.cu_stream()) }.result()
    }
}

/// A loaded module.
pub(crate) struct Module {
    context: Arc<CudaContext>,
    module: CUmodule,
}

// SAFETY: a number that any thread may give to the driver.
unsafe impl Sync for Module {}

impl Module {
    pub(crate) fn load(context: &Arc<CudaContext>, text: &str) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let text = CString::new(text).expect("PTX is text");
        // SAFETY: the text ends with zero.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }?;
        Ok(Self { context: context.clone(), module })
    }

    pub(crate) fn function(&self, name: &str) -> Result<Function, DriverError> {
        let name = CString::new(name).expect("a name is text");
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.module, name) }.map(Function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: loaded once and unloaded here.
        self.context.record_err(bound.and_then(|()| unsafe { result::module::unload(self.module) }));
    }
}

/// Loads PTX and returns what the driver says about it.
pub(crate) fn load_log(text: &str) -> (CUresult, String) {
    let text = CString::new(text).expect("PTX is text");
    let mut log = vec![0_u8; 200];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
    let mut module = ptr::null_mut();
    let (image, count) = (text.as_ptr().cast(), options.len() as u32);
    // SAFETY: the buffer has the size that is given with it, and both arrays have the length given.
    let outcome = unsafe {
        sys::cuModuleLoadDataEx(&mut module, image, count, options.as_mut_ptr(), values.as_mut_ptr())
    };
    log.truncate(values[1].addr());
    assert_eq!(log.pop(), Some(0));
    (outcome, String::from_utf8(log).expect("the log is text"))
}

/// A kernel.
#[derive(Clone, Copy)]
pub(crate) struct Function(CUfunction);

// SAFETY: a number that any thread may give to the driver.
unsafe impl Sync for Function {}

/// The shape of a launch.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: (u32, u32, u32),
    pub(crate) block: (u32, u32, u32),
    pub(crate) shared: u32,
}

impl Function {
    pub(crate) fn attribute(self, attribute: CUfunction_attribute) -> Result<i32, DriverError> {
        // SAFETY: the driver checks the handle.
        unsafe { result::function::get_function_attribute(self.0, attribute) }
    }

    pub(crate) fn set_attribute(
        self,
        attribute: CUfunction_attribute,
        value: i32,
    ) -> Result<(), DriverError> {
        // SAFETY: the driver checks the handle.
        unsafe { result::function::set_function_attribute(self.0, attribute, value) }
    }

    /// Blocks of 256 threads that are active at once.
    pub(crate) fn active_blocks(self) -> Result<i32, DriverError> {
        // SAFETY: the driver checks the handle.
        unsafe { result::occupancy::max_active_block_per_multiprocessor(self.0, 256, 0) }
    }

    /// Dynamic shared memory that leaves room for two blocks of 256 threads.
    pub(crate) fn shared_of_two_blocks(self) -> Result<usize, DriverError> {
        // SAFETY: the driver checks the handle.
        unsafe { result::occupancy::available_dynamic_shared_mem_per_block(self.0, 2, 256) }
    }

    /// Launches with one parameter.
    pub(crate) fn launch<P: DeviceRepr>(
        self,
        stream: &CudaStream,
        shape: Shape,
        mut params: P,
    ) -> Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        let Shape { grid, block, shared } = shape;
        let mut params = [(&raw mut params).cast::<c_void>()];
        // SAFETY: the kernel takes this block, which is copied before the call returns.
        unsafe { result::launch_kernel(self.0, grid, block, shared, stream.cu_stream(), &mut params) }
    }

    /// Launches with a buffer of `bytes` bytes for the parameters.
    pub(crate) fn launch_buffer<P: DeviceRepr>(
        self,
        stream: &CudaStream,
        Shape { grid, block, shared }: Shape,
        mut params: P,
        mut bytes: usize,
    ) -> Result<(), DriverError> {
        const BUFFER: usize = 1;
        const SIZE: usize = 2;
        assert!(bytes <= size_of::<P>());
        let key = ptr::without_provenance_mut::<c_void>;
        let (buffer, size) = ((&raw mut params).cast(), (&raw mut bytes).cast());
        let mut extra = [key(BUFFER), buffer, key(SIZE), size, key(0)];
        let none = ptr::null_mut();
        let (stream, extra) = (stream.cu_stream(), extra.as_mut_ptr());
        // SAFETY: the list ends with zero, and the buffer has the bytes given.
        unsafe {
            sys::cuLaunchKernel(
                self.0, grid.0, grid.1, grid.2, block.0, block.1, block.2, shared, stream, none, extra,
            )
        }
        .result()
    }
}

/// The parameter block of `gather`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Gather {
    pub(crate) from: u64,
    pub(crate) rows: u64,
    pub(crate) out: u64,
    pub(crate) width: u32,
    pub(crate) count: u32,
}

// SAFETY: plain numbers, as the kernel declares them.
unsafe impl DeviceRepr for Gather {}
