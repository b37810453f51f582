//! Sampling options of a request, and those that a ModelDeployment sets for requests that don't.

use serde::{Deserialize, Serialize};
use stowage_engine::SamplingOptions;

/// What a ModelDeployment says of requests: its `parameters`, with the names that they have there (a Modelfile's), and its `system`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestDefaults {
    /// Put before conversations that bring no system message of their own.
    pub system: String,
    #[serde(flatten)]
    pub options: RequestOptions,
}

/// Options of a request; what is `None` is left to whoever comes next: the ModelDeployment, then the API's own default, then the engine's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_predict: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_last_n: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl RequestOptions {
    /// These options, completed from `fallback`.
    pub fn or(self, fallback: &RequestOptions) -> RequestOptions {
        RequestOptions {
            num_predict: self.num_predict.or(fallback.num_predict),
            temperature: self.temperature.or(fallback.temperature),
            top_k: self.top_k.or(fallback.top_k),
            top_p: self.top_p.or(fallback.top_p),
            min_p: self.min_p.or(fallback.min_p),
            typical_p: self.typical_p.or(fallback.typical_p),
            repeat_last_n: self.repeat_last_n.or(fallback.repeat_last_n),
            repeat_penalty: self.repeat_penalty.or(fallback.repeat_penalty),
            presence_penalty: self.presence_penalty.or(fallback.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(fallback.frequency_penalty),
            seed: self.seed.or(fallback.seed),
            stop: if self.stop.is_empty() { fallback.stop.clone() } else { self.stop },
        }
    }

    /// What the engine samples by. Ollama's seed -1 means a fresh one; any other integer is a seed.
    pub fn sampling(&self) -> SamplingOptions {
        let base = SamplingOptions::default();
        let pick = |chosen: Option<f64>, base: f32| chosen.map_or(base, |value| value as f32);
        SamplingOptions {
            temperature: pick(self.temperature, base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: pick(self.top_p, base.top_p),
            min_p: pick(self.min_p, base.min_p),
            typical_p: pick(self.typical_p, base.typical_p),
            repeat_last_n: self.repeat_last_n.unwrap_or(base.repeat_last_n),
            repeat_penalty: pick(self.repeat_penalty, base.repeat_penalty),
            presence_penalty: pick(self.presence_penalty, base.presence_penalty),
            frequency_penalty: pick(self.frequency_penalty, base.frequency_penalty),
            seed: self.seed.filter(|seed| *seed != -1).map(|seed| seed as u64),
        }
    }

    /// Most tokens to generate. As in Ollama, what is not positive is no limit.
    pub fn max_tokens(&self) -> Option<u32> {
        self.num_predict.filter(|limit| *limit > 0).map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_deployments_parameters_are_read_as_they_stand() {
        let parameters = r#"{"num_ctx": 4096, "num_gpu": -1, "temperature": 0.5, "stop": ["END"], "num_predict": -1, "seed": 7}"#;
        let defaults: RequestDefaults = serde_json::from_str(parameters).unwrap();
        assert_eq!(defaults.options.temperature, Some(0.5));
        assert_eq!(defaults.options.stop, ["END"]);
        assert_eq!(defaults.options.max_tokens(), None);
        assert_eq!(defaults.options.sampling().seed, Some(7));
        assert_eq!(serde_json::from_value::<RequestDefaults>(serde_json::to_value(&defaults).unwrap()).unwrap(), defaults);
    }

    #[test]
    fn a_request_overrides_its_model_deployment_field_by_field() {
        let deployment = RequestOptions { temperature: Some(0.1), top_k: Some(3), stop: vec!["A".into()], ..Default::default() };
        let request = RequestOptions { temperature: Some(0.9), ..Default::default() };
        let both = request.or(&deployment);
        assert_eq!((both.temperature, both.top_k, both.stop), (Some(0.9), Some(3), vec!["A".to_owned()]));
    }

    #[test]
    fn seed_minus_one_is_a_fresh_one() {
        assert_eq!(RequestOptions { seed: Some(-1), ..Default::default() }.sampling().seed, None);
    }
}
