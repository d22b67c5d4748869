//! Chat templates: messages enter, the prompt leaves.
//!
//! Templates come with models and are not trusted. They see no file and no environment, and run
//! with bounds on source, steps, depth and output; reaching one is an error, never a partial text.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde_json::{Map, Value as Json};

use super::added::SpecialTokens;
use super::chat_python as python;
use super::chat_source::{GENERATION, PERCENT, WEIGH, rewrite, take_marks};
use super::chat_values::{Limited, strftime, tojson, weigh};

const NAME: &str = "chat_template";
const MAX_SOURCE_BYTES: usize = 512 << 10;
/// One unit is an instruction, or 64 bytes of text made.
const BASE_FUEL: u64 = 2_000_000;
const BASE_OUTPUT_BYTES: usize = 8 << 20;
/// Parts of one value, all levels together.
const BASE_PARTS: usize = 200_000;
const MAX_DEPTH: usize = 100;

/// Why a chat could not become a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template is longer than any real one.
    #[error("the chat template has {bytes} bytes; at most {limit} are allowed, use another one")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The template is not valid Jinja.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The template itself refused the messages.
    #[error("{0}")]
    Raised(String),
    /// Rendering took too many steps or made too much text on the way.
    #[error("the chat template took more steps than a template needs; use another one")]
    OutOfFuel,
    /// The prompt would be absurdly long.
    #[error("the chat template wrote more than {limit} bytes; use another one")]
    OutputTooLarge {
        /// The most that is taken.
        limit: usize,
    },
    /// An expression failed, for instance on a key that a message does not have.
    #[error("the chat template failed on these messages: {0}")]
    Render(String),
    /// The messages or the options make no sense.
    #[error("{0}")]
    Value(String),
}

/// What goes to the template beside the messages.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// End with the start of an answer.
    pub add_generation_prompt: bool,
    /// Leave the last message open, to be continued.
    pub continue_final_message: bool,
    /// Functions that the model may call.
    pub tools: Option<Json>,
    /// Documents to answer from.
    pub documents: Option<Json>,
    /// `bos_token` and the like.
    pub special_tokens: SpecialTokens,
    /// Further variables.
    pub variables: Map<String, Json>,
    /// The time that `strftime_now` tells, in UTC; the present where absent.
    pub now: Option<SystemTime>,
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    /// The text, to be encoded without further special tokens.
    pub text: String,
    /// Bytes of the text that `{% generation %}` blocks wrote: what the assistant said.
    pub generation: Vec<Range<usize>>,
}

/// A compiled template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Arc<str>,
    has_generation: bool,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ChatTemplate").field("source", &self.source).finish()
    }
}

/// Carries the text of `raise_exception` out of the engine.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// Where it is too long or not valid.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(ChatError::TooLong { bytes: source.len(), limit: MAX_SOURCE_BYTES });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ChatError::Syntax(error.to_string()))?);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::print);
        environment.remove_global("debug");
        environment.add_filter("tojson", tojson);
        environment.add_filter("truncate", python::truncate);
        environment.add_filter("center", python::center);
        environment.add_filter("wordcount", python::wordcount);
        environment.add_filter("urlencode", python::urlencode);
        environment.add_filter("string", python::string);
        environment.add_filter(PERCENT, python::percent);
        // Python's None is not iterable; the engine's is an empty list.
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter(GENERATION, mark_generation);
        // Beyond Jinja2, and makers of lists that hold their input twice.
        environment.remove_filter("chain");
        environment.remove_filter("zip");
        let (rewritten, has_generation) = rewrite(source);
        environment
            .add_template_owned(NAME, rewritten)
            .map_err(|error| ChatError::Syntax(describe(&error)))?;
        Ok(Self { environment, source: source.into(), has_generation })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a list of messages.
    ///
    /// # Errors
    /// Where the template refuses them, fails on them, or reaches a bound.
    pub fn render(
        &self,
        messages: &Json,
        options: &ChatOptions,
    ) -> Result<RenderedChat, ChatError> {
        let Some(list) = messages.as_array().filter(|list| list.iter().all(Json::is_object)) else {
            let text = "the messages must be a list of objects with a role and a content";
            return Err(ChatError::Value(text.to_owned()));
        };
        if options.continue_final_message && options.add_generation_prompt {
            let text = "continue_final_message and add_generation_prompt exclude each other: \
                        choose one";
            return Err(ChatError::Value(text.to_owned()));
        }
        let context = context(messages, options);
        let input = context.to_string();
        let marks = self.marks(&input);
        let text = self.run(context, input.len(), &marks, options)?;
        let (text, generation) = take_marks(&text, &marks.0, &marks.1);
        let mut chat = RenderedChat { text, generation };
        if options.continue_final_message {
            leave_open(&mut chat, list.last())?;
        }
        Ok(chat)
    }

    /// Marks that occur neither in the messages nor in the template.
    fn marks(&self, input: &str) -> (String, String) {
        for number in 0u64.. {
            let open = format!("\u{fdd0}{number}\u{fdd1}");
            if !input.contains(&open) && !self.source.contains(&open) {
                return (open, format!("\u{fdd2}{number}\u{fdd3}"));
            }
        }
        Default::default()
    }

    fn run(
        &self,
        mut context: Json,
        input_bytes: usize,
        marks: &(String, String),
        options: &ChatOptions,
    ) -> Result<String, ChatError> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(BASE_FUEL + input_bytes as u64));
        let max_parts = BASE_PARTS + input_bytes;
        environment
            .add_filter(WEIGH, move |state: &State, value: Value| weigh(state, value, max_parts));
        let now = options.now;
        environment.add_function("strftime_now", move |format: String| {
            strftime(&format, now.unwrap_or_else(SystemTime::now))
        });
        if self.has_generation {
            context[MARKS] = Json::from(vec![marks.0.as_str(), marks.1.as_str()]);
        }
        let limit = BASE_OUTPUT_BYTES + input_bytes.saturating_mul(8);
        let mut out = Limited { bytes: Vec::new(), limit, is_full: false };
        let template =
            environment.get_template(NAME).map_err(|error| ChatError::Syntax(describe(&error)))?;
        let result = template.render_captured_to(Value::from(Serde(&context)), &mut out);
        if out.is_full {
            return Err(ChatError::OutputTooLarge { limit });
        }
        result.map(|_| ()).map_err(|error| render_error(&error))?;
        String::from_utf8(out.bytes).map_err(|_| ChatError::Render("no UTF-8".to_owned()))
    }
}

/// Variable that carries the marks to the filter.
const MARKS: &str = "puna_generation_marks";

fn mark_generation(state: &mut State, text: &str) -> Result<String, Error> {
    let marks = state.lookup(MARKS).unwrap_or_default();
    let mark = |index: usize| {
        let mark = marks.get_item_by_index(index).ok();
        mark.and_then(|mark| mark.as_str().map(str::to_owned)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, "the template hides the generation marks")
        })
    };
    Ok(format!("{}{text}{}", mark(0)?, mark(1)?))
}

fn context(messages: &Json, options: &ChatOptions) -> Json {
    let mut context = options.variables.clone();
    let special = &options.special_tokens;
    for (name, token) in [
        ("bos_token", &special.bos),
        ("eos_token", &special.eos),
        ("unk_token", &special.unk),
        ("pad_token", &special.pad),
    ] {
        if let Some(token) = token {
            context.insert(name.to_owned(), Json::from(token.as_str()));
        }
    }
    if !special.additional.is_empty() {
        let tokens = Json::from(special.additional.clone());
        context.insert("additional_special_tokens".to_owned(), tokens);
    }
    let mut put = |name: &str, value: Json| context.insert(name.to_owned(), value);
    put("messages", messages.clone());
    put("tools", options.tools.clone().unwrap_or_default());
    put("documents", options.documents.clone().unwrap_or_default());
    put("add_generation_prompt", Json::from(options.add_generation_prompt));
    Json::Object(context)
}

/// Cuts the prompt behind the last message's own text.
fn leave_open(chat: &mut RenderedChat, last: Option<&Json>) -> Result<(), ChatError> {
    let content = last.and_then(|message| message.get("content"));
    let content = match content {
        Some(Json::Array(parts)) => {
            parts.iter().rev().find_map(|part| part.get("text").and_then(Json::as_str))
        }
        other => other.and_then(Json::as_str),
    };
    let text = content.unwrap_or_default();
    let at = content.and_then(|_| chat.text.rfind(text.trim()));
    let Some(at) = at else {
        let message = "continue_final_message is set but the final message does not appear in the \
                       chat after applying the chat template";
        return Err(ChatError::Value(message.to_owned()));
    };
    // Space behind the message stays where the template kept it.
    let kept = text.trim_start();
    let length = if chat.text[at..].starts_with(kept) { kept.len() } else { text.trim().len() };
    let end = at + length;
    chat.text.truncate(end);
    chat.generation.retain(|span| span.start < end);
    for span in &mut chat.generation {
        span.end = span.end.min(end);
    }
    Ok(())
}

fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => format!("{error} (line {line})"),
        None => error.to_string(),
    }
}

fn render_error(error: &Error) -> ChatError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(Raised(message)) = current.downcast_ref() {
            return ChatError::Raised(message.clone());
        }
        if current.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return ChatError::OutOfFuel;
        }
        source = current.source();
    }
    ChatError::Render(describe(error))
}

/// Meta's safety prompt for Llama 2, which old releases put before chats without a system message.
const LLAMA2_SYSTEM_PROMPT: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't know the answer to a question, please don't share false information.";

/// Llama 2's chat format, for models without a template of their own.
///
/// The system message, or the safety prompt where `use_default_system_prompt`, goes into the first
/// turn of the user.
pub fn llama2_template(use_default_system_prompt: bool) -> String {
    let fallback = if use_default_system_prompt {
        let prompt = Json::from(LLAMA2_SYSTEM_PROMPT);
        format!(
            "{{%- elif '<<SYS>>' not in messages[0].content -%}}{{%- set system = {prompt} -%}}"
        )
    } else {
        String::new()
    };
    format!(
        "{{%- set turns = messages -%}}{{%- set system = none -%}}\
         {{%- if messages[0].role == 'system' -%}}\
         {{%- set system = messages[0].content -%}}{{%- set turns = messages[1:] -%}}\
         {fallback}{{%- endif -%}}\
         {{%- for turn in turns -%}}\
         {{%- if (turn.role == 'user') != (loop.index0 is even) -%}}\
         {{{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}}}\
         {{%- endif -%}}\
         {{%- set text = turn.content -%}}\
         {{%- if loop.first and system is not none -%}}\
         {{%- set text = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ text -%}}\
         {{%- endif -%}}\
         {{%- if turn.role == 'user' -%}}\
         {{{{- bos_token ~ '[INST] ' ~ text.strip() ~ ' [/INST]' -}}}}\
         {{%- elif turn.role == 'system' -%}}\
         {{{{- '<<SYS>>\\n' ~ text.strip() ~ '\\n<</SYS>>\\n\\n' -}}}}\
         {{%- elif turn.role == 'assistant' -%}}\
         {{{{- ' ' ~ text.strip() ~ ' ' ~ eos_token -}}}}\
         {{%- endif -%}}\
         {{%- endfor -%}}"
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: &Json, options: &ChatOptions) -> Result<String, ChatError> {
        Ok(ChatTemplate::new(source)?.render(messages, options)?.text)
    }

    fn say(source: &str) -> Result<String, ChatError> {
        let messages = json!([{"role": "user", "content": " Hi "}]);
        let special_tokens = SpecialTokens { bos: Some("<s>".to_owned()), ..Default::default() };
        let now = Some(UNIX_EPOCH + Duration::from_secs(951_782_400));
        render(source, &messages, &ChatOptions { special_tokens, now, ..ChatOptions::default() })
    }

    #[test]
    fn templates_see_what_transformers_gives_them() {
        for (source, expected) in [
            (
                "{{ bos_token }}{% for m in messages %}{{ m['content'].strip() }}{% endfor %}",
                "<s>Hi",
            ),
            (
                "{% if tools is none and not documents %}\n  {% set x = 1 %}\nok\n{% endif %}\n",
                "ok\n",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2000"),
            (
                "{{ {'b': [1, 2.0, None], 'a': '<é>'} | tojson }}",
                r#"{"b": [1, 2.0, null], "a": "<é>"}"#,
            ),
            (
                "{{ {'b': [], 'a': [1]} | tojson(indent=2, sort_keys=true) }}",
                "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}",
            ),
            ("{{ 'é\u{1f600}' | tojson(ensure_ascii=true) }}", r#""\u00e9\ud83d\ude00""#),
            ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "01",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            (
                "{{ messages[0].get('name', 'x').upper() }}{{ 'a,b'.split(',')[1] }}{{ messages[0].items() | list | length }}",
                "Xb2",
            ),
            ("{%- macro f(x) -%}[{{ x }}]{%- endmacro -%}{{ f(1) }}{{ undefined_name }}", "[1]"),
            (
                "{{ messages[-1].content[1:] }}|{{ 'x' if messages[0].content is string else 'y' }}",
                "Hi |x",
            ),
        ] {
            assert_eq!(say(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn refusals_and_failures_are_told_apart() {
        assert!(
            matches!(say("{{ raise_exception('no') }}"), Err(ChatError::Raised(text)) if text == "no")
        );
        assert!(matches!(say("{% for %}"), Err(ChatError::Syntax(_))));
        assert!(matches!(say("{% include 'x' %}"), Err(ChatError::Syntax(_))));
        assert!(matches!(say("{{ messages.x.y }}"), Err(ChatError::Render(_))));
        assert!(matches!(say(&"x".repeat(MAX_SOURCE_BYTES + 1)), Err(ChatError::TooLong { .. })));
        let options = ChatOptions::default();
        assert!(matches!(render("", &json!({}), &options), Err(ChatError::Value(_))));
        assert!(matches!(render("", &json!(["x"]), &options), Err(ChatError::Value(_))));
    }

    #[test]
    fn bombs_end_in_an_error() {
        let doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}\
                       {% set ns.x = MAKE %}{% endfor %}";
        let makers = [
            "[ns.x, ns.x]",
            "(ns.x, ns.x)",
            "{1: ns.x, 2: ns.x}",
            "dict(a=ns.x, b=ns.x)",
            "[1] | batch(3, ns.x)",
            "['a', 'b'] | map(attribute='q', default=ns.x)",
            "namespace(a=ns.x, b=ns.x)",
            "ns.x + ns.x",
        ];
        let uses = [
            "ns.x | string",
            "ns.x ~ ''",
            "ns.x | join",
            "'{}'.format(ns.x)",
            "ns.x | pprint",
            "ns.x | tojson",
            "[ns.x] | unique | list",
            "ns.x == [ns.x[0]] + ns.x[1:]",
            "ns.x",
        ];
        let ends = makers.iter().map(|maker| (*maker, "ns.x | string"));
        for (maker, end) in ends.chain(uses.iter().map(|end| (makers[0], *end))) {
            let source = format!("{}{{{{ ({end}) | length }}}}", doubled.replace("MAKE", maker));
            assert!(say(&source).is_err(), "{source}");
        }
        for source in [
            "{{ '-' * 10**10 }}",
            "{{ '-' * 90000000 }}",
            "{{ ([0] * 90000000) | tojson }}",
            "{{ ([0] * 10**9) | list | length }}",
            "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}{{ ns.x | join }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            "{{ '%99999999999d' | format(1) }}",
            "{{ '{:<999999999}'.format(1) }}",
            "{{ '{:.99999999999999999999f}'.format(1.5) }}",
            "{{ 'x' | indent(10**10) }}",
            "{{ [[[[1]]]] | tojson(indent=10**10) }}{{ '-' * 10**10 }}",
            "{{ 'a' | replace('', 'b' * 10**6) * 10**6 }}",
            "{{ 'x'.replace('x', 'y' * 10**7).replace('y', 'z' * 10**4) }}",
            "{{ 'x'.join(range(10**9)) }}",
            "{% set x = [0] * 90000000 %}{{ x | string | length }}",
            "{% set x = [[0] * 90000] * 90000 %}{{ x | string | length }}",
            "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x | string | length }}",
            "{% macro f(a, n) %}{{ f([a, a], n + 1) }}{% endmacro %}{{ f([1], 0) }}",
            "{{ ([[1] * 9000] * 9000) | sum(start=[]) | length }}",
        ] {
            let error = say(source).unwrap_err();
            assert!(!matches!(error, ChatError::Raised(_)), "{source}: {error}");
        }
        let nested = format!("{}{}", "{% if 1 %}".repeat(30_000), "{% endif %}".repeat(30_000));
        assert!(say(&nested).is_err());
        let brackets = format!("{{{{ {}1{} }}}}", "[".repeat(50_000), "]".repeat(50_000));
        assert!(say(&brackets).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Any template ends in a text or an error.
        #[test]
        fn random_templates_end(
            source in "(\\{\\{ | \\}\\}|\\{% | %\\}|set x = |for m in |messages|endfor|if |endif|m|x|\\.role|\\[0\\]|\\[1:\\]| \\+ | \\* | ~ |'a'|9|\\[x, x\\]|\\||tojson|string|join|length|\\(x\\)| == |é){0,24}"
        ) {
            let _ = say(&source);
        }
    }

    #[test]
    fn widths_that_make_sense_are_allowed() {
        let text = say("{{ '{:>5}|{:.2f}|{}'.format(7, 1.5, 'a') }}").unwrap();
        assert_eq!(text, "    7|1.50|a");
    }

    #[test]
    fn generation_blocks_leave_spans() {
        let source = "{% for m in messages %}\n{% if m.role == 'assistant' %}\n{% generation %}\n\
                      {{ m.content }}{% endgeneration %}\n{% else %}\n{{ m.content }}|{% endif %}\n{% endfor %}";
        let messages = json!([
            {"role": "user", "content": "é"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "\u{fdd0}0\u{fdd1}"},
            {"role": "assistant", "content": "no"},
        ]);
        let chat =
            ChatTemplate::new(source).unwrap().render(&messages, &ChatOptions::default()).unwrap();
        let said: Vec<&str> = chat.generation.iter().map(|span| &chat.text[span.clone()]).collect();
        assert_eq!(said, ["yes", "no"]);
        assert_eq!(chat.text, "é|yes\u{fdd0}0\u{fdd1}|no");
    }

    #[test]
    fn the_last_message_can_stay_open() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}\
                      {% if add_generation_prompt %}<assistant>{% endif %}";
        let trims = source.replace("m.content }}", "m.content | trim }}");
        let chat = |end: &str| json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": end}]);
        let open = ChatOptions { continue_final_message: true, ..ChatOptions::default() };
        for (source, end, expected) in [
            (source, "Once ", "<user>a<end><assistant>Once "),
            (trims.as_str(), " Once ", "<user>a<end><assistant>Once"),
        ] {
            assert_eq!(render(source, &chat(end), &open).unwrap(), expected);
        }
        assert!(matches!(render("nothing", &chat("b"), &open), Err(ChatError::Value(_))));
        let both = ChatOptions { add_generation_prompt: true, ..open };
        assert!(matches!(render(source, &chat("b"), &both), Err(ChatError::Value(_))));
        let start = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        assert!(render(source, &chat("b"), &start).unwrap().ends_with("<end><assistant>"));
    }
}
