//! Captures and graphs.

use crate::{
    boundary::{HostAddress, Out, export},
    capture::Mode,
    code::Code,
    state::{Executable, Handle, Session},
};

/// Flags of an instantiation.
const AUTO_FREE: u64 = 1;
const UPLOAD: u64 = 2;
const DEVICE_LAUNCH: u64 = 4;
const NODE_PRIORITY: u64 = 8;

export! {
    /// Begins to record a stream.
    fn cuStreamBeginCapture_v2(driver, stream: Handle, mode: u32) {
        let stream = driver.stream(stream)?;
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(Code::InvalidValue),
        };
        driver.begin_capture(stream, mode)
    }

    /// Ends the recording. A broken one gives no graph.
    fn cuStreamEndCapture(driver, stream: Handle, graph: Out<Handle>) {
        let stream = driver.stream(stream)?;
        match driver.end_capture(stream) {
            Ok(recorded) => {
                let handle = driver.mint();
                driver.graphs.insert(handle, recorded);
                graph.put(handle)
            }
            Err(code) => {
                graph.put_if_asked(Handle::NULL);
                Err(code)
            }
        }
    }

    /// Whether a stream is recorded: 0 no, 1 yes, 2 it was and something broke it.
    fn cuStreamIsCapturing(driver, stream: Handle, status: Out<u32>) {
        let stream = driver.stream(stream)?;
        driver.check_implicit(stream)?;
        status.put(match driver.capture_state(stream) {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        })
    }

    /// Makes a graph ready to be launched.
    fn cuGraphInstantiateWithFlags(driver, executable: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(driver, graph, flags).and_then(|handle| executable.put(handle))
    }

    /// Makes a graph ready to be launched.
    fn cuGraphInstantiate_v2(
        driver,
        executable: Out<Handle>,
        graph: Handle,
        _node: Out<Handle>,
        _log: HostAddress,
        _log_bytes: usize,
    ) {
        instantiate(driver, graph, 0).and_then(|handle| executable.put(handle))
    }

    /// Queues a graph's work in a stream.
    fn cuGraphLaunch(driver, executable: Handle, stream: Handle) {
        let stream = driver.stream(stream)?;
        let works = find(driver, executable)?.works.clone();
        driver.tally.graph_launches += 1;
        works.iter().try_for_each(|work| driver.issue(stream, work.clone()))
    }

    /// Readies a graph on the card.
    fn cuGraphUpload(driver, executable: Handle, stream: Handle) {
        let stream = driver.stream(stream)?;
        driver.refuse_captured(stream)?;
        find(driver, executable).map(|_| ())
    }

    /// The nodes of a graph, or only how many.
    fn cuGraphGetNodes(driver, graph: Handle, nodes: HostAddress, count: Out<usize>) {
        let recorded = driver.graphs.get(&graph).ok_or(Code::InvalidValue)?;
        if !nodes.is_null() {
            return Err(Code::NotSupported);
        }
        count.put(recorded.nodes.len())
    }

    /// Forgets a graph.
    fn cuGraphDestroy(driver, graph: Handle) {
        driver.graphs.remove(&graph).map(|_| ()).ok_or(Code::InvalidValue)
    }

    /// Forgets a graph that could be launched. What is queued of it still runs.
    fn cuGraphExecDestroy(driver, executable: Handle) {
        driver.executables.remove(&executable).map(|_| ()).ok_or(Code::InvalidValue)
    }
}

fn instantiate(driver: &mut Session, graph: Handle, flags: u64) -> Result<Handle, Code> {
    let card = driver.here()?;
    let recorded = driver.graphs.get(&graph).ok_or(Code::InvalidValue)?;
    if flags & !(AUTO_FREE | UPLOAD | DEVICE_LAUNCH | NODE_PRIORITY) != 0
        || flags & (AUTO_FREE | DEVICE_LAUNCH) == AUTO_FREE | DEVICE_LAUNCH
    {
        return Err(Code::InvalidValue);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(Code::NotSupported);
    }
    let works = recorded.order(driver.settings.eager);
    let context = driver.context(card)?.handle;
    let handle = driver.mint();
    driver.executables.insert(handle, Executable { context, works });
    Ok(handle)
}

fn find(driver: &Session, executable: Handle) -> Result<&Executable, Code> {
    let context = driver.context(driver.here()?)?.handle;
    let live = driver.executables.get(&executable).filter(|live| live.context == context);
    live.ok_or(Code::InvalidValue)
}
