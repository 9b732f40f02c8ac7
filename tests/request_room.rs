//! What a body is given room for is what its values take.
//!
//! Counts what the parser allocates for the bodies that take most for their size. One test alone
//! in its process.

use std::alloc::System;

use serde_json::Value;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use pagoda_engine::http::body::room_bytes;
use pagoda_http::values::ValueCount;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What every allocation takes beside what was asked for.
const OVERHEAD_BYTES: u64 = 16;

/// Bytes that live after `text` was parsed.
fn parsed_bytes(text: &str) -> u64 {
    let region = Region::new(ALLOCATOR);
    let value = serde_json::from_str::<Value>(text);
    let change = region.change();
    assert!(value.is_ok(), "{value:?}");
    drop(value);
    let requested = change.bytes_allocated as i64 - change.bytes_deallocated as i64;
    let live = change.allocations as u64 - change.deallocations as u64;
    requested.try_into().map_or(0, |bytes: u64| bytes + live * OVERHEAD_BYTES)
}

fn room(text: &str) -> u64 {
    let mut values = ValueCount::default();
    values.feed(text.as_bytes());
    room_bytes(text.len() as u64, values.count())
}

fn list(item: &str, num: usize) -> String {
    format!("[{}]", vec![item; num].join(","))
}

#[test]
fn no_body_takes_more_than_its_room() {
    // One more than a power of two: lists have just doubled.
    let num = (1 << 14) + 1;
    let map = |value: &str| {
        let entries: Vec<String> = (0..num).map(|key| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", entries.join(","))
    };
    let bodies = [
        list("1", num),
        list("\"\"", num),
        list("\"a\"", num),
        list("[]", num),
        list("[1]", num),
        list("[[1]]", num),
        list(&format!("{}{}", "[".repeat(100), "]".repeat(100)), num / 64),
        list("{}", num),
        list("{\"\":1}", num),
        list("{\"a\":{}}", num),
        list("[1,1,1,1,1]", num),
        list("{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5}", num),
        map("1"),
        map("[1]"),
        map("\"a\""),
        format!("\"{}\"", "a".repeat(1 << 20)),
        format!("\"{}\"", "\\n".repeat(1 << 20)),
    ];
    let mut closest = 0.0_f64;
    for body in bodies {
        let (taken, room) = (parsed_bytes(&body), room(&body));
        let share = taken as f64 / room as f64;
        assert!(share <= 1.0, "{taken} of {room}: {}", &body[..40]);
        closest = closest.max(share);
    }
    assert!(closest > 0.7, "the room is far more than what is taken: {closest}");
}
