//! Loading the stand-in driver, and steering it from a test.

use std::{
    env,
    ffi::{CString, c_char},
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use libloading::Library;

/// What is alive in the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Alive {
    /// Primary contexts that somebody retains.
    pub contexts: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Pieces of pinned host memory, registered ones among them.
    pub pinned: u64,
    /// Streams, the default ones not counted.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Modules.
    pub modules: u64,
    /// Graphs as they were captured.
    pub graphs: u64,
    /// Graphs that can be launched.
    pub executables: u64,
    /// Pieces of work that are queued and not done.
    pub queued: u64,
}

/// What was done since the driver was fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Allocations of device memory that succeeded.
    pub allocations: u64,
    /// Kernels launched, those of graphs among them.
    pub launches: u64,
    /// Graphs launched.
    pub graph_launches: u64,
    /// Modules loaded.
    pub modules: u64,
    /// Calls that wait: synchronise, and copies that do.
    pub synchronisations: u64,
    /// Bytes copied from the host.
    pub bytes_in: u64,
    /// Bytes copied to the host.
    pub bytes_out: u64,
}

/// Tests whose variable of this name is set meet the machine's own driver and its cards instead. Those that
/// steer the driver, count what is alive in it or want other cards fail there.
const REAL_CARD: &str = "DOLPHIN_REAL_CARD";

/// The stand-in driver, loaded into this process in the place of a driver, and held: other tests of
/// the process wait for it.
pub struct StandIn {
    /// None for the machine's own driver.
    library: Option<&'static Library>,
    _held: MutexGuard<'static, ()>,
}

static HELD: Mutex<()> = Mutex::new(());

/// Never unloaded: whoever found the driver's functions in it keeps them.
static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let path = path();
    // SAFETY: this package's own library, which runs nothing when it is loaded.
    let library = unsafe { Library::new(&path) };
    library.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
});

impl StandIn {
    /// Loads the stand-in driver, as if the process had just started with these [`settings`](crate::settings).
    ///
    /// What an earlier test made with it is gone: its contexts, streams and buffers must not be used any more.
    ///
    /// # Panics
    /// If the library was not built or cannot be loaded, or if a setting is unknown.
    pub fn fresh(settings: &str) -> Self {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let library = env::var_os(REAL_CARD).is_none().then(|| &*LIBRARY);
        let stand_in = Self { library, _held: held };
        stand_in.tell("standin_reset", settings);
        stand_in
    }

    /// Changes settings, or lets something happen; [`settings`](crate::settings) has the list.
    ///
    /// # Panics
    /// If a setting is unknown.
    pub fn set(&self, settings: &str) {
        self.tell("standin_set", settings);
    }

    /// What is alive.
    pub fn alive(&self) -> Alive {
        self.ask("standin_alive")
    }

    /// What was done.
    pub fn tally(&self) -> Tally {
        self.ask("standin_tally")
    }

    fn tell(&self, function: &str, settings: &str) {
        let Some(library) = self.library else { return };
        let text = CString::new(settings).expect("settings are text");
        // SAFETY: the library exports its functions of this kind with this signature.
        let function = unsafe { library.get::<extern "C" fn(*const c_char) -> u32>(function) };
        let function = function.expect("the library is this package's");
        assert_eq!(function(text.as_ptr()), 0, "settings `{settings}`");
    }

    fn ask<T: Default>(&self, function: &str) -> T {
        let mut answer = T::default();
        let Some(library) = self.library else { return answer };
        // SAFETY: the library exports its functions of this kind with this signature, each for one type.
        let function = unsafe { library.get::<extern "C" fn(*mut T) -> u32>(function) };
        let function = function.expect("the library is this package's");
        assert_eq!(function(&mut answer), 0, "the driver answers");
        answer
    }
}

/// Where the shared library lies: with the libraries of the running test or program.
///
/// # Panics
/// If it was not built.
pub fn path() -> PathBuf {
    const NAME: &str = "libstand_in_driver.so";
    let program = env::current_exe().expect("the program has a path");
    let folders =
        program.ancestors().skip(1).take(3).flat_map(|folder| [folder.join("deps"), folder.to_owned()]);
    let found = folders.map(|folder| folder.join(NAME)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no {NAME} beside {}", program.display()))
}

/// A folder beside the library in which it has the driver's names, for the `LD_LIBRARY_PATH` of a
/// process that is started. The library itself has another name, so that nobody finds it by chance.
///
/// # Errors
/// If the folder cannot be made.
pub fn folder() -> io::Result<PathBuf> {
    let library = path();
    let folder = library.with_file_name("stand-in-driver");
    fs::create_dir_all(&folder)?;
    for name in ["libcuda.so", "libcuda.so.1"] {
        link(&library, &folder.join(name))?;
    }
    Ok(folder)
}

/// Links in one step, so that processes may do this at the same time.
fn link(to: &Path, name: &Path) -> io::Result<()> {
    if fs::read_link(name).is_ok_and(|present| present == to) {
        return Ok(());
    }
    let own = name.with_extension(format!("{}", process::id()));
    symlink(to, &own)?;
    fs::rename(&own, name)
}
