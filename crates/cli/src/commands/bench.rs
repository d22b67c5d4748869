//! `puna bench`: how fast this machine runs a model, and what share of the machine that is.
//!
//! Decode reads every weight once for each token: its share is
//! `bytes * tokens/s / read bandwidth`. Prefill multiplies with every weight for each token: its
//! share is `2 * weights * tokens/s / peak`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use puna::generate::{Engine, Request, SamplingParams, StopConditions};
use puna_kernels::Cpu;
use puna_kernels::cpu::measure::Limits;
use serde::Serialize;

use super::ModelArgs;
use super::answer::ms;
use super::bench_speculation::{self, SpeculationReport};
use super::explain::{self, Kind};
use super::speculation::SpeculationArgs;
use crate::failure::Usage;
use crate::interrupt::Graceful;
use crate::output::{Output, human_bytes};
use crate::session::{CHUNK_ROWS, ComputeArgs, Session};

/// Measure prefill, decode and load, beside what the machine can do
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  puna bench
  puna bench -m model.gguf -p 1024 -g 64 -r 3
  puna bench --batch 1,4,16 --json | jq .batch_decode_tps
  puna bench --explain -r 1
  puna bench --speculate lookup --json | jq .speculation
  PUNA_ISA=scalar puna bench -p 64 -g 8

Every number is the median of -r repetitions with fresh random tokens. ttft_ms is from a request
with -p tokens to its first token; decode begins with one token. The machine's read bandwidth and
peak are measured by this program with the same threads. peak_bf16_tflops is the peak of the
widest multiply-add that Puna uses on this instruction set: where that is not bf16 (scalar, avx2,
avx512, neon) it is the peak of f32 multiply-adds; peak_unit names it. --exact and --deterministic do
without bf16, and their share is of the same peak.

--speculate adds a measurement and changes no other: the edit of a text that Puna brings, with and
without guesses in turn. The answer must come out the same.")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to generate
    #[arg(short = 'g', long, value_name = "N", default_value_t = 128)]
    generate_tokens: usize,
    /// Repetitions
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Also decode so many sequences at once
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    batch: Vec<usize>,
    /// Also say which path the matrices of each kind take for 1, 4, 16 and 256 rows (lm_head: up to
    /// 16, for a prompt asks for its last row alone), and what share of the machine that reaches
    #[arg(long)]
    explain: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    /// Prompt tokens each second.
    prefill_tps: f64,
    /// Tokens each second, one sequence.
    decode_tps: f64,
    /// Tokens each second of all sequences together, by their number.
    batch_decode_tps: BTreeMap<usize, f64>,
    /// What guessing ahead is worth; null where it was not asked for.
    speculation: Option<SpeculationReport>,
    /// From a request to its first token.
    ttft_ms: f64,
    load_ms: f64,
    /// Most memory that the program held; null where the system does not tell.
    peak_rss_bytes: Option<u64>,
    /// 10⁹ bytes each second.
    bandwidth_gbs: f64,
    /// 10¹² additions and multiplications each second.
    peak_bf16_tflops: f64,
    peak_unit: &'static str,
    isa: &'static str,
    threads: usize,
    /// Share of the bandwidth that decode reaches.
    decode_bandwidth_share: f64,
    /// Share of the peak that prefill reaches.
    prefill_peak_share: f64,
    model: String,
    weight_bytes_per_token: u64,
    prompt_tokens: usize,
    generate_tokens: usize,
    repetitions: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Vec<Kind>>,
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    check(args)?;
    let path = args.model.path()?;
    let session = Session::load(&path, &args.compute)?;
    let mut bench = Bench::new(&session, args)?;
    let (prefill, ttft) = bench.prefill(args)?;
    let decode = bench.decode(1, args)?;
    let batch_decode_tps = bench.batches(decode, args)?;
    let speculation = measure_speculation(&session, args)?;
    // Before the machine is measured, which takes memory of its own.
    let peak_rss_bytes = peak_rss();
    let limits = session.backend.measure_limits().context("cannot measure the machine")?;
    let explain = match args.explain {
        true => Some(explain::kinds(&session.model, &limits, args.repetitions, &bench.interrupts)?),
        false => None,
    };
    let report = Report {
        prefill_tps: prefill,
        decode_tps: decode,
        batch_decode_tps,
        speculation,
        ttft_ms: ttft,
        load_ms: ms(session.load),
        peak_rss_bytes,
        bandwidth_gbs: limits.read_bytes_per_second / 1e9,
        peak_bf16_tflops: limits.flops / 1e12,
        peak_unit: limits.flops_unit,
        isa: session.backend.isa(),
        threads: session.backend.threads(),
        decode_bandwidth_share: decode_share(&session, decode, &limits),
        prefill_peak_share: prefill_share(&session, prefill, &limits),
        model: path.display().to_string(),
        weight_bytes_per_token: session.bytes_per_token,
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        repetitions: args.repetitions,
        explain,
    };
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        report.print(&mut output)?;
    }
    output.flush()
}

fn measure_speculation(
    session: &Session,
    args: &BenchArgs,
) -> anyhow::Result<Option<SpeculationReport>> {
    let BenchArgs { model, speculation, compute, repetitions, .. } = args;
    bench_speculation::measure(session, model, speculation, compute, *repetitions)
}

fn check(args: &BenchArgs) -> anyhow::Result<()> {
    let counts = [
        ("-p", args.prompt_tokens),
        ("-g", args.generate_tokens),
        ("-r", args.repetitions),
        ("--batch", args.batch.iter().copied().min().unwrap_or(1)),
    ];
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((flag, _)) => Err(Usage(format!("{flag} must be at least 1")).into()),
        None => Ok(()),
    }
}

fn decode_share(session: &Session, tps: f64, limits: &Limits) -> f64 {
    session.bytes_per_token as f64 * tps / limits.read_bytes_per_second
}

fn prefill_share(session: &Session, tps: f64, limits: &Limits) -> f64 {
    2.0 * session.weights_per_token as f64 * tps / limits.flops
}

/// An engine and a source of tokens that never repeats, so that nothing is answered from what an
/// earlier repetition left in the cache.
struct Bench {
    engine: Engine<Cpu>,
    vocab_size: u64,
    /// State of a linear congruential generator (Knuth's MMIX constants).
    random: u64,
    interrupts: Graceful,
}

impl Bench {
    fn new(session: &Session, args: &BenchArgs) -> anyhow::Result<Self> {
        let most = args.batch.iter().copied().max().unwrap_or(1).max(1);
        // Each sequence has its prompt, its answer, and up to a block of 32 that is not full.
        let decode = args.generate_tokens.saturating_add(64).saturating_mul(most);
        let kv_tokens = decode.max(args.prompt_tokens.saturating_add(64));
        let rows = CHUNK_ROWS.max(most);
        Ok(Self {
            engine: session.engine(kv_tokens, rows, args.compute.kv_dtype, "-p, -g or --batch")?,
            vocab_size: session.config().vocab_size as u64,
            random: 1,
            interrupts: Graceful::new(),
        })
    }

    fn ids(&mut self, n: usize) -> Vec<u32> {
        let mut next = || {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Below the size of a vocabulary, which is far below 2³².
            ((self.random >> 33) % self.vocab_size) as u32
        };
        (0..n).map(|_| next()).collect()
    }

    fn submit(&mut self, n_prompt: usize, n_new: usize) -> anyhow::Result<()> {
        let mut stop = StopConditions::new(n_new, Vec::new());
        stop.ignore_eos = true;
        let prompt_ids = self.ids(n_prompt);
        self.engine.submit(Request { prompt_ids, sampling: SamplingParams::greedy(), stop })?;
        Ok(())
    }

    /// Steps until nothing is left to do; says when each token came.
    fn drain(&mut self) -> anyhow::Result<Vec<Instant>> {
        let mut times = Vec::new();
        while !self.engine.is_idle() {
            self.interrupts.check()?;
            for event in self.engine.step()? {
                event.token?;
                times.push(Instant::now());
            }
        }
        Ok(times)
    }

    /// Prompt tokens each second, and milliseconds to the first token.
    fn prefill(&mut self, args: &BenchArgs) -> anyhow::Result<(f64, f64)> {
        let mut seconds = Vec::new();
        // The first round warms caches and the thread pool up, and does not count.
        for _ in 0..=args.repetitions {
            let start = Instant::now();
            self.submit(args.prompt_tokens, 1)?;
            let times = self.drain()?;
            seconds.push(elapsed(start, &times).as_secs_f64());
        }
        let median = median(&mut seconds[1..]);
        Ok((args.prompt_tokens as f64 / median, median * 1e3))
    }

    /// Tokens each second of `n` sequences that decode together. The first token of each belongs
    /// to the prompt.
    fn decode(&mut self, n: usize, args: &BenchArgs) -> anyhow::Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..args.repetitions {
            for _ in 0..n {
                self.submit(1, args.generate_tokens + 1)?;
            }
            let times = self.drain()?;
            let all_began = times[n - 1];
            let seconds = elapsed(all_began, &times).as_secs_f64();
            rates.push((times.len() - n) as f64 / seconds);
        }
        Ok(median(&mut rates))
    }

    /// Likewise for each number of sequences that was asked for; `one` is known already.
    fn batches(&mut self, one: f64, args: &BenchArgs) -> anyhow::Result<BTreeMap<usize, f64>> {
        let rate = |&n: &usize| Ok((n, if n == 1 { one } else { self.decode(n, args)? }));
        args.batch.iter().map(rate).collect()
    }
}

fn elapsed(start: Instant, times: &[Instant]) -> Duration {
    times.last().map_or(Duration::ZERO, |&last| last - start)
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[half - 1] + values[half]) / 2.0
    } else {
        values[half]
    }
}

/// High-water mark of resident memory, as Linux counts it.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

impl Report {
    fn print(&self, output: &mut Output) -> anyhow::Result<()> {
        let mut row = |name: &str, text: &str| output.line(&format!("{name:<14} {text}"));
        row("model", &self.model)?;
        row("machine", &format!("{} threads, {}", self.threads, self.isa))?;
        row("bandwidth", &format!("{:.1} GB/s read, measured", self.bandwidth_gbs))?;
        row(
            "peak",
            &format!("{:.3} TFLOP/s of {}, measured", self.peak_bf16_tflops, self.peak_unit),
        )?;
        row("load", &format!("{:.0} ms", self.load_ms))?;
        row(
            "prefill",
            &format!(
                "{:.1} tokens/s ({} tokens; {:.1} % of the peak)",
                self.prefill_tps,
                self.prompt_tokens,
                self.prefill_peak_share * 100.0
            ),
        )?;
        row("first token", &format!("after {:.0} ms", self.ttft_ms))?;
        row(
            "decode",
            &format!(
                "{:.1} tokens/s ({} tokens; {:.1} % of the bandwidth)",
                self.decode_tps,
                self.generate_tokens,
                self.decode_bandwidth_share * 100.0
            ),
        )?;
        for (n, rate) in &self.batch_decode_tps {
            row(
                &format!("decode × {n}"),
                &format!(
                    "{rate:.1} tokens/s together, {:.2} × one sequence's",
                    rate / self.decode_tps
                ),
            )?;
        }
        if let Some(speculation) = &self.speculation {
            row("speculation", &speculation.summary())?;
        }
        if let Some(bytes) = self.peak_rss_bytes {
            row("peak memory", &human_bytes(bytes))?;
        }
        self.explain.as_ref().map_or(Ok(()), |kinds| explain::print(kinds, output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_program_takes_memory() {
        assert!(peak_rss().unwrap() > 1 << 16);
    }
}
