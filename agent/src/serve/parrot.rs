//! A generator without a model: it repeats what it was told, and a few first words have it misbehave.

use std::time::Duration;

use serde_json::{Map, Value};
use stowage_engine::template::Json;
use stowage_engine::{
    ChatMessage, Constraint, Constraints, EngineError, Finish, FinishReason, GenerateEvent, GenerateRequest, ModelInfo, TokenLogprob,
};
use stowage_placement::Reason;
use tokio::sync::mpsc;

use super::thinking::Ability;
use super::{Constrained, Embeddings, Generator};

pub const PLAIN: &str = "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}";
pub const THINKING: &str = "{{ tools }}<think></think>";
/// Its chats begin what is to be thought themselves.
pub const OPENING: &str = "opens <think></think>";
/// It says what it says in channels.
pub const CHANNELS: &str = "{{ tools }}<|channel|>analysis{{ reasoning_effort }}";

const OPENED: &str = "<think>\n";
const OVER: &str = "<think>\n\n</think>\n\n";

/// Tokens are characters; a chat is `<role>content` for each message, then `<assistant>`.
///
/// The last message decides: `write X` answers `X`, `busy` has no slot, `fail` breaks off, `forever` goes on until its reader leaves, `options`
/// tells the sampling options, `roles` the roles read, `held` what the answer should be held to, which it never is, `after` from which text on, `occasions` what it might come to,
/// `ponder X|Y` thinks X before it answers Y; anything else is repeated.
pub struct Parrot {
    info: ModelInfo,
    constraints: Constraints,
    /// Its answer, whatever it is told.
    says: Option<String>,
}

impl Parrot {
    pub fn with_template(num_ctx: u64, template: &str) -> Parrot {
        let mut parrot = Parrot::new(num_ctx);
        parrot.info.chat_template = template.into();
        parrot
    }

    #[cfg(test)]
    pub fn saying(self, text: &str) -> Parrot {
        Parrot { says: Some(text.to_owned()), ..self }
    }

    pub fn new(num_ctx: u64) -> Parrot {
        let info = ModelInfo {
            architecture: "parrot".into(),
            name: "Parrot".into(),
            quantization: "F16".into(),
            parameter_count: 134_515_008,
            trained_context: 8192,
            num_ctx,
            longest_text: num_ctx,
            embedding_length: 4,
            generates: true,
            has_chat_template: true,
            chat_template: PLAIN.into(),
            metadata: [("general.architecture".to_owned(), "parrot".into())].into(),
        };
        let bytes: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).chain([Vec::new()]).collect();
        Parrot { says: None, info, constraints: Constraints::of(&bytes, &[256]).expect("a trie has room for 257 tokens") }
    }
}

fn text_of(tokens: &[u32]) -> String {
    tokens.iter().filter_map(|token| char::from_u32(*token)).collect()
}

fn answer_to(prompt: &str, request: &GenerateRequest) -> String {
    let (opened, over) = (prompt.ends_with(OPENED), prompt.ends_with(OVER));
    let before = prompt.strip_suffix(OVER).or(prompt.strip_suffix(OPENED)).unwrap_or(prompt);
    let before = before.strip_suffix("<assistant>").unwrap_or(before);
    let last = before.rsplit('>').next().unwrap_or_default();
    match last.split_once(' ').map_or((last, ""), |(first, rest)| (first, rest)) {
        ("write", text) => text.to_owned(),
        ("options", _) => format!("{:?}", request.sampling),
        ("held", _) => format!("{:?}", request.grammar.as_ref().map(|grammar| grammar.constraint())),
        ("after", _) => format!("{}{:?}", if opened { "</think>" } else { "" }, request.grammar_after),
        ("occasions", _) => {
            request.occasions.iter().map(|occasion| format!("{:?} {:?}\n", occasion.after, occasion.grammar.constraint())).collect()
        }
        ("ponder", text) => {
            let (thought, answer) = text.split_once('|').unwrap_or((text, ""));
            let open = if opened { "" } else { OPENED };
            if over { answer.to_owned() } else { format!("{open}{thought}\n</think>\n\n{answer}") }
        }
        ("roles", _) => before.split('<').filter_map(|part| part.split('>').next()).collect::<Vec<_>>().join(" ").trim().to_owned(),
        _ => last.to_owned(),
    }
}

fn logprobs(text: &str, top: Option<u32>) -> Vec<TokenLogprob> {
    let Some(top) = top else { return Vec::new() };
    let top = (0..top).map(|rank| (rank, format!("t{rank}"), -(rank as f32) - 0.5)).collect();
    vec![TokenLogprob { id: 1, text: text.to_owned(), logprob: -0.5, top }]
}

/// Sends the answer character by character, until a stop string, the limit, or the reader's end.
async fn speak(request: GenerateRequest, says: Option<String>, events: mpsc::Sender<GenerateEvent>) {
    let prompt = text_of(&request.prompt);
    let answer = says.unwrap_or_else(|| answer_to(&prompt, &request));
    if prompt.contains(">forever") {
        while events.send(GenerateEvent::Text { text: "on and ".into(), logprobs: Vec::new() }).await.is_ok() {}
        return;
    }
    let cut = request.stop.iter().filter_map(|stop| answer.find(stop.as_str())).min().unwrap_or(answer.len());
    let most = request.max_tokens.unwrap_or(u32::MAX) as usize;
    let said: Vec<char> = answer[..cut].chars().take(most).collect();
    for character in &said {
        let text = character.to_string();
        let logprobs = logprobs(&text, request.top_logprobs);
        if events.send(GenerateEvent::Text { text, logprobs }).await.is_err() {
            return;
        }
    }
    let reason = if answer[..cut].chars().count() > said.len() { FinishReason::Length } else { FinishReason::Stop };
    let event = if prompt.contains(">fail") {
        GenerateEvent::Failed(EngineError::new(Reason::LoadFailed, "the parrot flew away"))
    } else {
        GenerateEvent::Done(Finish {
            reason,
            prompt_tokens: request.prompt.len() as u32,
            cached_tokens: 0,
            lost_tokens: 0,
            generated_tokens: said.len() as u32,
            queued: Duration::from_micros(1),
            prefill: Duration::from_micros(2),
            decode: Duration::from_micros(3),
        })
    };
    // A reader that left needs no end.
    events.send(event).await.ok();
}

impl Generator for Parrot {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn tokenize(&self, text: &str, _: bool) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    fn render_chat(&self, messages: &[ChatMessage], _: &[Json], variables: Map<String, Value>) -> Result<String, EngineError> {
        let turns: String = messages.iter().map(|message| format!("<{}>{}", message.role, message.content)).collect();
        let thinks = Ability::of(&self.info.chat_template).is_some();
        let end = match variables.get("enable_thinking") {
            Some(Value::Bool(false)) => OVER,
            Some(Value::Bool(true)) if self.info.chat_template == OPENING => OPENED,
            found => {
                assert_eq!(found.is_some(), thinks, "whether a template is told of thinking");
                ""
            }
        };
        Ok(turns + "<assistant>" + end)
    }

    fn constrain(&self, constraint: Constraint) -> Constrained<'_> {
        Box::pin(self.constraints.compile(constraint))
    }

    fn generate(&self, request: GenerateRequest) -> Result<mpsc::Receiver<GenerateEvent>, EngineError> {
        if text_of(&request.prompt).contains(">busy") {
            return Err(EngineError::new(Reason::QueueFull, "16 requests are waiting, and no more may"));
        }
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(speak(request, self.says.clone(), sender));
        Ok(receiver)
    }

    fn embed(&self, inputs: Vec<Vec<u32>>) -> Embeddings<'_> {
        Box::pin(async move { Ok(inputs.iter().map(|_| vec![0.5f32; 4]).collect()) })
    }
}
