//! The first steps after loading: whether numbers come out, and, later, how fast.

use std::time::{Duration, Instant};

use stowage_placement::Reason;

use crate::api::{EngineError, MeasuredSpeed};
use crate::batch::Batch;
use crate::model::LoadedModel;

/// Tokens of the first prompt, whose numbers are looked at.
const FIRST: u32 = 16;
/// What measuring may take, for reading a prompt and for generating: a model is not kept from serving for the sake of a figure.
const ENOUGH: Duration = Duration::from_millis(50);
/// Tokens that are generated to measure that, unless they take longer.
const GENERATED: u32 = 4;

impl LoadedModel {
    /// Reads a prompt in slot 0 and checks that what comes out is finite.
    pub fn self_test(&mut self) -> Result<(), EngineError> {
        let longest = self.num_batch().min(self.num_ctx());
        self.read_prompt(FIRST.min(longest)).map(drop)
    }

    /// Reads a prompt in slot 0 and generates a few tokens; how fast both were.
    pub fn measure_speed(&mut self) -> Result<MeasuredSpeed, EngineError> {
        let longest = self.num_batch().min(self.num_ctx());
        let first = FIRST.min(longest);
        let mut prefill = self.read_prompt(first)?;
        // Short prompts are read more slowly than long ones, and the first of all most slowly: as long a one as there is time for tells more.
        let more = longest.min((prefill * ENOUGH.as_secs_f64()) as u32);
        if more >= 2 * first {
            prefill = self.read_prompt(more)?;
        }
        let decode = if self.has_output { Some(self.decode_speed()?) } else { None };
        Ok(MeasuredSpeed { prefill, decode, threads: self.threads })
    }

    /// Tokens a second at which a prompt of this length is read. What comes of it must be finite.
    fn read_prompt(&mut self, length: u32) -> Result<f64, EngineError> {
        let tokens: Vec<u32> = (0..length).map(|i| (i as usize * 31 % self.vocabulary) as u32).collect();
        let mut batch = Batch::default();
        batch.push_run(&tokens, 0, 0, self.has_output);
        let start = Instant::now();
        let numbers = if self.has_output { self.step(&batch)? } else { self.embed_step(&batch)? };
        let took = start.elapsed();
        let (bad, all) = (numbers.iter().filter(|number| !number.is_finite()).count(), numbers.len());
        if bad > 0 {
            let message = format!("the model computed a batch of {length} tokens, and {bad} of {all} numbers are not finite");
            return Err(EngineError::new(Reason::LoadFailed, message));
        }
        Ok(per_second(length, took))
    }

    /// Tokens a second that are generated from an empty context in slot 0. The first, which finds what it needs in no cache of the CPU, is not counted.
    fn decode_speed(&mut self) -> Result<f64, EngineError> {
        let mut batch = Batch::default();
        let mut start = Instant::now();
        let mut counted = 0;
        for position in 0..self.num_ctx().min(GENERATED + 1) {
            batch.clear();
            batch.push_wanted((position as usize * 31 % self.vocabulary) as u32, 0, position);
            self.step(&batch)?;
            if position == 0 {
                start = Instant::now();
                continue;
            }
            counted += 1;
            if start.elapsed() > ENOUGH {
                break;
            }
        }
        Ok(per_second(counted, start.elapsed()))
    }
}

fn per_second(tokens: u32, took: Duration) -> f64 {
    f64::from(tokens) / took.as_secs_f64().max(1e-9)
}
