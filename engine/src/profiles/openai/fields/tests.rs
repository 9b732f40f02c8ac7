//! Every field's class and range, and that every field of the official SDK has a class.

use serde_json::json;

use super::*;
use crate::api::error::ApiError;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn parsed(operation: Operation, body: Value) -> Result<Wire, String> {
    parse(operation, &object(body), &Limits::default()).map_err(told)
}

fn told(error: ApiError) -> String {
    match error {
        ApiError::Invalid { param, code, .. } => format!("{param} {code}"),
        other => other.to_string(),
    }
}

fn chat(body: Value) -> Result<Wire, String> {
    parsed(Operation::Chat, body)
}

/// `create()` of chat.completions in openai 3.52.0, without what the client itself uses
/// (extra_headers, extra_query, extra_body, timeout).
const SDK_CHAT: &str = "messages model audio response_format frequency_penalty function_call \
    functions logit_bias logprobs max_completion_tokens max_tokens metadata modalities moderation \
    n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options \
    prompt_cache_retention reasoning_effort safety_identifier seed service_tier stop store \
    stream_options temperature tool_choice tools top_logprobs top_p user verbosity \
    web_search_options stream";

/// `create()` of completions.
const SDK_COMPLETIONS: &str = "model prompt best_of echo frequency_penalty logit_bias logprobs \
    max_tokens n presence_penalty seed stop stream stream_options suffix temperature top_p user";

#[test]
fn every_field_of_the_sdk_has_a_class_and_none_has_two() {
    for (operation, names) in
        [(Operation::Chat, SDK_CHAT), (Operation::Completions, SDK_COMPLETIONS)]
    {
        for name in names.split_whitespace() {
            let classes = FIELDS.iter().filter(|field| {
                field.name == name && field.only.is_none_or(|only| only == operation)
            });
            assert_eq!(classes.count(), 1, "{operation:?} {name}");
        }
    }
    for (index, field) in FIELDS.iter().enumerate() {
        let twice = FIELDS[index + 1..].iter().any(|other| {
            other.name == field.name
                && (other.only == field.only || other.only.is_none() || field.only.is_none())
        });
        assert!(!twice, "{}", field.name);
    }
}

#[test]
fn null_means_absent_for_every_field() {
    for field in FIELDS {
        let operation = field.only.unwrap_or(Operation::Chat);
        let wire = parsed(operation, json!({ field.name: null })).unwrap();
        assert!(wire.ignored.is_empty(), "{}", field.name);
        assert_eq!(wire.options, crate::api::options::Options::default(), "{}", field.name);
    }
}

#[test]
fn ranges_are_closed_and_outside_them_is_refused_by_name() {
    let limits = Limits::default();
    let number = |name: &'static str, low: f64, high: f64| {
        let low_code = format!("{name} decimal_below_min_value");
        let high_code = format!("{name} decimal_above_max_value");
        vec![
            (json!({name: low}), Ok(())),
            (json!({name: high}), Ok(())),
            (json!({name: low - 0.001}), Err(low_code)),
            (json!({name: high + 0.001}), Err(high_code)),
            (json!({name: "1"}), Err(format!("{name} invalid_type"))),
            (json!({name: true}), Err(format!("{name} invalid_type"))),
        ]
    };
    let integer = |name: &'static str, low: i64, high: i64| {
        let low_code = format!("{name} integer_below_min_value");
        let high_code = format!("{name} integer_above_max_value");
        vec![
            (json!({name: low}), Ok(())),
            (json!({name: high}), Ok(())),
            (json!({name: low - 1}), Err(low_code)),
            (json!({name: high + 1}), Err(high_code.clone())),
            (json!({name: u64::MAX}), Err(high_code)),
            (json!({name: 1.5}), Err(format!("{name} invalid_type"))),
            (json!({name: [1]}), Err(format!("{name} invalid_type"))),
        ]
    };
    let all = [
        number("temperature", 0.0, 2.0),
        number("top_p", 0.0, 1.0),
        number("min_p", 0.0, 1.0),
        number("frequency_penalty", -2.0, 2.0),
        number("presence_penalty", -2.0, 2.0),
        number("repetition_penalty", 0.01, 10.0),
        integer("n", 1, 128.min(limits.choices_max.into())),
        integer("max_tokens", 0, u32::MAX.into()),
        integer("max_completion_tokens", 0, u32::MAX.into()),
        integer("min_tokens", 0, u32::MAX.into()),
        integer("top_k", -1, u32::MAX.into()),
        integer("priority", i32::MIN.into(), i32::MAX.into()),
        integer("top_logprobs", 0, 1000),
        integer("prompt_logprobs", 0, 1000),
        integer("truncate_prompt_tokens", -1, u32::MAX.into()),
    ];
    for (body, expected) in all.into_iter().flatten() {
        assert_eq!(chat(body.clone()).map(|_| ()), expected, "{body}");
    }
}

#[test]
fn booleans_are_booleans() {
    for name in [
        "stream",
        "logprobs",
        "ignore_eos",
        "skip_special_tokens",
        "return_token_ids",
        "add_generation_prompt",
        "continue_final_message",
        "include_stop_str_in_output",
    ] {
        assert!(chat(json!({name: true})).is_ok(), "{name}");
        for other in [json!(1), json!("true"), json!({})] {
            assert_eq!(chat(json!({name: other})).unwrap_err(), format!("{name} invalid_type"));
        }
    }
}

#[test]
fn values_that_ask_for_nothing_are_accepted_and_others_refused_by_name() {
    let table = [
        ("tools", json!([]), json!([{"type": "function"}])),
        ("tool_choice", json!("none"), json!("required")),
        ("functions", json!([]), json!([{"name": "f"}])),
        ("function_call", json!("auto"), json!({"name": "f"})),
        ("response_format", json!({"type": "text"}), json!({"type": "json_object"})),
        ("response_format", json!({"type": "text"}), json!({"type": "json_schema"})),
        ("store", json!(false), json!(true)),
        ("service_tier", json!("auto"), json!("flex")),
        ("service_tier", json!("default"), json!("priority")),
        ("modalities", json!(["text"]), json!(["text", "audio"])),
        ("reasoning_effort", json!("none"), json!("high")),
        ("verbosity", json!("medium"), json!("low")),
        ("prompt_cache_options", json!({"mode": "implicit"}), json!({"mode": "explicit"})),
        ("bad_words", json!([]), json!(["x"])),
        ("use_beam_search", json!(false), json!(true)),
        ("documents", json!([]), json!([{}])),
    ];
    for (name, neutral, asking) in table {
        let wire = chat(json!({name: neutral})).unwrap();
        assert!(wire.ignored.is_empty(), "{name}");
        assert_eq!(chat(json!({name: asking})).unwrap_err(), format!("{name} unsupported_value"));
    }
    for name in ["audio", "moderation", "prediction", "web_search_options", "guided_json"] {
        assert_eq!(chat(json!({name: {}})).unwrap_err(), format!("{name} unsupported_value"));
    }
    for (name, value) in [
        ("user", json!("u")),
        ("metadata", json!({"a": "b"})),
        ("safety_identifier", json!("s")),
        ("prompt_cache_key", json!("k")),
        ("parallel_tool_calls", json!(true)),
    ] {
        assert!(chat(json!({name: value})).unwrap().ignored.is_empty(), "{name}");
    }
    let suffix = |text: &str| parsed(Operation::Completions, json!({"suffix": text}));
    assert!(suffix("").is_ok());
    assert_eq!(suffix("x").unwrap_err(), "suffix unsupported_value");
}

#[test]
fn names_that_nobody_knows_are_listed() {
    let body = json!({"frobnicate": 1, "prompt": "x", "stream_options": {"odd": 1}});
    let wire = chat(body).unwrap();
    assert_eq!(wire.ignored, ["frobnicate", "prompt", "stream_options.odd"]);
}

#[test]
fn lists_and_maps_are_bounded_and_sorted() {
    let limits = Limits::default();
    let wire = chat(json!({"logit_bias": {"20": -100, "3": 1.5}, "stop": ["a", "", "b"]})).unwrap();
    assert_eq!(wire.options.logit_bias, [(3, 1.5), (20, -100.0)]);
    assert_eq!(wire.options.stop, ["a", "b"]);
    assert_eq!(chat(json!({"stop": "x"})).unwrap().options.stop, ["x"]);
    let many = |count: usize| vec!["x"; count];
    let long = "x".repeat(limits.stop_bytes_max + 1);
    let ids = |count: usize| (0..count).collect::<Vec<_>>();
    let biases: Map<String, Value> =
        (0..=limits.token_list_max).map(|id| (id.to_string(), json!(1))).collect();
    for (body, expected) in [
        (json!({"stop": many(limits.stops_max + 1)}), "stop array_above_max_length"),
        (json!({"stop": long}), "stop string_above_max_length"),
        (json!({"stop": [1]}), "stop[0] invalid_type"),
        (json!({"stop": 1}), "stop invalid_type"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias invalid_key"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias invalid_key"),
        (json!({"logit_bias": {"7": 1, "07": -1}}), "logit_bias invalid_key"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1 decimal_above_max_value"),
        (json!({"logit_bias": biases}), "logit_bias object_above_max_properties"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0] integer_below_min_value"),
        (
            json!({"stop_token_ids": ids(limits.token_list_max + 1)}),
            "stop_token_ids array_above_max_length",
        ),
        (json!({"allowed_token_ids": []}), "allowed_token_ids empty_array"),
        (json!({"cache_salt": ""}), "cache_salt unsupported_value"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs invalid_type"),
        (json!({"model": "m".repeat(257)}), "model string_above_max_length"),
        (
            json!({"stream_options": {"include_usage": 1}}),
            "stream_options.include_usage invalid_type",
        ),
    ] {
        assert_eq!(chat(body).unwrap_err(), expected);
    }
    assert!(chat(json!({"stop": many(limits.stops_max)})).is_ok());
}

#[test]
fn arguments_of_a_template_are_few_and_short() {
    let read = |kwargs: Value| {
        let wire = chat(json!({"chat_template_kwargs": kwargs}))?;
        Ok::<_, String>(wire.template_kwargs.len())
    };
    let too_large = Err("chat_template_kwargs object_above_max_length".to_string());
    // The list is a value itself.
    assert_eq!(read(json!({"a": vec![1; 511]})), Ok(1));
    assert_eq!(read(json!({"a": vec![1; 512]})), too_large);
    assert_eq!(read(json!({"a": [{"b": vec![json!([{}]); 300]}]})), too_large);
    let text = |num_bytes: usize| json!([{"é": "x".repeat(num_bytes - 3)}]);
    assert_eq!(read(json!({"a": text(64 << 10)})), Ok(1));
    assert_eq!(read(json!({"a": text((64 << 10) + 1)})), too_large);
    let names: Map<String, Value> =
        (0..300).map(|index| (format!("{index:0>300}"), Value::Null)).collect();
    assert_eq!(read(Value::Object(names)), too_large);
}

#[test]
fn fields_must_agree_with_each_other() {
    let finish_chat = |mut body: Value| {
        body["messages"] = json!([{"role": "user", "content": "x"}]);
        let mut wire = chat(body).unwrap();
        wire.finish_chat().map(|_| wire).map_err(told)
    };
    let wire = finish_chat(json!({"max_tokens": 5, "max_completion_tokens": 6})).unwrap();
    assert_eq!(wire.options.max_tokens, Some(6));
    let wire = finish_chat(json!({"logprobs": true})).unwrap();
    assert_eq!(wire.options.logprobs, Some(0));
    let wire = finish_chat(json!({"logprobs": true, "top_logprobs": 3})).unwrap();
    assert_eq!(wire.options.logprobs, Some(3));
    assert!(!finish_chat(json!({"continue_final_message": true})).unwrap().generation_prompt());
    for (body, expected) in [
        (json!({"max_tokens": 0}), "max_tokens integer_below_min_value"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens integer_below_min_value"),
        (json!({"top_logprobs": 3}), "top_logprobs invalid_value"),
        (json!({"stream_options": {}}), "stream_options invalid_value"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message unsupported_value",
        ),
        (json!({"stream": true, "prompt_logprobs": 1}), "prompt_logprobs unsupported_value"),
    ] {
        assert_eq!(finish_chat(body).map(|_| ()).unwrap_err(), expected);
    }
    assert_eq!(
        Wire::default().finish_chat().map_err(told).unwrap_err(),
        "messages missing_required_parameter"
    );

    let finish = |mut body: Value| {
        body["prompt"] = json!(["a", "b"]);
        let mut wire = parsed(Operation::Completions, body).unwrap();
        wire.finish_completions(8).map(|_| wire).map_err(told)
    };
    let wire = finish(json!({"echo": true, "max_tokens": 0, "logprobs": 2})).unwrap();
    assert_eq!(wire.options.prompt_logprobs, Some(2));
    assert_eq!(wire.options.max_tokens_default, Some(16));
    assert!(finish(json!({"n": 4, "best_of": 4})).is_ok());
    for (body, expected) in [
        (json!({"max_tokens": 0}), "max_tokens integer_below_min_value"),
        (json!({"best_of": 2}), "best_of unsupported_value"),
        (json!({"n": 5}), "n integer_above_max_value"),
    ] {
        assert_eq!(finish(body).map(|_| ()).unwrap_err(), expected);
    }
}
