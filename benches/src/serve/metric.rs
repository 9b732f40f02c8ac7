//! The metrics of a run by name: as arguments, fields of results and lines of the table.

use anyhow::{Result, bail};

use crate::serve::measure::Figures;
use crate::serve::plan::Load;
use crate::serve::statistics::Distribution;

/// What is measured of each request, or each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Time per output token after it.
    Tpot,
    /// Time between events of tokens.
    Itl,
    /// Time to the last token.
    E2el,
    /// Time that requests waited here.
    ClientQueueTime,
    /// Both.
    E2elIncludingClientQueue,
}

/// All of them, in the order of reports.
pub const METRICS: [Metric; 6] = [
    Metric::Ttft,
    Metric::Tpot,
    Metric::Itl,
    Metric::E2el,
    Metric::ClientQueueTime,
    Metric::E2elIncludingClientQueue,
];

impl Metric {
    /// By its name on the command line.
    pub fn parse(name: &str) -> Result<Self> {
        match METRICS.into_iter().find(|metric| metric.name() == name) {
            Some(metric) => Ok(metric),
            None => {
                bail!("unknown metric {name:?}; there are {}", METRICS.map(Metric::name).join(", "))
            }
        }
    }

    /// Name in fields and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Ttft => "ttft",
            Metric::Tpot => "tpot",
            Metric::Itl => "itl",
            Metric::E2el => "e2el",
            Metric::ClientQueueTime => "client_queue_time",
            Metric::E2elIncludingClientQueue => "e2el_including_client_queue",
        }
    }

    /// Name in lines of the table.
    pub fn short(self) -> &'static str {
        match self {
            Metric::Ttft => "TTFT",
            Metric::Tpot => "TPOT",
            Metric::Itl => "ITL",
            Metric::E2el => "E2EL",
            Metric::ClientQueueTime => "Client Queue Time",
            Metric::E2elIncludingClientQueue => "E2EL incl. Client Queue",
        }
    }

    /// Heading of its part of the table.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Ttft => "Time to First Token",
            Metric::Tpot => "Time per Output Token (excl. 1st token)",
            Metric::Itl => "Inter-token Latency",
            Metric::E2el => "End-to-end Latency",
            Metric::ClientQueueTime => "Client-side Queueing",
            Metric::E2elIncludingClientQueue => "Queue-inclusive End-to-end Latency",
        }
    }

    /// Its values in a run, in seconds.
    pub fn of(self, figures: &Figures) -> &Distribution {
        match self {
            Metric::Ttft => &figures.ttft,
            Metric::Tpot => &figures.tpot,
            Metric::Itl => &figures.itl,
            Metric::E2el => &figures.e2el,
            Metric::ClientQueueTime => &figures.client_queue_time,
            Metric::E2elIncludingClientQueue => &figures.e2el_including_client_queue,
        }
    }

    /// Whether it means anything under this load: nobody waits here without a bound.
    pub fn applies(self, load: &Load) -> bool {
        match self {
            Metric::ClientQueueTime => load.max_concurrency.is_some(),
            Metric::E2elIncludingClientQueue => {
                load.max_concurrency.is_some() && load.arrivals.rate.is_finite()
            }
            _ => true,
        }
    }
}
