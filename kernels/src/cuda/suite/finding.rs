//! What a part found: comparisons, figures with their spread, and what it says in words.

/// One thing that a part has to say.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// Results were compared.
    Check(Check),
    /// Something was measured.
    Figure(Figure),
    /// Words: versions, or why something was not measured.
    Note(Note),
}

/// Results compared with what they must be.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// What was compared.
    pub what: String,
    /// How many results.
    pub cases: usize,
    /// How many of them are wrong.
    pub num_wrong: usize,
    /// The first of these, for people.
    pub wrong: Vec<String>,
}

/// A measured number: its median over rounds, and the least and the most of them.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// The middle of all rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How often it was taken.
    pub rounds: usize,
    /// Of the ceiling that binds it, measured in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Which ceiling that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<&'static str>,
}

/// What is neither compared nor measured.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// What it is about.
    pub what: String,
    /// What there is to say.
    pub text: String,
}

/// Wrong results that are told one by one.
const TOLD_MAX: usize = 8;

impl Finding {
    /// Whether nothing is wrong with it.
    pub fn is_right(&self) -> bool {
        match self {
            Finding::Check(check) => check.cases > 0 && check.num_wrong == 0,
            Finding::Figure(figure) => figure.median.is_finite() && figure.median > 0.0,
            Finding::Note(_) => true,
        }
    }
}

impl Note {
    /// Says why there is no figure.
    pub fn not_measured(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Note { what: what.into(), text: format!("not measured: {why}") }
    }
}

impl Check {
    /// Nothing compared yet.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Check { what: what.into(), cases: 0, num_wrong: 0, wrong: Vec::new() }
    }

    /// One more result; `wrong` says what is wrong with it.
    pub(super) fn add(&mut self, wrong: Option<String>) {
        self.cases += 1;
        let Some(text) = wrong else { return };
        self.num_wrong += 1;
        if self.wrong.len() < TOLD_MAX {
            self.wrong.push(text);
        }
    }
}

impl Figure {
    /// A figure that was taken once.
    pub fn one(what: String, unit: &'static str, value: f64) -> Self {
        Figure::new(what, unit, vec![value])
    }

    /// A figure of `samples`, of which there is one at least.
    pub fn new(what: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
        Figure {
            what: what.into(),
            unit,
            median: at(samples.len() / 2),
            min: at(0),
            max: at(samples.len().saturating_sub(1)),
            rounds: samples.len(),
            share: None,
            of: None,
        }
    }

    /// With its share of a ceiling.
    pub fn share(self, share: f64, of: &'static str) -> Self {
        Figure { share: Some(share), of: Some(of), ..self }
    }
}
