//! A client of one replica: at the port that its EndpointSlice tells, on the loopback address.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use stowage_crds::ModelDeployment;

/// The URL of the first replica that serves, as this machine reaches it.
pub fn worker_url(deployment: &ModelDeployment) -> Result<String> {
    let placements = deployment.status.iter().flat_map(|status| &status.placements);
    let endpoint = placements.map(|placement| &placement.endpoint).find(|endpoint| !endpoint.is_empty());
    let port = endpoint.and_then(|endpoint| endpoint.rsplit_once(':')).map(|(_, port)| port);
    Ok(format!("http://127.0.0.1:{}", port.context("no replica has an endpoint")?))
}

/// An answer of Ollama's `/api/generate` while it streams.
pub struct Stream {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Stream {
    /// `tokens`: of the answer, at most.
    pub async fn start(url: &str, model: &str, prompt: &str, tokens: u32) -> Result<Stream> {
        let body = json!({"model": model, "prompt": prompt, "raw": true, "options": {"temperature": 0, "num_predict": tokens}});
        let response = reqwest::Client::new().post(format!("{url}/api/generate")).json(&body).send().await.context("asking a replica")?;
        if !response.status().is_success() {
            bail!("{} answered {}: {}", url, response.status(), response.text().await.unwrap_or_default());
        }
        Ok(Stream { response, buffer: Vec::new() })
    }

    /// The next message; an error where the stream breaks off before one says that it is done.
    pub async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).with_context(|| format!("reading {}", String::from_utf8_lossy(&line)));
            }
            match self.response.chunk().await.context("the stream broke")? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => bail!("the stream ended before its last message"),
            }
        }
    }

    /// Reads on to the last message, which is given.
    pub async fn rest(&mut self) -> Result<Value> {
        loop {
            let message = self.next().await?;
            if message["done"] == true {
                return Ok(message);
            }
        }
    }
}
