//! A minute and a half of `make chaos`, with a seed that stays the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use stowage_end_to_end::chaos::{self, Settings};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_paused_or_changed_no_byte_is_promised_twice_and_all_comes_to_rest() -> Result<()> {
    let summary = chaos::run(Settings { seed: 10, duration: Duration::from_secs(90) }).await?;
    ensure!(summary.settled.deployments() > 0, "nothing was left to settle: {summary:?}");
    Ok(())
}
