//! Names of files that people upload: cleaned once, so that they may be shown, stored on any system
//! and put into a header.
//!
//! A name is a label. It is never part of a path of ours.

use crate::fault::Fault;

/// The last part of a path, of 1 to 200 bytes, without what is unseen or special anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName(String);

impl FileName {
    /// Cleans what a caller calls a file. A name that is longer than any system's is refused.
    pub fn clean(given: &str) -> Result<Self, Fault> {
        if given.len() > GIVEN_BYTES_MAX {
            let message = format!("a file's name has at most {GIVEN_BYTES_MAX} bytes");
            return Err(Fault::invalid("filename", message));
        }
        let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
        let seen = last.chars().filter(|c| !c.is_control() && !is_unseen(*c));
        let safe: String = seen.map(|c| if "<>:\"|?*".contains(c) { '_' } else { c }).collect();
        // Windows drops what stands at the end; a dot at the beginning hides a file.
        let safe = safe.trim_matches(is_edge);
        Ok(FileName(match safe {
            "" => "file".into(),
            name if is_device(name) => shortened(&format!("_{name}")),
            name => shortened(name),
        }))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind the last dot, in lower case.
    pub fn extension(&self) -> Option<String> {
        self.0.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase())
    }
}

/// The value of `Content-Disposition` under which a browser saves a file and never shows it. In
/// ASCII for old clients, and whole behind it.
pub fn attachment(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"\\%".contains(c) || c == ' ';
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let encoded = name.bytes().map(|byte| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    });
    let encoded: String = encoded.collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

/// What a name neither begins nor ends with.
fn is_edge(c: char) -> bool {
    c == '.' || c.is_whitespace()
}

/// Characters that change how others are shown, or are not shown at all.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{61c}' | '\u{ad}' | '\u{fff9}'..='\u{fffb}')
}

/// Names that mean a device on Windows, with any ending.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim().to_ascii_uppercase();
    let numbered = |device: &str| {
        stem.strip_prefix(device).is_some_and(|rest| {
            rest.len() == 1 && rest.bytes().all(|byte| (b'1'..=b'9').contains(&byte))
        })
    };
    ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str()) || numbered("COM") || numbered("LPT")
}

/// At most [`BYTES_MAX`] bytes, with the ending.
fn shortened(name: &str) -> String {
    if name.len() <= BYTES_MAX {
        return name.into();
    }
    let ending = name.rfind('.').map(|at| &name[at..]).filter(|ending| ending.len() <= 16);
    let ending = ending.unwrap_or_default();
    let mut end = BYTES_MAX - ending.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ending}", name[..end].trim_end_matches(is_edge))
}

/// Bytes of a name that is kept,
const BYTES_MAX: usize = 200;

/// and of one that is looked at.
const GIVEN_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cleaned(given: &str) -> String {
        FileName::clean(given).unwrap().0
    }

    #[test]
    fn attack_13_a_name_is_a_label_and_no_path() {
        for (given, kept) in [
            ("report.pdf", "report.pdf"),
            ("报告 2026.pdf", "报告 2026.pdf"),
            ("../../etc/passwd", "passwd"),
            ("..\\..\\windows\\system.ini", "system.ini"),
            ("/absolute", "absolute"),
            ("C:\\x.txt", "x.txt"),
            ("..", "file"),
            (".", "file"),
            ("", "file"),
            ("\0\0", "file"),
            (".htaccess", "htaccess"),
            ("a\0b.png", "ab.png"),
            ("a\r\nSet-Cookie: x.png", "aSet-Cookie_ x.png"),
            ("invoice\u{202e}fdp.exe", "invoicefdp.exe"),
            ("zero\u{200b}width.txt", "zerowidth.txt"),
            ("con", "_con"),
            ("NUL.txt", "_NUL.txt"),
            ("com1.log", "_com1.log"),
            ("console.log", "console.log"),
            ("trailing. . .", "trailing"),
            (". a", "a"),
            ("what?<is>\"this\"|*.md", "what__is__this___.md"),
        ] {
            assert_eq!(cleaned(given), kept, "{given:?}");
        }
        let long = cleaned(&format!("{}.docx", "é".repeat(400)));
        assert!(long.len() <= 200 && long.ends_with("é.docx"), "{long}");
        assert!(FileName::clean(&"a".repeat(4096)).is_err());
    }

    #[test]
    fn attack_20_a_name_ends_no_header() {
        let header = attachment("a\"\r\nX: y\\ 报.pdf");
        assert_eq!(
            header,
            "attachment; filename=\"a___X: y_ _.pdf\"; \
             filename*=UTF-8''a%22%0D%0AX%3A%20y%5C%20%E6%8A%A5.pdf"
        );
        assert!(header.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
    }

    proptest! {
        #[test]
        fn a_cleaned_name_is_clean(given in "\\PC{0,60}|[./\\\\a-c\\x00-\\x1f \u{202e}]{0,30}") {
            let once = cleaned(&given);
            prop_assert!((1..=200).contains(&once.len()));
            prop_assert!(!once.contains(['/', '\\']) && !once.contains(char::is_control));
            prop_assert!(once != "." && once != "..");
            prop_assert_eq!(cleaned(&once), once);
        }
    }
}
