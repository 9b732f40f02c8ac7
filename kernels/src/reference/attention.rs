//! Attention of one row and one query head in float64.

use super::Matrix;

/// What a row attends to, and how: see [`crate::ops::Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// Position of the row: it sees keys up to its own.
    pub position: usize,
    /// `[tokens, D]` of the KV head, as the cache holds them.
    pub keys: &'a Matrix,
    /// `[tokens, D]`.
    pub values: &'a Matrix,
    /// Multiplies q·k.
    pub scale: f64,
    /// Keys in `(p − window, p]`.
    pub window: Option<usize>,
    /// `cap · tanh(s / cap)`.
    pub soft_cap: Option<f64>,
    /// Logit of a virtual key without value, of this query head.
    pub sink: Option<f64>,
}

impl AttentionRow<'_> {
    /// `Σ softmax(q·k)·v` over the visible keys.
    pub fn attend(&self, q: &[f64]) -> Vec<f64> {
        let end = self.position + 1;
        let visible = self.window.map_or(0, |window| end.saturating_sub(window))..end;
        let score = |token: usize| {
            let dot: f64 = q.iter().zip(self.keys.row(token)).map(|(q, k)| q * k).sum();
            let score = self.scale * dot;
            self.soft_cap.map_or(score, |cap| cap * (score / cap).tanh())
        };
        let scores: Vec<f64> = visible.clone().map(score).collect();
        let max = scores.iter().copied().chain(self.sink).fold(f64::NEG_INFINITY, f64::max);
        let mut sum = self.sink.map_or(0.0, |sink| (sink - max).exp());
        let mut out = vec![0.0; self.values.cols];
        for (score, token) in scores.iter().zip(visible) {
            let weight = (score - max).exp();
            sum += weight;
            for (out, v) in out.iter_mut().zip(self.values.row(token)) {
                *out += weight * v;
            }
        }
        out.iter().map(|out| out / sum).collect()
    }
}
