//! The real `cudarc` against the stand-in driver.

mod faults;
mod graphs;
mod memory;
mod modules;
mod probe;
mod streams;

use std::{
    ffi::{CString, c_void},
    sync::Arc,
};

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result,
    sys::{CUfunction, CUmodule, CUresult},
};

/// Copies rows: the parameter block is three pointers, the width and the count.
const COPY: &str = include_str!("../../../../cu/ptx/75/copy.ptx");

/// A loaded module.
struct Module {
    context: Arc<CudaContext>,
    module: CUmodule,
}

impl Module {
    fn load(context: &Arc<CudaContext>, text: &str) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let text = CString::new(text).expect("PTX is text");
        // SAFETY: the text ends with zero.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }?;
        Ok(Self { context: context.clone(), module })
    }

    fn function(&self, name: &str) -> Result<CUfunction, DriverError> {
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.module, CString::new(name).expect("a name is text")) }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once and unloaded here.
        let unloaded =
            self.context.bind_to_thread().and_then(|()| unsafe { result::module::unload(self.module) });
        self.context.record_err(unloaded);
    }
}

/// The parameter block of `gather`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gather {
    from: u64,
    rows: u64,
    out: u64,
    width: u32,
    count: u32,
}

/// The shape of a launch.
#[derive(Clone, Copy)]
struct Shape {
    grid: (u32, u32, u32),
    block: (u32, u32, u32),
    shared: u32,
}

const SHAPE: Shape = Shape { grid: (3, 1, 1), block: (256, 1, 1), shared: 0 };

/// Buffers of a gather, with the kernel.
struct Rows {
    stream: Arc<CudaStream>,
    gather: CUfunction,
    _module: Module,
    from: CudaSlice<f32>,
    rows: CudaSlice<u32>,
    out: CudaSlice<f32>,
    width: u32,
}

// SAFETY: a function is a number that any thread may give to the driver.
unsafe impl Sync for Rows {}

impl Rows {
    /// Five rows of 300 values, row `i` beginning at `1000 i`; rows 4, 0 and 2 are to be gathered.
    fn new(stream: &Arc<CudaStream>) -> Result<Self, DriverError> {
        let (width, all) = (300, 5);
        let values: Vec<f32> =
            (0..all).flat_map(|row| (0..width).map(move |i| (1000 * row + i) as f32)).collect();
        let module = Module::load(stream.context(), COPY)?;
        let gather = module.function("gather")?;
        let from = stream.clone_htod(&values)?;
        let rows = stream.clone_htod(&[4, 0, 2])?;
        let out = stream.alloc_zeros(3 * width as usize)?;
        Ok(Self { stream: stream.clone(), gather, _module: module, from, rows, out, width: width as u32 })
    }

    fn params(&self) -> Gather {
        let [from, out] = [&self.from, &self.out].map(|slice| slice.device_ptr(&self.stream).0);
        let (rows, _) = self.rows.device_ptr(&self.stream);
        Gather { from, rows, out, width: self.width, count: 3 }
    }

    fn launch_with(&self, mut params: Gather, shape: Shape) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        let mut params = [(&raw mut params).cast::<c_void>()];
        let (Shape { grid, block, shared }, stream) = (shape, self.stream.cu_stream());
        // SAFETY: the kernel takes this block, and checks of its pointers are what is tested.
        unsafe { result::launch_kernel(self.gather, grid, block, shared, stream, &mut params) }
    }

    fn launch(&self) -> Result<(), DriverError> {
        self.launch_with(self.params(), SHAPE)
    }

    /// The first value of each row that was gathered, after checking that the others follow it.
    fn gathered(&self) -> Result<Vec<f32>, DriverError> {
        let out = self.stream.clone_dtoh(&self.out)?;
        let rows = out.chunks(self.width as usize);
        Ok(rows
            .map(|row| {
                let follows = |pair: &[f32]| pair[1] == pair[0] + 1.0 || pair == [0.0, 0.0];
                assert!(row.windows(2).all(follows), "{row:?}");
                row[0]
            })
            .collect())
    }
}

/// A context whose buffers are not followed by events, as captures ask for.
fn context() -> Arc<CudaContext> {
    let context = CudaContext::new(0).expect("there is a card");
    // SAFETY: the tests order their streams themselves.
    unsafe { context.disable_event_tracking() };
    context
}

#[track_caller]
fn assert_fails<T>(outcome: Result<T, DriverError>, with: CUresult) {
    assert_eq!(outcome.err().map(|error| error.0), Some(with));
}
