//! Which steps are replayed from a graph, and what launches depend on.
//!
//! A step in which every sequence has one row is padded to a bucket of rows, for which all launches
//! were recorded at start. Whatever else changes from step to step is read from the device's memory.
//! Padded rows are computed like others, but store no K and V, attend to nothing and sample nothing.

use std::sync::Arc;

use crate::batch::Batch;
use crate::cuda::driver::{Driver, GraphIndex};
use crate::device::Limits;
use crate::shapes::Rows;

/// Numbers on which a step's launches depend: those of its batch, or of the bucket it is padded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepShape {
    /// T, with padding.
    pub(crate) tokens: usize,
    /// R, with padding.
    pub(crate) logits: usize,
    /// Sequences that need logits, with padding.
    pub(crate) chains: usize,
    /// Whether it is a bucket's.
    pub(crate) is_padded: bool,
}

impl StepShape {
    /// Of `batch` as it is.
    pub(crate) fn of(batch: &Batch) -> Self {
        StepShape {
            tokens: batch.num_tokens(),
            logits: batch.logits.len(),
            chains: batch.logits.chunk_by(|a, b| a.seq == b.seq).count(),
            is_padded: false,
        }
    }

    /// Of any step that is padded to `bucket` rows.
    pub(crate) fn padded(bucket: usize) -> Self {
        StepShape { tokens: bucket, logits: bucket, chains: bucket, is_padded: true }
    }

    /// Rows that an op runs over.
    pub(crate) fn rows(&self, rows: Rows) -> u32 {
        let rows = match rows {
            Rows::Tokens => self.tokens,
            Rows::Logits => self.logits,
        };
        rows as u32
    }
}

/// Rows beyond which steps are not replayed: kernels take so long there that launching costs little.
const BUCKET_MAX: usize = 256;

/// Rows to which steps within `limits` are padded, ascending.
pub(crate) fn buckets(limits: &Limits) -> Vec<usize> {
    let Limits { max_tokens, max_seqs, max_logits_rows, .. } = *limits;
    let most = max_seqs.min(max_tokens).min(max_logits_rows).min(BUCKET_MAX);
    let sizes = [1, 2, 4].into_iter().chain((8..BUCKET_MAX).step_by(8));
    let mut buckets: Vec<usize> = sizes.filter(|&rows| rows < most).collect();
    buckets.extend((most > 0).then_some(most));
    buckets
}

/// The graphs of one executor.
#[derive(Debug)]
pub(crate) struct Graphs {
    driver: Arc<dyn Driver>,
    /// By rows, ascending.
    by_bucket: Vec<(usize, GraphIndex)>,
}

impl Graphs {
    /// None yet: every step is launched op by op.
    pub(crate) fn new(driver: &Arc<dyn Driver>) -> Self {
        Graphs { driver: Arc::clone(driver), by_bucket: Vec::new() }
    }

    /// Takes the graph of steps that are padded to `bucket` rows.
    pub(crate) fn insert(&mut self, bucket: usize, graph: GraphIndex) {
        let at = self.by_bucket.partition_point(|&(rows, _)| rows < bucket);
        self.by_bucket.insert(at, (bucket, graph));
    }

    /// The smallest bucket that holds `batch` and its graph, if every sequence has one row.
    pub(crate) fn fitting(&self, batch: &Batch) -> Option<(usize, GraphIndex)> {
        let seqs = batch.num_seqs();
        let is_single = |start: &[u32]| start[1] - start[0] == 1;
        let fits =
            seqs > 0 && batch.logits.len() <= seqs && batch.query_start.windows(2).all(is_single);
        let at = self.by_bucket.partition_point(|&(rows, _)| rows < seqs);
        self.by_bucket.get(at).copied().filter(|_| fits)
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        for &(_, graph) in &self.by_bucket {
            self.driver.release_graph(graph);
        }
    }
}
