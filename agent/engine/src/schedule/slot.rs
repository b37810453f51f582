//! A place for one sequence: what its cache holds, and what is being done with it.

use stowage_placement::footprint::CHECKPOINTS;

use crate::api::{EngineError, FinishReason};
use crate::schedule::embedding::Embedding;
use crate::schedule::generation::Generation;
use crate::tokenizer::Tokenizer;

pub struct Slot {
    /// Tokens whose keys and values are in the cache, from place 0.
    pub cached: Vec<u32>,
    /// Places that were written since place 0 was: beyond what is cached there may be guesses that did not hold, and what was there before the slot was
    /// taken back. A ring's cells are lost to them all the same.
    pub written: usize,
    /// The copies of what can't be gone back to; empty where none was kept.
    kept: [Kept; CHECKPOINTS as usize],
    /// The copy that is made next.
    next_copy: usize,
    pub work: Option<Work>,
    /// Number of the round in which the slot was last in a batch.
    pub last_round: u64,
}

/// What was in the cache when a copy was kept.
#[derive(Default)]
struct Kept {
    cached: Vec<u32>,
    written: usize,
}

/// Where a prompt is gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Its first tokens, which need not be read.
    pub tokens: usize,
    /// The copy that is put back first.
    pub copy: Option<usize>,
    /// Tokens that were in the cache and are read again all the same.
    pub lost: usize,
}

fn common(cached: &[u32], prompt: &[u32]) -> usize {
    let readable = &prompt[..prompt.len().saturating_sub(1)];
    cached.iter().zip(readable).take_while(|(a, b)| a == b).count()
}

pub enum Work {
    Generate(Box<Generation>),
    Embed(Embedding),
}

impl Slot {
    pub fn new() -> Slot {
        Slot { cached: Vec::new(), written: 0, kept: Default::default(), next_copy: 0, work: None, last_round: 0 }
    }

    pub fn is_free(&self) -> bool {
        self.work.is_none()
    }

    /// Tokens that the cache and a prompt have in common. The prompt's last is not counted: only reading it again gives its logits.
    pub fn common_with(&self, prompt: &[u32]) -> usize {
        common(&self.cached, prompt)
    }

    /// From where a prompt is gone on with. `can_rewind` says whether a sequence of so many tokens can be taken up again after its first so many.
    pub fn resume(&self, prompt: &[u32], can_rewind: impl Fn(usize, usize) -> bool) -> Resume {
        let cached = self.common_with(prompt);
        if can_rewind(self.written, cached) {
            return Resume { tokens: cached, copy: None, lost: 0 };
        }
        let from_copy = |(index, kept): (usize, &Kept)| {
            let tokens = common(&kept.cached, prompt).min(cached);
            (tokens > 0 && can_rewind(kept.written, tokens)).then_some((tokens, index))
        };
        match self.kept.iter().enumerate().filter_map(from_copy).max() {
            Some((tokens, index)) => Resume { tokens, copy: Some(index), lost: cached - tokens },
            None => Resume { tokens: 0, copy: None, lost: cached },
        }
    }

    /// Is at the place from which a prompt is gone on with.
    pub fn take_up(&mut self, resume: &Resume) {
        self.cached.truncate(resume.tokens);
        self.written = match resume.copy {
            Some(copy) => self.kept[copy].written,
            None if resume.tokens == 0 => 0,
            None => self.written,
        };
    }

    /// What is in the cache is being kept; the number of the copy.
    pub fn keep(&mut self) -> usize {
        let index = self.next_copy;
        let Kept { cached, written } = &mut self.kept[index];
        cached.clone_from(&self.cached);
        *written = self.written;
        self.next_copy = (index + 1) % self.kept.len();
        index
    }

    /// Tokens of the generation that are not in the cache yet.
    pub fn unread(&self) -> &[u32] {
        match &self.work {
            Some(Work::Generate(generation)) => &generation.tokens()[self.cached.len()..],
            _ => &[],
        }
    }

    /// What may come after the next token, `most` tokens at most; none while a prompt is read, and none that could not be taken back.
    pub fn guess(&mut self, most: usize, can_rewind: impl Fn(usize, usize) -> bool) -> Vec<u32> {
        let Some(Work::Generate(generation)) = &mut self.work else { return Vec::new() };
        let read = self.cached.len() + 1;
        if generation.tokens().len() > read || !can_rewind(self.written.max(read + most), read) {
            return Vec::new();
        }
        generation.guess(most)
    }

    /// Takes the logits after the last token that was read, and after each of a guess as far as it holds. What is guessed right is in the cache.
    pub fn advance(&mut self, rows: &[&[f32]], guess: &[u32], tokenizer: &Tokenizer) {
        let mut held = 0;
        for row in rows {
            let Some(Work::Generate(generation)) = &mut self.work else { return };
            if let Some(ended) = generation.advance(row, tokenizer).transpose() {
                return self.end(ended);
            }
            let said = generation.tokens().last();
            if said.is_none() || said != guess.get(held) {
                break;
            }
            self.cached.extend(said);
            held += 1;
        }
        if let Some(Work::Generate(generation)) = &mut self.work
            && !guess.is_empty()
        {
            generation.note_guess(guess.len(), held);
        }
    }

    fn end(&mut self, ended: Result<FinishReason, EngineError>) {
        let Some(Work::Generate(generation)) = self.work.take() else { return };
        match ended {
            Ok(reason) => generation.finish(reason),
            // What the slot has cached is good all the same.
            Err(error) => generation.fail(error),
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
