//! Which requests are recorded, and what is made of them.

use std::time::Duration;

use super::context::TRACEPARENT;
use super::record::Asked;
use super::span::{Span, Value, export_body};
use super::*;

pub(super) fn asked(n: u32) -> Asked {
    Asked {
        operation: "chat",
        model: "demo".into(),
        n,
        max_tokens: 16,
        temperature: 0.5,
        top_p: 1.0,
        seed: Some(u64::MAX),
    }
}

fn headers(parent: Option<&'static str>) -> HeaderMap {
    let parent = parent.map(|parent| (TRACEPARENT, HeaderValue::from_static(parent)));
    parent.into_iter().collect()
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn begun(parent: Option<&'static str>) -> Begun {
    // Made by a tracer without a queue: what it makes is what is asked here.
    let headers = headers(Some(parent.unwrap_or(PARENT)));
    let trace = Tracer::default().begin(&headers);
    let mut begun = Arc::into_inner(trace.0.unwrap()).unwrap();
    if parent.is_none() {
        begun.parent_id = None;
    }
    begun
}

fn ended(status: Option<u16>, complete: bool) -> Ended<'static> {
    Ended { id: "req_1", method: "POST", route: "/v1/chat/completions", status, complete }
}

/// `count` spans of requests without prompts.
pub(super) fn spans(count: usize) -> Vec<Span> {
    let one = || spans_of(&begun(None), Vec::new(), &ended(Some(200), true));
    std::iter::repeat_with(one).flatten().take(count).collect()
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[test]
fn without_a_collector_a_trace_is_only_named() {
    let tracer = Tracer::default();
    assert_eq!(tracer.begin(&headers(None)).id(), None);
    let named = tracer.begin(&headers(Some(PARENT)));
    assert_eq!(named.id(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert!(!named.is_recorded() && named.response().is_none());
}

#[tokio::test]
async fn a_caller_decides_and_else_the_ratio() {
    let metrics = crate::metrics::Metrics::new(false).unwrap();
    let metrics = crate::metrics::TraceMetrics::new(&metrics);
    let collector = export::Collector::parse("http://127.0.0.1:9").unwrap();
    let exporter = export::Exporter::start(collector, metrics);
    for (ratio, recorded) in [(0.0, false), (1.0, true)] {
        let tracer = exporter.tracer(ratio);
        assert!(tracer.begin(&headers(Some(PARENT))).is_recorded());
        assert!(!tracer.begin(&headers(Some(UNSAMPLED))).is_recorded());
        let own = tracer.begin(&headers(None));
        assert_eq!(own.is_recorded(), recorded);
        let response = own.response().unwrap();
        let mut answer = HeaderMap::new();
        answer.insert(TRACEPARENT, response);
        let told = Incoming::read(&answer).expect("it has the form of a traceparent");
        assert_eq!((Some(hex_text(&told.trace_id)).as_deref(), told.sampled), (own.id(), recorded));
    }
    let tracer = exporter.tracer(0.25);
    let taken = (0..4000).filter(|_| tracer.begin(&headers(None)).is_recorded()).count();
    assert!((800..1200).contains(&taken), "{taken} of 4000");
}

/// A prompt that went through all phases.
fn whole() -> Answered {
    let answered = Answered::submitted(asked(1));
    let at = |ms| answered.submitted_at + Duration::from_millis(ms);
    let (scheduled_at, first_token_at) = (Some(at(10)), Some(at(30)));
    Answered { scheduled_at, first_token_at, ended_at: at(90), ..answered }
}

#[test]
fn a_request_has_a_span_and_one_for_each_phase() {
    let begun = begun(Some(PARENT));
    let spans = spans_of(&begun, vec![whole()], &ended(Some(200), true));
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["queue", "prefill", "decode", "chat demo"]);
    let [queue, prefill, decode, request] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(request.parent_id.map(|id| hex_text(&id)).as_deref(), Some("b7ad6b7169203331"));
    for phase in [queue, prefill, decode] {
        assert_eq!(phase.parent_id, Some(request.span_id));
        assert_eq!(phase.trace_id, request.trace_id);
    }
    assert_eq!(queue.ended_ns, prefill.began_ns);
    assert_eq!(prefill.ended_ns, decode.began_ns);
    let took = |span: &Span| (span.ended_ns - span.began_ns) / 1_000_000;
    assert_eq!((took(queue), took(prefill), took(decode)), (10, 20, 60));
    let seconds = attribute(request, "gen_ai.latency.time_to_first_token");
    assert_eq!(seconds, Some(&Value::Float(0.03)));
    assert_eq!(attribute(request, "error.type"), None);
}

#[test]
fn times_out_of_order_are_put_in_order() {
    let begun = begun(None);
    let late = whole();
    let (scheduled_at, first_token_at) = (late.first_token_at, late.scheduled_at);
    let late = Answered { scheduled_at, first_token_at, ended_at: late.submitted_at, ..late };
    let spans = spans_of(&begun, vec![late], &ended(Some(200), true));
    assert!(spans.iter().all(|span| span.began_ns <= span.ended_ns), "{spans:?}");
    assert_eq!(spans.len(), 4);
}

#[test]
fn what_went_wrong_is_told_by_whose_fault_it_is() {
    let of = |status, complete| {
        let spans = spans_of(&begun(None), Vec::new(), &ended(status, complete));
        let kind = attribute(&spans[0], "error.type").cloned();
        assert_eq!(kind.is_some(), spans[0].error.is_some());
        kind
    };
    assert_eq!(of(Some(200), true), None);
    assert_eq!(of(Some(400), true), None);
    assert_eq!(of(Some(503), true), Some("503".into()));
    assert_eq!(of(Some(200), false), Some("cancelled".into()));
    assert_eq!(of(None, false), Some("cancelled".into()));
}

#[test]
fn the_wire_has_large_numbers_as_text() {
    let begun = begun(Some(PARENT));
    let spans = spans_of(&begun, vec![whole()], &ended(Some(200), true));
    let body = export_body(&[("service.name", "pagoda".into())], &spans);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let request = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][3];
    assert_eq!(request["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(request["startTimeUnixNano"], spans[3].began_ns.to_string());
    assert_eq!(request["kind"], 2);
    let attributes = request["attributes"].as_array().unwrap();
    let seed = attributes.iter().find(|one| one["key"] == "gen_ai.request.seed").unwrap();
    assert_eq!(seed["value"]["intValue"], u64::MAX.to_string());
}
