//! A file with a prompt a line: `{"prompt": "…"}` or `{"messages": […]}`, and perhaps
//! `"output_tokens": N`.
//!
//! For completions the model's chat template is applied here, unless it should not be; for chat
//! completions the server applies it, and doing both would be the mistake.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use pagoda_engine::text::{Chat, ChatTemplate, Content, Message, TextModel};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::serve::dataset::{File, Prompt, Sample};

/// A file with a prompt a line.
#[derive(Clone, Debug)]
pub struct Custom {
    /// The file.
    pub file: File,
    /// Output tokens where a line has none.
    pub output_len: u32,
    /// Requests are chats, which the server renders.
    pub is_chat: bool,
    /// Leave the chat template out.
    pub skip_chat_template: bool,
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    output_tokens: Option<u32>,
}

impl Custom {
    /// Whether prompts go through the model's chat template here.
    pub fn renders(&self, text: Option<&TextModel>) -> bool {
        let has_template = text.is_some_and(|text| text.template.is_some());
        has_template && !self.is_chat && !self.skip_chat_template
    }

    pub(super) fn samples(
        &self,
        count: usize,
        text: Option<&TextModel>,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Sample>> {
        let path = &self.file.path;
        let lines =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut samples = Vec::new();
        for (index, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("{}, line {}", path.display(), index + 1);
            let line: Line = serde_json::from_str(line).with_context(place)?;
            samples.push(self.sample(line, text).with_context(place)?);
        }
        if self.file.shuffle {
            samples.shuffle(random);
        }
        samples.truncate(count);
        self.file.fill(&mut samples, count, random);
        Ok(samples)
    }

    fn sample(&self, line: Line, text: Option<&TextModel>) -> Result<Sample> {
        let template = text.and_then(|text| text.template.as_deref());
        let template = template.filter(|_| self.renders(text));
        let prompt = match (line.prompt, line.messages) {
            (Some(prompt), None) => match template {
                Some(template) => {
                    let messages = [json!({ "role": "user", "content": prompt })];
                    Prompt::Text(render(template, &messages)?)
                }
                None => Prompt::Text(prompt),
            },
            (None, Some(messages)) if self.is_chat => Prompt::Messages(messages.into()),
            (None, Some(messages)) => {
                let template = template.context(
                    "messages need --backend openai-chat, or a --tokenizer with a chat template",
                )?;
                Prompt::Text(render(template, &messages)?)
            }
            _ => anyhow::bail!("a line has either prompt or messages"),
        };
        let prompt_tokens = match (&prompt, text) {
            (Prompt::Text(prompt), Some(text)) => {
                text.tokenizer.encode(prompt, template.is_none())?.len()
            }
            // The server's usage will tell.
            _ => 0,
        };
        let output_tokens = line.output_tokens.unwrap_or(self.output_len);
        ensure!(output_tokens > 0, "an answer has at least one token");
        Ok(Sample { prompt, prompt_tokens: u32::try_from(prompt_tokens)?, output_tokens })
    }
}

fn render(template: &ChatTemplate, messages: &[Value]) -> Result<String> {
    let message = |value: &Value| {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let role = text("role").context("a message needs a role")?;
        let content = text("content").context("a message needs a text as content")?;
        Ok(Message { role, content: Content::Text(content), fields: Map::new() })
    };
    let messages = messages.iter().map(message).collect::<Result<Vec<_>>>()?;
    let rendered = template.render(&Chat {
        messages: &messages,
        add_generation_prompt: true,
        continue_final_message: false,
        tools: None,
        kwargs: &Map::new(),
        now: SystemTime::now(),
    })?;
    Ok(rendered)
}
