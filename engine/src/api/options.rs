//! How an answer is to be generated: what a profile read from its request, in our own terms.
//!
//! `None` means that the model's own proposal holds. Ranges were checked when it was read; what
//! depends on the model (vocabulary, context) is checked by [`Options::resolve`].

use crate::api::error::ApiError;
use crate::model::info::InstanceInfo;
use crate::request::{SamplerParams, StopParams};

/// Wishes of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Choices.
    pub n: u32,
    /// Tokens of a choice.
    pub max_tokens: Option<u32>,
    /// What `max_tokens` is when absent, cut to what fits; `None` is all that fits.
    pub max_tokens_default: Option<u32>,
    /// Tokens before which no choice ends.
    pub min_tokens: u32,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Share of the probability to keep.
    pub top_p: Option<f32>,
    /// Number of tokens to keep, 0 keeps all.
    pub top_k: Option<u32>,
    /// Least share of the largest probability.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted for each time a token was generated.
    pub frequency_penalty: f32,
    /// Subtracted if a token was generated.
    pub presence_penalty: f32,
    /// `None` is a new one for each request.
    pub seed: Option<u64>,
    /// Ascending by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// If not empty, only these.
    pub allowed: Vec<u32>,
    /// Strings that end a choice.
    pub stop: Vec<String>,
    /// Keep the stop string in the text.
    pub include_stop: bool,
    /// Tokens that end a choice, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// The model's own do not.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Log-probabilities of the output, with so many alternatives.
    pub logprobs: Option<u32>,
    /// The request's field that says so: errors name it.
    pub logprobs_field: &'static str,
    /// Log-probabilities of the prompt, with so many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Requests with different salts share no cached blocks.
    pub cache_salt: String,
    /// Smaller is served first.
    pub priority: i32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            n: 1,
            max_tokens: None,
            max_tokens_default: None,
            min_tokens: 0,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
            allowed: Vec::new(),
            stop: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            skip_special: true,
            logprobs: None,
            logprobs_field: "logprobs",
            prompt_logprobs: None,
            cache_salt: String::new(),
            priority: 0,
        }
    }
}

impl Options {
    /// Puts the model's proposals where the request is silent and checks token ids against the
    /// vocabulary. `prompt_tokens` bounds what `max_tokens` is by default.
    pub fn resolve(
        &self,
        info: &InstanceInfo,
        prompt_tokens: u32,
    ) -> Result<(SamplerParams, StopParams), ApiError> {
        self.check_tokens(info)?;
        let max_tokens = self.max_tokens_for(info, prompt_tokens)?;
        let eos_token_ids = if self.ignore_eos { Vec::new() } else { info.eos_token_ids.clone() };
        let mut suppressed = Vec::new();
        if self.min_tokens > 0 {
            suppressed.extend_from_slice(&eos_token_ids);
            suppressed.extend_from_slice(&self.stop_token_ids);
            suppressed.sort_unstable();
            suppressed.dedup();
        }
        let mut allowed = self.allowed.clone();
        allowed.sort_unstable();
        allowed.dedup();
        if !allowed.is_empty() && allowed.iter().all(|token| suppressed.contains(token)) {
            let message = "allowed_token_ids leaves only tokens that min_tokens forbids.";
            return Err(ApiError::invalid("allowed_token_ids", "invalid_value", message.into()));
        }
        let model = &info.default_sampling;
        let sampler = SamplerParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(1.0),
            top_k: self.top_k.or(model.top_k).unwrap_or(0),
            // 0 asks for the most likely token alone; the sampler wants a positive share.
            top_p: self.top_p.or(model.top_p).unwrap_or(1.0).max(f32::MIN_POSITIVE),
            min_p: self.min_p.or(model.min_p).unwrap_or(0.0),
            seed: self.seed.unwrap_or_else(random_seed),
            choice: 0,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repetition_penalty: self.repetition_penalty.or(model.repetition_penalty).unwrap_or(1.0),
            min_tokens: self.min_tokens,
            suppressed,
            logit_bias: self.logit_bias.clone(),
            allowed,
            num_logprobs: self.logprobs,
        };
        let stop = StopParams {
            max_tokens,
            min_tokens: self.min_tokens,
            eos_token_ids,
            stop_token_ids: self.stop_token_ids.clone(),
        };
        Ok((sampler, stop))
    }

    fn max_tokens_for(&self, info: &InstanceInfo, prompt_tokens: u32) -> Result<u32, ApiError> {
        let fits = info.max_model_len.saturating_sub(prompt_tokens);
        // At least one: a prompt that leaves no room is refused where all lengths are.
        let default = || self.max_tokens_default.unwrap_or(u32::MAX).min(fits).max(1);
        let max_tokens = self.max_tokens.unwrap_or_else(default);
        if self.min_tokens > max_tokens {
            return Err(ApiError::invalid(
                "min_tokens",
                "invalid_value",
                format!(
                    "Invalid 'min_tokens': {} is more than the {max_tokens} tokens that may be \
                     generated.",
                    self.min_tokens
                ),
            ));
        }
        Ok(max_tokens)
    }

    fn check_tokens(&self, info: &InstanceInfo) -> Result<(), ApiError> {
        let biased: Vec<u32> = self.logit_bias.iter().map(|(token, _)| *token).collect();
        let lists = [
            ("logit_bias", &biased),
            ("allowed_token_ids", &self.allowed),
            ("stop_token_ids", &self.stop_token_ids),
        ];
        for (param, tokens) in lists {
            if let Some(token) = tokens.iter().find(|token| **token >= info.vocab) {
                let message = format!(
                    "Invalid '{param}': token {token} is not in the vocabulary of {} tokens.",
                    info.vocab
                );
                return Err(ApiError::invalid(param, "invalid_value", message));
            }
        }
        for (param, wanted) in
            [(self.logprobs_field, self.logprobs), ("prompt_logprobs", self.prompt_logprobs)]
        {
            if wanted.is_some_and(|wanted| wanted > info.max_logprobs) {
                let message = format!(
                    "Invalid '{param}': at most {} alternatives are returned.",
                    info.max_logprobs
                );
                return Err(ApiError::invalid(param, "integer_above_max_value", message));
            }
        }
        Ok(())
    }
}

/// Two requests without a seed shall differ.
fn random_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // The fixed bits of a UUID lie in different places of the halves.
    high.rotate_left(32) ^ low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::test_support::info;
    use crate::model::info::DefaultSampling;

    fn param(error: ApiError) -> String {
        match error {
            ApiError::Invalid { param, .. } => param,
            other => other.to_string(),
        }
    }

    #[test]
    fn the_model_proposes_and_the_request_decides() {
        let info = InstanceInfo {
            default_sampling: DefaultSampling {
                temperature: Some(0.6),
                top_k: Some(20),
                ..DefaultSampling::default()
            },
            ..info()
        };
        let (sampler, stop) = Options::default().resolve(&info, 10).unwrap();
        assert_eq!((sampler.temperature, sampler.top_k, sampler.top_p), (0.6, 20, 1.0));
        assert_eq!(stop.max_tokens, info.max_model_len - 10);
        assert_eq!(stop.eos_token_ids, info.eos_token_ids);
        let some = Options { max_tokens_default: Some(16), ..Options::default() };
        assert_eq!(some.resolve(&info, 10).unwrap().1.max_tokens, 16);
        assert_eq!(some.resolve(&info, info.max_model_len - 3).unwrap().1.max_tokens, 3);
        let options = Options {
            temperature: Some(0.0),
            top_p: Some(0.0),
            ignore_eos: true,
            max_tokens: Some(3),
            seed: Some(7),
            ..Options::default()
        };
        let (sampler, stop) = options.resolve(&info, 10).unwrap();
        assert_eq!((sampler.temperature, sampler.seed), (0.0, 7));
        assert!(sampler.top_p > 0.0);
        assert_eq!((stop.max_tokens, stop.eos_token_ids.len()), (3, 0));
    }

    #[test]
    fn seeds_differ_when_none_is_given() {
        let seed = || Options::default().resolve(&info(), 1).unwrap().0.seed;
        assert_ne!(seed(), seed());
    }

    #[test]
    fn what_does_not_fit_the_model_is_refused_by_name() {
        let info = info();
        let refused =
            |options: Options, prompt: u32| param(options.resolve(&info, prompt).unwrap_err());
        let vocab = info.vocab;
        let default = Options::default();
        assert_eq!(
            refused(Options { logit_bias: vec![(vocab, 1.0)], ..default.clone() }, 1),
            "logit_bias"
        );
        assert_eq!(
            refused(Options { allowed: vec![vocab], ..default.clone() }, 1),
            "allowed_token_ids"
        );
        assert_eq!(
            refused(Options { stop_token_ids: vec![vocab], ..default.clone() }, 1),
            "stop_token_ids"
        );
        assert_eq!(refused(Options { logprobs: Some(21), ..default.clone() }, 1), "logprobs");
        assert_eq!(
            refused(Options { min_tokens: 5, max_tokens: Some(4), ..default.clone() }, 1),
            "min_tokens"
        );
        let eos = info.eos_token_ids.clone();
        assert_eq!(
            refused(Options { min_tokens: 1, allowed: eos, ..default.clone() }, 1),
            "allowed_token_ids"
        );
    }
}
