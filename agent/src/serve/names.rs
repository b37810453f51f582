//! The names that a model answers to.
//!
//! A ModelDeployment is known by its name, by `NAMESPACE/NAME` and by its aliases, each with or without Ollama's default tag `:latest`.

/// The tag that Ollama's clients add to a name that has none.
const LATEST: &str = ":latest";

/// A name without the tag that means nothing.
pub fn without_latest(name: &str) -> &str {
    name.strip_suffix(LATEST).unwrap_or(name)
}

/// A name as Ollama lists it: always with a tag.
pub fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}{LATEST}") }
}

/// All names of one ModelDeployment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelNames {
    pub namespace: String,
    pub name: String,
    pub aliases: Vec<String>,
}

impl ModelNames {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, aliases: Vec<String>) -> ModelNames {
        ModelNames { namespace: namespace.into(), name: name.into(), aliases }
    }

    /// `NAMESPACE/NAME`, which is never ambiguous.
    pub fn full(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Is `asked` the form with the namespace?
    pub fn is_full(&self, asked: &str) -> bool {
        without_latest(asked).split_once('/').is_some_and(|(namespace, name)| namespace == self.namespace && name == self.name)
    }

    /// The bare name and the aliases, none twice.
    pub fn short(&self) -> Vec<&str> {
        let mut names = vec![self.name.as_str()];
        for alias in self.aliases.iter().map(|alias| without_latest(alias)) {
            if !names.contains(&alias) {
                names.push(alias);
            }
        }
        names
    }

    pub fn is_short(&self, asked: &str) -> bool {
        let asked = without_latest(asked);
        self.name == asked || self.aliases.iter().any(|alias| without_latest(alias) == asked)
    }

    pub fn matches(&self, asked: &str) -> bool {
        self.is_full(asked) || self.is_short(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ModelNames {
        ModelNames::new("team-a", "qwen", vec!["qwen2.5:0.5b".into(), "bartowski/qwen:latest".into(), "qwen".into()])
    }

    #[test]
    fn a_model_answers_to_its_name_its_full_name_and_its_aliases_with_or_without_latest() {
        for asked in ["qwen", "qwen:latest", "team-a/qwen", "team-a/qwen:latest", "qwen2.5:0.5b", "bartowski/qwen", "bartowski/qwen:latest"]
        {
            assert!(names().matches(asked), "{asked}");
        }
        for asked in ["", "qwen2.5", "team-b/qwen", "qwen:0.5b", "Qwen", "qwen2.5:0.5b/qwen", ":latest"] {
            assert!(!names().matches(asked), "{asked}");
        }
    }

    #[test]
    fn no_name_is_listed_twice() {
        assert_eq!(names().short(), ["qwen", "qwen2.5:0.5b", "bartowski/qwen"]);
    }

    #[test]
    fn a_tag_is_added_only_where_there_is_none() {
        assert_eq!(with_tag("qwen"), "qwen:latest");
        assert_eq!(with_tag("team-a/qwen"), "team-a/qwen:latest");
        assert_eq!(with_tag("deepseek-r1:32b"), "deepseek-r1:32b");
        assert_eq!(with_tag("registry:5000/qwen"), "registry:5000/qwen:latest");
    }
}
