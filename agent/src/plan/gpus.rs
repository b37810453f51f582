//! GPUs as `--gpu` names them.

use std::str::FromStr;

use stowage_placement::Bytes;

/// More than any node has.
const MOST: usize = 64;

/// So many GPUs, each with as much free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpus {
    pub count: usize,
    pub free: Bytes,
}

impl FromStr for Gpus {
    type Err = String;

    /// One GPU by its size, or several as `8x15GiB`.
    fn from_str(text: &str) -> Result<Gpus, String> {
        let Some((count, free)) = text.split_once('x') else { return Ok(Gpus { count: 1, free: text.parse()? }) };
        match count.trim().parse() {
            Ok(count @ 1..=MOST) => Ok(Gpus { count, free: free.parse()? }),
            _ => Err(format!("`{count}` is no number of GPUs: write 8x15GiB for eight of 15 GiB each, at most {MOST}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_gpus_are_their_number_and_the_size_of_each() {
        assert_eq!("15GiB".parse(), Ok(Gpus { count: 1, free: Bytes::gib(15) }));
        assert_eq!("8x15GiB".parse(), Ok(Gpus { count: 8, free: Bytes::gib(15) }));
        for text in ["0x15GiB", "65x15GiB", "x15GiB", "-1x15GiB"] {
            assert!(text.parse::<Gpus>().unwrap_err().contains("is no number of GPUs"), "{text}");
        }
        assert!("8x".parse::<Gpus>().unwrap_err().contains("is no size"));
    }
}
