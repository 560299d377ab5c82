//! Server-sent events, from bytes in pieces of any size.

/// Longest event that is kept; a server that sends a longer one is at fault.
pub const EVENT_BYTES: usize = 1 << 20;

/// An event is longer than [`EVENT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Collects the bytes of a stream and gives out the data of its events.
#[derive(Debug, Default)]
pub struct Parser {
    /// Bytes of a line without its end.
    line: Vec<u8>,
    /// Data lines of the event so far, each with the newline that joins it to the next.
    data: Vec<u8>,
    /// The last byte was a carriage return, whose newline belongs to it.
    returned: bool,
}

impl Parser {
    /// Takes the next bytes of the stream and appends the data of each event that they complete.
    ///
    /// # Errors
    /// [`TooLong`]; the stream cannot be read any further.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<Vec<u8>>) -> Result<(), TooLong> {
        for &byte in bytes {
            let returned = std::mem::replace(&mut self.returned, byte == b'\r');
            match byte {
                b'\n' if returned => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                byte => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    /// An empty line ends an event; comments and fields other than `data` are left out.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            self.data.pop()?;
            return Some(std::mem::take(&mut self.data));
        }
        let value = if line == b"data" { Some(&[][..]) } else { line.strip_prefix(b"data:") };
        if let Some(value) = value {
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.data.push(b'\n');
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b": keep-alive\n\ndata: {\"a\":1}\n\nevent: x\ndata:two\r\ndata: lines\r\n\r\n\
        id: 7\n\ndata\n\ndata: caf\xc3\xa9\n\ndata: [DONE]\n\ndata: cut off";

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.push(piece, &mut events).expect("short events");
        }
        events.into_iter().map(|event| String::from_utf8(event).expect("whole characters")).collect()
    }

    #[test]
    fn events_are_their_data_lines() {
        assert_eq!(parse(&[STREAM]), ["{\"a\":1}", "two\nlines", "", "café", "[DONE]"]);
        assert_eq!(parse(&[]), [""; 0]);
    }

    #[test]
    fn every_cut_gives_the_same_events() {
        let whole = parse(&[STREAM]);
        for cut in 0..STREAM.len() {
            assert_eq!(parse(&[&STREAM[..cut], &STREAM[cut..]]), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(parse(&bytes), whole);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let piece = [b'x'; 1 << 16];
        let outcome = (0..32).try_for_each(|_| parser.push(&piece, &mut events));
        assert_eq!(outcome, Err(TooLong));
    }
}
