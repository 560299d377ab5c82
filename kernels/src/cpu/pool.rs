//! A pool of threads that meets microsecond deadlines: workers spin for a while before they sleep, and
//! a call allocates nothing.

use std::{
    any::Any,
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::parts::Parts;

/// Rounds a waiting worker spins before it sleeps, about 50 us.
const SPINS: u32 = 4000;
/// Set in the gate while tasks may be taken; the bits below count the workers inside.
const OPEN: u64 = 1 << 31;
/// Set in the gate when the workers shall end.
const SHUT: u64 = 1 << 30;
/// Added to the gate with each job, so that a worker never enters one twice.
const EPOCH: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// `threads` threads, the caller among them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a job: stages that share a pool take turns.
    turn: Mutex<()>,
}

/// Epoch, open and shut bits and the count of workers inside; see the constants.
struct Shared {
    gate: AtomicU64,
    next: AtomicUsize,
    /// The job; written by the caller while the gate is closed and empty.
    job: UnsafeCell<Option<(&'static Task<'static>, usize)>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: `job` is written only while the gate is closed with no worker inside, and read only by
// workers that entered through the open gate; the gate's orderings carry it across. The rest is `Sync`.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool of `threads` threads; the error is the system's refusal to start one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kernels-{worker}");
            pool.workers.push(thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Threads, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` for each of `0..tasks` once, on several threads if `parallel`. A panic of a task is
    /// passed on after all threads have left the job. A task must not call the pool.
    pub(crate) fn run(&self, tasks: usize, parallel: bool, task: &Task<'_>) {
        let _float = FloatMode::exact();
        if !parallel || tasks < 2 || self.workers.is_empty() {
            return (0..tasks).for_each(task);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.open(task, tasks);
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(task, tasks)));
        shared.close();
        let elsewhere = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = outcome.err().or(elsewhere) {
            resume_unwind(panic);
        }
    }

    /// Calls `task` with each part once.
    pub(crate) fn split<P: Parts>(&self, parts: P, parallel: bool, task: impl Fn(P::Part) + Sync) {
        // SAFETY: `run` hands out each index below the count once.
        self.run(parts.count(), parallel, &|index| task(unsafe { parts.part(index) }));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.fetch_or(SHUT, Ordering::SeqCst);
        self.shared.wake();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to learn here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn open(&self, task: &Task<'_>, tasks: usize) {
        // SAFETY: the lifetime is only hidden: `close` returns after the last worker has left the job, and
        // `run` calls it before `task` can go away, panic or not.
        let task = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        // SAFETY: the caller holds the turn and the gate is closed and empty since the last `close`.
        unsafe { *self.job.get() = Some((task, tasks)) };
        self.next.store(0, Ordering::Relaxed);
        self.gate.fetch_add(EPOCH + OPEN, Ordering::SeqCst);
        self.wake();
    }

    /// Lets nobody in any more and waits until everybody is out.
    fn close(&self) {
        let mut gate = self.gate.fetch_sub(OPEN, Ordering::AcqRel) - OPEN;
        let mut spins = 0u32;
        while gate & (SHUT - 1) != 0 {
            spins += 1;
            if spins.is_multiple_of(256) {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            gate = self.gate.load(Ordering::Acquire);
        }
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
            self.alarm.notify_all();
        }
    }

    fn take_tasks(&self, task: &Task<'_>, tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(index);
        }
    }

    /// The life of a worker.
    fn work(&self) {
        let _float = FloatMode::exact();
        let mut done = 0;
        while let Some(epoch) = self.enter(done) {
            // SAFETY: inside the gate nobody writes the job.
            if let Some((task, tasks)) = unsafe { *self.job.get() }
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(task, tasks)))
            {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.gate.fetch_sub(1, Ordering::Release);
            done = epoch;
        }
    }

    /// Waits for a job after `done` and goes in; `None` when the pool ends.
    fn enter(&self, done: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & SHUT != 0 {
                return None;
            }
            if gate & OPEN != 0 && gate / EPOCH != done {
                let entered =
                    self.gate.compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(gate / EPOCH);
                }
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleep(done);
                spins = 0;
            }
        }
    }

    /// Sleeps unless a job came in between: the caller opens the gate before it counts the sleepers, and a
    /// sleeper is counted before it looks at the gate again.
    fn sleep(&self, done: u64) {
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & SHUT != 0 || (gate & OPEN != 0 && gate / EPOCH != done) {
                break;
            }
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Round to nearest even, subnormals kept, for as long as it lives on this thread; a host program or
/// a library may have set another mode.
struct FloatMode {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

#[cfg(target_arch = "x86_64")]
impl FloatMode {
    fn exact() -> Self {
        /// All exceptions masked, round to nearest, no flush to zero: the state a thread starts with.
        const DEFAULT: u32 = 0x1f80;
        let mut before = 0u32;
        // SAFETY: MXCSR is set to the state Rust assumes; both operands are four bytes of ours.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack));
            std::arch::asm!("ldmxcsr [{}]", in(reg) &DEFAULT, options(nostack, readonly));
        }
        Self { before }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FloatMode {
    fn drop(&mut self) {
        // SAFETY: the register gets back what it held.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const self.before, options(nostack, readonly))
        };
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl FloatMode {
    /// Elsewhere threads start in this mode and nothing known to us leaves it.
    fn exact() -> Self {
        Self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::parts::Runs;

    #[test]
    fn each_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000 {
                let tasks = round % 17;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, true, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parts_cover_the_storage() {
        let pool = Pool::new(3).unwrap();
        let mut storage = vec![0u32; 1001];
        pool.split(Runs::new(&mut storage, 10), true, |part| part.iter_mut().for_each(|x| *x += 1));
        assert!(storage.iter().all(|&x| x == 1));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..8 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, true, &|i| assert_ne!(i, bad, "on purpose"));
            }));
            assert!(outcome.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(100, true, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 100);
    }

    /// A library may have told this thread to flush subnormals.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn tasks_keep_subnormals_and_the_caller_its_mode() {
        const FLUSHING: u32 = 0x1f80 | 0x8040;
        let pool = Pool::new(2).unwrap();
        let (lost, mut after) = (AtomicUsize::new(0), 0u32);
        // SAFETY: between the two loads no float operation of ours runs on this thread outside a task.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &FLUSHING, options(nostack, readonly)) };
        pool.run(64, true, &|_| {
            let half = std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
            lost.fetch_add(usize::from(half.to_bits() == 0), Ordering::Relaxed);
        });
        // SAFETY: as above; the second load brings back the mode of a fresh thread.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut after, options(nostack));
            std::arch::asm!("ldmxcsr [{}]", in(reg) &0x1f80u32, options(nostack, readonly));
        }
        assert_eq!(lost.into_inner(), 0);
        assert_eq!(after & FLUSHING, FLUSHING);
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let count = AtomicUsize::new(0);
                        pool.run(7, true, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(count.into_inner(), 7);
                    }
                });
            }
        });
    }
}
