//! Streams and events.

use std::time::Duration;

use crate::{
    boundary::{Out, export},
    code::Code,
    state::{Handle, Session},
    stream::{Event, Recorded, Stream},
    work::Work,
};

export! {
    /// Makes a stream.
    fn cuStreamCreate(driver, stream: Out<Handle>, flags: u32) {
        create_stream(driver, &stream, flags, 0).and_then(|handle| stream.put(handle))
    }

    /// Makes a stream.
    fn cuStreamCreateWithPriority(driver, stream: Out<Handle>, flags: u32, priority: i32) {
        create_stream(driver, &stream, flags, priority).and_then(|handle| stream.put(handle))
    }

    /// Destroys a stream; what is queued still runs.
    fn cuStreamDestroy_v2(driver, stream: Handle) {
        let card = driver.current_card()?;
        let context = driver.context(card)?;
        if stream == context.stream {
            return Err(Code::InvalidHandle);
        }
        let context = context.handle;
        let live = driver.streams.get_mut(&stream).filter(|live| live.context == context && !live.gone);
        let live = live.ok_or(Code::InvalidHandle)?;
        live.gone = true;
        let capture = live.capture.take();
        if live.pending() == 0 {
            driver.streams.remove(&stream);
        }
        if let Some(capture) = capture {
            driver.captures.remove(&capture);
            driver.streams.values_mut().filter(|live| live.capture == Some(capture)).for_each(|live| live.capture = None);
        }
        driver.here().map(|_| ())
    }

    /// Waits for a stream.
    fn cuStreamSynchronize(driver, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.refuse_captured(stream)?;
        driver.refuse_within_reach()?;
        driver.check_implicit(stream)?;
        driver.tally.synchronisations += 1;
        let mark = driver.tail(stream);
        driver.finish(mark);
        driver.here().map(|_| ())
    }

    /// Whether a stream is done.
    fn cuStreamQuery(driver, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.refuse_captured(stream)?;
        driver.refuse_within_reach()?;
        driver.check_implicit(stream)?;
        let mark = driver.tail(stream);
        if driver.reached(mark) {
            return Ok(());
        }
        driver.advance(stream);
        driver.here()?;
        Err(Code::NotReady)
    }

    /// Lets a stream wait for an event.
    fn cuStreamWaitEvent(driver, stream: Handle, event: Handle, flags: u32) {
        let stream = driver.stream(stream)?;
        if flags > 1 {
            return Err(Code::InvalidValue);
        }
        let recorded = driver.events.get(&event).ok_or(Code::InvalidHandle)?.recorded.clone();
        if driver.capture_wait(stream, &recorded)? {
            return Ok(());
        }
        match recorded {
            Recorded::Queued(mark) if !driver.reached(mark) => driver.issue(stream, Work::Wait(mark)),
            _ => Ok(()),
        }
    }

    /// How a stream was made.
    fn cuStreamGetFlags(driver, stream: Handle, flags: Out<u32>) {
        let stream = driver.stream(stream)?;
        flags.put(driver.streams.get(&stream).map_or(0, |live| u32::from(!live.blocking)))
    }

    /// How a stream was made.
    fn cuStreamGetPriority(driver, stream: Handle, priority: Out<i32>) {
        let stream = driver.stream(stream)?;
        priority.put(driver.streams.get(&stream).map_or(0, |live| live.priority))
    }

    /// The context of a stream.
    fn cuStreamGetCtx(driver, stream: Handle, context: Out<Handle>) {
        let stream = driver.stream(stream)?;
        context.put(driver.streams.get(&stream).map_or(Handle::NULL, |live| live.context))
    }

    /// Makes an event.
    fn cuEventCreate(driver, event: Out<Handle>, flags: u32) {
        const NO_TIMING: u32 = 2;
        const INTERPROCESS: u32 = 4;
        let card = driver.here()?;
        if event.is_null() || flags > 7 {
            return Err(Code::InvalidValue);
        }
        if flags & INTERPROCESS != 0 {
            return Err(Code::NotSupported);
        }
        let context = driver.context(card)?.handle;
        let handle = driver.mint();
        let timing = flags & NO_TIMING == 0;
        driver.events.insert(handle, Event { context, timing, recorded: Recorded::Never, at: None });
        event.put(handle)
    }

    /// Destroys an event.
    fn cuEventDestroy_v2(driver, event: Handle) {
        driver.current_card()?;
        driver.events.remove(&event).ok_or(Code::InvalidHandle)?;
        driver.here().map(|_| ())
    }

    /// Lets an event stand for what is queued in a stream now.
    fn cuEventRecord(driver, event: Handle, stream: Handle) {
        let stream = driver.stream(stream)?;
        let card = driver.here()?;
        let context = driver.context(card)?.handle;
        driver.events.get(&event).filter(|live| live.context == context).ok_or(Code::InvalidHandle)?;
        let captured = driver.capture_record(stream)?;
        if captured.is_none() {
            driver.check_implicit(stream)?;
        }
        let (recorded, mark) = match captured {
            Some(captured) => (captured, None),
            None => {
                let mark = driver.next_mark(stream);
                (Recorded::Queued(mark), Some(mark))
            }
        };
        if let Some(live) = driver.events.get_mut(&event) {
            live.recorded = recorded;
            live.at = None;
        }
        if let Some(mark) = mark {
            driver.enqueue(stream, Work::Record { event, mark });
        }
        Ok(())
    }

    /// Whether what an event stands for is done.
    fn cuEventQuery(driver, event: Handle) {
        driver.here()?;
        driver.refuse_within_reach()?;
        match recorded(driver, event)? {
            Recorded::Queued(mark) if !driver.reached(mark) => {
                driver.advance(mark.stream());
                driver.here()?;
                Err(Code::NotReady)
            }
            Recorded::Captured(..) => Err(Code::CapturedEvent),
            _ => Ok(()),
        }
    }

    /// Waits for what an event stands for.
    fn cuEventSynchronize(driver, event: Handle) {
        driver.here()?;
        driver.refuse_within_reach()?;
        driver.tally.synchronisations += 1;
        match recorded(driver, event)? {
            Recorded::Queued(mark) => {
                driver.finish(mark);
                driver.here().map(|_| ())
            }
            Recorded::Captured(..) => Err(Code::CapturedEvent),
            Recorded::Never => Ok(()),
        }
    }

    /// Milliseconds between two events.
    fn cuEventElapsedTime(driver, milliseconds: Out<f32>, start: Handle, end: Handle) {
        milliseconds.put(elapsed(driver, start, end)?.as_secs_f32() * 1e3)
    }
}

fn create_stream(
    driver: &mut Session,
    place: &Out<Handle>,
    flags: u32,
    priority: i32,
) -> Result<Handle, Code> {
    const NON_BLOCKING: u32 = 1;
    let card = driver.here()?;
    if place.is_null() || flags > NON_BLOCKING {
        return Err(Code::InvalidValue);
    }
    let context = driver.context(card)?.handle;
    let handle = driver.mint();
    let blocking = flags & NON_BLOCKING == 0;
    driver.streams.insert(handle, Stream::new(card, context, blocking, priority.clamp(-5, 0)));
    Ok(handle)
}

fn recorded(driver: &Session, event: Handle) -> Result<Recorded, Code> {
    driver.events.get(&event).map(|live| live.recorded.clone()).ok_or(Code::InvalidHandle)
}

fn elapsed(driver: &Session, start: Handle, end: Handle) -> Result<Duration, Code> {
    driver.here()?;
    let [start, end] = [start, end].map(|event| {
        let live = driver.events.get(&event).filter(|live| live.timing).ok_or(Code::InvalidHandle)?;
        match live.recorded {
            Recorded::Queued(_) => live.at.ok_or(Code::NotReady),
            Recorded::Captured(..) => Err(Code::CapturedEvent),
            Recorded::Never => Err(Code::InvalidHandle),
        }
    });
    Ok(end?.saturating_duration_since(start?))
}
