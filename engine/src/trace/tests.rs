//! Which requests are recorded, and what is made of them.

use std::time::Duration;

use super::collector::Collector;
use super::context::TRACEPARENT;
use super::record::{Asked, Recorder};
use super::span::{Span, Value, export_body};
use super::*;

pub(super) fn asked(n: u32) -> Asked {
    Asked {
        prompt_idx: 0,
        operation: "chat",
        model: "demo".into(),
        n,
        max_tokens: 16,
        temperature: 0.7,
        top_p: 1.0,
        seed: Some(i64::MIN),
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
    let (method, route) = (Some("POST"), Some("/v1/chat/completions"));
    Ended { id: "req_1", method, route, status, complete }
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
    let collector = Collector::at_base("http://127.0.0.1:9").unwrap();
    let exporter = export::Exporter::start(collector, &[], metrics).unwrap();
    let tracer = |asks_caller, ratio| exporter.tracer(Sampling { asks_caller, ratio });
    for (ratio, recorded) in [(0.0, false), (1.0, true)] {
        // Who is not asked does not matter.
        assert_eq!(tracer(false, ratio).begin(&headers(Some(PARENT))).is_recorded(), recorded);
        assert_eq!(tracer(false, ratio).begin(&headers(Some(UNSAMPLED))).is_recorded(), recorded);
        let tracer = tracer(true, ratio);
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
    let tracer = tracer(true, 0.25);
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
    for (name, seconds) in [
        ("time_in_queue", 0.01),
        ("time_to_first_token", 0.03),
        ("time_in_model_prefill", 0.02),
        ("time_in_model_decode", 0.06),
        ("time_in_model_inference", 0.08),
    ] {
        let told = attribute(request, &format!("gen_ai.latency.{name}"));
        assert_eq!(told, Some(&Value::Float(seconds)), "{name}");
    }
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
fn a_share_is_told_by_the_lower_half_of_the_id() {
    let id = |half: u64| {
        let mut id = [0xff; 16];
        id[8..].copy_from_slice(&half.to_be_bytes());
        id
    };
    assert!(is_taken(id(u64::MAX), 1.0) && !is_taken(id(0), 0.0));
    assert!(is_taken(id((1 << 62) - (1 << 20)), 0.25) && !is_taken(id(1 << 62), 0.25));
}

#[test]
fn prompts_and_choices_keep_their_order() {
    let begun = Arc::new(begun(None));
    let trace = Trace(Some(begun.clone()));
    let recorder = |prompt_idx| Recorder::of(&trace, Asked { prompt_idx, ..asked(2) });
    let (mut first, mut second) = (recorder(0), recorder(1));
    first.started(10, 7);
    second.started(11, 2);
    second.token(Instant::now());
    second.token(Instant::now());
    second.finished(1, "length");
    second.finished(0, "stop");
    drop(second);
    first.finished(0, "length");
    first.finished(1, "length");
    drop(first);
    let answered = std::mem::take(&mut *begun.lock());
    let spans = spans_of(&begun, answered, &ended(Some(200), true));
    let request = spans.last().unwrap();
    let reasons = Value::Texts(vec!["length", "length", "stop", "length"]);
    assert_eq!(attribute(request, "gen_ai.response.finish_reasons"), Some(&reasons));
    for (name, count) in
        [("input_tokens", 21), ("cache_read.input_tokens", 9), ("output_tokens", 2)]
    {
        let told = attribute(request, &format!("gen_ai.usage.{name}"));
        assert_eq!(told, Some(&Value::Int(count)), "{name}");
    }
    let prompts: Vec<_> =
        spans.iter().filter_map(|span| attribute(span, "pagoda.prompt.index")).collect();
    assert_eq!(prompts, [&Value::Int(0), &Value::Int(1)]);
}

#[test]
fn what_nobody_knows_has_no_name_of_its_own() {
    let of = |method, route| {
        let ended = Ended { id: "r", method, route, status: Some(404), complete: true };
        spans_of(&begun(None), Vec::new(), &ended).remove(0)
    };
    let known = of(Some("GET"), Some("/v1/models"));
    assert_eq!(known.name, "GET /v1/models");
    let (no_route, neither) = (of(Some("GET"), None), of(None, None));
    assert_eq!((no_route.name.as_str(), neither.name.as_str()), ("GET", "HTTP"));
    assert_eq!(attribute(&no_route, "http.route"), None);
    assert_eq!(attribute(&neither, "http.request.method"), Some(&Value::from("_OTHER")));
}

#[test]
fn an_engine_that_failed_is_whose_fault_it_is() {
    let failed = Answered { failed: true, ..whole() };
    let spans = spans_of(&begun(None), vec![whole(), failed], &ended(Some(200), true));
    let request = spans.last().unwrap();
    assert_eq!(attribute(request, "error.type"), Some(&"engine_failed".into()));
    assert!(request.error.is_some());
}

#[test]
fn the_wire_is_otlps() {
    let begun = begun(Some(PARENT));
    let spans = spans_of(&begun, vec![whole()], &ended(Some(503), true));
    let body = export_body(&[("service.name".into(), "pagoda".into())], &spans);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let service = &body["resourceSpans"][0]["resource"]["attributes"][0];
    assert_eq!(service["value"]["stringValue"], "pagoda");
    let spans_told = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
    let (queue, request) = (&spans_told[0], &spans_told[3]);
    assert_eq!(request["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(request["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(queue["parentSpanId"], request["spanId"]);
    assert_eq!(request["startTimeUnixNano"], spans[3].began_ns.to_string());
    assert_eq!(request["endTimeUnixNano"], spans[3].ended_ns.to_string());
    assert_eq!((&request["kind"], &queue["kind"]), (&2.into(), &1.into()));
    assert_eq!((&request["status"]["code"], queue.get("status")), (&2.into(), None));
    // Sampled, and below a span of another process, or below one of our own.
    assert_eq!((&request["flags"], &queue["flags"]), (&0x301.into(), &0x101.into()));
    let value = |name: &str| {
        let attributes = request["attributes"].as_array().unwrap();
        attributes.iter().find(|one| one["key"] == name).unwrap()["value"].clone()
    };
    assert_eq!(value("gen_ai.request.seed")["intValue"], i64::MIN.to_string());
    assert_eq!(value("gen_ai.request.temperature")["doubleValue"], 0.7);
}
