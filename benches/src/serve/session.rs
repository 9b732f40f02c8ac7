//! One call from its plan to its results: the only place that knows the order of things.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use pagoda_engine::text::TextModel;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

use crate::serve::client::Client;
use crate::serve::load::{self, Prepared};
use crate::serve::measure::Figures;
use crate::serve::plan::{Load, Plan};
use crate::serve::plot::Plot;
use crate::serve::report::{Outcome, kind, sweep_table};

/// Does what `plan` says and tells it on `out`. Gives whether any request was answered.
pub async fn run(plan: &Plan, out: &mut dyn Write) -> Result<bool> {
    let client = Arc::new(Client::new(plan.server.clone()));
    let model = match &plan.server.model {
        Some(model) => model.clone(),
        None => client.first_model().await?,
    };
    let text = plan.server.tokenizer.as_deref().map(tokenizer).transpose()?;
    let dataset = plan.dataset.describe(text.as_ref())?;
    let session = Session { plan, client, model, text, dataset };
    writeln!(out, "Model {}, requests to {}", session.model, plan.server.endpoint)?;
    writeln!(out, "Dataset {}", Value::Object(session.dataset.clone()))?;
    let mut points: Vec<(Load, Figures)> = Vec::new();
    for load in &plan.loads {
        let figures = session.measure(load, points.len(), out).await?;
        points.push((load.clone(), figures));
    }
    if points.len() > 1 {
        sweep_table(out, &points)?;
    }
    if let Some(path) = &plan.plot {
        let title = plan.report.label.as_deref().unwrap_or(&session.model);
        let plot = Plot { title, points: &points, objectives: &plan.report.objectives };
        let what = || format!("writing {}", path.display());
        std::fs::write(path, plot.svg()).with_context(what)?;
        writeln!(out, "Plot in {}", path.display())?;
    }
    Ok(points.iter().any(|(_, figures)| figures.completed > 0))
}

/// The tokenizer of a folder, or of a file in it.
fn tokenizer(path: &Path) -> Result<TextModel> {
    let folder = match path.parent() {
        Some(parent) if path.is_file() => parent,
        _ => path,
    };
    let text = TextModel::from_folder(folder, &[]);
    text.with_context(|| format!("no tokenizer in {}: --skip-tokenizer-init?", folder.display()))
}

struct Session<'a> {
    plan: &'a Plan,
    client: Arc<Client>,
    model: String,
    text: Option<TextModel>,
    dataset: Map<String, Value>,
}

impl Session<'_> {
    /// One load, from its prompts to its file. `before` loads came before it.
    async fn measure(&self, load: &Load, before: usize, out: &mut dyn Write) -> Result<Figures> {
        let Session { plan, client, .. } = self;
        let requests = self.prepare(load, before, out)?;
        let first = Prepared { delay: std::time::Duration::ZERO, ..requests[0].clone() };
        if before == 0 && !plan.server.ready_timeout.is_zero() {
            let ready = load::wait_until_ready(client, &first, plan.server.ready_timeout).await;
            ready.context("the first prompt was not answered")?;
        }
        if plan.num_warmups > 0 {
            let warmups = vec![first; plan.num_warmups];
            let bar = load::progress(warmups.len(), plan.report.progress)?;
            load::run(client, warmups, load.max_concurrency, &bar).await?;
        }
        let bar = load::progress(requests.len(), plan.report.progress)?;
        let (records, duration) = load::run(client, requests, load.max_concurrency, &bar).await?;
        let count = self.text.as_ref().map(|text| {
            // A text that cannot be encoded has no tokens that we know of.
            move |answer: &str| {
                let ids = text.tokenizer.encode(answer, false).map_or(0, |ids| ids.len());
                u32::try_from(ids).unwrap_or(u32::MAX)
            }
        });
        let count = count.as_ref().map(|count| count as &dyn Fn(&str) -> u32);
        let figures = Figures::new(&records, duration, &plan.report.objectives, count);
        let outcome = Outcome {
            plan,
            load,
            model: &self.model,
            dataset: &self.dataset,
            records: &records,
            figures: &figures,
            ended: SystemTime::now(),
        };
        outcome.table(out)?;
        if plan.report.save {
            // Loads of one call share a file that was named for them.
            let path = outcome.save(plan.report.append || before > 0)?;
            writeln!(out, "Results in {}", path.display())?;
        }
        Ok(figures)
    }

    /// Requests of a load, with their times.
    fn prepare(&self, load: &Load, before: usize, out: &mut dyn Write) -> Result<Vec<Prepared>> {
        let Session { plan, model, .. } = self;
        let mut random = ChaCha8Rng::seed_from_u64(load.seed);
        let samples = plan.dataset.samples(load.num_prompts, self.text.as_ref(), &mut random)?;
        let delays = load.arrivals.delays(samples.len(), &mut random)?;
        let first = samples.first().ok_or_else(|| anyhow!("no requests"))?;
        writeln!(
            out,
            "{} requests ({}), rate {}, burstiness {}, at most {} at once",
            samples.len(),
            kind(&first.prompt),
            load.arrivals.rate,
            load.arrivals.burstiness,
            load.max_concurrency.map_or_else(|| "all".into(), |most| most.to_string()),
        )?;
        let name = plan.server.served_model_name.as_ref().unwrap_or(model);
        // Ids of different loads differ.
        let prefix = match before {
            0 => plan.server.request_id_prefix.clone(),
            more => format!("{}{more}-", plan.server.request_id_prefix),
        };
        let prepared = samples.iter().zip(delays).enumerate().map(|(index, (sample, delay))| {
            Ok(Prepared {
                body: load::body(sample, name, plan.server.backend, &plan.fields)?,
                id: format!("{prefix}{index}"),
                prompt_tokens: sample.prompt_tokens,
                delay,
            })
        });
        prepared.collect()
    }
}
