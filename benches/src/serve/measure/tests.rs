//! The arithmetic on recorded runs, against figures worked out by hand.

use super::*;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn near(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-9, "{left} {right}");
}

/// An answer with events of tokens at these times after its start.
fn answer(events_ms: &[u64], tokens: Option<u32>) -> Answer {
    Answer {
        ttft: ms(events_ms[0]),
        latency: ms(events_ms[events_ms.len() - 1]),
        itl: events_ms.windows(2).map(|two| ms(two[1] - two[0])).collect(),
        text: "some words of text".into(),
        prompt_tokens: None,
        completion_tokens: tokens,
        first_has_text: true,
    }
}

fn record(start: u64, queued: u64, outcome: Result<Answer, Failure>) -> Record {
    Record { start: ms(start), queued: ms(queued), prompt_tokens: 10, outcome }
}

/// Four requests: coarse events, one token, a failure, one that is counted here.
fn run() -> Vec<Record> {
    let mut counted_there = answer(&[100, 150, 400], Some(5));
    counted_there.prompt_tokens = Some(12);
    let mut silent = answer(&[300], Some(1));
    silent.first_has_text = false;
    vec![
        record(0, 0, Ok(counted_there)),
        record(200, 50, Ok(silent)),
        record(300, 0, Err(Failure::Cut("gone".into()))),
        record(500, 100, Ok(answer(&[500, 600, 700], None))),
    ]
}

fn words(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap()
}

#[test]
fn every_figure_is_the_one_that_its_definition_gives() {
    let figures = Figures::new(&run(), ms(2000), &Objectives::default(), Some(&words));
    assert_eq!((figures.completed, figures.failed), (3, 1));
    assert_eq!(figures.output_lens, [5, 1, 0, 4]);
    assert_eq!(figures.input_lens, [12, 10, 10, 10]);
    assert_eq!((figures.total_input, figures.total_output), (32, 10));
    near(figures.request_throughput(), 1.5);
    near(figures.output_throughput(), 5.0);
    near(figures.total_token_throughput(), 21.0);
    // (0.1 + 0.3 + 0.5) / 3.
    near(figures.ttft.mean(), 0.3);
    // (0.4 - 0.1) / 4 and (0.7 - 0.5) / 3; the answer of one token has none.
    near(figures.tpot.mean(), (0.075 + 0.2 / 3.0) / 2.0);
    // Four gaps of 50, 250, 100 and 100 ms: per event, not per token.
    near(figures.itl.mean(), 0.125);
    near(figures.itl.median(), 0.1);
    near(figures.e2el.mean(), (0.4 + 0.3 + 0.7) / 3.0);
    near(figures.client_queue_time.percentile(100.0), 0.1);
    near(figures.e2el_including_client_queue.percentile(100.0), 0.8);
    assert_eq!(figures.counted_by, CountedBy { usage: 2, tokenizer: 1, nothing: 0 });
    assert_eq!(figures.first_events_without_text, 1);
    assert_eq!(figures.failures, BTreeMap::from([("cut".into(), 1)]));
}

#[test]
fn a_request_is_good_when_it_keeps_every_bound() {
    let good = |ttft, tpot, e2el| {
        let objectives = Objectives { ttft, tpot, e2el };
        Figures::new(&run(), ms(1000), &objectives, Some(&words)).good
    };
    assert_eq!(good(None, None, None), 3);
    // A bound itself is kept.
    assert_eq!(good(Some(0.3), None, None), 2);
    assert_eq!(good(Some(0.299), None, None), 1);
    // One token keeps every bound on TPOT.
    assert_eq!(good(None, Some(0.01), None), 1);
    assert_eq!(good(None, Some(0.07), None), 2);
    assert_eq!(good(None, None, Some(0.4)), 2);
    assert_eq!(good(Some(0.2), Some(0.08), Some(0.39)), 0);
    near(Figures::new(&run(), ms(4000), &Objectives::default(), None).request_goodput(), 3.0 / 4.0);
}

#[test]
fn without_usage_and_tokenizer_an_answer_counts_one_token() {
    let figures = Figures::new(&run(), ms(1000), &Objectives::default(), None);
    assert_eq!(figures.output_lens, [5, 1, 0, 1]);
    assert_eq!(figures.counted_by.nothing, 1);
    // A usage of zero is none at all.
    let zero = [record(0, 0, Ok(answer(&[1, 2], Some(0))))];
    let figures = Figures::new(&zero, ms(1000), &Objectives::default(), Some(&words));
    assert_eq!(figures.output_lens, [4]);
}

#[test]
fn peaks_are_over_seconds_and_half_open_stays() {
    // Seconds begin with the first request, at 200 ms.
    let records = [
        record(200, 0, Ok(answer(&[100, 900, 999], None))),
        record(300, 0, Ok(answer(&[899, 901], None))),
        // Begins as the first one ends.
        record(1199, 0, Ok(answer(&[1, 500], None))),
        record(0, 0, Err(Failure::Empty)),
    ];
    let (tokens, requests) = peaks(&records);
    // In second 0: 100, 900, 999 and 999 (899 + 100) of the first two. In second 1: the rest.
    assert_eq!((tokens, requests), (4.0, 2));
    assert_eq!(peaks(&[record(0, 0, Err(Failure::Empty))]), (0.0, 0));
}

#[test]
fn a_run_without_an_answer_has_figures_of_zero() {
    let records = [record(0, 0, Err(Failure::Connect("refused".into())))];
    let figures = Figures::new(&records, ms(100), &Objectives::default(), None);
    assert_eq!((figures.completed, figures.failed, figures.good), (0, 1, 0));
    assert_eq!([figures.ttft.mean(), figures.itl.percentile(99.0)], [0.0, 0.0]);
    assert_eq!(figures.output_throughput(), 0.0);
}
