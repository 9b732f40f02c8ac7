//! Where models of the Hugging Face hub come from and are kept: the variables that its own tools
//! read, so that what those have set up or downloaded counts here too.
//!
//! Reads the environment, and no file: a token's file is read when the hub is asked.

use std::path::PathBuf;

/// The hub, its cache on this machine, and who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HubSettings {
    /// Address of the hub, without a slash at its end; a mirror may have a path.
    pub endpoint: String,
    /// Folder of the cache; `None` if no variable names a place for it.
    pub cache: Option<PathBuf>,
    /// Token that is sent to the hub, and to nobody else.
    pub token: Option<String>,
    /// File with the token of a log-in, where there is none in a variable.
    pub token_file: Option<PathBuf>,
    /// Whether nothing may be asked of the network.
    pub offline: bool,
}

impl HubSettings {
    /// What the environment says.
    pub fn of_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let user = text("HOME").map(PathBuf::from);
        // Tools of the hub take a ~ that no shell has replaced, too.
        let path = |name: &str| {
            let written = text(name)?;
            let below = written.strip_prefix("~/").map(str::to_owned);
            Some(match (below, &user) {
                (Some(below), Some(user)) => user.join(below),
                _ => PathBuf::from(written),
            })
        };
        let is_set = |name: &str| {
            let value = text(name).unwrap_or_default().to_ascii_lowercase();
            ["1", "true", "yes", "on"].contains(&value.as_str())
        };
        let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(caches?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        HubSettings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.or_else(|| Some(home?.join("hub"))),
            token: text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")),
            token_file: token_file.filter(|_| !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: is_set("HF_HUB_OFFLINE"),
        }
    }
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

impl std::fmt::Debug for HubSettings {
    /// Never shows the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("has_token", &self.token.is_some())
            .field("token_file", &self.token_file)
            .field("offline", &self.offline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> HubSettings {
        HubSettings::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_other_tools_have_it() {
        for (variables, want) in [
            (&[("HOME", "/h")][..], Some("/h/.cache/huggingface/hub")),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub")),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")], Some("/f/hub")),
            (&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")], Some("/old")),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], Some("/new")),
            (&[("HF_HOME", "~/f"), ("HOME", "/h")], Some("/h/f/hub")),
            (&[("HF_HUB_CACHE", "~/c"), ("HOME", "/h")], Some("/h/c")),
            (&[("HF_HUB_CACHE", "~/c")], Some("~/c")),
            (&[("HF_HOME", " "), ("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
            (&[], None),
        ] {
            assert_eq!(with(variables).cache, want.map(PathBuf::from), "{variables:?}");
        }
    }

    #[test]
    fn an_endpoint_and_its_token_are_taken_and_the_token_never_shown() {
        let plain = with(&[("HOME", "/h")]);
        assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));
        assert_eq!(plain.token_file, Some("/h/.cache/huggingface/token".into()));
        let told = with(&[
            ("HF_ENDPOINT", "https://mirror/hf/"),
            ("HF_TOKEN", "hf_secret\n"),
            ("HF_HUB_OFFLINE", "ON"),
            ("HF_HOME", "/f"),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ]);
        assert_eq!((told.endpoint.as_str(), told.offline), ("https://mirror/hf", true));
        assert_eq!((told.token.as_deref(), told.token_file.as_ref()), (Some("hf_secret"), None));
        assert!(!format!("{told:?}").contains("hf_secret"));
        assert!(!with(&[("HF_HUB_OFFLINE", "0")]).offline);
    }
}
