//! Server-sent events: bytes as they arrive to the data of each event.
//!
//! Pieces may be cut anywhere, also within a character or between CR and LF. Comments, names and ids
//! of events are left out. It must never hold more than one event, nor one without a bound.

/// The largest event that is taken; a chunk of an answer has a few hundred bytes.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// Cuts a stream into events.
#[derive(Debug, Default)]
pub struct EventReader {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    after_cr: bool,
}

impl EventReader {
    /// Takes the next piece and gives each event's data that it completes to `event`; stops at the
    /// first error, of the event or of the stream's form.
    pub fn push<E: From<String>>(
        &mut self,
        piece: &[u8],
        mut event: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        for &byte in piece {
            let second_of_two = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            if second_of_two {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                self.end_line(&mut event)?;
            } else {
                self.line.push(byte);
                let held = self.line.len() + self.data.as_ref().map_or(0, Vec::len);
                if held > EVENT_BYTES_MAX {
                    return Err(format!("an event of more than {EVENT_BYTES_MAX} bytes").into());
                }
            }
        }
        Ok(())
    }

    /// The stream has ended: some servers leave out the last empty line.
    pub fn finish<E: From<String>>(
        &mut self,
        mut event: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.end_line(&mut event)?;
        self.end_line(&mut event)
    }

    fn end_line<E: From<String>>(
        &mut self,
        event: &mut impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.line.is_empty() {
            let Some(data) = self.data.take() else { return Ok(()) };
            let text = std::str::from_utf8(&data)
                .map_err(|_| String::from("an event that is not UTF-8"))?;
            return event(text);
        }
        if let Some(value) = self.line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                None => self.data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            }
        }
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let mut reader = EventReader::default();
        let mut found = Vec::new();
        for piece in pieces {
            reader.push::<String>(piece, |data| {
                found.push(data.to_owned());
                Ok(())
            })?;
        }
        reader.finish::<String>(|data| {
            found.push(data.to_owned());
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let text =
            ": ping\r\n\r\nevent: x\ndata: {\"a\":\"é\"}\n\ndata:one\r\ndata: two\rid: 7\r\r\n\
                    data:  spaced\n\ndata\n\ndata: last"
                .as_bytes();
        let whole = ["{\"a\":\"é\"}", "one\ntwo", " spaced", "last"];
        assert_eq!(events(&[text]).unwrap(), whole);
        for cut in 0..=text.len() {
            let (before, after) = text.split_at(cut);
            assert_eq!(events(&[before, after]).unwrap(), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(events(&bytes).unwrap(), whole);
    }

    #[test]
    fn what_is_no_text_or_has_no_end_is_an_error() {
        assert!(events(&[b"data: \xff\n\n"]).unwrap_err().contains("UTF-8"));
        let endless = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert!(events(&[b"data: ", &endless]).unwrap_err().contains("bytes"));
        // Many lines of one event are bounded, too.
        let line = [b"data: ".as_slice(), &vec![b'x'; EVENT_BYTES_MAX / 2], b"\n"].concat();
        assert!(events(&[&line, &line, &line]).unwrap_err().contains("bytes"));
    }

    #[test]
    fn an_error_of_an_event_ends_the_reading() {
        let mut seen = 0;
        let mut reader = EventReader::default();
        let result = reader.push::<String>(b"data: 1\n\ndata: 2\n\n", |_| {
            seen += 1;
            Err("no".into())
        });
        assert_eq!((result, seen), (Err("no".into()), 1));
    }
}
