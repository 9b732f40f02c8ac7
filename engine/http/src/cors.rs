//! Cross-origin requests by an allow-list. Answers preflights; adds headers to what follows.
//!
//! An origin that is not listed gets no header at all, so its page cannot read the answer.

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    HeaderValue, ORIGIN, VARY,
};

/// Origins whose pages may call.
#[derive(Clone, Debug)]
pub struct Cors {
    any: bool,
    origins: Vec<String>,
    exposed: HeaderValue,
}

impl Cors {
    /// Allow-list of origins as browsers send them (`https://host:port`); `*` is any. Pages may read
    /// the headers `exposed` of an answer, comma-separated.
    pub fn new(origins: &[String], exposed: &'static str) -> Self {
        let plain = |origin: &String| origin.trim_end_matches('/').to_ascii_lowercase();
        Cors {
            any: origins.iter().any(|origin| origin == "*"),
            origins: origins.iter().map(plain).collect(),
            exposed: HeaderValue::from_static(exposed),
        }
    }

    /// Adds what lets the page of an allowed origin read the answer.
    pub fn allow(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        if !self.any && self.origins.is_empty() {
            return;
        }
        // Caches must not show the answer for one origin to another.
        answer.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = self.allowed_origin(request) else { return };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed.clone());
    }

    /// Adds what answers a preflight. `methods` are those of the path, as in `Allow`.
    pub fn allow_preflight(&self, request: &HeaderMap, methods: &str, answer: &mut HeaderMap) {
        if self.allowed_origin(request).is_none() {
            return;
        }
        if let Ok(methods) = HeaderValue::from_str(methods) {
            answer.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        // No cookie is ever read, so a listed origin may send any header it names.
        if let Some(names) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }

    fn allowed_origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let origin = request.get(ORIGIN)?;
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        self.origins.contains(&text).then(|| origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(list: &[&str], origin: &'static str) -> Option<String> {
        let cors =
            Cors::new(&list.iter().map(|origin| origin.to_string()).collect::<Vec<_>>(), "x-a");
        let mut request = HeaderMap::new();
        request.insert(ORIGIN, HeaderValue::from_static(origin));
        let mut answer = HeaderMap::new();
        cors.allow(&request, &mut answer);
        answer.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap().into())
    }

    #[test]
    fn only_listed_origins_are_answered() {
        let list = ["https://a.example", "http://localhost:3000/"];
        assert_eq!(allowed(&list, "https://a.example").as_deref(), Some("https://a.example"));
        assert_eq!(
            allowed(&list, "http://localhost:3000").as_deref(),
            Some("http://localhost:3000")
        );
        for other in ["https://a.example.evil", "http://a.example", "null", "https://b.example"] {
            assert_eq!(allowed(&list, other), None, "{other}");
        }
        assert_eq!(allowed(&[], "https://a.example"), None);
        assert_eq!(allowed(&["*"], "https://any").as_deref(), Some("*"));
    }

    #[test]
    fn a_preflight_of_another_origin_learns_nothing() {
        let cors = Cors::new(&["https://a".into()], "");
        let mut request = HeaderMap::new();
        request.insert(ORIGIN, HeaderValue::from_static("https://b"));
        let mut answer = HeaderMap::new();
        cors.allow_preflight(&request, "POST", &mut answer);
        assert!(answer.is_empty());
    }
}
