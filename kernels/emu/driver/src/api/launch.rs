//! Launching kernels.

use std::sync::Arc;

use crate::{
    boundary::{HostAddress, export},
    code::Code,
    ptx::Kernel,
    state::Handle,
    work::{Launch, Work},
};

use super::module::{declared, find, most_shared};

export! {
    /// Runs a kernel in the order of a stream. Its parameters are taken when the call is made.
    fn cuLaunchKernel(
        driver,
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: Handle,
        params: HostAddress,
        extra: HostAddress,
    ) {
        let stream = driver.stream(stream)?;
        let (model, live) = find(driver, function)?;
        let kernel = declared(live)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let fits = shared <= most_shared(live)? && shared + kernel.shared <= model.shared_per_block();
        if !fits || !is_grid(grid) || !is_block(block) || !kernel.takes(block) {
            eprintln!(
                "stand-in driver: kernel `{}` does not take grid {grid:?}, block {block:?}, {shared} bytes of shared \
                 memory",
                live.kernel
            );
            return Err(Code::InvalidValue);
        }
        let params = arguments(kernel, params, extra)?.into();
        let (module, program) = (live.module, Arc::clone(&live.program));
        let kernel = Arc::clone(&live.kernel);
        let launch = Launch { module, program, kernel, grid, block, shared, params, strike: None };
        driver.issue(stream, Work::Launch(launch))
    }
}

fn is_grid([x, y, z]: [u32; 3]) -> bool {
    (1..=i32::MAX as u32).contains(&x) && (1..=65535).contains(&y) && (1..=65535).contains(&z)
}

fn is_block([x, y, z]: [u32; 3]) -> bool {
    let extents = (1..=1024).contains(&x) && (1..=1024).contains(&y) && (1..=64).contains(&z);
    extents && x * y * z <= 1024
}

/// The parameter block, from a list of pointers or from a buffer.
fn arguments(kernel: &Kernel, params: HostAddress, extra: HostAddress) -> Result<Vec<u8>, Code> {
    match (params.is_null(), extra.is_null()) {
        (false, false) => Err(Code::InvalidValue),
        (false, true) => {
            let mut block = vec![0; kernel.param_bytes()];
            for (index, &(offset, bytes)) in kernel.params.iter().enumerate() {
                block[offset..offset + bytes].copy_from_slice(&params.at_word(index)?.read(bytes)?);
            }
            Ok(block)
        }
        (true, false) => buffer(kernel, extra),
        (true, true) if kernel.params.is_empty() => Ok(Vec::new()),
        (true, true) => Err(Code::InvalidValue),
    }
}

/// The parameter block out of `extra`: pairs of a key and a value.
fn buffer(kernel: &Kernel, extra: HostAddress) -> Result<Vec<u8>, Code> {
    const END: usize = 0;
    const BUFFER: usize = 1;
    const SIZE: usize = 2;
    const MOST_PAIRS: usize = 4;
    let (mut buffer, mut size) = (None, None);
    for pair in 0..=MOST_PAIRS {
        match extra.word(2 * pair)? {
            END => break,
            BUFFER => buffer = Some(extra.at_word(2 * pair + 1)?),
            SIZE => size = Some(extra.at_word(2 * pair + 1)?.word(0)?),
            _ => return Err(Code::InvalidValue),
        }
    }
    let (buffer, size) = buffer.zip(size).ok_or(Code::InvalidValue)?;
    // A caller's structure may be padded at its end.
    let bytes = kernel.param_bytes();
    if size < bytes { Err(Code::InvalidValue) } else { buffer.read(bytes) }
}
