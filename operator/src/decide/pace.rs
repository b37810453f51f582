//! When the next pass is due.

use std::time::Duration;

use tokio::time::Instant;

/// After the API server could not be reached.
const RETRY: Duration = Duration::from_secs(1);
/// After so many passes in a row that all found something to send there is a pause, lest two steps that undo each other keep the API server busy.
const MOST_PASSES: u32 = 512;

#[derive(Debug, Default)]
pub struct Pace {
    /// Something changed since the last pass began.
    pub due: bool,
    paused_until: Option<Instant>,
    /// In a row that found something to send.
    passes: u32,
}

impl Pace {
    /// Whether a pass is to be made now.
    pub fn is_due(&self) -> bool {
        self.due && self.wait().is_none()
    }

    /// For how long no pass is to be made.
    pub fn wait(&self) -> Option<Duration> {
        let left = self.paused_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Tries again after a while.
    pub fn pause(&mut self) {
        (self.due, self.paused_until) = (true, Some(Instant::now() + RETRY));
    }

    /// Notes that a pass was made.
    pub fn passed(&mut self, sent: bool) {
        self.passes = if sent { self.passes + 1 } else { 0 };
        if self.passes >= MOST_PASSES {
            tracing::warn!("after {MOST_PASSES} passes there is still something to write; going on in a while");
            self.passes = 0;
            self.pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_comes_after_a_failure_and_after_too_many_passes_in_a_row() {
        let mut pace = Pace { due: true, ..Pace::default() };
        assert!(pace.is_due());
        pace.pause();
        assert!(!pace.is_due() && pace.due);
        tokio::time::advance(RETRY).await;
        assert!(pace.is_due());
        for _ in 1..MOST_PASSES {
            pace.passed(true);
        }
        pace.passed(false);
        assert!(pace.is_due(), "it came to rest in between");
        (0..MOST_PASSES).for_each(|_| pace.passed(true));
        assert_eq!(pace.wait(), Some(RETRY));
    }
}
