//! The real `cudarc` against the stand-in driver.

mod faults;
mod graphs;
mod memory;
mod modules;
mod probe;
mod raw;
mod streams;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, sys::CUresult};

use crate::raw::{Function, Gather, Module, Shape, address};

/// Copies rows: the parameter block is three pointers, the width and the count.
const COPY: &str = include_str!("../../../../cu/ptx/75/copy.ptx");

/// One block for each of the rows.
const SHAPE: Shape = Shape { grid: (3, 1, 1), block: (256, 1, 1), shared: 0 };

/// What `gather` makes of [`Rows`], by the first value of each row.
const GATHERED: [f32; 3] = [4000.0, 0.0, 2000.0];

/// Buffers of a gather, with the kernel.
struct Rows {
    stream: Arc<CudaStream>,
    gather: Function,
    _module: Module,
    from: CudaSlice<f32>,
    rows: CudaSlice<u32>,
    out: CudaSlice<f32>,
    width: u32,
}

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
        let (from, rows, out) = (address(&self.from), address(&self.rows), address(&self.out));
        Gather { from, rows, out, width: self.width, count: 3 }
    }

    fn launch(&self) -> Result<(), DriverError> {
        self.gather.launch(&self.stream, SHAPE, self.params())
    }

    /// The first value of each row that was gathered, after checking that the others follow it.
    fn gathered(&self) -> Result<Vec<f32>, DriverError> {
        let out = self.stream.clone_dtoh(&self.out)?;
        let first = |row: &[f32]| {
            let follows = |pair: &[f32]| pair[1] == pair[0] + 1.0 || pair == [0.0, 0.0];
            assert!(row.windows(2).all(follows), "{row:?}");
            row[0]
        };
        Ok(out.chunks(self.width as usize).map(first).collect())
    }
}

#[track_caller]
fn assert_fails<T>(outcome: Result<T, DriverError>, with: CUresult) {
    assert_eq!(outcome.err().map(|error| error.0), Some(with));
}
