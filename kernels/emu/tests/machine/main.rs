//! What PTX means, and what the machine finds wrong with it: small kernels, run.

mod detect;
mod instructions;
mod parse;
mod tensor;
mod warps;

use ptx_machine::{Copies, Counts, Launch, Memory, Module, Options, Order, Trap, run};

/// A module with one kernel `k(in, out)`. `%rd1` and `%rd2` are the addresses of a thread's word of `in` and `out`,
/// `%rd3` and `%rd4` those of all, `%r1` is `%tid.x`, `%r2` is `%ctaid.x`.
pub(crate) fn module(body: &str) -> String {
    format!(
        ".version 8.4
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry k(.param .u64 from, .param .u64 to)
{{
.reg .pred %p<16>;
.reg .b16 %rs<16>;
.reg .b32 %r<64>;
.reg .f32 %f<32>;
.reg .f64 %fd<8>;
.reg .b64 %rd<32>;
.shared .align 16 .b8 static[4096];
ld.param.u64 %rd3, [from];
ld.param.u64 %rd4, [to];
mov.u32 %r1, %tid.x;
mov.u32 %r2, %ctaid.x;
mul.wide.u32 %rd5, %r1, 4;
add.s64 %rd1, %rd3, %rd5;
add.s64 %rd2, %rd4, %rd5;
{body}
ret;
}}
"
    )
}

/// How a kernel is run.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
    pub(crate) options: Options,
}

impl Default for Case {
    fn default() -> Self {
        let options = Options { races: true, budget: Some(1 << 20), ..Options::default() };
        Self { blocks: 1, threads: 32, shared: 1024, options }
    }
}

impl Case {
    /// The same in several orders.
    pub(crate) fn orders(self) -> Vec<Self> {
        let schedules = [
            (Order::Ascending, Copies::Late),
            (Order::Descending, Copies::Eager),
            (Order::Shuffled(7), Copies::Late),
            (Order::Shuffled(8), Copies::Eager),
        ];
        let with = |(order, copies)| Self { options: Options { order, copies, ..self.options }, ..self };
        schedules.into_iter().map(with).collect()
    }

    /// Runs a body with words as input, and returns those of the output.
    pub(crate) fn run(self, body: &str, from: &[u32], words: usize) -> Result<(Vec<u32>, Counts), Trap> {
        let module = Module::parse(&module(body)).unwrap_or_else(|error| panic!("{error}"));
        let mut memory = Memory::new(1 << 20);
        let input = memory.allocate(from.len() as u64 * 4).unwrap();
        let output = memory.allocate(words as u64 * 4).unwrap();
        memory.write(input, &bytes(from)).unwrap();
        let params: Vec<u8> = [input, output].into_iter().flat_map(u64::to_le_bytes).collect();
        let launch = Launch {
            kernel: "k",
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            shared: self.shared,
            params: &params,
        };
        let counts = run(&module, &mut memory, &launch, &self.options)?;
        let mut read = vec![0; words * 4];
        memory.read(output, &mut read).unwrap();
        let words = read.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        Ok((words.collect(), counts))
    }
}

/// Runs a body in one warp that writes a word a lane.
pub(crate) fn warp(body: &str, from: &[u32]) -> Vec<u32> {
    let run = Case::default().run(body, from, 32);
    run.unwrap_or_else(|trap| panic!("{trap}")).0
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// SplitMix64, from a seed.
pub(crate) fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
