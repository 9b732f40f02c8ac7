//! What keeps a template in bounds, and what lets it speak to the client.
//!
//! [`BoundedText`] takes the output up to a limit; [`Raised`] carries the words of
//! `raise_exception` through the renderer's own error; `generation` blocks, which only training
//! reads, are turned into blocks that change nothing.

use minijinja::{Error, ErrorKind};

use super::TemplateError;

/// Output of a template, at most so many bytes.
pub(super) struct BoundedText {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

impl BoundedText {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max, full: false }
    }

    /// Whether output was refused.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn into_string(self) -> Result<String, TemplateError> {
        String::from_utf8(self.bytes)
            .map_err(|_| TemplateError::Unfit("the text is not UTF-8".into()))
    }
}

impl std::io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes_max - self.bytes.len() < bytes.len() {
            self.full = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The words of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

impl Raised {
    /// The words, if that is what ended the template.
    pub(super) fn find(error: &Error) -> Option<TemplateError> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Raised(message)) = error.downcast_ref() {
                return Some(TemplateError::Raised(message.clone()));
            }
            cause = error.source();
        }
        None
    }
}

impl From<Raised> for Error {
    fn from(raised: Raised) -> Self {
        Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised)
    }
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, whatever their white-space marks, by a
/// block that is always taken.
pub(super) fn rewrite_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        // Behind the opening mark: `{%}` closes nothing.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag[..end].replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag[..end].replace("endgeneration", "endif")),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out + rest
}
