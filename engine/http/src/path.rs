//! Paths: which route one means, and what stands in the places of its parameters.
//!
//! A path is looked at exactly once, as it came. Outside parameters it must be written as the
//! pattern is: what is written otherwise (`//`, dots, escapes, another case) means no route, so no
//! second reading can disagree with the first.

use hyper::Method;

/// What a parameter at a pattern's end takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// One segment, as parameters elsewhere do.
    Segment,
    /// All the rest, decoded slashes and dots included: for names that nobody takes for a path.
    Rest,
}

/// What stands in the places of a pattern's parameters, percent-decoded, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(&'static str, String)>);

impl Params {
    /// The parameter of this name.
    pub fn named(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The last parameter.
    pub fn into_last(mut self) -> Option<String> {
        self.0.pop().map(|(_, value)| value)
    }
}

/// What a request means among routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<R> {
    /// This route.
    Route {
        /// The route.
        route: R,
        /// What stands in its path.
        params: Params,
    },
    /// The path exists with other methods.
    WrongMethod {
        /// The first route that has the path.
        first: R,
        /// For the `Allow` header.
        allow: String,
    },
    /// No route has the path.
    Unknown,
}

/// Finds the route of a request among `routes`, which are methods, patterns and what they stand for.
/// A route of `GET` answers `HEAD`, too. `path` is the request's path as it came.
pub fn find<R>(
    routes: impl Iterator<Item = (&'static Method, &'static str, R)>,
    method: &Method,
    path: &str,
    tail: Tail,
) -> Found<R> {
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let mut other_methods: Option<(R, Vec<&'static str>)> = None;
    for (known, pattern, route) in routes {
        let Some(params) = matches(pattern, path, tail) else { continue };
        if known == wanted {
            return Found::Route { route, params };
        }
        let (_, methods) = other_methods.get_or_insert_with(|| (route, Vec::new()));
        methods.push(known.as_str());
    }
    let Some((first, mut methods)) = other_methods else { return Found::Unknown };
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.push("OPTIONS");
    Found::WrongMethod { first, allow: methods.join(", ") }
}

/// What stands in the places of `{name}`, each of which is a whole segment of `pattern`; `None` if
/// `path` has another form. A parameter that is a segment holds no slash, no control character and
/// is none of the segments that stand for other ones.
pub fn matches(pattern: &'static str, path: &str, tail: Tail) -> Option<Params> {
    let mut params = Params::default();
    let mut parts = pattern.split('/').peekable();
    let mut rest = Some(path);
    while let Some(part) = parts.next() {
        let given = rest?;
        let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        if let (Some(name), Tail::Rest, None) = (name, tail, parts.peek()) {
            params.0.push((name, percent_decoded(given).filter(|value| !value.is_empty())?));
            return Some(params);
        }
        let (segment, after) = match given.split_once('/') {
            Some((segment, after)) => (segment, Some(after)),
            None => (given, None),
        };
        match name {
            Some(name) => params.0.push((name, percent_decoded(segment).filter(|s| is_plain(s))?)),
            None if part == segment => {}
            None => return None,
        }
        rest = after;
    }
    rest.is_none().then_some(params)
}

/// Whether nobody behind us could take a decoded segment for more or for less than one.
fn is_plain(segment: &str) -> bool {
    let bends = |c: char| matches!(c, '/' | '\\') || c.is_control();
    !matches!(segment, "" | "." | "..") && !segment.contains(bends)
}

/// `None` if an escape is broken or the bytes are no UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (escape, after) = rest.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(escape[0])? * 16 + digit(escape[1])?;
        bytes.push(u8::try_from(value).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: &str = "/users/{user}/messages";

    fn told(path: &str) -> Option<String> {
        let params = matches(ONE, path, Tail::Segment)?;
        params.named("user").map(str::to_string)
    }

    #[test]
    fn a_parameter_is_one_segment() {
        assert_eq!(told("/users/a%20b+%C3%A9;x=1/messages").as_deref(), Some("a b+é;x=1"));
        for near in [
            "/users//messages",
            "/users/a/messages/",
            "/users/a/b/messages",
            "//users/a/messages",
            "/users/./messages",
            "/users/%2e%2E/messages",
            "/users/a%2Fb/messages",
            "/users/a%5cb/messages",
            "/users/a\\b/messages",
            "/users/a%00/messages",
            "/users/a%0ab/messages",
            "/users/a%zz/messages",
            "/users/%ff/messages",
            "/users/%/messages",
            "/USERS/a/messages",
            "/users/a/message%73",
            "/users/a/messages?",
            "users/a/messages",
            "http://x/users/a/messages",
            "/users/a",
            "/",
            "*",
            "",
        ] {
            assert_eq!(told(near), None, "{near}");
        }
    }

    #[test]
    fn several_parameters_have_their_names_and_the_last_may_take_the_rest() {
        let params = matches("/a/{x}/{y}", "/a/1/2", Tail::Segment).unwrap();
        assert_eq!((params.named("x"), params.named("y")), (Some("1"), Some("2")));
        assert_eq!(params.named("z"), None);
        assert_eq!(params.into_last().as_deref(), Some("2"));
        assert_eq!(matches("/a/{x}", "/a/1/2", Tail::Segment), None);
        let rest = |path| matches("/a/{x}", path, Tail::Rest).and_then(Params::into_last);
        assert_eq!(rest("/a/org%2Fname/..").as_deref(), Some("org/name/.."));
        assert_eq!((rest("/a/"), rest("/a"), rest("/a/%f")), (None, None, None));
        assert_eq!(matches("/", "/", Tail::Rest), Some(Params::default()));
    }

    #[test]
    fn a_path_with_other_methods_tells_them() {
        let routes = [(&Method::POST, "/a", 1), (&Method::GET, "/a", 2), (&Method::GET, "/b", 3)];
        let found = |method, path| find(routes.into_iter(), &method, path, Tail::Segment);
        let route = |route| Found::Route { route, params: Params::default() };
        assert_eq!(found(Method::HEAD, "/a"), route(2));
        assert_eq!(found(Method::POST, "/a"), route(1));
        let allow = "POST, GET, HEAD, OPTIONS".to_string();
        assert_eq!(found(Method::PUT, "/a"), Found::WrongMethod { first: 1, allow });
        assert_eq!(found(Method::GET, "/c"), Found::Unknown);
    }

    proptest! {
        /// Whatever is given for a parameter, it cannot lead anywhere else.
        #[test]
        fn a_segment_stays_a_segment(given in "[a.%2fF5cC/\\\\0-]{0,12}") {
            if let Some(value) = told(&format!("/users/{given}/messages")) {
                prop_assert!(!given.contains('/') && !value.contains(['/', '\\', '\0']));
                prop_assert!(!value.is_empty() && value != "." && value != "..");
            }
        }
    }
}
