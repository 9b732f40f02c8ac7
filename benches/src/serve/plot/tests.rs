//! Places in the drawing, worked out by hand.

use std::time::Duration;

use super::*;
use crate::serve::answer::Answer;
use crate::serve::arrivals::Arrivals;
use crate::serve::measure::Record;

fn point(max_concurrency: Option<usize>, rate: f64, ms: u64) -> (Load, Figures) {
    let answer = Answer {
        ttft: Duration::from_millis(ms),
        latency: Duration::from_millis(3 * ms),
        itl: vec![Duration::from_millis(2 * ms)],
        completion_tokens: Some(2),
        ..Answer::default()
    };
    let record = Record {
        start: Duration::ZERO,
        queued: Duration::ZERO,
        prompt_tokens: 1,
        outcome: Ok(answer),
    };
    let figures = Figures::new(&[record], Duration::from_secs(1), &Objectives::default(), None);
    let arrivals = Arrivals { rate, burstiness: 1.0, ramp_up: None };
    (Load { num_prompts: 1, arrivals, max_concurrency, seed: 0 }, figures)
}

fn svg(points: &[(Load, Figures)], objectives: Objectives) -> String {
    Plot { title: "a <b> & c", points, objectives: &objectives }.svg()
}

/// Heights of the first panel's first line, from the left.
fn heights(svg: &str) -> Vec<f64> {
    let line = svg.lines().find(|line| line.starts_with("<polyline")).unwrap();
    let places = line.split('"').nth(1).unwrap().split(' ');
    places.map(|place| place.split_once(',').unwrap().1.parse().unwrap()).collect()
}

#[test]
fn longer_latencies_stand_higher_whatever_the_order_of_loads() {
    let inf = f64::INFINITY;
    let points = [(4, 40), (1, 10), (2, 30)].map(|(most, ms)| point(Some(most), inf, ms));
    let drawn = svg(&points, Objectives::default());
    let heights = heights(&drawn);
    assert_eq!(heights.len(), 3);
    assert!(heights[0] > heights[1] && heights[1] > heights[2], "{heights:?}");
    assert!(drawn.contains("requests at once") && drawn.contains("a &lt;b&gt; &amp; c"));
    // 40 ms is the top of an axis from 0; 10 ms is a quarter of it.
    assert_eq!(heights, [70.0 + 250.0 * 0.75, 70.0 + 250.0 * 0.25, 70.0]);
    assert_eq!(drawn, svg(&points, Objectives::default()));
}

#[test]
fn rates_may_end_in_infinity_and_wide_spans_are_logarithmic() {
    let points = [(1.0, 1), (8.0, 10), (f64::INFINITY, 1000)].map(|(r, ms)| point(None, r, ms));
    let drawn = svg(&points, Objectives::default());
    assert!(drawn.contains("requests/s offered") && drawn.contains(">inf</text>"));
    let third = 250.0 / 3.0;
    for (found, wanted) in heights(&drawn).iter().zip([320.0, 320.0 - third, 70.0]) {
        assert!((found - wanted).abs() < 0.1, "{found} {wanted}");
    }
    assert!(!drawn.contains("NaN") && !drawn.contains("\"inf"));
}

#[test]
fn pairs_are_a_line_for_each_bound_and_objectives_are_drawn() {
    let points = [(Some(2), 1.0), (Some(2), 4.0), (Some(8), 1.0), (Some(8), 4.0)]
        .map(|(most, rate)| point(most, rate, 20));
    let drawn = svg(&points, Objectives { ttft: Some(0.05), ..Objectives::default() });
    assert_eq!(drawn.matches("<polyline").count(), 3 * 4 + 2);
    assert!(drawn.contains("median at most 8 at once"));
    assert_eq!(drawn.matches("objective: 50 ms").count(), 1);
    // The bound is on the scale.
    assert!(heights(&drawn).iter().all(|&height| height > 70.0));
}

#[test]
fn one_point_and_no_answers_are_drawn_too() {
    let arrivals = Arrivals { rate: f64::INFINITY, burstiness: 1.0, ramp_up: None };
    let load = Load { num_prompts: 1, arrivals, max_concurrency: None, seed: 0 };
    let figures = Figures::new(&[], Duration::from_secs(1), &Objectives::default(), None);
    let drawn = svg(&[(load, figures)], Objectives::default());
    assert!(drawn.contains("<circle") && !drawn.contains("NaN"), "{drawn}");
    let numbers = [0.0, 0.025, 1.5, 12.34, 1000.0, 400.0].map(number);
    assert_eq!(numbers, ["0", "0.025", "1.5", "12.3", "1000", "400"]);
}
