//! A place for one sequence: what its cache holds, and what is being done with it.

use crate::api::EngineError;
use crate::schedule::embedding::Embedding;
use crate::schedule::generation::Generation;

pub struct Slot {
    /// Tokens whose keys and values are in the cache, from place 0.
    pub cached: Vec<u32>,
    pub work: Option<Work>,
    /// Number of the round in which the slot was last in a batch.
    pub last_round: u64,
}

pub enum Work {
    Generate(Box<Generation>),
    Embed(Embedding),
}

impl Slot {
    pub fn new() -> Slot {
        Slot { cached: Vec::new(), work: None, last_round: 0 }
    }

    pub fn is_free(&self) -> bool {
        self.work.is_none()
    }

    /// Tokens that the cache and a prompt have in common. The prompt's last is not counted: only reading it again gives its logits.
    pub fn common_with(&self, prompt: &[u32]) -> usize {
        let readable = &prompt[..prompt.len().saturating_sub(1)];
        self.cached.iter().zip(readable).take_while(|(a, b)| a == b).count()
    }

    /// Tokens of the generation that are not in the cache yet.
    pub fn unread(&self) -> &[u32] {
        match &self.work {
            Some(Work::Generate(generation)) => &generation.tokens()[self.cached.len()..],
            _ => &[],
        }
    }

    /// Lets go of work that nobody waits for. What is in the cache stays good.
    pub fn drop_abandoned(&mut self) {
        let abandoned = match &self.work {
            Some(Work::Generate(generation)) => generation.is_abandoned(),
            Some(Work::Embed(embedding)) => embedding.is_abandoned(),
            None => false,
        };
        if abandoned {
            self.work = None;
        }
    }

    /// Ends the work with an error. What the cache holds is not relied on any more.
    pub fn fail(&mut self, error: &EngineError) {
        self.cached.clear();
        match self.work.take() {
            Some(Work::Generate(generation)) => generation.fail(error.clone()),
            Some(Work::Embed(embedding)) => embedding.finish(Err(error.clone())),
            None => {}
        }
    }
}

/// The slot for a prompt: the one that has most of it cached, where that is at least half of the prompt; else the one that was not used for longest,
/// so that a short common beginning does not cost another chat its history. `None`: all are busy.
pub fn best_for(slots: &[Slot], prompt: &[u32]) -> Option<usize> {
    let free = || slots.iter().enumerate().filter(|(_, slot)| slot.is_free());
    let (index, slot) = free().max_by_key(|(_, slot)| slot.common_with(prompt))?;
    if slot.common_with(prompt) * 2 >= prompt.len() {
        return Some(index);
    }
    free().min_by_key(|(_, slot)| slot.last_round).map(|(index, _)| index)
}
