//! From what a user said to prompt ids. Messages enter; they go through the model's chat template,
//! which writes its special tokens itself, or are joined as they are and get a BOS where the
//! tokenizer puts one and the text brings none.

use anyhow::Context;
use puna::tokenizer::{ChatOptions, ChatTemplate, EncodeOptions, Specials, Tokenizer};
use serde_json::{Value, json};

/// How prompts are made for one model.
#[derive(Debug)]
pub(crate) struct PromptFormat {
    /// `None` continues the text as it is.
    template: Option<ChatTemplate>,
}

impl PromptFormat {
    /// The model's template; none where `raw` asks for that or the model has none.
    pub(crate) fn new(tokenizer: &Tokenizer, raw: bool) -> anyhow::Result<Self> {
        let source = tokenizer.chat_template().filter(|_| !raw);
        let template = source
            .map(ChatTemplate::new)
            .transpose()
            .context("the model's chat template cannot be used; --raw does without")?;
        Ok(Self { template })
    }

    /// Whether messages go through a template.
    pub(crate) fn is_chat(&self) -> bool {
        self.template.is_some()
    }

    /// Ids of a conversation, up to where the answer begins. Without a template the texts are
    /// put one below the other.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
    ) -> anyhow::Result<Vec<u32>> {
        let Some(template) = &self.template else {
            let texts: Vec<&str> =
                messages.iter().filter_map(|message| message["content"].as_str()).collect();
            // A text copied with its BOS does not get a second one.
            let specials = Specials::AddUnlessPresent;
            let options = EncodeOptions { specials, split_special_tokens: None };
            return Ok(tokenizer.encode(&texts.join("\n"), options)?);
        };
        let options = ChatOptions {
            add_generation_prompt: true,
            special_tokens: tokenizer.special_tokens().clone(),
            ..ChatOptions::default()
        };
        let rendered = template.render(&Value::from(messages), &options)?;
        Ok(tokenizer.encode(&rendered.text, EncodeOptions::PLAIN)?)
    }
}

/// One message of a conversation.
pub(crate) fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}
