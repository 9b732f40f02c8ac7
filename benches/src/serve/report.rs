//! Results: the table on the terminal and the fields of the JSON file, named as everywhere.
//!
//! A name that `vllm bench serve` writes means here what it means there; what is added has names of
//! its own. Figures come from [`crate::serve::measure`]; nothing is computed here but units.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};
use pagoda_engine::text::strftime::strftime;
use serde_json::{Map, Value, json};

use crate::serve::dataset::Prompt;
use crate::serve::measure::{Figures, Record};
use crate::serve::metric::Metric;
use crate::serve::plan::{Load, Plan};

/// What one load came to, and under which settings.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// What was asked for.
    pub plan: &'a Plan,
    /// This load.
    pub load: &'a Load,
    /// Model, by its own name.
    pub model: &'a str,
    /// What is known of the prompts.
    pub dataset: &'a Map<String, Value>,
    /// Each request.
    pub records: &'a [Record],
    /// All of them.
    pub figures: &'a Figures,
    /// When it ended.
    pub ended: SystemTime,
}

/// Failures that are told one by one.
const FAILURES_TOLD: usize = 10;

impl Outcome<'_> {
    /// Writes the table.
    pub fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let Outcome { plan, load, figures, .. } = self;
        let failed = self.records.iter().filter_map(|record| record.outcome.as_ref().err());
        for (index, failure) in failed.take(FAILURES_TOLD).enumerate() {
            writeln!(out, "Error {index}: {failure}")?;
        }
        writeln!(out, "{:=^50}", " Serving Benchmark Result ")?;
        count(out, "Successful requests:", figures.completed)?;
        count(out, "Failed requests:", figures.failed)?;
        for (kind, number) in &figures.failures {
            count(out, &format!("  {kind}:"), *number)?;
        }
        if let Some(most) = load.max_concurrency {
            count(out, "Maximum request concurrency:", most)?;
        }
        if load.arrivals.rate.is_finite() {
            line(out, "Request rate configured (RPS):", load.arrivals.rate)?;
        }
        line(out, "Benchmark duration (s):", figures.duration)?;
        count(out, "Total input tokens:", figures.total_input)?;
        count(out, "Total generated tokens:", figures.total_output)?;
        line(out, "Request throughput (req/s):", figures.request_throughput())?;
        if plan.report.objectives.any() {
            line(out, "Request goodput (req/s):", figures.request_goodput())?;
        }
        line(out, "Output token throughput (tok/s):", figures.output_throughput())?;
        line(out, "Peak output token throughput (tok/s):", figures.max_output_tokens_per_s)?;
        line(out, "Peak concurrent requests:", figures.max_concurrent_requests as f64)?;
        line(out, "Total token throughput (tok/s):", figures.total_token_throughput())?;
        for metric in self.metrics() {
            writeln!(out, "{:-^50}", metric.title())?;
            let (name, values) = (metric.short(), metric.of(figures));
            line(out, &format!("Mean {name} (ms):"), values.mean() * 1e3)?;
            line(out, &format!("Median {name} (ms):"), values.median() * 1e3)?;
            for &percent in &plan.report.percentiles {
                let label = format!("P{} {name} (ms):", percent_name(percent));
                line(out, &label, values.percentile(percent) * 1e3)?;
            }
        }
        writeln!(out, "{}", "=".repeat(50))?;
        self.remarks(out)
    }

    /// What a reader must know to compare these figures with others.
    fn remarks(&self, out: &mut dyn Write) -> io::Result<()> {
        let Outcome { figures, .. } = self;
        let early = figures.first_events_without_text;
        if early > 0 {
            writeln!(
                out,
                "Note: {early} answers began with an event without text: their TTFT is the time to \
                 that event, and ITL has the wait for the first token."
            )?;
        }
        let counted = figures.counted_by;
        if counted.tokenizer + counted.nothing > 0 {
            writeln!(
                out,
                "Note: output tokens of {} answers were counted by the tokenizer, and of {} as one: \
                 the server sent no usage.",
                counted.tokenizer, counted.nothing
            )?;
        }
        Ok(())
    }

    fn metrics(&self) -> impl Iterator<Item = Metric> {
        let chosen = self.plan.report.metrics.iter().copied();
        chosen.filter(|metric| metric.applies(self.load))
    }

    /// All fields of the result, those of requests only where they are wanted.
    pub fn fields(&self) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        let mut add = |more: Value| {
            if let Value::Object(more) = more {
                fields.extend(more);
            }
        };
        add(self.settings()?);
        add(self.figures_fields());
        for metric in self.metrics() {
            let (name, values) = (metric.name(), metric.of(self.figures));
            for (statistic, value) in
                [("mean", values.mean()), ("median", values.median()), ("std", values.std())]
            {
                add(json!({ format!("{statistic}_{name}_ms"): value * 1e3 }));
            }
            for &percent in &self.plan.report.percentiles {
                let value = values.percentile(percent) * 1e3;
                add(json!({ format!("p{}_{name}_ms", percent_name(percent)): value }));
            }
        }
        if self.plan.report.detailed {
            add(self.details());
        }
        Ok(fields)
    }

    fn settings(&self) -> Result<Value> {
        let Outcome { plan, load, .. } = self;
        let backend = plan.server.backend.name();
        let mut settings = json!({
            "date": self.date()?, "endpoint_type": backend, "backend": backend,
            "label": plan.report.label, "model_id": self.model,
            "tokenizer_id": plan.server.tokenizer, "num_prompts": load.num_prompts,
        });
        for (key, value) in &plan.report.metadata {
            settings[key] = value.as_str().into();
        }
        let rate = load.arrivals.rate;
        settings["request_rate"] = if rate.is_finite() { json!(rate) } else { json!("inf") };
        let shape = load.arrivals.burstiness;
        settings["burstiness"] = if shape.is_finite() { json!(shape) } else { json!("inf") };
        settings["max_concurrency"] = json!(load.max_concurrency);
        if let Some(ramp) = load.arrivals.ramp_up {
            settings["ramp_up_strategy"] = json!(format!("{:?}", ramp.strategy).to_lowercase());
            settings["ramp_up_start_rps"] = json!(ramp.start);
            settings["ramp_up_end_rps"] = json!(ramp.end);
        }
        settings["seed"] = json!(load.seed);
        settings["dataset"] = Value::Object(self.dataset.clone());
        settings["request_fields"] = Value::Object(plan.fields.clone());
        settings["client"] = json!(concat!("pagoda-bench ", env!("CARGO_PKG_VERSION")));
        Ok(settings)
    }

    fn figures_fields(&self) -> Value {
        let figures = self.figures;
        let goodput = self.plan.report.objectives.any().then(|| figures.request_goodput());
        let counted = figures.counted_by;
        json!({
            "duration": figures.duration, "completed": figures.completed,
            "failed": figures.failed, "total_input_tokens": figures.total_input,
            "total_output_tokens": figures.total_output,
            "request_throughput": figures.request_throughput(), "request_goodput": goodput,
            "output_throughput": figures.output_throughput(),
            "total_token_throughput": figures.total_token_throughput(),
            "max_output_tokens_per_s": figures.max_output_tokens_per_s,
            "max_concurrent_requests": figures.max_concurrent_requests,
            // Speech has none here; readers of results look for the field.
            "rtfx": 0.0,
            "failures": figures.failures,
            "first_events_without_text": figures.first_events_without_text,
            "output_tokens_counted_by": {
                "usage": counted.usage, "tokenizer": counted.tokenizer, "nothing": counted.nothing,
            },
        })
    }

    fn details(&self) -> Value {
        let each = |of: &dyn Fn(&Record) -> Value| self.records.iter().map(of).collect::<Value>();
        let answer = |record: &Record| record.outcome.clone().unwrap_or_default();
        json!({
            "input_lens": self.figures.input_lens, "output_lens": self.figures.output_lens,
            "ttfts": each(&|record| answer(record).ttft.as_secs_f64().into()),
            "itls": each(&|record| answer(record).itl.iter().map(|gap| gap.as_secs_f64()).collect()),
            "latencies": each(&|record| answer(record).latency.as_secs_f64().into()),
            "start_times": each(&|record| record.start.as_secs_f64().into()),
            "queue_times": each(&|record| record.queued.as_secs_f64().into()),
            "generated_texts": each(&|record| answer(record).text.into()),
            "errors": each(&|record| match &record.outcome {
                Ok(_) => "".into(),
                Err(failure) => failure.to_string().into(),
            }),
        })
    }

    fn date(&self) -> Result<String> {
        strftime(self.ended, "%Y%m%d-%H%M%S").map_err(|what| anyhow::anyhow!("no date: {what}"))
    }

    /// Writes the fields to the file of this load, as one line. `append` keeps what is there.
    pub fn save(&self, append: bool) -> Result<PathBuf> {
        let report = &self.plan.report;
        let folder = report.folder.clone().unwrap_or_default();
        if !folder.as_os_str().is_empty() {
            let what = || format!("making {}", folder.display());
            std::fs::create_dir_all(&folder).with_context(what)?;
        }
        let path = folder.join(self.file_name()?);
        let mut line = serde_json::to_string(&self.fields()?)?;
        line.push('\n');
        let mut file = std::fs::OpenOptions::new();
        file.create(true).write(true).append(append).truncate(!append);
        let written = file.open(&path).and_then(|mut file| file.write_all(line.as_bytes()));
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn file_name(&self) -> Result<String> {
        let Outcome { plan, load, .. } = self;
        if let Some(name) = &plan.report.file_name {
            return Ok(name.clone());
        }
        let label = plan.report.label.as_deref().unwrap_or_else(|| plan.server.backend.name());
        let rate = match load.arrivals.ramp_up {
            Some(ramp) => format!(
                "ramp-up-{}-{}qps-{}qps",
                format!("{:?}", ramp.strategy).to_lowercase(),
                ramp.start,
                ramp.end
            ),
            None => format!("{:?}qps", load.arrivals.rate),
        };
        let bound = load.max_concurrency.map(|most| format!("-concurrency{most}"));
        let bound = bound.unwrap_or_default();
        let model = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        Ok(format!("{label}-{rate}{bound}-{model}-{}.json", self.date()?))
    }
}

fn line(out: &mut dyn Write, name: &str, value: f64) -> io::Result<()> {
    writeln!(out, "{name:<40} {value:<10.2}")
}

fn count(out: &mut dyn Write, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "{name:<40} {value:<10}")
}

/// `99` and `99.9`, as in names of fields.
fn percent_name(percent: f64) -> String {
    percent.to_string()
}

/// How prompts look, for a first line.
pub fn kind(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Text(_) => "text",
        Prompt::Tokens(_) => "token ids",
        Prompt::Messages(_) => "chats",
    }
}

/// Writes the table of several loads, a line each.
pub fn sweep_table(out: &mut dyn Write, points: &[(Load, Figures)]) -> io::Result<()> {
    writeln!(
        out,
        "{:>6} {:>8} {:>7} {:>6} {:>8} {:>9} {:>8} | {:>19} | {:>17} | {:>19}",
        "bound",
        "rate",
        "done",
        "failed",
        "req/s",
        "tok/s",
        "good/s",
        "TTFT p50, p99 (ms)",
        "TPOT p50, p99",
        "E2EL p50, p99 (ms)"
    )?;
    for (load, figures) in points {
        let bound = load.max_concurrency.map_or_else(|| "-".into(), |most| most.to_string());
        let two = |metric: Metric, width: usize| {
            let values = metric.of(figures);
            let (half, most) = (values.median() * 1e3, values.percentile(99.0) * 1e3);
            format!("{half:>width$.1} {most:>width$.1}")
        };
        writeln!(
            out,
            "{bound:>6} {:>8} {:>7} {:>6} {:>8.2} {:>9.1} {:>8.2} | {} | {} | {}",
            load.arrivals.rate,
            figures.completed,
            figures.failed,
            figures.request_throughput(),
            figures.output_throughput(),
            figures.request_goodput(),
            two(Metric::Ttft, 9),
            two(Metric::Tpot, 8),
            two(Metric::E2el, 9),
        )?;
    }
    Ok(())
}
