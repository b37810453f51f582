//! How many threads run while other processes hold some of the cores.
//!
//! Threads that meet after every phase are as fast as the slowest of them. One that shares its core with another process is given it by turns of milliseconds,
//! where a phase takes microseconds: two threads of which one shares its core are slower than the other alone. Linux says how long each thread waited for a
//! core (`/proc/thread-self/schedstat`, see `Documentation/scheduler/sched-stats.rst`); where it doesn't, all threads run.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Running time after which is judged: several of the turns that the kernel gives.
const WINDOW: Duration = Duration::from_millis(50);

/// A thread that waits for a core for a larger part of a window shares it with someone.
const CROWDED: f64 = 0.25;

/// Running time on fewer threads until all are tried again, doubled each time in vain.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(8);

/// How long a thread has waited for a core since it began.
pub struct CoreWait(File);

impl CoreWait {
    /// Of the thread that calls. `None`: the kernel doesn't say.
    pub fn of_this_thread() -> Option<CoreWait> {
        let wait = CoreWait(File::open("/proc/thread-self/schedstat").ok()?);
        wait.read().map(|_| wait)
    }

    /// Any thread may ask.
    pub fn read(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    }
}

/// The number of threads, judged window by window.
pub struct Crowding {
    all: u32,
    threads: u32,
    /// Running time in this window.
    ran: Duration,
    /// Running time until all threads are tried again.
    left: Duration,
    rest: Duration,
    /// What each thread had waited when the window began.
    waited: Vec<Option<Duration>>,
}

impl Crowding {
    pub fn new(all: u32) -> Crowding {
        Crowding { all, threads: all, ran: Duration::ZERO, left: Duration::ZERO, rest: REST, waited: Vec::new() }
    }

    /// Threads that the next program runs on.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Takes note of a program that ran. `waited` reads what each thread has waited so far, and is asked once a window.
    pub fn ran(&mut self, took: Duration, waited: impl FnOnce() -> Vec<Option<Duration>>) {
        self.ran += took;
        if self.all == 1 || self.ran < WINDOW {
            return;
        }
        let (ran, now) = (std::mem::take(&mut self.ran), waited());
        let before = std::mem::replace(&mut self.waited, now);
        let most = ran.mul_f64(CROWDED);
        let crowded = before.iter().zip(&self.waited).take(self.threads as usize).filter(|(before, now)| match (before, now) {
            (Some(before), Some(now)) => now.saturating_sub(*before) > most,
            _ => false,
        });
        match crowded.count() as u32 {
            0 if self.threads == self.all => self.rest = REST,
            0 => self.left = self.left.saturating_sub(ran),
            crowded => {
                if self.threads == self.all {
                    self.left = self.rest;
                    self.rest = (self.rest * 2).min(LONGEST_REST);
                }
                self.threads = self.threads.saturating_sub(crowded).max(1);
            }
        }
        if self.threads < self.all && self.left.is_zero() {
            self.threads = self.all;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs windows in which each thread waits for the given part of it.
    fn windows(crowding: &mut Crowding, sums: &mut [Duration], count: u32, parts: &[f64]) -> Vec<u32> {
        let mut threads = Vec::new();
        for _ in 0..count {
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += WINDOW.mul_f64(*part));
            crowding.ran(WINDOW, || sums.iter().copied().map(Some).collect());
            threads.push(crowding.threads());
        }
        threads
    }

    #[test]
    fn a_thread_that_shares_its_core_is_left_out_and_tried_again_ever_more_seldom() {
        let (mut crowding, mut sums) = (Crowding::new(4), [Duration::ZERO; 4]);
        assert_eq!(windows(&mut crowding, &mut sums, 3, &[0.0, 0.02, 0.0, 0.1]), [4, 4, 4]);
        assert_eq!(windows(&mut crowding, &mut sums, 1, &[0.0, 0.6, 0.0, 0.0]), [3]);
        // The three that go on are free: after the rest, all are tried.
        let rest = windows(&mut crowding, &mut sums, 10, &[0.0; 4]);
        assert_eq!((&rest[..9], rest[9]), (&[3; 9][..], 4));
        // In vain: the next rest is twice as long.
        assert_eq!(windows(&mut crowding, &mut sums, 1, &[0.0, 0.6, 0.0, 0.0]), [3]);
        let rest = windows(&mut crowding, &mut sums, 20, &[0.0; 4]);
        assert_eq!((&rest[..19], rest[19]), (&[3; 19][..], 4));
        // The core is free again.
        assert_eq!(windows(&mut crowding, &mut sums, 2, &[0.0; 4]), [4, 4]);
    }

    #[test]
    fn one_thread_is_always_left() {
        let (mut crowding, mut sums) = (Crowding::new(2), [Duration::ZERO; 2]);
        let threads = windows(&mut crowding, &mut sums, 3, &[0.5, 0.5]);
        assert_eq!(threads, [2, 1, 1], "the first window has nothing to compare with");
    }

    #[test]
    fn where_the_kernel_says_nothing_all_run() {
        let mut crowding = Crowding::new(2);
        for _ in 0..5 {
            crowding.ran(WINDOW, || vec![None, None]);
            assert_eq!(crowding.threads(), 2);
        }
    }

    #[test]
    fn linux_says_how_long_a_thread_waited_to_every_other_thread() {
        let Some(wait) = CoreWait::of_this_thread() else { return };
        let first = wait.read().unwrap();
        let second = std::thread::spawn(move || wait.read().unwrap()).join().unwrap();
        assert!(second >= first);
    }
}
