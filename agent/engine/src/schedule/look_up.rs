//! Prompt look-up: guesses what comes next from what came after the same tokens before, without a draft model.
//!
//! Source: "Prompt Lookup Decoding" (Saxena 2023). A step reads the guess together with the next token and gives logits after each; a guess holds as long
//! as each of its tokens is the one that is sampled from the logits before it, by the one sampler in its one order. So the answer is that without guesses,
//! sampled or greedy, and a guess that does not hold costs the time of its rows.

/// Tokens at the sequence's end that must have been there before: the first of these lengths that is found.
const NGRAMS: [usize; 2] = [3, 2];

/// How far back is looked, in tokens: some microseconds of one core.
const LOOKED_AT: usize = 16 << 10;

/// Tokens of the first guess.
const FIRST: usize = 3;

/// Steps without a guess after the first that fails; after each next in a row, twice as many.
const PAUSE: u32 = 4;

/// Doublings of the pause: a sequence in which nothing holds is guessed at once in 256 steps in the end.
const LONGEST_PAUSE: u32 = 6;

/// Whether guesses are made at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    #[default]
    PromptLookUp,
    Off,
}

/// What one sequence's guesses were worth so far.
#[derive(Clone, Copy, Debug)]
pub struct LookUp {
    /// Tokens of the next guess at most: as many as held, and more where all did.
    length: usize,
    /// Guesses in a row of which nothing held.
    misses: u32,
    /// Steps until the next guess.
    pause: u32,
}

impl LookUp {
    pub fn new() -> LookUp {
        LookUp { length: FIRST, misses: 0, pause: 0 }
    }

    /// What may follow on `tokens`, `most` at most; empty where nothing is known, or where it did not pay. Asked once a step.
    pub fn guess<'a>(&mut self, tokens: &'a [u32], most: usize) -> &'a [u32] {
        if self.pause > 0 {
            self.pause -= 1;
            return &[];
        }
        let most = most.min(self.length);
        let recent = &tokens[tokens.len().saturating_sub(LOOKED_AT)..];
        let Some(start) = NGRAMS.iter().find_map(|&length| follows(recent, length)) else { return &[] };
        &recent[start..recent.len().min(start + most)]
    }

    /// Notes how many tokens of a guess held, the first so many.
    pub fn note(&mut self, guessed: usize, held: usize) {
        if held == 0 {
            self.pause = PAUSE << self.misses.min(LONGEST_PAUSE);
            self.misses += 1;
            self.length = FIRST;
        } else {
            self.misses = 0;
            self.length = if held == guessed { self.length.max(guessed * 2) } else { held + 1 };
        }
    }
}

/// Where it went on when the last `length` tokens were there the last time before.
fn follows(tokens: &[u32], length: usize) -> Option<usize> {
    let (_, before) = tokens.split_last()?;
    let last = &tokens[tokens.len().checked_sub(length)?..];
    before.windows(length).rposition(|window| window == last).map(|start| start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_match_the_last_time_is_guessed() {
        let guess = |tokens: &[u32], most| LookUp::new().guess(tokens, most).to_vec();
        assert_eq!(guess(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 9), [4, 5, 6], "no more than a first guess has");
        assert_eq!(guess(&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2), [4, 9], "three tokens before two");
        assert_eq!(guess(&[2, 3, 4, 9, 2, 3, 5, 8, 2, 3], 1), [5], "the last time before");
        assert_eq!(guess(&[7, 7, 7, 7], 3), [7], "up to the end");
        assert_eq!(guess(&[1, 2, 3, 4], 3), [0; 0]);
        assert_eq!(guess(&[1], 3), [0; 0]);
        assert_eq!(guess(&[1, 2, 1, 2], 0), [0; 0]);
    }

    #[test]
    fn guesses_grow_while_they_hold_and_pause_for_longer_and_longer_while_they_do_not() {
        let tokens: Vec<u32> = (0..20).chain(0..3).collect();
        let mut look_up = LookUp::new();
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let guessed = look_up.guess(&tokens, 7).len();
            look_up.note(guessed, guessed);
            lengths.push(guessed);
        }
        assert_eq!(lengths, [3, 6, 7]);
        look_up.note(7, 2);
        assert_eq!(look_up.guess(&tokens, 7).len(), 3);
        let steps_between = |look_up: &mut LookUp| {
            look_up.note(3, 0);
            (0..).take_while(|_| look_up.guess(&tokens, 7).is_empty()).count()
        };
        assert_eq!([(); 8].map(|()| steps_between(&mut look_up)), [4, 8, 16, 32, 64, 128, 256, 256]);
    }
}
