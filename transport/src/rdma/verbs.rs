//! Calls of libibverbs and librdmacm, behind types that release what they hold and check what they are
//! asked. Nothing here knows the link protocol. What takes a device longer than a moment, which is to make
//! queues and to register memory, happens on threads that may block.

mod memory;
mod pair;

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use rdma_sys as sys;
use rdma_sys::rdma_cm_event_type as kinds;
use socket2::SockAddr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) use memory::Region;
pub(super) use pair::{Completion, Outcome, QueuePair, Sizes};

/// Longest private data of a connection request.
const PRIVATE_BYTES: usize = 56;
/// How long the resolution of an address or a route may take.
const RESOLVE_TIMEOUT_MS: c_int = 1000;
/// Repetitions of a packet without an answer. 7 would mean for ever.
const RETRIES: u8 = 6;
/// 4.096 us x 2^15 until a packet is repeated: with the repetitions just under a second.
const ACK_TIMEOUT: u8 = 15;
/// Of the level and name of the option, which the bindings leave out.
const OPTION_ID: c_int = 0;
const OPTION_ID_ACK_TIMEOUT: c_int = 3;
/// Connection requests that wait to be seen.
const BACKLOG: c_int = 64;

/// The names of the devices of this machine.
pub(super) fn devices() -> Vec<String> {
    let mut count = 0;
    // SAFETY: the list has `count` entries and lives until it is freed, which is after the names are copied.
    unsafe {
        let list = sys::ibv_get_device_list(&mut count);
        if list.is_null() {
            return Vec::new();
        }
        let names = (0..usize::try_from(count).unwrap_or(0)).map(|at| name(*list.add(at))).collect();
        sys::ibv_free_device_list(list);
        names
    }
}

/// # Safety
/// `device` is one that libibverbs gave.
unsafe fn name(device: *mut sys::ibv_device) -> String {
    // SAFETY: the name is a string that lives as long as the device.
    unsafe { CStr::from_ptr(sys::ibv_get_device_name(device)) }.to_string_lossy().into_owned()
}

/// What a call that answers zero, or an error number, or -1 and `errno`, means.
fn check(answer: c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        1.. => Err(io::Error::from_raw_os_error(answer)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn made<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// Watches a descriptor of a library, whose reads return at once from here on.
fn watch(fd: RawFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the caller holds the descriptor open; what is kept is a copy of it.
    let copy = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
        BorrowedFd::borrow_raw(fd).try_clone_to_owned()?
    };
    // SAFETY: an owned descriptor stays open and the same.
    Ok(unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }?)
}

#[derive(Debug)]
struct EventChannel(NonNull<sys::rdma_event_channel>);

// SAFETY: librdmacm may be called from any thread, and guards a channel by the kernel's file.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: made by `rdma_create_event_channel`; ids on it are gone, as `Events` is dropped after them.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) }
    }
}

/// What the connection manager tells.
#[derive(Debug)]
struct Events {
    ready: AsyncFd<OwnedFd>,
    channel: EventChannel,
}

/// One thing it told.
#[derive(Debug)]
struct Told {
    kind: kinds::Type,
    status: c_int,
    id: *mut sys::rdma_cm_id,
    private: Vec<u8>,
}

impl Events {
    fn new() -> io::Result<Self> {
        // SAFETY: takes nothing.
        let channel = EventChannel(made(unsafe { sys::rdma_create_event_channel() })?);
        // SAFETY: the channel lives.
        let fd = unsafe { channel.0.as_ref().fd };
        Ok(Self { ready: watch(fd)?, channel })
    }

    async fn next(&self) -> io::Result<Told> {
        loop {
            let mut ready = self.ready.readable().await?;
            match self.take() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                told => return told,
            }
        }
    }

    fn take(&self) -> io::Result<Told> {
        let mut event = null_mut();
        // SAFETY: the event is read, and its data copied, before it is acknowledged, which frees it. Only
        // connection requests, the one kind whose data is read, have the union in the form `conn`.
        unsafe {
            check(sys::rdma_get_cm_event(self.channel.0.as_ptr(), &mut event))?;
            let found = &*event;
            let private = match found.event {
                kinds::RDMA_CM_EVENT_CONNECT_REQUEST => {
                    let parameters = found.param.conn;
                    bytes(parameters.private_data, usize::from(parameters.private_data_len))
                }
                _ => Vec::new(),
            };
            let told = Told { kind: found.event, status: found.status, id: found.id, private };
            check(sys::rdma_ack_cm_event(event))?;
            Ok(told)
        }
    }

    /// Waits for one kind of event; any other is a failure.
    async fn expect(&self, kind: kinds::Type) -> io::Result<()> {
        let told = self.next().await?;
        if told.kind == kind { Ok(()) } else { Err(told.as_error()) }
    }
}

/// # Safety
/// `start` is null or begins `length` readable bytes.
unsafe fn bytes(start: *const c_void, length: usize) -> Vec<u8> {
    if start.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) }.to_vec()
}

impl Told {
    fn as_error(&self) -> io::Error {
        // SAFETY: takes a number, returns a constant string.
        let name = unsafe { CStr::from_ptr(sys::rdma_event_str(self.kind)) }.to_string_lossy();
        io::Error::other(format!("{name} (status {})", self.status))
    }
}

/// A connection that is being made, is made, or listens, and where its events arrive. The id is dropped
/// first, as it writes to its channel then.
#[derive(Debug)]
struct Managed {
    id: Id,
    events: Events,
}

impl Managed {
    fn new() -> io::Result<Self> {
        let events = Events::new()?;
        let mut id = null_mut();
        let space = sys::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel outlives the id.
        check(unsafe { sys::rdma_create_id(events.channel.0.as_ptr(), &mut id, null_mut(), space) })?;
        Ok(Self { id: Id(made(id)?), events })
    }

    /// The connection of a request, on a channel of its own.
    fn of_request(request: Id) -> io::Result<Self> {
        let events = Events::new()?;
        // SAFETY: both live; the request's event is acknowledged, so that this does not wait.
        check(unsafe { sys::rdma_migrate_id(request.0.as_ptr(), events.channel.0.as_ptr()) })?;
        Ok(Self { id: request, events })
    }
}

#[derive(Debug)]
struct Id(NonNull<sys::rdma_cm_id>);

// SAFETY: librdmacm and libibverbs may be called from any thread.
unsafe impl Send for Id {}
// SAFETY: as above; what changes an id takes it by value here, or is a call they guard.
unsafe impl Sync for Id {}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: made by the connection manager; its queue pair is gone and its events are acknowledged.
        unsafe { sys::rdma_destroy_id(self.0.as_ptr()) };
    }
}

impl Id {
    fn resolve_address(&self, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<()> {
        let (from, to) = (from.map(SockAddr::from), SockAddr::from(to));
        let from = from.as_ref().map_or(null_mut(), |from| from.as_ptr().cast_mut().cast());
        let to = to.as_ptr().cast_mut().cast();
        // SAFETY: both addresses are read during the call only; the first may be null.
        check(unsafe { sys::rdma_resolve_addr(self.0.as_ptr(), from, to, RESOLVE_TIMEOUT_MS) })
    }

    fn resolve_route(&self) -> io::Result<()> {
        // SAFETY: the option is one byte, read during the call. An old system may not know it, which costs
        // no more than the time until a lost packet is repeated.
        unsafe {
            let mut timeout = ACK_TIMEOUT;
            let value = (&raw mut timeout).cast();
            sys::rdma_set_option(self.0.as_ptr(), OPTION_ID, OPTION_ID_ACK_TIMEOUT, value, 1);
            check(sys::rdma_resolve_route(self.0.as_ptr(), RESOLVE_TIMEOUT_MS))
        }
    }

    fn connect(&self, private: &[u8]) -> io::Result<()> {
        let mut parameters = parameters(private);
        // SAFETY: the parameters, and what they point to, are read during the call only.
        check(unsafe { sys::rdma_connect(self.0.as_ptr(), &mut parameters) })
    }

    fn accept(&self) -> io::Result<()> {
        // SAFETY: the parameters are read during the call only.
        check(unsafe { sys::rdma_accept(self.0.as_ptr(), &mut parameters(&[])) })
    }

    fn device(&self) -> String {
        // SAFETY: the id lives, and so does the device it is bound to, if it is.
        unsafe {
            let context = self.0.as_ref().verbs;
            if context.is_null() { String::new() } else { name((*context).device) }
        }
    }
}

/// What both kinds of ends say when they connect.
fn parameters(private: &[u8]) -> sys::rdma_conn_param {
    assert!(private.len() <= PRIVATE_BYTES, "private data is at most {PRIVATE_BYTES} bytes");
    // SAFETY: a plain structure, for which zero means unset. Reads of remote memory stay unset: none.
    let mut parameters: sys::rdma_conn_param = unsafe { std::mem::zeroed() };
    parameters.retry_count = RETRIES;
    parameters.rnr_retry_count = RETRIES;
    parameters.private_data = private.as_ptr().cast();
    parameters.private_data_len = private.len() as u8;
    parameters
}

/// Waits for connection requests.
#[derive(Debug)]
pub(super) struct Listener(Managed);

/// A peer that wants to connect, and what it said. Dropping it turns the peer away.
#[derive(Debug)]
pub(super) struct Request {
    connection: Managed,
    pub(super) private: Vec<u8>,
}

impl Listener {
    /// Listens on `address`; port 0 lets the system choose.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listening = Managed::new()?;
        let (id, address) = (listening.id.0.as_ptr(), SockAddr::from(address));
        // SAFETY: the address is read during the call only.
        unsafe {
            check(sys::rdma_bind_addr(id, address.as_ptr().cast_mut().cast()))?;
            check(sys::rdma_listen(id, BACKLOG))?;
        }
        Ok(Self(listening))
    }

    pub(super) fn port(&self) -> u16 {
        // SAFETY: the id is bound.
        u16::from_be(unsafe { sys::rdma_get_src_port(self.0.id.0.as_ptr()) })
    }

    /// The next request. An error ends the listener.
    pub(super) async fn next(&self) -> io::Result<Request> {
        loop {
            let told = self.0.events.next().await?;
            match told.kind {
                kinds::RDMA_CM_EVENT_CONNECT_REQUEST => {
                    let connection = Managed::of_request(Id(made(told.id)?))?;
                    return Ok(Request { connection, private: told.private });
                }
                kinds::RDMA_CM_EVENT_DEVICE_REMOVAL => return Err(told.as_error()),
                _ => {}
            }
        }
    }
}

impl Request {
    /// Accepts it.
    pub(super) async fn accept(self, sizes: Sizes) -> io::Result<Arc<QueuePair>> {
        let pair = QueuePair::make(self.connection, sizes).await?;
        pair.id().accept()?;
        pair.events().expect(kinds::RDMA_CM_EVENT_ESTABLISHED).await?;
        Ok(pair)
    }
}

/// Connects to a listener, telling it `private`. `from` chooses the device, where it is given.
pub(super) async fn connect(
    from: Option<SocketAddr>,
    to: SocketAddr,
    private: &[u8],
    sizes: Sizes,
) -> io::Result<Arc<QueuePair>> {
    let connection = Managed::new()?;
    connection.id.resolve_address(from, to)?;
    connection.events.expect(kinds::RDMA_CM_EVENT_ADDR_RESOLVED).await?;
    connection.id.resolve_route()?;
    connection.events.expect(kinds::RDMA_CM_EVENT_ROUTE_RESOLVED).await?;
    let pair = QueuePair::make(connection, sizes).await?;
    pair.id().connect(private)?;
    pair.events().expect(kinds::RDMA_CM_EVENT_ESTABLISHED).await?;
    Ok(pair)
}
