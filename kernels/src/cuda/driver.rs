//! The NVIDIA driver, as far as the backend needs it. Everything unsafe of the backend is here, behind types that
//! own what they name and wait before they touch what a copy may still be using.
//!
//! A driver that once failed in a way that it does not recover from makes its [`Context`] *lost*: the first
//! failure stays, every later call returns it, and nothing is freed any more, since freeing could wait for ever.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    ops::Range,
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cudarc::driver::{
    CudaContext, DriverError,
    result::{self, stream::StreamKind},
    sys::{self, CUdevice_attribute as Attribute, CUresult},
};

use super::launch::{DevicePtr, Launch, Level, Source};
use crate::backend::BackendError;

/// Longest that a card may be at work without an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a wait spins before it sleeps between looks.
const SPIN: Duration = Duration::from_millis(5);
/// Between two looks of a long wait.
const NAP: Duration = Duration::from_micros(20);
/// Room for what the driver's compiler has to say.
const LOG_BYTES: usize = 8 << 10;

/// Whether the machine has a driver. Nothing else here may be called before it says so: a function that is
/// not found panics.
pub(super) fn is_present() -> bool {
    // SAFETY: it looks for the library and calls nothing of it.
    unsafe { sys::is_culib_present() }
}

/// The driver's CUDA version, `1000 major + 10 minor`.
pub(super) fn version() -> Result<u32, BackendError> {
    result::init().map_err(|error| failure("the driver does not start", error))?;
    let mut version = 0;
    // SAFETY: the place of a number.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| failure("the driver's version", error))?;
    Ok(version.unsigned_abs())
}

/// Number of cards.
pub(super) fn count() -> Result<usize, BackendError> {
    let count = CudaContext::device_count().map_err(|error| failure("the number of cards", error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn failure(what: &str, error: DriverError) -> BackendError {
    BackendError::Device(format!("{what}: {}", words(error)))
}

/// What the driver calls an error, and means by it.
fn words(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| "unknown error".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// Waits for what was asked of the current card without naming a stream. The card as a whole must not be waited
/// for: another thread may be recording a graph.
fn settle() -> Result<(), DriverError> {
    // SAFETY: the stream that every context has.
    unsafe { result::stream::synchronize(result::stream::null()) }
}

/// A card that is in use.
#[derive(Debug)]
pub(super) struct Context {
    inner: Arc<CudaContext>,
    lost: OnceLock<String>,
    patience_ms: AtomicU64,
}

impl Context {
    pub(super) fn new(ordinal: usize) -> Result<Arc<Self>, BackendError> {
        let inner = CudaContext::new(ordinal).map_err(|error| failure(&format!("card {ordinal}"), error))?;
        let context = Self { inner, lost: OnceLock::new(), patience_ms: AtomicU64::new(0) };
        context.set_patience(PATIENCE);
        Ok(Arc::new(context))
    }

    /// Longest that the card may be at work without an answer.
    pub(super) fn set_patience(&self, patience: Duration) {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience_ms.store(milliseconds, Ordering::Relaxed);
    }

    /// What every call begins with: the card must not be lost, and is the thread's current one.
    fn enter(&self) -> Result<(), BackendError> {
        self.check()?;
        self.judge("the card", self.inner.bind_to_thread())
    }

    /// The failure that lost the card, if it is lost.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        self.lost.get().map_or(Ok(()), |reason| Err(BackendError::Device(reason.clone())))
    }

    /// Loses the card, unless it was lost before.
    pub(super) fn lose(&self, reason: String) -> BackendError {
        BackendError::Device(self.lost.get_or_init(|| reason).clone())
    }

    fn judge<T>(&self, what: &str, outcome: Result<T, DriverError>) -> Result<T, BackendError> {
        outcome.map_err(|error| self.lose(format!("{what}: {}", words(error))))
    }

    pub(super) fn name(&self) -> Result<String, BackendError> {
        self.judge("the card's name", self.inner.name())
    }

    /// Compute capability, major and minor.
    pub(super) fn capability(&self) -> Result<(u32, u32), BackendError> {
        let (major, minor) = self.judge("the compute capability", self.inner.compute_capability())?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }

    pub(super) fn attribute(&self, attribute: Attribute) -> Result<u32, BackendError> {
        let value = self.judge("an attribute of the card", self.inner.attribute(attribute))?;
        Ok(value.unsigned_abs())
    }

    /// Bytes free and in all.
    pub(super) fn memory(&self) -> Result<(usize, usize), BackendError> {
        self.enter()?;
        self.judge("the card's memory", result::mem_get_info())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.lost.get().is_some() {
            // Giving it back could wait for what never ends.
            std::mem::forget(self.inner.clone());
        }
    }
}

/// Memory of a card.
#[derive(Debug)]
pub(super) struct Memory {
    context: Arc<Context>,
    address: DevicePtr,
    bytes: usize,
}

impl Memory {
    /// Memory with anything in it.
    pub(super) fn new(
        context: &Arc<Context>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Self, BackendError> {
        context.enter()?;
        // SAFETY: freed once, when this is dropped. An empty allocation is none, so there is one byte at least.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Self { context: context.clone(), address, bytes }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(BackendError::OutOfMemory { what, bytes })
            }
            Err(error) => context.judge(what, Err(error)),
        }
    }

    /// Memory full of zeros. It is so for every stream.
    pub(super) fn zeroed(
        context: &Arc<Context>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Self, BackendError> {
        let memory = Self::new(context, bytes, what)?;
        // SAFETY: within the allocation.
        let zeroed = unsafe { result::memset_d8_sync(memory.address, 0, bytes) };
        context.judge(what, zeroed.and_then(|()| settle()))?;
        Ok(memory)
    }

    /// Memory with a copy of `values`. It is there for every stream.
    pub(super) fn holding<T: bytemuck::Pod>(
        context: &Arc<Context>,
        values: &[T],
        what: &'static str,
    ) -> Result<Self, BackendError> {
        let memory = Self::new(context, size_of_val(values), what)?;
        // SAFETY: within the allocation; the driver takes the values over before the call returns.
        let copied = unsafe { result::memcpy_htod_sync(memory.address, values) };
        context.judge(what, copied.and_then(|()| settle()))?;
        Ok(memory)
    }

    /// Where it begins.
    pub(super) fn address(&self) -> DevicePtr {
        self.address
    }

    fn part(&self, offset: usize, bytes: usize) -> DevicePtr {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "a copy stays within its memory"
        );
        self.address + offset as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated once and freed here. Freeing waits for what is still at work on it.
            let freed = unsafe { result::free_sync(self.address) };
            let _ = self.context.judge("memory is given back", freed);
        }
    }
}

/// A queue of work on a card.
#[derive(Debug)]
pub(super) struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: a handle that any thread may give to the driver.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver orders calls of several threads.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, BackendError> {
        context.enter()?;
        let raw = context.judge("a stream", result::stream::create(StreamKind::NonBlocking))?;
        Ok(Self { context: context.clone(), raw })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Queues a launch.
    pub(super) fn launch(&self, kernels: &Kernels, launch: &Launch) -> Result<(), BackendError> {
        self.context.enter()?;
        let function = kernels.function(launch);
        let [x, y, z] = launch.grid;
        let mut params = [launch.params().as_ptr().cast_mut().cast::<c_void>()];
        let (grid, block, shared) = ((x, y, z), (launch.threads, 1, 1), launch.shared);
        // SAFETY: the kernel takes one block of parameters, which is copied before the call returns. The addresses
        // in it are of the device, which guards the host's memory by itself.
        let queued = unsafe { result::launch_kernel(function, grid, block, shared, self.raw, &mut params) };
        self.context.judge(launch.kernel, queued)
    }

    /// Queues a copy of `from`, which may be used again at once.
    pub(super) fn copy_in(&self, to: &Memory, from: &[u8]) -> Result<(), BackendError> {
        self.context.enter()?;
        let to = to.part(0, from.len());
        // SAFETY: within the memory; the driver takes pageable memory over before the call returns.
        let queued = unsafe { result::memcpy_htod_async(to, from, self.raw) };
        self.context.judge("a copy to the card", queued)
    }

    /// Copies out what was computed; returns when it is there.
    pub(super) fn copy_out(&self, from: &Memory, offset: usize, to: &mut [u8]) -> Result<(), BackendError> {
        self.context.enter()?;
        let from = from.part(offset, to.len());
        // SAFETY: within the memory; `to` is borrowed until the stream is through with it.
        let copied = unsafe {
            result::memcpy_dtoh_async(to, from, self.raw).and_then(|()| result::stream::synchronize(self.raw))
        };
        self.context.judge("a copy from the card", copied)
    }

    /// Queues a copy of as much as both hold.
    pub(super) fn copy_within(&self, to: &Memory, from: &Memory) -> Result<(), BackendError> {
        self.context.enter()?;
        let bytes = to.bytes.min(from.bytes);
        // SAFETY: within both, which are apart.
        let queued = unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, self.raw) };
        self.context.judge("a copy on the card", queued)
    }

    /// Records what `issue` queues instead of doing it.
    pub(super) fn capture(&self, issue: impl FnOnce()) -> Result<Graph, BackendError> {
        self.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and captured by nobody else: its owner is borrowed.
        let begun = unsafe { result::stream::begin_capture(self.raw, mode) };
        self.context.judge("a graph begins", begun)?;
        issue();
        // SAFETY: begun above.
        let graph = unsafe { result::stream::end_capture(self.raw) };
        let graph = self.context.judge("a graph ends", graph)?;
        let mut executable = ptr::null_mut();
        // SAFETY: the place of a handle, and a graph that was captured right now.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }.result();
        // SAFETY: the executable does not need it any more.
        let destroyed = unsafe { result::graph::destroy(graph) };
        self.context.judge("a graph", made.and(destroyed))?;
        Ok(Graph { context: self.context.clone(), raw: executable })
    }

    /// Queues a graph.
    pub(super) fn replay(&self, graph: &Graph) -> Result<(), BackendError> {
        self.context.enter()?;
        // SAFETY: both are alive; the driver takes what it needs of the graph when it is destroyed.
        let queued = unsafe { result::graph::launch(graph.raw, self.raw) };
        self.context.judge("a graph is launched", queued)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created once and destroyed here; what is queued is still done.
            let _ = self.context.judge("a stream ends", unsafe { result::stream::destroy(self.raw) });
        }
    }
}

/// Work that was recorded.
#[derive(Debug)]
pub(super) struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: a handle that any thread may give to the driver.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: instantiated once and destroyed here.
            let _ = self.context.judge("a graph ends", unsafe { result::graph::exec_destroy(self.raw) });
        }
    }
}

/// A moment in a stream.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: a handle that any thread may give to the driver.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, BackendError> {
        context.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let raw = context.judge("an event", result::event::create(flags))?;
        Ok(Self { context: context.clone(), raw })
    }

    pub(super) fn record(&self, stream: &Stream) -> Result<(), BackendError> {
        self.context.enter()?;
        // SAFETY: both are alive.
        let recorded = unsafe { result::event::record(self.raw, stream.raw) };
        self.context.judge("an event is recorded", recorded)
    }

    /// Waits until everything before the recorded moment is done. A card that takes longer than
    /// it is given is lost.
    pub(super) fn wait(&self) -> Result<(), BackendError> {
        self.context.enter()?;
        let start = Instant::now();
        loop {
            // SAFETY: the event is alive.
            match unsafe { result::event::query(self.raw) } {
                Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => {}
                outcome => return self.context.judge("the card fails", outcome),
            }
            let waited = start.elapsed();
            let patience = Duration::from_millis(self.context.patience_ms.load(Ordering::Relaxed));
            if waited > patience {
                return Err(self.context.lose(format!("the card does not answer for {patience:?}")));
            }
            if waited > SPIN { thread::sleep(NAP) } else { std::hint::spin_loop() }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created once and destroyed here.
            let _ = self.context.judge("an event ends", unsafe { result::event::destroy(self.raw) });
        }
    }
}

/// Memory of the host that the card reads and writes by itself. Whoever looks at it waits for the copy
/// that may still be using it.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    memory: *mut u8,
    bytes: usize,
    copied: Event,
    busy: bool,
}

// SAFETY: it owns its memory, which the driver maps for every thread.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(
        context: &Arc<Context>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Self, BackendError> {
        let copied = Event::new(context)?;
        // SAFETY: freed once, when this is dropped. An empty allocation is none, so there is one byte at least.
        let memory = match unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) } {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(BackendError::OutOfMemory { what, bytes });
            }
            memory => context.judge(what, memory)?.cast::<u8>(),
        };
        // SAFETY: within the allocation, which nobody else knows of.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { context: context.clone(), memory, bytes, copied, busy: false })
    }

    /// What is in it, to read and to write.
    pub(super) fn bytes(&mut self) -> Result<&mut [u8], BackendError> {
        if self.busy {
            self.copied.wait()?;
            self.busy = false;
        }
        // SAFETY: written when it was made, and used by no copy any more.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) })
    }

    /// Queues a copy of a part of it to `to`, from byte `offset` of that on.
    pub(super) fn copy_in(
        &mut self,
        stream: &Stream,
        part: Range<usize>,
        to: &Memory,
        offset: usize,
    ) -> Result<(), BackendError> {
        self.context.enter()?;
        let from: &[u8] = &self.bytes()?[part];
        let to = to.part(offset, from.len());
        // SAFETY: within both allocations; the host's is left alone until the copy is done.
        let queued = unsafe { result::memcpy_htod_async(to, from, stream.raw) };
        self.context.judge("a copy to the card", queued)?;
        self.busy = true;
        self.copied.record(stream)
    }

    /// Queues a copy of the beginning of `from` to its beginning.
    pub(super) fn copy_out(
        &mut self,
        stream: &Stream,
        from: &Memory,
        bytes: usize,
    ) -> Result<(), BackendError> {
        self.context.enter()?;
        let from = from.part(0, bytes);
        let to = &mut self.bytes()?[..bytes];
        // SAFETY: within both allocations; the host's is left alone until the copy is done.
        let queued = unsafe { result::memcpy_dtoh_async(to, from, stream.raw) };
        self.context.judge("a copy from the card", queued)?;
        self.busy = true;
        self.copied.record(stream)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What a lost card may still write to stays where it is.
        if self.bytes().is_ok() && self.context.enter().is_ok() {
            // SAFETY: allocated once, freed here, and used by no copy any more.
            let freed = unsafe { result::free_host(self.memory.cast()) };
            let _ = self.context.judge("pinned memory is given back", freed);
        }
    }
}

/// The kernels of every source, compiled for a card.
#[derive(Debug)]
pub(super) struct Kernels {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<(Source, &'static str), sys::CUfunction>,
}

// SAFETY: handles that any thread may give to the driver.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Lets the driver compile all sources. It keeps what it made in a cache of its own.
    pub(super) fn load(context: &Arc<Context>, level: Level) -> Result<Self, BackendError> {
        context.enter()?;
        let shared = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut kernels = Self { context: context.clone(), modules: Vec::new(), functions: HashMap::new() };
        for &source in Source::ALL {
            let module = kernels.compile(source, level)?;
            for name in entries(source.ptx(level)) {
                let function = kernels.prepare(module, name, shared)?;
                kernels.functions.insert((source, name), function);
            }
        }
        Ok(kernels)
    }

    fn compile(&mut self, source: Source, level: Level) -> Result<sys::CUmodule, BackendError> {
        let text = CString::new(source.ptx(level)).expect("PTX is text");
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
        let mut module = ptr::null_mut();
        let (image, count) = (text.as_ptr().cast(), options.len() as u32);
        // SAFETY: the text ends with zero, the log has the size that is given with it, and both arrays have
        // the length given.
        let compiled = unsafe {
            sys::cuModuleLoadDataEx(&mut module, image, count, options.as_mut_ptr(), values.as_mut_ptr())
        };
        if let Err(error) = compiled.result() {
            let said = log.split(|&byte| byte == 0).next().unwrap_or_default();
            let said = String::from_utf8_lossy(said);
            let name = source.name();
            let reason = format!("the driver cannot compile {name}.ptx: {}; {}", words(error), said.trim());
            return Err(BackendError::Device(reason));
        }
        self.modules.push(module);
        Ok(module)
    }

    /// A kernel that may use all shared memory there is for a block.
    fn prepare(
        &self,
        module: sys::CUmodule,
        name: &'static str,
        shared: u32,
    ) -> Result<sys::CUfunction, BackendError> {
        use sys::CUfunction_attribute as Attribute;
        let text = CString::new(name).expect("a name is text");
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(module, text) };
        let function = self.context.judge(name, function)?;
        let size = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: a function of the module.
        let fixed = unsafe { result::function::get_function_attribute(function, size) };
        let dynamic = (shared as i32).saturating_sub(self.context.judge(name, fixed)?);
        let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above.
        let set = unsafe { result::function::set_function_attribute(function, most, dynamic) };
        self.context.judge(name, set)?;
        Ok(function)
    }

    fn function(&self, launch: &Launch) -> sys::CUfunction {
        let key = (launch.source, launch.kernel);
        *self.functions.get(&key).unwrap_or_else(|| panic!("{}.cu has the kernel {}", key.0.name(), key.1))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            for &module in &self.modules {
                // SAFETY: loaded once and unloaded here; its functions go with it.
                let _ = self.context.judge("a module ends", unsafe { result::module::unload(module) });
            }
        }
    }
}

/// Names of the kernels of a PTX text.
fn entries(ptx: &'static str) -> impl Iterator<Item = &'static str> {
    let names = ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry "));
    names.map(|rest| rest.trim_end_matches('(').trim())
}
