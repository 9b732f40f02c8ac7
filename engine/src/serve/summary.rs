//! What is printed once everything serves: what runs where, and what to try.
//!
//! Words for a person, of models in the order of their loads.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::serve::lineup::Begun;

/// The start-up summary.
pub(super) fn summary(config: &Config, address: SocketAddr, begun: &[Begun]) -> String {
    let network = &config.network;
    let scheme = if network.tls.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{}", reachable(address));
    let mut text = String::new();
    let keys = network.api_keys.len();
    let who = match (&network.api_key_file, keys) {
        (None, 0) => "everyone who reaches the port".to_string(),
        (None, _) => format!("whoever has a key ({keys} given)"),
        (Some(file), _) => format!("whoever has a key ({keys} given, more in {})", file.display()),
    };
    // Writing to a string cannot fail.
    for Begun { summary, instance, .. } in begun {
        let _ = writeln!(text, "{summary}");
        let _ = writeln!(text, "served as   {}", instance.names.join(", "));
    }
    let _ = writeln!(text, "may call    {who}");
    if !network.admin_keys.is_empty() {
        let _ = writeln!(text, "may change  models: whoever has an admin key");
    }
    if let Some(collector) = &config.traces.collector {
        let _ = writeln!(text, "traces to   {collector}");
    }
    let took = begun.iter().map(|one| one.took.as_secs_f32()).sum::<f32>();
    let _ = writeln!(text, "ready       after {took:.1} s");
    let _ = writeln!(text, "\nListening on {base}");
    let _ = writeln!(text, "  page     {base}/");
    let _ = writeln!(text, "  OpenAI   {base}/v1");
    let can_chat = begun.first().is_some_and(|one| one.instance.can_chat());
    let path = if can_chat { "chat/completions" } else { "completions" };
    let body = if can_chat {
        r#"{"messages": [{"role": "user", "content": "What is 17 + 25?"}]}"#
    } else {
        r#"{"prompt": "Once upon a time"}"#
    };
    let key = if keys > 0 || network.api_key_file.is_some() {
        " -H \"Authorization: Bearer $PAGODA_API_KEY\""
    } else {
        ""
    };
    let _ = writeln!(text, "\nTry:");
    let _ = writeln!(
        text,
        "  curl {base}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'"
    );
    text
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_is_shown_as_one_for_this_machine() {
        let shown = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(shown("0.0.0.0:8000"), "127.0.0.1:8000");
        assert_eq!(shown("[::]:8000"), "[::1]:8000");
        assert_eq!(shown("10.0.0.1:8000"), "10.0.0.1:8000");
    }
}
