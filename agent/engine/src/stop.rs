//! What of a generation may be shown: whole characters, and nothing that could still turn out to be the start of a stop string.

use std::collections::VecDeque;

use crate::api::TokenLogprob;

/// Gathers the bytes of tokens and lets go of them as text.
pub struct TextStream {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    /// Bytes let go before `held`.
    released: usize,
    /// Tokens not let go yet, each with where its bytes end.
    tokens: VecDeque<(usize, TokenLogprob)>,
}

/// Text that may be shown, and the tokens that are wholly in it.
#[derive(Debug, Default)]
pub struct Shown {
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    /// A stop string was met; the text ends before it.
    pub stopped: bool,
}

impl TextStream {
    /// An empty stop string is met nowhere.
    pub fn new(stops: &[String]) -> TextStream {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| stop.as_bytes().to_vec()).collect();
        TextStream { stops, held: Vec::new(), released: 0, tokens: VecDeque::new() }
    }

    /// Adds a token's bytes. After a result with `stopped`, nothing more is to be added.
    pub fn push(&mut self, bytes: &[u8], logprob: Option<TokenLogprob>) -> Shown {
        self.held.extend_from_slice(bytes);
        if let Some(logprob) = logprob {
            self.tokens.push_back((self.released + self.held.len(), logprob));
        }
        if let Some(at) = self.first_stop() {
            self.held.truncate(at);
            return Shown { stopped: true, ..self.rest() };
        }
        let open = self.possible_stop_at();
        let count = if open < self.held.len() { open } else { whole_characters(&self.held) };
        self.release(count)
    }

    /// All that is held, at the end of a generation. What is no UTF-8 is replaced by U+FFFD.
    pub fn rest(&mut self) -> Shown {
        let shown = self.release(self.held.len());
        self.tokens.clear();
        shown
    }

    fn release(&mut self, count: usize) -> Shown {
        let text = String::from_utf8_lossy(&self.held[..count]).into_owned();
        self.held.drain(..count);
        self.released += count;
        let whole = self.tokens.iter().take_while(|(end, _)| *end <= self.released).count();
        Shown { text, logprobs: self.tokens.drain(..whole).map(|(_, logprob)| logprob).collect(), stopped: false }
    }

    /// Where the earliest stop string begins. UTF-8 can be searched by byte: no character's bytes are found within another's.
    fn first_stop(&self) -> Option<usize> {
        self.stops.iter().filter_map(|stop| self.held.windows(stop.len()).position(|window| window == stop)).min()
    }

    /// Where the bytes begin that could be the start of a stop string; their length where none could.
    fn possible_stop_at(&self) -> usize {
        let could_begin = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        (first..self.held.len()).find(|&at| could_begin(at)).unwrap_or(self.held.len())
    }
}

/// Bytes before a character that is still incomplete at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut checked = 0;
    while let Err(error) = std::str::from_utf8(&bytes[checked..]) {
        match error.error_len() {
            Some(invalid) => checked += error.valid_up_to() + invalid,
            None => return checked + error.valid_up_to(),
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(&stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>())
    }

    fn token(id: u32) -> Option<TokenLogprob> {
        Some(TokenLogprob { id, text: String::new(), logprob: 0.0, top: Vec::new() })
    }

    #[test]
    fn a_character_is_shown_when_its_last_byte_has_come() {
        let mut stream = stream(&[]);
        let shown: Vec<String> = "a😀b".as_bytes().iter().map(|&byte| stream.push(&[byte], None).text).collect();
        assert_eq!(shown, ["a", "", "", "", "😀", "b"]);
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced_and_hold_nothing_back() {
        let mut stream = stream(&[]);
        assert_eq!(stream.push(&[b'a', 0xff, b'b'], None).text, "a\u{fffd}b");
        assert_eq!(stream.push(&[0xf0, 0x9f], None).text, "");
        assert_eq!(stream.rest().text, "\u{fffd}");
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_met_and_not_shown() {
        let mut stream = stream(&["\n\nUser:"]);
        assert_eq!(stream.push(b"Hi.\n", None).text, "Hi.");
        assert_eq!(stream.push(b"\nUs", None).text, "");
        let shown = stream.push(b"er: more", None);
        assert!(shown.stopped && shown.text.is_empty(), "{shown:?}");
    }

    #[test]
    fn what_only_began_like_a_stop_string_is_shown_when_it_goes_on_otherwise() {
        let mut stream = stream(&["aab"]);
        assert_eq!(stream.push(b"aa", None).text, "");
        assert_eq!(stream.push(b"a", None).text, "a");
        let shown = stream.push(b"b", None);
        assert!(shown.stopped && shown.text.is_empty(), "{shown:?}");
    }

    #[test]
    fn of_several_stop_strings_the_earliest_in_the_text_ends_it() {
        let shown = stream(&["late", "", "early"]).push(b"an early and a late one", None);
        assert!(shown.stopped);
        assert_eq!(shown.text, "an ");
    }

    #[test]
    fn a_stop_string_may_begin_in_the_middle_of_a_characters_neighbour() {
        let mut stream = stream(&["日本"]);
        let bytes = "今日本".as_bytes();
        let shown: String = bytes[..7].iter().map(|&byte| stream.push(&[byte], None).text).collect();
        assert_eq!(shown, "今");
        assert!(stream.push(&bytes[7..], None).stopped);
    }

    #[test]
    fn a_tokens_logprob_comes_with_the_last_of_its_text() {
        let mut stream = stream(&["STOP"]);
        let ids = |shown: &Shown| shown.logprobs.iter().map(|logprob| logprob.id).collect::<Vec<_>>();
        assert_eq!(ids(&stream.push(b"ab", token(1))), [1]);
        assert_eq!(ids(&stream.push(b"cS", token(2))), [0u32; 0]);
        assert_eq!(ids(&stream.push(b"x", token(3))), [2, 3]);
        assert_eq!(ids(&stream.push(b"ySTOP", token(4))), [0u32; 0]);
    }

    proptest! {
        #[test]
        fn in_whatever_pieces_a_text_comes_all_before_the_first_stop_is_shown(
            text in "[ab\u{e9}\u{1f600}]{0,24}", stop in "[ab\u{e9}]{1,3}", cuts in proptest::collection::vec(1usize..5, 0..40),
        ) {
            let mut stream = stream(&[&stop]);
            let (mut shown, mut bytes, mut stopped) = (String::new(), text.as_bytes(), false);
            for cut in cuts.into_iter().chain(std::iter::repeat(3)) {
                if bytes.is_empty() || stopped {
                    break;
                }
                let (piece, rest) = bytes.split_at(cut.min(bytes.len()));
                let more = stream.push(piece, None);
                shown += &more.text;
                (bytes, stopped) = (rest, more.stopped);
            }
            if !stopped {
                shown += &stream.rest().text;
            }
            prop_assert_eq!(shown, text.split(&stop).next().unwrap());
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
