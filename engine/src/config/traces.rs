//! Where traces go: our own settings first, then the variables that OpenTelemetry's users know, so
//! that whoever set those for other services need say nothing here.
//!
//! Opens nothing. As OpenTelemetry asks, a variable that cannot be followed never stops a start: it
//! is as if it were not there, and a note for the log says so. Notes never hold a variable's value.

use std::path::PathBuf;

use super::TraceSettings;
use super::flags::Written;
use super::resolve::{ConfigError, value};
use crate::trace::Sampling;
use crate::trace::collector::Collector;

/// What settings and variables mean.
pub(super) fn traces(
    written: &Written,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<TraceSettings, ConfigError> {
    let mut variables = Variables { variable, notes: Vec::new() };
    let told = match written.otlp_sample_ratio {
        Some(ratio) if !is_share(ratio) => {
            return Err(value("otlp-sample-ratio", "must be from 0 to 1"));
        }
        Some(ratio) => Some(Sampling { asks_caller: true, ratio }),
        None => None,
    };
    let collector = match written.otlp_endpoint.as_deref() {
        // Whatever the variables say.
        Some("") => return Ok(TraceSettings::default()),
        Some(url) => {
            let collector = Collector::at_base(url);
            variables.speaks_our_protocol();
            Some(collector.map_err(|reason| value("otlp-endpoint", reason))?)
        }
        None => variables.collector(),
    };
    let Some(collector) = collector else {
        return Ok(TraceSettings { notes: variables.notes, ..TraceSettings::default() });
    };
    if collector.port() == GRPC_PORT {
        variables.note("port 4317 is gRPC's at most collectors, which take OTLP over HTTP at 4318");
    }
    Ok(TraceSettings {
        collector: Some(variables.complete(collector)),
        sampling: told.unwrap_or_else(|| variables.sampling()),
        resource: variables.resource(),
        notes: variables.notes,
    })
}

const GRPC_PORT: u16 = 4317;

fn is_share(ratio: f64) -> bool {
    (0.0..=1.0).contains(&ratio)
}

/// OpenTelemetry's variables, and what cannot be followed of them.
struct Variables<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    notes: Vec<String>,
}

impl Variables<'_> {
    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The first of these that says something: an empty variable is as good as none.
    fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, String)> {
        let text = |name: &&'n str| {
            let text = (self.variable)(name)?.trim().to_owned();
            (!text.is_empty()).then_some((*name, text))
        };
        names.iter().find_map(text)
    }

    fn collector(&mut self) -> Option<Collector> {
        let (name, url) = self.first(&[TRACES_ENDPOINT, ENDPOINT])?;
        if self.first(&[DISABLED]).is_some_and(|(_, text)| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        if let Some((name, exporters)) = self.first(&[EXPORTER])
            && !exporters.split(',').any(|one| one.trim().eq_ignore_ascii_case("otlp"))
        {
            if !exporters.eq_ignore_ascii_case("none") {
                self.note(format!("no spans are sent: {name} asks for what is not OTLP"));
            }
            return None;
        }
        if !self.speaks_our_protocol() {
            let why = "is for another protocol, and --otlp-endpoint names no address for ours";
            self.note(format!("no spans are sent: {name} {why}"));
            return None;
        }
        // Of traces alone it is meant to the letter.
        let read = if name == TRACES_ENDPOINT { Collector::at } else { Collector::at_base };
        read(&url).map_err(|why| self.note(format!("no spans are sent: {name} {why}"))).ok()
    }

    /// Whether what the variables ask for is taken where JSON over HTTP is, or as good as that.
    fn speaks_our_protocol(&mut self) -> bool {
        let Some((name, protocol)) = self.first(&[TRACES_PROTOCOL, PROTOCOL]) else { return true };
        let protocol = protocol.to_ascii_lowercase();
        if protocol != "http/json" {
            self.note(format!("{name} is not followed: spans go out as http/json"));
        }
        // Collectors tell JSON from protobuf by its type, at one address.
        protocol != "grpc"
    }

    /// With the headers and the certificates of each call.
    fn complete(&mut self, mut collector: Collector) -> Collector {
        if let Some((_, file)) = self.first(&[TRACES_CERTIFICATE, CERTIFICATE]) {
            collector = collector.with_certificate(PathBuf::from(file));
        }
        let Some((name, text)) = self.first(&[TRACES_HEADERS, HEADERS]) else { return collector };
        let all = pairs(&text).and_then(|pairs| {
            let add = |to: Collector, (key, value): &(String, String)| to.with_header(key, value);
            pairs.iter().try_fold(collector.clone(), |to, pair| add(to, pair).ok())
        });
        all.unwrap_or_else(|| {
            self.note(format!("{name} is not followed: it must be name=value,name=value"));
            collector
        })
    }

    fn sampling(&mut self) -> Sampling {
        let Some((name, sampler)) = self.first(&[SAMPLER]) else { return Sampling::default() };
        let sampler = sampler.to_ascii_lowercase();
        let (asks_caller, root) = match sampler.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, sampler.as_str()),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.ratio(),
            _ => {
                self.note(format!("{name} is not followed: no such sampler is here"));
                return Sampling::default();
            }
        };
        Sampling { asks_caller, ratio }
    }

    fn ratio(&mut self) -> f64 {
        let Some((name, text)) = self.first(&[SAMPLER_ARGUMENT]) else { return 1.0 };
        text.parse().ok().filter(|ratio| is_share(*ratio)).unwrap_or_else(|| {
            self.note(format!("{name} is not followed: it must be from 0 to 1"));
            1.0
        })
    }

    /// What spans say of this process.
    fn resource(&mut self) -> Vec<(String, String)> {
        let mut resource = Vec::new();
        if let Some((name, text)) = self.first(&[RESOURCE]) {
            match pairs(&text) {
                Some(pairs) => resource = pairs,
                None => {
                    self.note(format!("{name} is not followed: it must be key=value,key=value"))
                }
            }
        }
        if let Some((_, service)) = self.first(&[SERVICE]) {
            resource.retain(|(key, _)| key != SERVICE_KEY);
            resource.push((SERVICE_KEY.into(), service));
        }
        resource
    }
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const TRACES_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const TRACES_HEADERS: &str = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const TRACES_CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE";
const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SERVICE: &str = "OTEL_SERVICE_NAME";
const SERVICE_KEY: &str = "service.name";

/// `key=value,key=value`, of which a later one of a key wins; `None` if it is anything else.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=')?;
        let (key, value) = (decoded(key.trim())?, decoded(value.trim())?);
        if key.is_empty() {
            return None;
        }
        pairs.retain(|(known, _)| *known != key);
        pairs.push((key, value));
    }
    Some(pairs)
}

/// Text in which bytes may be written `%20`; `None` if these make no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..2).filter(|_| first == b'%');
        let byte = digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(written: &Written, variables: &[(&str, &str)]) -> TraceSettings {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        traces(written, &variable).unwrap()
    }

    fn of(variables: &[(&str, &str)]) -> TraceSettings {
        settings(&Written::default(), variables)
    }

    fn with_endpoint(url: &str) -> Written {
        Written { otlp_endpoint: Some(url.into()), ..Written::default() }
    }

    fn address(settings: &TraceSettings) -> Option<String> {
        settings.collector.as_ref().map(ToString::to_string)
    }

    #[test]
    fn our_settings_win_over_variables() {
        assert_eq!(of(&[]), TraceSettings::default());
        let base = (ENDPOINT, "http://base:4318");
        assert_eq!(address(&of(&[base])).unwrap(), "http://base:4318/v1/traces");
        let exact = (TRACES_ENDPOINT, "https://exact/x");
        assert_eq!(address(&of(&[base, exact])).unwrap(), "https://exact/x");
        let ours = settings(&with_endpoint("http://ours"), &[base, exact]);
        assert_eq!(address(&ours).unwrap(), "http://ours/v1/traces");
        assert_eq!(settings(&with_endpoint(""), &[base]).collector, None);
        assert_eq!(of(&[(ENDPOINT, " ")]), TraceSettings::default());
        let ratio = Written { otlp_sample_ratio: Some(0.5), ..Written::default() };
        let sampling = settings(&ratio, &[base, (SAMPLER, "always_off")]).sampling;
        assert_eq!(sampling, Sampling { asks_caller: true, ratio: 0.5 });
    }

    #[test]
    fn variables_can_turn_it_off() {
        let base = (ENDPOINT, "http://base");
        for off in [(DISABLED, "TRUE"), (EXPORTER, "none"), (EXPORTER, "None")] {
            assert_eq!(of(&[base, off]), TraceSettings::default(), "{off:?}");
        }
        for on in [(DISABLED, "false"), (EXPORTER, "otlp"), (EXPORTER, "console, otlp")] {
            assert!(of(&[base, on]).collector.is_some(), "{on:?}");
        }
        // Not over what is said to us alone.
        let ours = settings(&with_endpoint("http://ours"), &[(DISABLED, "true")]);
        assert!(ours.collector.is_some());
    }

    #[test]
    fn what_cannot_be_followed_is_noted_and_stops_nothing() {
        let base = (ENDPOINT, "http://base");
        for (variables, is_sent, named) in [
            (&[(ENDPOINT, "base:4317")][..], false, ENDPOINT),
            (&[(TRACES_ENDPOINT, "unix:/x")], false, TRACES_ENDPOINT),
            (&[base, (EXPORTER, "zipkin")], false, EXPORTER),
            (&[base, (PROTOCOL, "grpc")], false, PROTOCOL),
            (&[base, (TRACES_PROTOCOL, "GRPC"), (PROTOCOL, "http/json")], false, TRACES_PROTOCOL),
            (&[base, (PROTOCOL, "http/protobuf")], true, PROTOCOL),
            (&[(ENDPOINT, "http://base:4317")], true, "4318"),
            (&[base, (HEADERS, "a secret")], true, HEADERS),
            (&[base, (HEADERS, "a b=secret")], true, HEADERS),
            (&[base, (HEADERS, "ok=1,a=secret%0Ax: y")], true, HEADERS),
            (&[base, (HEADERS, "ok=1"), (TRACES_HEADERS, "=secret")], true, TRACES_HEADERS),
            (&[base, (SAMPLER, "jaeger_remote")], true, SAMPLER),
            (&[base, (SAMPLER, "traceidratio"), (SAMPLER_ARGUMENT, "2")], true, SAMPLER_ARGUMENT),
            (&[base, (RESOURCE, "a,b=c")], true, RESOURCE),
        ] {
            let settings = of(variables);
            assert_eq!(settings.collector.is_some(), is_sent, "{variables:?}");
            assert!(settings.notes.join("\n").contains(named), "{settings:?}");
            assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");
        }
        assert!(of(&[base, (PROTOCOL, "http/json"), (SAMPLER, "always_on")]).notes.is_empty());
        let ours = settings(&with_endpoint("http://ours"), &[(PROTOCOL, "grpc")]);
        assert!(ours.collector.is_some() && ours.notes[0].contains(PROTOCOL));
    }

    #[test]
    fn samplers_are_opentelemetrys() {
        let base = (ENDPOINT, "http://base");
        for (sampler, asks_caller, ratio) in [
            ("always_on", false, 1.0),
            ("always_off", false, 0.0),
            ("traceidratio", false, 0.25),
            ("parentbased_always_on", true, 1.0),
            ("parentbased_always_off", true, 0.0),
            ("ParentBased_TraceIdRatio", true, 0.25),
        ] {
            let settings = of(&[base, (SAMPLER, sampler), (SAMPLER_ARGUMENT, "0.25")]);
            assert_eq!(settings.sampling, Sampling { asks_caller, ratio }, "{sampler}");
            assert!(settings.notes.is_empty());
        }
        assert_eq!(of(&[base, (SAMPLER, "traceidratio")]).sampling.ratio, 1.0);
    }

    #[test]
    fn a_process_is_called_what_its_operator_says() {
        let base = (ENDPOINT, "http://base");
        let resource = (RESOURCE, "service.name=a, zone = eu%20west ,zone=eu%2Cnorth,odd=100%");
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let told = [("service.name", "a"), ("zone", "eu,north"), ("odd", "100%")];
        assert_eq!(of(&[base, resource]).resource, own(&told));
        let told = [("zone", "eu,north"), ("odd", "100%"), ("service.name", "b")];
        assert_eq!(of(&[base, resource, (SERVICE, "b")]).resource, own(&told));
    }
}
