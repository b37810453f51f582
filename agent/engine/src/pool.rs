//! The threads of one loaded model. They run the same program over their shares of each step and meet at barriers between its phases.
//!
//! A barrier spins briefly, because the others are mostly a microsecond away, and then parks: where another process holds a core, threads
//! that only spin wait for one that can't run. Where such a process stays, fewer threads run, see `crowding`.

mod crowding;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use stowage_placement::Reason;

use self::crowding::{CoreWait, Crowding};
use crate::api::EngineError;

/// Rounds of spinning before a thread parks at a barrier: some 20 microseconds.
const SPINS: u32 = 4000;

/// The same before it parks between two programs: while an answer runs, the next step comes as soon as tokens were chosen from the last one's logits, and
/// waking a parked thread takes longer than that where the core went to sleep.
const SPINS_BETWEEN_PROGRAMS: u32 = 40_000;

/// A number that threads wait on to change.
#[derive(Default)]
struct Gate {
    generation: AtomicU32,
    parked: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Gate {
    fn current(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Lets everyone go on who waits for the generation to be another than it is now.
    fn open(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            let _guard = self.hold();
            self.changed.notify_all();
        }
    }

    fn wait_while(&self, generation: u32, spins: u32) {
        for _ in 0..spins {
            if self.current() != generation {
                return;
            }
            std::hint::spin_loop();
        }
        // Counted before the generation is looked at again: `open` changes the generation before it looks at the count, so one of the two sees
        // the other.
        self.parked.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.hold();
        while self.generation.load(Ordering::SeqCst) == generation {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Barrier {
    arrived: AtomicU32,
    gate: Gate,
}

impl Barrier {
    fn meet(&self, count: u32) {
        if count == 1 {
            return;
        }
        let generation = self.gate.current();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.gate.open();
        } else {
            self.gate.wait_while(generation, SPINS);
        }
    }
}

/// What each thread knows of itself while a program runs.
pub struct Worker<'a> {
    pub index: usize,
    pub count: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// This thread's share of `0..total`, in whole multiples of `unit` but for the end.
    pub fn share(&self, total: usize, unit: usize) -> Range<usize> {
        let units = total.div_ceil(unit);
        let at = |index: usize| (units * index / self.count * unit).min(total);
        at(self.index)..at(self.index + 1)
    }

    /// Returns when every thread has come here. What they wrote before, all see after.
    pub fn meet(&self) {
        self.barrier.meet(self.count as u32);
    }
}

type Program<'a> = dyn Fn(&Worker<'_>) + Sync + 'a;

/// What threads other than the caller wait for, and what they are asked by.
#[derive(Default)]
struct Helper {
    start: Gate,
    /// `None`: the kernel doesn't say.
    core_wait: OnceLock<Option<CoreWait>>,
}

/// A program, and how many threads run it.
#[derive(Clone, Copy)]
struct Job {
    program: &'static Program<'static>,
    count: usize,
}

struct Shared {
    helpers: Vec<Helper>,
    barrier: Barrier,
    job: Mutex<Option<Job>>,
    ended: AtomicBool,
}

/// What is between two programs.
struct Between {
    crowding: Crowding,
    /// Of the thread that called last.
    caller: Option<(ThreadId, Option<CoreWait>)>,
}

/// A fixed number of threads, the caller of [`Pool::run`] being one of them.
pub struct Pool {
    shared: Arc<Shared>,
    /// One program at a time: parts of a model on several devices share the pool.
    between: Mutex<Between>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn new(count: u32) -> Result<Arc<Pool>, EngineError> {
        let count = count.max(1);
        let shared = Arc::new(Shared {
            helpers: (1..count).map(|_| Helper::default()).collect(),
            barrier: Barrier::default(),
            job: Mutex::new(None),
            ended: AtomicBool::new(false),
        });
        let between = Mutex::new(Between { crowding: Crowding::new(count), caller: None });
        let mut pool = Pool { shared: Arc::clone(&shared), between, threads: Vec::new() };
        for index in 1..count as usize {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("stowage-{index}")).spawn(move || serve(&shared, index));
            pool.threads
                .push(thread.map_err(|error| {
                    EngineError::new(Reason::LoadFailed, format!("starting thread {index} of {count} failed: {error}"))
                })?);
        }
        Ok(Arc::new(pool))
    }

    /// Runs `program` on every thread, or on fewer where others hold some of the cores, and returns when all have ended it. A panic in it ends the process:
    /// the others would wait forever.
    pub fn run(&self, program: &Program<'_>) {
        let mut between = self.between.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        // SAFETY: the reference lives in `shared` until the last barrier of this call, at which every thread has returned from the program.
        let program = unsafe { std::mem::transmute::<&Program<'_>, &'static Program<'static>>(program) };
        let job = Job { program, count: between.crowding.threads() as usize };
        *self.shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        self.shared.helpers[..job.count - 1].iter().for_each(|helper| helper.start.open());
        work(&self.shared, 0, job);
        let Between { crowding, caller } = &mut *between;
        crowding.ran(started.elapsed(), || self.waited(caller));
    }

    /// What each thread has waited for a core, the caller of `run` first.
    fn waited(&self, caller: &mut Option<(ThreadId, Option<CoreWait>)>) -> Vec<Option<Duration>> {
        let this = std::thread::current().id();
        // What another caller waited says nothing of this one: it is compared from the next window on.
        let same = caller.as_ref().is_some_and(|(last, _)| *last == this);
        let (_, wait) = caller.take().filter(|_| same).unwrap_or_else(|| (this, CoreWait::of_this_thread()));
        let of_caller = wait.as_ref().filter(|_| same).and_then(CoreWait::read);
        *caller = Some((this, wait));
        let of_helpers = self.shared.helpers.iter().map(|helper| helper.core_wait.get()?.as_ref()?.read());
        std::iter::once(of_caller).chain(of_helpers).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.helpers.iter().for_each(|helper| helper.start.open());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, index: usize) {
    let helper = &shared.helpers[index - 1];
    helper.core_wait.get_or_init(CoreWait::of_this_thread);
    let mut generation = 0;
    loop {
        helper.start.wait_while(generation, SPINS_BETWEEN_PROGRAMS);
        generation = generation.wrapping_add(1);
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let job = *shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = job {
            work(shared, index, job);
        }
    }
}

fn work(shared: &Shared, index: usize, job: Job) {
    struct AbortOnPanic;
    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    let guard = AbortOnPanic;
    let worker = Worker { index, count: job.count, barrier: &shared.barrier };
    (job.program)(&worker);
    worker.meet();
    std::mem::forget(guard);
}

/// Threads for a model where its parameters leave it open: one for each physical core that this process may run on, within its cgroup's quota.
pub fn default_threads() -> u32 {
    let allowed = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    physical_cores().map_or(allowed, |cores| cores.min(allowed)).max(1)
}

/// Physical cores that this process may run on, as Linux tells; `None` where it doesn't.
fn physical_cores() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim();
    let mut cores = std::collections::BTreeSet::new();
    for cpu in parse_cpu_list(list)? {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        cores.insert(std::fs::read_to_string(path).ok()?);
    }
    Some(cores.len() as u32)
}

/// `0-3,8` as the kernel writes lists of CPUs.
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_thread_runs_its_share_and_they_meet_between_phases() {
        let pool = Pool::new(3).unwrap();
        for round in 0..200 {
            let (sum, early) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(&|worker: &Worker<'_>| {
                for i in worker.share(100, 8) {
                    sum.fetch_add(i, Ordering::Relaxed);
                }
                worker.meet();
                if sum.load(Ordering::Relaxed) != 4950 {
                    early.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!((sum.into_inner(), early.into_inner()), (4950, 0), "round {round}");
        }
    }

    #[test]
    fn shares_cover_everything_once_in_whole_units() {
        let barrier = Barrier::default();
        let shares: Vec<_> = (0..4).map(|index| Worker { index, count: 4, barrier: &barrier }.share(50, 8)).collect();
        assert_eq!(shares.iter().flat_map(|share| share.clone()).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        assert!(shares.iter().all(|share| share.start % 8 == 0));
    }

    #[test]
    fn a_list_of_cpus_is_read_as_the_kernel_writes_it() {
        assert_eq!(parse_cpu_list("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_cpu_list("?"), None);
    }
}
