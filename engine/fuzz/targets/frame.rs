//! What a peer can write into a link: the frames, and the protocol's machine.
//!
//! The first byte says in which pieces the rest arrives.

#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use transport::{
    CloseReason, Limits,
    frame::{self, Decoder, Frame, HEADER_BYTES},
    link::{Machine, cost},
};

/// Small, so that inputs of a few kilobytes reach every limit.
const MAX_MESSAGE_BYTES: u32 = 1024;

fuzz_target!(|input: &[u8]| {
    let Some((&pieces, stream)) = input.split_first() else { return };
    let frames = decode_whole(stream);
    decode_in_pieces(stream, pieces, &frames);
    run_machine(stream, pieces);
});

fn decode_whole(mut stream: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Ok(Some((frame, used))) = frame::decode(stream, MAX_MESSAGE_BYTES) {
        assert!(used >= HEADER_BYTES, "a frame without a header");
        let encoded = frame::encode(&frame);
        assert_eq!(encoded, stream[..used], "decoding and encoding again changes a frame");
        stream = &stream[used..];
        frames.push(frame);
    }
    frames
}

fn decode_in_pieces(stream: &[u8], pieces: u8, expected: &[Frame]) {
    let mut decoder = Decoder::new(MAX_MESSAGE_BYTES);
    let mut frames = Vec::new();
    'stream: for mut piece in split(stream, pieces) {
        while !piece.is_empty() {
            match decoder.next(&mut piece) {
                Ok(found) => frames.extend(found),
                Err(_) => break 'stream,
            }
        }
    }
    assert_eq!(frames, expected, "pieces of a stream decode to other frames than the whole");
}

fn run_machine(stream: &[u8], pieces: u8) {
    let (takes, closes) = (pieces & 0x40 != 0, pieces & 0x80 != 0);
    let limits = Limits::default().with_max_message_bytes(MAX_MESSAGE_BYTES);
    let start = Instant::now();
    let mut machine = Machine::new(&limits, start);
    let mut sent = Vec::new();
    for (index, piece) in split(stream, pieces).enumerate() {
        machine.receive(piece, start);
        match index % 4 {
            0 => machine.poll_transmit(&mut sent),
            1 => drop(machine.try_send(vec![0; piece.len()].into())),
            2 if takes => drop(machine.poll_message()),
            3 if closes && index > 8 => machine.close(CloseReason::new(1, "enough"), start),
            _ => {}
        }
    }
    if let Some(deadline) = machine.deadline() {
        machine.receive_deadline(deadline);
        assert!(machine.end().is_some(), "a deadline passed and the link goes on");
    }
    machine.receive_end();
    assert!(machine.is_done() && machine.end().is_some(), "the stream ended and the link goes on");
    let mut held_bytes = 0;
    while let Some(message) = machine.poll_message() {
        assert!(message.len() <= MAX_MESSAGE_BYTES as usize, "a message over the limit");
        held_bytes += cost(message.len());
    }
    assert!(held_bytes <= limits.receive_window_bytes, "messages beyond the credit granted");
}

/// The stream in pieces of a length between 1 and 64 bytes, or whole.
fn split(stream: &[u8], pieces: u8) -> impl Iterator<Item = &[u8]> {
    let length = match usize::from(pieces & 0x3f) {
        0 => stream.len().max(1),
        length => length,
    };
    stream.chunks(length)
}
