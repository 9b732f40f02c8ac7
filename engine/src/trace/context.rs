//! `traceparent` and `tracestate` of a request, after W3C's Trace Context.
//!
//! What breaks its rules is as if it were not there, as those rules ask: never an error of the
//! request. Both are checked and bounded before they go anywhere.

use hyper::HeaderMap;
use hyper::header::HeaderName;

/// Names the caller's span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems on the way add for themselves.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Names our span to the caller.
pub const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// The trace that a caller's headers name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The caller's span in it.
    pub span_id: [u8; 8],
    /// Whether the caller records it.
    pub sampled: bool,
    /// The `tracestate`, if it keeps the rules.
    pub state: Option<String>,
}

impl Incoming {
    /// Reads them; `None` without exactly one `traceparent` that keeps the rules.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
        let (trace_id, span_id, flags) = parse_parent(parent.as_bytes().trim_ascii())?;
        Some(Incoming { trace_id, span_id, sampled: flags & 1 == 1, state: state(headers) })
    }
}

/// Trace, span and flags: `00-<32 digits>-<16 digits>-<2 digits>`. Later versions may go on behind
/// a further dash.
fn parse_parent(text: &[u8]) -> Option<([u8; 16], [u8; 8], u8)> {
    if text.len() < PARENT_BYTES || [2, 35, 52].iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let [version] = bytes_of_hex(&text[..2])?;
    let rest = &text[PARENT_BYTES..];
    let fits = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    let trace_id: [u8; 16] = bytes_of_hex(&text[3..35])?;
    let span_id: [u8; 8] = bytes_of_hex(&text[36..52])?;
    let [flags] = bytes_of_hex(&text[53..55])?;
    (fits && trace_id != [0; 16] && span_id != [0; 8]).then_some((trace_id, span_id, flags))
}

const PARENT_BYTES: usize = 55;

/// Bytes of `2 * N` digits; capital ones are against the rules.
fn bytes_of_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

/// All `tracestate` headers as one, if they keep the rules and are no longer than anybody has to
/// carry.
fn state(headers: &HeaderMap) -> Option<String> {
    let mut members: Vec<&str> = Vec::new();
    for value in headers.get_all(TRACESTATE) {
        for member in value.to_str().ok()?.split(',').map(|member| member.trim_matches([' ', '\t']))
        {
            // Empty ones are allowed and say nothing.
            if member.is_empty() {
                continue;
            }
            let (key, _) = member.split_once('=').filter(|(key, value)| is_member(key, value))?;
            let names_key = |other: &&str| other.split_once('=').is_some_and(|(k, _)| k == key);
            if members.len() == STATE_MEMBERS_MAX || members.iter().any(names_key) {
                return None;
            }
            members.push(member);
        }
    }
    let state = members.join(",");
    (!state.is_empty() && state.len() <= STATE_BYTES_MAX).then_some(state)
}

const STATE_MEMBERS_MAX: usize = 32;
const STATE_BYTES_MAX: usize = 512;

fn is_member(key: &str, value: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let in_key = |byte: u8| is_plain(byte) || b"_-*/@".contains(&byte);
    let in_value = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    let begins = key.bytes().next().is_some_and(is_plain);
    let key_fits = begins && key.len() <= 256 && key.bytes().all(in_key);
    key_fits && !value.is_empty() && value.len() <= 256 && value.bytes().all(in_value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn read(headers: &[(HeaderName, &str)]) -> Option<Incoming> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Incoming::read(&map)
    }

    fn with_parent(parent: &str) -> Option<Incoming> {
        read(&[(TRACEPARENT, parent)])
    }

    #[test]
    fn a_parent_is_read_to_the_bit() {
        let incoming = with_parent(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(super::super::hex_text(&incoming.trace_id), TRACE);
        assert_eq!(super::super::hex_text(&incoming.span_id), SPAN);
        assert!(incoming.sampled && incoming.state.is_none());
        for (flags, sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            assert_eq!(
                with_parent(&format!("00-{TRACE}-{SPAN}-{flags}")).unwrap().sampled,
                sampled
            );
        }
    }

    #[test]
    fn later_versions_may_go_on_and_this_one_may_not() {
        assert!(with_parent(&format!("cc-{TRACE}-{SPAN}-01")).is_some());
        assert!(with_parent(&format!("cc-{TRACE}-{SPAN}-01-what-is-to-come")).is_some());
        assert!(with_parent(&format!("cc-{TRACE}-{SPAN}-01.what")).is_none());
        assert!(with_parent(&format!("00-{TRACE}-{SPAN}-01-what")).is_none());
    }

    #[test]
    fn what_breaks_the_rules_is_not_there() {
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        for wrong in [
            String::new(),
            "00".into(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{no_trace}-{SPAN}-01"),
            format!("00-{TRACE}-{no_span}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}ü-{SPAN}-01"),
            format!("01-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("0 -{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
        ] {
            assert_eq!(with_parent(&wrong), None, "{wrong}");
        }
        let parent = format!("00-{TRACE}-{SPAN}-01");
        assert!(read(&[(TRACEPARENT, &parent), (TRACEPARENT, &parent)]).is_none(), "two of them");
        assert!(read(&[(TRACESTATE, "a=1")]).is_none(), "a state alone");
    }

    fn state_of(states: &[&str]) -> Option<String> {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let states = states.iter().map(|state| (TRACESTATE, *state));
        let all: Vec<_> = std::iter::once((TRACEPARENT, parent.as_str())).chain(states).collect();
        read(&all).expect("the parent stays").state
    }

    #[test]
    fn a_state_is_kept_whole_or_not_at_all() {
        assert_eq!(state_of(&["a=1"]).as_deref(), Some("a=1"));
        assert_eq!(state_of(&["t1@sys=x y", "b=2, ,\tc-*/_=~"]).unwrap(), "t1@sys=x y,b=2,c-*/_=~");
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        assert!(state_of(&[&many[..32].join(",")]).is_some());
        let long = format!("a={},b={}", "x".repeat(256), "x".repeat(256));
        for wrong in [
            "", "a", "=1", "A=1", "a=", "a=1,a=2", "a=b=c", "a=ü", "a =1", "@a=1", "_a=1", "-a=1",
            "*a=1", "/a=1", &long,
        ] {
            assert_eq!(state_of(&[wrong]), None, "{wrong}");
        }
        assert_eq!(state_of(&[&many.join(",")]), None);
    }

    #[test]
    fn a_state_is_bounded_in_all_its_parts() {
        let x = |count: usize| "x".repeat(count);
        for (just, too_long) in [
            (format!("a={}", x(256)), format!("a={}", x(257))),
            (format!("{}=1", x(256)), format!("{}=1", x(257))),
            (format!("a={},b={}", x(254), x(253)), format!("a={},b={}", x(254), x(254))),
        ] {
            assert_eq!(state_of(&[&just]).as_deref(), Some(just.as_str()));
            assert_eq!(state_of(&[&too_long]), None, "{too_long}");
        }
    }
}
