//! What a model thinks before it answers: whether it does, how a request says so, and where the answer begins.

use serde_json::{Map, Value, json};

use super::error::Fault;
use super::fields::Fields;

/// How a model marks what it thinks.
#[derive(Debug, PartialEq, Eq)]
pub struct Tags {
    /// What a chat template has where its model thinks this way.
    sign: &'static str,
    pub open: &'static str,
    pub close: &'static str,
    /// What it says comes in channels ([`super::channels`]), of which this is one.
    pub channels: bool,
}

const TAGS: [Tags; 3] = [
    Tags { sign: "</think>", open: "<think>", close: "</think>", channels: false },
    Tags { sign: "[/THINK]", open: "[THINK]", close: "[/THINK]", channels: false },
    Tags { sign: "<|channel|>analysis", open: "<|channel|>analysis<|message|>", close: "<|end|>", channels: true },
];

/// Where the channel of answers begins.
const FINAL: &str = "<|channel|>final<|message|>";

/// What a chat template lets a request say of thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ability {
    pub tags: &'static Tags,
    /// It takes how much to think (`reasoning_effort`), and always thinks.
    levels: bool,
}

/// What a request says of thinking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Think {
    /// Nothing: a model that can think does.
    #[default]
    Unsaid,
    Off,
    On,
    Level(String),
}

/// Whether an answer is held to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    No,
    Yes,
    /// To one that may be, or has to be, a call.
    WithCalls,
}

/// Where an answer begins with respect to what is thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The prompt has opened it.
    Begun,
    /// The model may open it.
    Open,
    /// The prompt has ended it.
    Over,
}

impl Ability {
    /// `None`: its model doesn't think, or can't be seen to.
    pub fn of(template: &str) -> Option<Ability> {
        let tags = TAGS.iter().find(|tags| template.contains(tags.sign))?;
        Some(Ability { tags, levels: template.contains("reasoning_effort") })
    }

    /// The variables by which templates are told. Which of them a template knows differs.
    pub fn variables(self, think: &Think) -> Map<String, Value> {
        let on = *think != Think::Off;
        let mut variables = Map::from_iter([("enable_thinking".to_owned(), json!(on)), ("thinking".to_owned(), json!(on))]);
        if let Think::Level(level) = think {
            variables.insert("reasoning_effort".into(), json!(level));
        }
        variables
    }

    /// Makes the end of a rendered prompt agree with what was asked. An answer that is held to something has to be seen to begin, so its thinking is opened.
    pub fn open(self, prompt: &mut String, think: &Think, held: Held) -> Opening {
        let Tags { open, close, channels, .. } = self.tags;
        if *channels {
            return if held == Held::WithCalls { self.begin(prompt, "") } else { Opening::Open };
        }
        let end = prompt.trim_end();
        if end.ends_with(close) {
            return Opening::Over;
        }
        match (end.ends_with(open), *think == Think::Off) {
            (true, false) => Opening::Begun,
            (true, true) => {
                prompt.push_str(&format!("\n{close}\n\n"));
                Opening::Over
            }
            (false, false) if held != Held::No => self.begin(prompt, "\n"),
            _ => Opening::Open,
        }
    }

    fn begin(self, prompt: &mut String, after: &str) -> Opening {
        prompt.push_str(self.tags.open);
        prompt.push_str(after);
        Opening::Begun
    }

    /// The text after which an answer is held to what it is held to; `None`: from its first token on.
    ///
    /// In channels a call has its own, and no answer comes after it: where there may be one, all that follows on what is thought is held.
    pub fn answer_after(self, opening: Opening) -> Option<String> {
        match opening {
            Opening::Begun => Some(self.tags.close.to_owned()),
            Opening::Open if self.tags.channels => Some(FINAL.to_owned()),
            Opening::Open | Opening::Over => None,
        }
    }
}

/// A switch or a level, as a model's template takes it; refused where it takes none.
pub fn checked(think: Think, ability: Option<Ability>, field: &str, fields: &Fields) -> Result<Think, Fault> {
    let levels = ability.is_some_and(|ability| ability.levels);
    match (&think, ability) {
        (Think::On | Think::Level(_), None) => Err(fields.refuse(field, "can't be honoured: this model does not think before it answers")),
        (Think::Off, Some(_)) if levels => {
            Err(fields.refuse(field, "can't be honoured: this model always thinks; set low to have it think little"))
        }
        (Think::Level(_), Some(_)) if !levels => {
            Err(fields.refuse(field, "can't be honoured: this model thinks or doesn't, and knows no levels; leave it out to have it think"))
        }
        _ => Ok(think),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: &str = "{{ '<think>' }}{{ '</think>' }}{% if enable_thinking %}";

    fn opened(prompt: &str, think: Think, held: Held) -> (String, Opening) {
        let mut prompt = prompt.to_owned();
        let opening = Ability::of(QWEN).unwrap().open(&mut prompt, &think, held);
        (prompt, opening)
    }

    #[test]
    fn a_template_shows_whether_its_model_thinks_and_takes_levels() {
        assert_eq!(Ability::of("{{ message.content }}"), None);
        assert_eq!(Ability::of(QWEN).map(|ability| (ability.tags.open, ability.levels)), Some(("<think>", false)));
        let gpt_oss = Ability::of("{{ '<|channel|>analysis<|message|>' }}{{ reasoning_effort }}").unwrap();
        assert!(gpt_oss.levels);
        assert_eq!(gpt_oss.variables(&Think::Level("low".into()))["reasoning_effort"], "low");
    }

    #[test]
    fn an_answer_in_channels_is_held_in_its_own_and_one_that_may_be_a_call_after_what_is_thought() {
        let gpt_oss = Ability::of("{{ '<|channel|>analysis<|message|>' }}").unwrap();
        let held = |held| {
            let mut prompt = "<|start|>assistant".to_owned();
            let opening = gpt_oss.open(&mut prompt, &Think::Unsaid, held);
            (prompt, opening, gpt_oss.answer_after(opening))
        };
        let free = ("<|start|>assistant".to_owned(), Opening::Open, Some(FINAL.to_owned()));
        assert_eq!((held(Held::No), held(Held::Yes)), (free.clone(), free));
        let calls = ("<|start|>assistant<|channel|>analysis<|message|>".to_owned(), Opening::Begun, Some("<|end|>".to_owned()));
        assert_eq!(held(Held::WithCalls), calls);
    }

    #[test]
    fn a_prompt_that_opens_what_is_thought_is_closed_where_nothing_is_to_be() {
        assert_eq!(opened("A:<think>\n", Think::Unsaid, Held::No), ("A:<think>\n".into(), Opening::Begun));
        assert_eq!(opened("A:<think>\n", Think::Off, Held::No), ("A:<think>\n\n</think>\n\n".into(), Opening::Over));
        assert_eq!(opened("A:<think>\n\n</think>\n\n", Think::Off, Held::Yes), ("A:<think>\n\n</think>\n\n".into(), Opening::Over));
    }

    #[test]
    fn what_is_thought_is_opened_only_where_the_answer_is_held_to_something() {
        assert_eq!(opened("A:", Think::On, Held::No), ("A:".into(), Opening::Open));
        assert_eq!(opened("A:", Think::On, Held::Yes), ("A:<think>\n".into(), Opening::Begun));
        assert_eq!(opened("A:", Think::Off, Held::Yes), ("A:".into(), Opening::Open));
        let after = |opening| Ability::of(QWEN).unwrap().answer_after(opening);
        assert_eq!((after(Opening::Begun).as_deref(), after(Opening::Open), after(Opening::Over)), (Some("</think>"), None, None));
    }
}
