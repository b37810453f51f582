//! How the files of a split model are named.

/// The name of one part: `NAME-00002-of-00005.gguf`. What stands before the last dash but three, folders included, is the same for all parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    prefix: String,
    number: u32,
    count: u32,
}

impl PartName {
    /// `None` where the name is that of a model in one file.
    pub fn parse(file_name: &str) -> Option<PartName> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        let is_part = (1..=count).contains(&number) && !prefix.is_empty() && !prefix.ends_with('/');
        is_part.then(|| PartName { prefix: prefix.to_owned(), number, count })
    }

    /// Counted from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// The name of another part of the same model, or of this one.
    pub fn of(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

fn five_digits(text: &str) -> Option<u32> {
    let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_names_all_the_others() {
        let name = PartName::parse("folder/Qwen-of-1-Q4_K_M-00002-of-00011.gguf").unwrap();
        assert_eq!((name.number(), name.count()), (2, 11));
        assert_eq!(name.of(1), "folder/Qwen-of-1-Q4_K_M-00001-of-00011.gguf");
        assert_eq!(name.of(11), "folder/Qwen-of-1-Q4_K_M-00011-of-00011.gguf");
    }

    #[test]
    fn other_names_are_those_of_whole_models() {
        for name in [
            "model.gguf",
            "m-00001-of-00002",
            "m-00001-of-00002.GGUF",
            "m-1-of-2.gguf",
            "m-00003-of-00002.gguf",
            "m-00000-of-00002.gguf",
            "m-+0001-of-00002.gguf",
            "m-000001-of-000002.gguf",
            "-00001-of-00002.gguf",
            "folder/-00001-of-00002.gguf",
            "m-00001-of-00000.gguf",
        ] {
            assert_eq!(PartName::parse(name), None, "{name}");
        }
    }
}
