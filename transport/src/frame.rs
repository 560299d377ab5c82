//! The bytes on a link: versioned, length-limited frames.
//!
//! ```text
//! offset  size  field
//!      0     1  magic, 0xD0
//!      1     1  version, 1
//!      2     1  kind: 1 hello, 2 credit, 3 message, 4 close
//!      3     1  reserved, 0
//!      4     4  body length in bytes, little-endian
//!      8     -  body
//!
//! hello    u16 protocol version, u32 largest message body, u64 receive window (bytes)
//! credit   u64 total cost the receiver has ever granted (bytes)
//! message  the application's bytes
//! close    u32 code, then at most 256 bytes of UTF-8 text
//! ```

use bytes::{Bytes, BytesMut};

/// Bytes before each body.
pub const HEADER_BYTES: usize = 8;
/// Longest text a close frame carries.
pub const MAX_CLOSE_TEXT_BYTES: usize = 256;

const MAGIC: u8 = 0xD0;
const VERSION: u8 = 1;
const HELLO_BYTES: usize = 14;
const CREDIT_BYTES: usize = 8;
/// What is reserved for a body before any of it has arrived.
const FIRST_RESERVE_BYTES: usize = 64 * 1024;
/// By how much the room for a body grows at a time. What has arrived may be copied when it does, which this
/// keeps to a seventh.
const GROWTH: usize = 8;

/// One unit of the link protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame in each direction.
    Hello(Hello),
    /// Raises the total cost the peer may ever send (bytes).
    Credit {
        /// Sum of everything granted since the link began.
        total_bytes: u64,
    },
    /// One message of the application.
    Message(Bytes),
    /// Last frame in a direction.
    Close(CloseReason),
}

/// What each side says first; both say it, whoever dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Version of the link protocol, see [`crate::link::PROTOCOL`].
    pub protocol: u16,
    /// Largest message body the speaker accepts.
    pub max_message_bytes: u32,
    /// Cost the listener may send before it is granted more.
    pub window_bytes: u64,
}

/// Why a side closed the link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CloseReason {
    /// Meaning agreed between applications; the codes from [`CloseReason::RESERVED`] up
    /// belong to this crate.
    pub code: u32,
    /// For people; cut to [`MAX_CLOSE_TEXT_BYTES`] on the wire.
    pub text: String,
}

impl CloseReason {
    /// First code that belongs to this crate.
    pub const RESERVED: u32 = 0xFFFF_0000;
    /// The closer saw the receiver of this reason break the protocol.
    pub const VIOLATION: u32 = 0xFFFF_0001;
    /// Every handle to the link was dropped.
    pub const DROPPED: u32 = 0xFFFF_0002;
    /// The closer's endpoint is shutting down.
    pub const SHUTDOWN: u32 = 0xFFFF_0003;

    /// A reason with an application's code and a text for people.
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    fn wire_text(&self) -> &str {
        let mut end = self.text.len().min(MAX_CLOSE_TEXT_BYTES);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        &self.text[..end]
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text is the peer's: escaping keeps it from forging log lines.
        write!(f, "{} (code {})", self.text.escape_debug(), self.code)
    }
}

/// Why received bytes are no frame; the fault is the sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol at all.
    #[error("byte {0:#04x} where a frame should begin")]
    Magic(u8),
    /// A framing version this build does not speak.
    #[error("frame version {0} is unknown")]
    Version(u8),
    /// A kind this build does not know.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// A reserved byte is in use.
    #[error("reserved header byte is {0}")]
    Reserved(u8),
    /// The header announces more than the kind or the limits allow.
    #[error("a body of {bytes} bytes is over the limit of {limit_bytes}")]
    Oversize {
        /// Announced body length.
        bytes: u32,
        /// Longest body accepted for the kind.
        limit_bytes: u32,
    },
    /// A body is shorter than its kind needs.
    #[error("a body of {0} bytes is too short for its kind")]
    Short(u32),
    /// The text of a close frame is not UTF-8.
    #[error("close text is not UTF-8")]
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hello = 1,
    Credit = 2,
    Message = 3,
    Close = 4,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: Kind,
    body_bytes: usize,
}

impl Header {
    fn parse(bytes: [u8; HEADER_BYTES], max_message_bytes: u32) -> Result<Self, FrameError> {
        let [magic, version, kind, reserved, length @ ..] = bytes;
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let (kind, least, most) = match kind {
            1 => (Kind::Hello, HELLO_BYTES as u32, HELLO_BYTES as u32),
            2 => (Kind::Credit, CREDIT_BYTES as u32, CREDIT_BYTES as u32),
            3 => (Kind::Message, 0, max_message_bytes),
            4 => (Kind::Close, 4, 4 + MAX_CLOSE_TEXT_BYTES as u32),
            unknown => return Err(FrameError::Kind(unknown)),
        };
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        match u32::from_le_bytes(length) {
            bytes if bytes > most => Err(FrameError::Oversize { bytes, limit_bytes: most }),
            bytes if bytes < least => Err(FrameError::Short(bytes)),
            bytes => Ok(Self { kind, body_bytes: bytes as usize }),
        }
    }

    fn encode(kind: Kind, body_bytes: u32) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = body_bytes.to_le_bytes();
        [MAGIC, VERSION, kind as u8, 0, a, b, c, d]
    }

    fn body(self, body: Bytes) -> Result<Frame, FrameError> {
        let short = FrameError::Short(body.len() as u32);
        let mut fields = &body[..];
        Ok(match self.kind {
            Kind::Message => Frame::Message(body),
            Kind::Hello => Frame::Hello(Hello {
                protocol: u16::from_le_bytes(take(&mut fields).ok_or(short)?),
                max_message_bytes: u32::from_le_bytes(take(&mut fields).ok_or(short)?),
                window_bytes: u64::from_le_bytes(take(&mut fields).ok_or(short)?),
            }),
            Kind::Credit => {
                Frame::Credit { total_bytes: u64::from_le_bytes(take(&mut fields).ok_or(short)?) }
            }
            Kind::Close => Frame::Close(CloseReason {
                code: u32::from_le_bytes(take(&mut fields).ok_or(short)?),
                text: std::str::from_utf8(fields).map_err(|_| FrameError::Text)?.to_owned(),
            }),
        })
    }
}

fn take<const N: usize>(fields: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = fields.split_first_chunk::<N>()?;
    *fields = rest;
    Some(*head)
}

/// The header of a message frame; the caller sends the body's parts after it, uncopied.
///
/// `body_bytes` is the length of all parts together.
pub fn message_header(body_bytes: u32) -> [u8; HEADER_BYTES] {
    Header::encode(Kind::Message, body_bytes)
}

/// A whole frame as bytes. Messages are copied here: links send them by [`message_header`].
pub fn encode(frame: &Frame) -> Bytes {
    let mut body = BytesMut::new();
    let kind = match frame {
        Frame::Hello(hello) => {
            body.extend_from_slice(&hello.protocol.to_le_bytes());
            body.extend_from_slice(&hello.max_message_bytes.to_le_bytes());
            body.extend_from_slice(&hello.window_bytes.to_le_bytes());
            Kind::Hello
        }
        Frame::Credit { total_bytes } => {
            body.extend_from_slice(&total_bytes.to_le_bytes());
            Kind::Credit
        }
        Frame::Message(bytes) => {
            body.extend_from_slice(bytes);
            Kind::Message
        }
        Frame::Close(reason) => {
            body.extend_from_slice(&reason.code.to_le_bytes());
            body.extend_from_slice(reason.wire_text().as_bytes());
            Kind::Close
        }
    };
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + body.len());
    frame.extend_from_slice(&Header::encode(kind, body.len() as u32));
    frame.extend_from_slice(&body);
    frame.freeze()
}

/// Reads the frame at the start of `input` and says how many bytes it took; `None` when
/// more bytes are needed. Pure, for whoever holds the whole input.
pub fn decode(input: &[u8], max_message_bytes: u32) -> Result<Option<(Frame, usize)>, FrameError> {
    let Some((header, rest)) = input.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header::parse(*header, max_message_bytes)?;
    let Some(body) = rest.get(..header.body_bytes) else {
        return Ok(None);
    };
    let frame = header.body(Bytes::copy_from_slice(body))?;
    Ok(Some((frame, HEADER_BYTES + header.body_bytes)))
}

/// Finds frames in a stream that arrives in arbitrary pieces.
///
/// A header's word reserves at most 64 KiB; beyond that memory grows with what arrived, up
/// to the message limit. After an error the stream is lost and the decoder is not used again.
#[derive(Debug)]
pub struct Decoder {
    max_message_bytes: u32,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    body: Option<(Header, Vec<u8>)>,
}

impl Decoder {
    /// A decoder at the start of a stream, refusing message bodies over `max_message_bytes`.
    pub fn new(max_message_bytes: u32) -> Self {
        Self { max_message_bytes, header: [0; HEADER_BYTES], header_bytes: 0, body: None }
    }

    /// Takes bytes from the front of `input` until a frame is whole or `input` is empty.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if self.body.is_none() {
            let wanted = HEADER_BYTES - self.header_bytes;
            let taken = split_front(input, wanted);
            self.header[self.header_bytes..][..taken.len()].copy_from_slice(taken);
            self.header_bytes += taken.len();
            if self.header_bytes < HEADER_BYTES {
                return Ok(None);
            }
            let header = Header::parse(self.header, self.max_message_bytes)?;
            let reserve = header.body_bytes.min(FIRST_RESERVE_BYTES);
            self.body = Some((header, Vec::with_capacity(reserve)));
        }
        let Some((header, body)) = &mut self.body else { return Ok(None) };
        let arrived = split_front(input, header.body_bytes - body.len());
        if body.capacity() - body.len() < arrived.len() {
            let grown = (GROWTH * body.capacity()).clamp(body.len() + arrived.len(), header.body_bytes);
            body.reserve_exact(grown - body.len());
        }
        body.extend_from_slice(arrived);
        if body.len() < header.body_bytes {
            return Ok(None);
        }
        let frame = header.body(std::mem::take(body).into());
        self.body = None;
        self.header_bytes = 0;
        frame.map(Some)
    }

    /// Bytes of a message that have arrived, and how many it has, while it is not whole.
    pub fn arriving(&self) -> Option<(usize, usize)> {
        let (header, body) = self.body.as_ref()?;
        (header.kind == Kind::Message).then_some((body.len(), header.body_bytes))
    }

    /// Whether the stream stands between two frames.
    pub fn is_idle(&self) -> bool {
        self.header_bytes == 0
    }
}

fn split_front<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u32 = 1000;

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (any::<u16>(), any::<u32>(), any::<u64>()).prop_map(|(protocol, max, window)| {
                Frame::Hello(Hello { protocol, max_message_bytes: max, window_bytes: window })
            }),
            any::<u64>().prop_map(|total_bytes| Frame::Credit { total_bytes }),
            proptest::collection::vec(any::<u8>(), 0..LIMIT as usize)
                .prop_map(|bytes| Frame::Message(bytes.into())),
            (any::<u32>(), "\\PC{0,60}").prop_map(|(code, text)| Frame::Close(CloseReason { code, text })),
        ]
    }

    /// Everything `decode` finds in `bytes`, and how it ends.
    fn decode_all(mut bytes: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
        let mut found = Vec::new();
        loop {
            match decode(bytes, LIMIT) {
                Ok(Some((frame, used))) => {
                    found.push(frame);
                    bytes = &bytes[used..];
                }
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error)),
            }
        }
    }

    fn feed(bytes: &[u8], cuts: &[usize]) -> (Vec<Frame>, Option<FrameError>) {
        let mut decoder = Decoder::new(LIMIT);
        let mut found = Vec::new();
        let mut rest = bytes;
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let mut piece = split_front(&mut rest, *cuts.next().unwrap());
            while !piece.is_empty() {
                match decoder.next(&mut piece) {
                    Ok(frame) => found.extend(frame),
                    Err(error) => return (found, Some(error)),
                }
            }
        }
        (found, None)
    }

    proptest! {
        #[test]
        fn any_fragmentation_yields_the_frames_that_were_sent(
            sent in proptest::collection::vec(frames(), 0..8),
            cuts in proptest::collection::vec(1usize..300, 1..8),
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|frame| encode(frame).to_vec()).collect();
            prop_assert_eq!(feed(&bytes, &cuts), (sent.clone(), None));
            prop_assert_eq!(decode_all(&bytes), (sent, None));
        }

        #[test]
        fn hostile_bytes_end_alike_for_both_decoders(
            sent in proptest::collection::vec(frames(), 1..4),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cuts in proptest::collection::vec(1usize..40, 1..8),
        ) {
            let mut bytes: Vec<u8> = sent.iter().flat_map(|frame| encode(frame).to_vec()).collect();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            prop_assert_eq!(feed(&bytes, &cuts), decode_all(&bytes));
        }
    }

    #[test]
    fn a_header_alone_reserves_little() {
        let mut decoder = Decoder::new(u32::MAX);
        let header = message_header(u32::MAX);
        assert_eq!(decoder.next(&mut &header[..]), Ok(None));
        let (_, body) = decoder.body.as_ref().unwrap();
        assert!(body.capacity() <= FIRST_RESERVE_BYTES);
    }

    #[test]
    fn each_malformed_header_has_its_error() {
        let refused = |bytes: [u8; 8]| decode(&bytes, LIMIT).unwrap_err();
        assert_eq!(refused([0x16, 3, 1, 0, 0, 0, 0, 0]), FrameError::Magic(0x16));
        assert_eq!(refused([MAGIC, 2, 3, 0, 0, 0, 0, 0]), FrameError::Version(2));
        assert_eq!(refused([MAGIC, 1, 0, 0, 0, 0, 0, 0]), FrameError::Kind(0));
        assert_eq!(refused([MAGIC, 1, 3, 9, 0, 0, 0, 0]), FrameError::Reserved(9));
        assert_eq!(refused([MAGIC, 1, 1, 0, 13, 0, 0, 0]), FrameError::Short(13));
        let oversize = FrameError::Oversize { bytes: LIMIT + 1, limit_bytes: LIMIT };
        assert_eq!(refused(message_header(LIMIT + 1)), oversize);
    }

    #[test]
    fn close_text_is_cut_between_characters() {
        let reason = CloseReason::new(1, "é".repeat(200));
        let sent = encode(&Frame::Close(reason));
        let Ok(Some((Frame::Close(read), _))) = decode(&sent, LIMIT) else { panic!() };
        assert_eq!(read.text, "é".repeat(128));
    }
}
