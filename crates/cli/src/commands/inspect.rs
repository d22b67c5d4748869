//! `puna inspect`: a model's files enter, what they hold leaves; of a broken one, where it is
//! broken.

use std::collections::BTreeMap;

use clap::Args;
use puna::checkpoint::{Checkpoint, CheckpointError, SourceKind, Tensor, TokenizerSource};
use puna::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Value, json};

use super::OfflineArgs;
use crate::failure::{AlreadyReported, print_error};
use crate::models::{self, DEFAULT_ALIAS, Lookup, ModelName};
use crate::output::{Output, human_bytes, printable};
use crate::session::{tokenizer_of, vocabulary_warning};

/// Show what a model's files hold, or where they are broken
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  puna inspect                         the default model
  puna inspect model.gguf --tensors    with every tensor's shape, format and size
  puna inspect folder --json | jq .config

The exit status is 1 where a file is broken: the line names the file, the field and the place.")]
pub(crate) struct InspectArgs {
    /// Folder, file, hf:ORG/REPO[@REV][:FILE] or alias
    #[arg(value_name = "MODEL", default_value = DEFAULT_ALIAS)]
    model: ModelName,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: OfflineArgs,
}

/// One tensor.
#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    shape: Vec<usize>,
    format: &'static str,
    bytes: usize,
    #[serde(skip)]
    parameters: u64,
}

/// All that is said of a model.
struct Report {
    checkpoint: Checkpoint,
    tensors: Vec<TensorRow>,
    tokenizer: Result<Tokenizer, String>,
    warnings: Vec<String>,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let lookup = Lookup { offline: args.offline.offline(), ..Lookup::default() };
    let path = models::resolve(&args.model, lookup)?;
    let mut output = Output::new();
    match Report::new(&path) {
        Ok(report) if args.json => output.json(&report.json(args.tensors))?,
        Ok(report) => report.print(&mut output, args.tensors)?,
        Err(error) => {
            if args.json {
                output.json(&broken(&error))?;
                output.flush()?;
            }
            print_error(&error.to_string());
            return Err(AlreadyReported.into());
        }
    }
    output.flush()
}

impl Report {
    fn new(path: &std::path::Path) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(path)?;
        let tensors = checkpoint
            .names()
            .map(|name| checkpoint.tensor(name).map(TensorRow::from))
            .collect::<Result<_, _>>()?;
        let tokenizer = match checkpoint.tokenizer() {
            TokenizerSource::Absent => Err("there is none in the file".to_owned()),
            _ => tokenizer_of(&checkpoint).map_err(|error| format!("{error:#}")),
        };
        let warnings = warnings(&checkpoint, tokenizer.as_ref().ok());
        Ok(Self { checkpoint, tensors, tokenizer, warnings })
    }

    fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.parameters).sum()
    }

    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes as u64).sum()
    }

    /// Tensors, parameters and bytes of each format.
    fn formats(&self) -> BTreeMap<&'static str, (usize, u64, u64)> {
        let mut formats = BTreeMap::new();
        for tensor in &self.tensors {
            let (count, parameters, bytes) = formats.entry(tensor.format).or_insert((0, 0, 0));
            *count += 1;
            *parameters += tensor.parameters;
            *bytes += tensor.bytes as u64;
        }
        formats
    }

    fn json(&self, with_tensors: bool) -> Value {
        let formats: BTreeMap<_, _> = self
            .formats()
            .into_iter()
            .map(|(format, (count, parameters, bytes))| {
                (format, json!({"tensors": count, "parameters": parameters, "bytes": bytes}))
            })
            .collect();
        let config = self.checkpoint.config().to_json();
        let generation = self.checkpoint.generation_config().map(|config| config.to_json());
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
        let mut report = json!({
            "path": self.checkpoint.path().display().to_string(),
            "kind": kind(self.checkpoint.kind()),
            "parameters": self.parameters(),
            "bytes": self.bytes(),
            "formats": formats,
            "config": value(&config),
            "generation_config": generation.as_deref().map(value),
            "tokenizer": self.tokenizer_json(),
            "chat_template": self.template(),
            "warnings": self.warnings,
        });
        if with_tensors {
            report["tensors"] = json!(self.tensors);
        }
        report
    }

    fn template(&self) -> Option<&str> {
        self.tokenizer.as_ref().ok().and_then(Tokenizer::chat_template)
    }

    fn tokenizer_json(&self) -> Value {
        match &self.tokenizer {
            Err(error) => json!({"error": error}),
            Ok(tokenizer) => json!({
                "class": class(tokenizer),
                "tokens": tokenizer.len(),
                "bos_token_id": tokenizer.bos_token_id(),
                "eos_token_id": tokenizer.eos_token_id(),
                "unk_token_id": tokenizer.unk_token_id(),
                "pad_token_id": tokenizer.pad_token_id(),
            }),
        }
    }

    fn print(&self, output: &mut Output, with_tensors: bool) -> anyhow::Result<()> {
        let config = self.checkpoint.config();
        let mut row = |name: &str, text: &str| output.line(&format!("{name:<12} {text}"));
        row("file", &self.checkpoint.path().display().to_string())?;
        row("kind", kind(self.checkpoint.kind()))?;
        row("parameters", &format!("{} ({})", self.parameters(), short(self.parameters())))?;
        row(
            "weights",
            &format!("{} in {} tensors", human_bytes(self.bytes()), self.tensors.len()),
        )?;
        for (format, (count, parameters, bytes)) in self.formats() {
            let text = format!(
                "{format:<8} {count:>5} tensors {:>8} parameters {:>8}",
                short(parameters),
                human_bytes(bytes)
            );
            row("", &text)?;
        }
        row(
            "shape",
            &format!(
                "{} layers, hidden {}, intermediate {}, heads {} of {} with {} for keys and values",
                config.num_hidden_layers,
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                config.head_dim,
                config.num_key_value_heads
            ),
        )?;
        row("context", &config.max_position_embeddings.to_string())?;
        row("vocabulary", &config.vocab_size.to_string())?;
        match &self.tokenizer {
            Ok(tokenizer) => row("tokenizer", &describe(tokenizer))?,
            Err(error) => row("tokenizer", &printable(&format!("cannot be used: {error}")))?,
        }
        match self.template() {
            Some(template) => row("template", &template_line(template))?,
            None => row("template", "none: puna run continues the text as it is")?,
        }
        for warning in &self.warnings {
            row("warning", &printable(warning))?;
        }
        self.print_config(output)?;
        if with_tensors { self.print_tensors(output) } else { Ok(()) }
    }

    fn print_config(&self, output: &mut Output) -> anyhow::Result<()> {
        output.line("\nconfig")?;
        output.write_foreign(&self.checkpoint.config().to_json())?;
        output.write("\n")?;
        if let Some(generation) = self.checkpoint.generation_config() {
            output.line("\ngeneration_config")?;
            output.write_foreign(&generation.to_json())?;
            output.write("\n")?;
        }
        Ok(())
    }

    fn print_tensors(&self, output: &mut Output) -> anyhow::Result<()> {
        let width = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        output.line("\ntensors")?;
        for tensor in &self.tensors {
            let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
            output.line(&format!(
                "{:<width$}  {shape:<16} {:<8} {:>8}",
                printable(&tensor.name),
                tensor.format,
                human_bytes(tensor.bytes as u64)
            ))?;
        }
        Ok(())
    }
}

impl From<Tensor> for TensorRow {
    fn from(tensor: Tensor) -> Self {
        Self {
            parameters: tensor.len() as u64,
            format: tensor.format.name(),
            bytes: tensor.bytes.len(),
            shape: tensor.shape,
            name: tensor.name,
        }
    }
}

/// Where and why a model cannot be opened.
fn broken(error: &CheckpointError) -> Value {
    json!({
        "path": error.file().display().to_string(),
        "error": {
            "field": error.field(),
            "offset": error.offset(),
            "message": error.to_string(),
        },
    })
}

fn warnings(checkpoint: &Checkpoint, tokenizer: Option<&Tokenizer>) -> Vec<String> {
    let config = checkpoint.config().warnings();
    let generation = checkpoint.generation_warnings();
    let vocabulary = tokenizer.and_then(|tokenizer| vocabulary_warning(checkpoint, tokenizer));
    config.iter().chain(&generation).map(ToString::to_string).chain(vocabulary).collect()
}

fn kind(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Safetensors => "safetensors",
        SourceKind::Torch => "pytorch",
        SourceKind::Gguf => "gguf",
    }
}

fn class(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer {
        Tokenizer::Slow(_) => "LlamaTokenizer",
        Tokenizer::Fast(_) => "LlamaTokenizerFast",
    }
}

fn describe(tokenizer: &Tokenizer) -> String {
    let token = |name: &str, id: Option<u32>| {
        let id = id?;
        let text = tokenizer.id_to_token(id).unwrap_or_default();
        Some(format!("{name} {id} {}", printable(&text)))
    };
    let parts = [
        Some(format!("{}, {} tokens", class(tokenizer), tokenizer.len())),
        token("bos", tokenizer.bos_token_id()),
        token("eos", tokenizer.eos_token_id()),
        token("unk", tokenizer.unk_token_id()),
        token("pad", tokenizer.pad_token_id()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The beginning of a template.
fn template_line(template: &str) -> String {
    const SHOWN: usize = 60;
    let start: String = template.chars().take(SHOWN).collect();
    let rest = if template.chars().count() > SHOWN { "…" } else { "" };
    format!("{} characters: {}{rest}", template.chars().count(), printable(&start))
}

/// 134515008 as 135M.
fn short(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..999_500 => format!("{:.0}k", count as f64 / 1e3),
        999_500..999_500_000 => format!("{:.0}M", count as f64 / 1e6),
        _ => format!("{:.2}B", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        assert_eq!(short(999), "999");
        assert_eq!(short(134_515_008), "135M");
        assert_eq!(short(6_738_415_616), "6.74B");
    }

    #[test]
    fn templates_are_shown_in_one_line() {
        assert_eq!(template_line("a\nb"), "3 characters: a\\nb");
        assert!(template_line(&"é".repeat(61)).ends_with('…'));
    }
}
