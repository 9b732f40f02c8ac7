//! What a file is: decided by its bytes, and its name must agree.
//!
//! A name or a client's header alone is never believed. Nothing is unpacked here, so no archive can
//! grow.

/// A format that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Pictures.
    Jpeg,
    /// Pictures.
    Png,
    /// Pictures.
    Gif,
    /// Pictures.
    Webp,
    /// Documents.
    Pdf,
    /// Documents of Word before 2007.
    Doc,
    /// Documents of Word.
    Docx,
    /// Plain text.
    Text,
    /// Plain text with marks.
    Markdown,
    /// Drawings as text.
    Dxf,
    /// Drawings of AutoCAD.
    Dwg,
}

/// What a format is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// A picture.
    Image,
    /// Text, with or without pictures.
    Document,
    /// A drawing.
    Cad,
}

/// What was seen of a file's bytes.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    head: Vec<u8>,
    has_control: bool,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 11] = [
        Format::Jpeg,
        Format::Png,
        Format::Gif,
        Format::Webp,
        Format::Pdf,
        Format::Doc,
        Format::Docx,
        Format::Text,
        Format::Markdown,
        Format::Dxf,
        Format::Dwg,
    ];

    /// Endings of names.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Format::Jpeg => &["jpg", "jpeg"],
            Format::Png => &["png"],
            Format::Gif => &["gif"],
            Format::Webp => &["webp"],
            Format::Pdf => &["pdf"],
            Format::Doc => &["doc"],
            Format::Docx => &["docx"],
            Format::Text => &["txt"],
            Format::Markdown => &["md"],
            Format::Dxf => &["dxf"],
            Format::Dwg => &["dwg"],
        }
    }

    /// Its media type. None that a browser runs.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Jpeg => "image/jpeg",
            Format::Png => "image/png",
            Format::Gif => "image/gif",
            Format::Webp => "image/webp",
            Format::Pdf => "application/pdf",
            Format::Doc => "application/msword",
            Format::Docx => {
                "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
            }
            Format::Text => "text/plain",
            Format::Markdown => "text/markdown",
            Format::Dxf => "image/vnd.dxf",
            Format::Dwg => "image/vnd.dwg",
        }
    }

    /// What it is for.
    pub fn kind(self) -> FormatKind {
        match self {
            Format::Jpeg | Format::Png | Format::Gif | Format::Webp => FormatKind::Image,
            Format::Dxf | Format::Dwg => FormatKind::Cad,
            _ => FormatKind::Document,
        }
    }

    /// The format that the bytes have and the name's ending says.
    pub fn of(extension: Option<&str>, seen: &Seen) -> Option<Format> {
        let extension = extension?;
        let named = Format::ALL.into_iter().find(|format| format.extensions().contains(&extension));
        named.filter(|format| format.begins(seen))
    }

    fn begins(self, seen: &Seen) -> bool {
        let head = seen.head.as_slice();
        match self {
            Format::Jpeg => head.starts_with(b"\xff\xd8\xff"),
            Format::Png => head.starts_with(b"\x89PNG\r\n\x1a\n"),
            Format::Gif => head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a"),
            Format::Webp => head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP"),
            Format::Pdf => head.starts_with(b"%PDF-"),
            Format::Doc => head.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
            Format::Docx => head.starts_with(b"PK\x03\x04") && holds(head, b"[Content_Types].xml"),
            Format::Text | Format::Markdown => !head.is_empty() && !seen.has_control,
            Format::Dxf => begins_drawing(head),
            Format::Dwg => {
                head.starts_with(b"AC10")
                    && head.get(4..6).is_some_and(|year| year.iter().all(u8::is_ascii_digit))
            }
        }
    }
}

impl Seen {
    /// Looks at the next bytes of the file.
    pub fn look(&mut self, bytes: &[u8]) {
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let is_control =
            |byte: &u8| (*byte < 0x20 && !b"\t\n\r\x0c".contains(byte)) || *byte == 0x7f;
        self.has_control |= bytes.iter().any(is_control);
    }
}

fn holds(head: &[u8], text: &[u8]) -> bool {
    head.windows(text.len()).any(|window| window == text)
}

/// `0` and `SECTION` in the first two lines that are no comment (`999` and a line), or the mark of
/// the binary form.
fn begins_drawing(head: &[u8]) -> bool {
    if head.starts_with(b"AutoCAD Binary DXF\r\n\x1a\0") {
        return true;
    }
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    while let (Some(code), Some(value)) = (lines.next(), lines.next()) {
        if code != b"999" {
            return code == b"0" && value == b"SECTION";
        }
    }
    false
}

/// Enough for the first entries of an archive's names.
const HEAD_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(extension: &str, bytes: &[u8]) -> Option<Format> {
        let mut seen = Seen::default();
        bytes.chunks(3).for_each(|chunk| seen.look(chunk));
        Format::of(Some(extension), &seen)
    }

    #[test]
    fn bytes_and_name_agree() {
        assert_eq!(of("jpeg", b"\xff\xd8\xff\xe0"), Some(Format::Jpeg));
        assert_eq!(of("png", b"\x89PNG\r\n\x1a\nxx"), Some(Format::Png));
        assert_eq!(of("webp", b"RIFF\0\0\0\0WEBPVP8 "), Some(Format::Webp));
        assert_eq!(of("pdf", b"%PDF-1.7"), Some(Format::Pdf));
        assert_eq!(of("docx", b"PK\x03\x04....[Content_Types].xml"), Some(Format::Docx));
        assert_eq!(of("md", "# 标题\r\n".as_bytes()), Some(Format::Markdown));
        assert_eq!(of("txt", b"\xc4\xe3\xba\xc3"), Some(Format::Text));
        assert_eq!(of("dxf", b"999\nmade by\n  0\r\nSECTION\r\n"), Some(Format::Dxf));
        assert_eq!(of("dwg", b"AC1032\0"), Some(Format::Dwg));
    }

    #[test]
    fn attack_13_no_file_is_taken_for_what_it_is_not() {
        let html = b"<html><script>alert(1)</script>";
        for image in ["jpg", "png", "gif", "webp", "pdf", "doc", "docx", "dxf", "dwg"] {
            assert_eq!(of(image, html), None, "{image}");
            assert_eq!(of(image, b""), None, "{image}");
        }
        // As text it is text, and is only ever served as an attachment of that type.
        assert_eq!(of("txt", html).map(Format::media_type), Some("text/plain"));
        for ending in ["html", "svg", "js", "exe", "zip", ""] {
            assert_eq!(of(ending, html), None, "{ending}");
        }
        assert_eq!(of("png", b"GIF89a"), None);
        assert_eq!(of("docx", b"PK\x03\x04 a plain archive"), None);
        assert_eq!(of("txt", b"text and then\0binary"), None);
        assert_eq!(of("txt", b""), None);
        assert_eq!(Format::of(None, &Seen::default()), None);
    }
}
