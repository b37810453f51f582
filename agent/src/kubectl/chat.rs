//! `kubectl stowage chat`: a conversation with a model, in the terminal.

mod conversation;
mod stream;

use std::io::{IsTerminal, Read, Write};

use clap::Args;
use kube::ResourceExt;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Error;
use super::cluster::Cluster;
use super::forward::Way;
use conversation::Conversation;

/// Talk with a model. With a prompt, or one from a pipe, it answers that and ends.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// mdl/NAME.
    pub deployment: String,
    /// What to ask, for one answer.
    pub prompt: Option<String>,
    /// Where the model answers, such as 10.0.0.7:11434. Omitted: through the API server, into the Pod that serves it.
    #[arg(long, env = "STOWAGE_ADDRESS", value_name = "ADDRESS")]
    pub address: Option<String>,
    /// The key that the model's API asks for, where it asks for one.
    #[arg(long, env = "STOWAGE_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// An option of Ollama's API, such as temperature=0. Once for each.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = option)]
    pub options: Vec<(String, serde_json::Value)>,
    /// Say at the end of each answer how fast it came.
    #[arg(long)]
    pub verbose: bool,
}

/// Why a conversation does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error("asking {url}: {source}")]
    Ask { url: String, source: reqwest::Error },
    #[error("{url} answered {status}: {message}")]
    Refused { url: String, status: u16, message: String },
    #[error("the answer of {url} broke off: {what}")]
    BrokeOff { url: String, what: String },
    #[error("reading the prompt: {0}")]
    Prompt(std::io::Error),
    #[error("there is nothing to ask: the prompt is empty")]
    NoPrompt,
}

/// `temperature=0`; what is no JSON is a text.
fn option(given: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = given.split_once('=').ok_or_else(|| format!("`{given}` is no NAME=VALUE"))?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

pub async fn run(cluster: &Cluster, args: ChatArgs) -> Result<(), Error> {
    let deployment = cluster.deployment(&args.deployment).await?;
    let way = match &args.address {
        Some(address) => Way::direct(address),
        None => Way::to(cluster, &deployment).await?,
    };
    let model = format!("{}/{}", deployment.namespace().unwrap_or_default(), deployment.name_any());
    let mut conversation = Conversation::new(&way.url, &model, &args);
    if let Some(prompt) = once(&args)? {
        conversation.say(&prompt, &mut std::io::stdout()).await?;
        return Ok(());
    }
    talk(&mut conversation, &model).await
}

/// The prompt, where there is to be one answer.
fn once(args: &ChatArgs) -> Result<Option<String>, ChatError> {
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => return Ok(None),
        None => {
            let mut piped = String::new();
            std::io::stdin().read_to_string(&mut piped).map_err(ChatError::Prompt)?;
            piped
        }
    };
    if prompt.trim().is_empty() { Err(ChatError::NoPrompt) } else { Ok(Some(prompt.trim_end().to_owned())) }
}

/// Line by line, until `/bye` or the end of the input. Ctrl-C cuts an answer off; what came of it stays in the conversation.
async fn talk(conversation: &mut Conversation, model: &str) -> Result<(), Error> {
    eprintln!("Talking with {model}. /clear forgets what was said, /bye ends.");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        eprint!(">>> ");
        std::io::stderr().flush()?;
        let Some(line) = lines.next_line().await.map_err(ChatError::Prompt)? else {
            eprintln!();
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/bye" => return Ok(()),
            "/clear" => conversation.clear(),
            // What is refused, such as a prompt that is too long, is no end of it.
            said => match conversation.say(said, &mut std::io::stdout()).await {
                Err(Error::Chat(error @ ChatError::Refused { .. })) => eprintln!("error: {}", crate::plan::printable(&error.to_string())),
                answered => answered?,
            },
        }
    }
}

#[cfg(test)]
mod tests;
