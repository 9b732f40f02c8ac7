//! The chat page at `/`: one file, embedded, that talks to the public API like any client.

/// The page.
pub const HTML: &str = include_str!("index.html");

/// What the page may do: its own inline style and script, and requests to where it came from.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";
