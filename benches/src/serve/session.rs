//! One call from its plan to its results: the only place that knows the order of things.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use pagoda_engine::model::families::{self, Dialect};
use pagoda_engine::text::TextModel;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

use crate::serve::client::Client;
use crate::serve::dataset::Sample;
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
    let text = TextModel::from_folder(folder, dialects(folder));
    text.with_context(|| format!("no tokenizer in {}: --skip-tokenizer-init?", folder.display()))
}

/// What the family of a folder's config.json says of text: older vocabularies have their special
/// tokens and templates from there. Nothing where there is no such file, or of an unknown family.
fn dialects(folder: &Path) -> &'static [&'static Dialect] {
    let config = std::fs::read(folder.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    let family = config["architectures"][0].as_str().and_then(families::find);
    family.map_or(&[], |family| family.dialects)
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
        let checks_ready = before == 0 && !plan.server.ready_timeout.is_zero();
        let mut unmeasured = Vec::new();
        if checks_ready || plan.num_warmups > 0 {
            // Other prompts than those that are measured, which would come out of a prefix cache.
            let mut random = ChaCha8Rng::seed_from_u64(!load.seed);
            let samples = self.samples(load, &mut random)?;
            let prefix = self.id_prefix(before) + "warmup-";
            unmeasured = self.requests(&samples, std::iter::repeat(Duration::ZERO), &prefix)?;
        }
        if let Some(first) = unmeasured.first().filter(|_| checks_ready) {
            let ready = load::wait_until_ready(client, first, plan.server.ready_timeout).await;
            ready.context("the first prompt was not answered")?;
        }
        if plan.num_warmups > 0 {
            let warmups: Vec<Prepared> =
                unmeasured.iter().cycle().take(plan.num_warmups).cloned().collect();
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
        let mut random = ChaCha8Rng::seed_from_u64(load.seed);
        let samples = self.samples(load, &mut random)?;
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
        self.requests(&samples, delays, &self.id_prefix(before))
    }

    fn samples(&self, load: &Load, random: &mut ChaCha8Rng) -> Result<Vec<Sample>> {
        self.plan.dataset.samples(load.num_prompts, self.text.as_ref(), random)
    }

    /// What ids of requests begin with; those of different loads differ.
    fn id_prefix(&self, before: usize) -> String {
        let prefix = &self.plan.server.request_id_prefix;
        if before == 0 { prefix.clone() } else { format!("{prefix}{before}-") }
    }

    fn requests(
        &self,
        samples: &[Sample],
        delays: impl IntoIterator<Item = Duration>,
        id_prefix: &str,
    ) -> Result<Vec<Prepared>> {
        let Session { plan, model, .. } = self;
        let name = plan.server.served_model_name.as_ref().unwrap_or(model);
        let request = |((index, sample), delay): ((usize, &Sample), Duration)| {
            Ok(Prepared {
                body: load::body(sample, name, plan.server.backend, &plan.fields)?,
                id: format!("{id_prefix}{index}"),
                prompt_tokens: sample.prompt_tokens,
                delay,
            })
        };
        samples.iter().enumerate().zip(delays).map(request).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_vocabulary_is_read_by_the_rules_of_its_family() {
        let own =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers/chatglm3");
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.model", "tokenizer_config.json"] {
            std::fs::copy(own.join(file), folder.path().join(file)).unwrap();
        }
        let begin = || {
            let text = tokenizer(&folder.path().join("tokenizer.model")).unwrap();
            let ids = text.tokenizer.encode("", true).unwrap();
            (text.tokenizer.decode(&ids, false), text.template.is_some())
        };
        assert!(!begin().1, "a family that is not named has no template");
        let config = "{\"architectures\": [\"ChatGLMModel\"]}";
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        assert_eq!(begin(), ("[gMASK]sop".into(), true));
    }
}
