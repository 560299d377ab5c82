//! Queue pairs: what is posted, and how it ended.

use std::ffi::CStr;
use std::io;
use std::mem::zeroed;
use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use rdma_sys as sys;
use rdma_sys::rdma_cm_event_type as kinds;
use rdma_sys::{ibv_wc_opcode as opcodes, ibv_wc_status as statuses};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use super::memory::Domain;
use super::{Events, Id, Managed, Region, check, made, watch};

/// How much a queue pair holds.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Sizes {
    /// Sends and writes at once.
    pub(in super::super) sends: u32,
    /// Receives at once, each of [`Sizes::receive_bytes`].
    pub(in super::super) receives: u32,
    pub(in super::super) receive_bytes: usize,
    /// Memory from which this side sends.
    pub(in super::super) staging_bytes: usize,
}

#[derive(Debug)]
struct CompletionChannel(NonNull<sys::ibv_comp_channel>);

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_create_comp_channel`; its queue is gone.
        unsafe { sys::ibv_destroy_comp_channel(self.0.as_ptr()) };
    }
}

#[derive(Debug)]
struct CompletionQueue(NonNull<sys::ibv_cq>);

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_create_cq`; its queue pair is gone and its events are acknowledged.
        unsafe { sys::ibv_destroy_cq(self.0.as_ptr()) };
    }
}

/// The queue pair of an id, which `rdma_create_qp` gave it.
#[derive(Debug)]
struct Queues(NonNull<sys::rdma_cm_id>);

impl Drop for Queues {
    fn drop(&mut self) {
        // SAFETY: the id outlives this, and has a queue pair.
        unsafe { sys::rdma_destroy_qp(self.0.as_ptr()) };
    }
}

/// A reliable connection: what is posted on one side arrives on the other in order, or the pair fails.
///
/// Fields are dropped in order: each before what it was made from.
#[derive(Debug)]
pub(in super::super) struct QueuePair {
    ready: AsyncFd<OwnedFd>,
    queues: Queues,
    /// What this side sends from.
    staging: Region,
    /// What sends of the peer arrive in.
    received: Region,
    sizes: Sizes,
    queue: CompletionQueue,
    channel: CompletionChannel,
    domain: Domain,
    connection: Managed,
}

// SAFETY: libibverbs guards its objects; the memory behind is behind `Region`.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

/// Something posted that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Completion {
    /// The number it was posted under.
    pub(in super::super) number: u64,
    pub(in super::super) outcome: Outcome,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    /// A send or a write is with the peer.
    Sent,
    /// A send of the peer arrived in this receive.
    Received { bytes: usize },
    /// A write of the peer used this receive up.
    Written { bytes: usize, immediate: u32 },
    /// The peer did not answer any more.
    Unanswered,
    /// The pair has failed, and this was never done.
    Flushed,
    /// It went wrong otherwise.
    Failed(&'static str),
}

impl QueuePair {
    /// Gives an id queues, and posts every receive.
    pub(super) async fn make(connection: Managed, sizes: Sizes) -> io::Result<Arc<Self>> {
        spawn_blocking(move || Self::new(connection, sizes).map(Arc::new)).await?
    }

    fn new(connection: Managed, sizes: Sizes) -> io::Result<Self> {
        // SAFETY: each call takes what the one before it made; ids that are resolved or requested have a
        // device.
        let (domain, channel, queue) = unsafe {
            let context = connection.id.0.as_ref().verbs;
            let domain = Domain(made(sys::ibv_alloc_pd(context))?);
            let channel = CompletionChannel(made(sys::ibv_create_comp_channel(context))?);
            let entries = (sizes.sends + sizes.receives).cast_signed();
            let queue = sys::ibv_create_cq(context, entries, null_mut(), channel.0.as_ptr(), 0);
            (domain, channel, CompletionQueue(made(queue)?))
        };
        let ready = watch(
            // SAFETY: the channel lives.
            unsafe { channel.0.as_ref().fd },
        )?;
        // SAFETY: a plain structure, for which zero means unset, with a queue that lives.
        let mut attributes: sys::ibv_qp_init_attr = unsafe { zeroed() };
        (attributes.send_cq, attributes.recv_cq) = (queue.0.as_ptr(), queue.0.as_ptr());
        attributes.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
        (attributes.cap.max_send_wr, attributes.cap.max_recv_wr) = (sizes.sends, sizes.receives);
        (attributes.cap.max_send_sge, attributes.cap.max_recv_sge) = (1, 1);
        let id = connection.id.0;
        // SAFETY: all of it lives, and is of the same device.
        check(unsafe { sys::rdma_create_qp(id.as_ptr(), domain.0.as_ptr(), &mut attributes) })?;
        let queues = Queues(id);
        let staging = Region::new(&domain, sizes.staging_bytes, false)?;
        let received = Region::new(&domain, sizes.receives as usize * sizes.receive_bytes, false)?;
        let pair = Self { ready, queues, staging, received, sizes, queue, channel, domain, connection };
        for number in 0..u64::from(sizes.receives) {
            pair.receive(number)?;
        }
        Ok(pair)
    }

    pub(super) fn id(&self) -> &Id {
        &self.connection.id
    }

    pub(super) fn events(&self) -> &Events {
        &self.connection.events
    }

    fn queues(&self) -> *mut sys::ibv_qp {
        // SAFETY: the id has a queue pair as long as `queues` lives.
        unsafe { self.queues.0.as_ref().qp }
    }

    /// The device it is on.
    pub(in super::super) fn device(&self) -> String {
        self.connection.id.device()
    }

    /// The numbers of this side's queue pair and of the one it is connected to.
    pub(in super::super) fn numbers(&self) -> io::Result<[u32; 2]> {
        // SAFETY: plain structures, for which zero means unset, that the call fills; the pair lives.
        unsafe {
            let mut attributes: sys::ibv_qp_attr = zeroed();
            let mut made_with: sys::ibv_qp_init_attr = zeroed();
            let mask = sys::ibv_qp_attr_mask::IBV_QP_DEST_QPN.0.cast_signed();
            check(sys::ibv_query_qp(self.queues(), &mut attributes, mask, &mut made_with))?;
            Ok([(*self.queues()).qp_num, attributes.dest_qp_num])
        }
    }

    /// The memory that this side sends from.
    pub(in super::super) fn staging(&self) -> &Region {
        &self.staging
    }

    /// Memory of this pair that its peer may write, until it is dropped.
    pub(in super::super) async fn expose(self: &Arc<Self>, bytes: usize) -> io::Result<Region> {
        let pair = self.clone();
        spawn_blocking(move || Region::new(&pair.domain, bytes, true)).await?
    }

    /// Posts, or posts again, receive `number`.
    pub(in super::super) fn receive(&self, number: u64) -> io::Result<()> {
        let bytes = self.sizes.receive_bytes;
        let mut piece = self.received.piece(number as usize * bytes, bytes);
        // SAFETY: what is posted is copied by the call; the memory it names outlives the queues.
        unsafe {
            let mut request: sys::ibv_recv_wr = zeroed();
            request.wr_id = number;
            (request.sg_list, request.num_sge) = (&mut piece, 1);
            let mut bad = null_mut();
            check(sys::ibv_post_recv(self.queues(), &mut request, &mut bad))
        }
    }

    /// What arrived in receive `number`.
    pub(in super::super) fn received(&self, number: u64, bytes: usize) -> Vec<u8> {
        let most = self.sizes.receive_bytes;
        self.received.read(number as usize * most, bytes.min(most))
    }

    /// Sends `bytes` of the staging memory at `offset`.
    pub(in super::super) fn send(&self, number: u64, offset: usize, bytes: usize) -> io::Result<()> {
        let mut piece = self.staging.piece(offset, bytes);
        // SAFETY: a plain structure, for which zero means unset.
        let mut request: sys::ibv_send_wr = unsafe { zeroed() };
        request.opcode = sys::ibv_wr_opcode::IBV_WR_SEND;
        self.post(number, &mut piece, request)
    }

    /// Writes `bytes` of the staging memory at `offset` to where the peer's memory is at `address`.
    pub(in super::super) fn write(
        &self,
        number: u64,
        (offset, bytes): (usize, usize),
        (address, key): (u64, u32),
        immediate: u32,
    ) -> io::Result<()> {
        let mut piece = self.staging.piece(offset, bytes);
        // SAFETY: a plain structure, for which zero means unset.
        let mut request: sys::ibv_send_wr = unsafe { zeroed() };
        request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
        request.imm_data_invalidated_rkey_union.imm_data = immediate.to_be();
        request.wr.rdma.remote_addr = address;
        request.wr.rdma.rkey = key;
        self.post(number, &mut piece, request)
    }

    fn post(&self, number: u64, piece: &mut sys::ibv_sge, mut request: sys::ibv_send_wr) -> io::Result<()> {
        request.wr_id = number;
        (request.sg_list, request.num_sge) = (piece, 1);
        request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        let mut bad = null_mut();
        // SAFETY: what is posted is copied by the call; the memory it names outlives the queues.
        check(unsafe { sys::ibv_post_send(self.queues(), &mut request, &mut bad) })
    }

    /// What is over, if anything is.
    pub(in super::super) fn poll(&self) -> io::Result<Option<Completion>> {
        // SAFETY: the queue lives; the call fills the structure when it answers 1.
        let (found, done) = unsafe {
            let mut done: sys::ibv_wc = zeroed();
            (sys::ibv_poll_cq(self.queue.0.as_ptr(), 1, &mut done), done)
        };
        match found {
            0 => Ok(None),
            1 => Ok(Some(Completion { number: done.wr_id, outcome: outcome(&done) })),
            _ => Err(io::Error::other("the completion queue is lost")),
        }
    }

    /// Asks for a wake-up by what is over from now on; [`QueuePair::poll`] once more before waiting.
    pub(in super::super) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue lives.
        check(unsafe { sys::ibv_req_notify_cq(self.queue.0.as_ptr(), 0) })
    }

    /// Waits for the wake-up. Cancel-safe.
    pub(in super::super) async fn woken(&self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            match self.take_wake_up() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                taken => return taken,
            }
        }
    }

    fn take_wake_up(&self) -> io::Result<()> {
        let (mut queue, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel lives; the queue it names is this pair's only one, acknowledged once per event.
        unsafe {
            check(sys::ibv_get_cq_event(self.channel.0.as_ptr(), &mut queue, &mut context))?;
            sys::ibv_ack_cq_events(queue, 1);
        }
        Ok(())
    }

    /// Waits until the connection manager says that the connection is over, and how. Cancel-safe.
    pub(in super::super) async fn disconnected(&self) -> io::Error {
        loop {
            match self.connection.events.next().await {
                // A bond has changed its port: the connection goes on.
                Ok(told) if told.kind == kinds::RDMA_CM_EVENT_ADDR_CHANGE => {}
                Ok(told) => return told.as_error(),
                Err(error) => return error,
            }
        }
    }

    /// Ends the connection; what is posted and not done is flushed.
    pub(in super::super) fn disconnect(&self) {
        // SAFETY: the id lives. It fails where the peer disconnected first, which is as good.
        unsafe { sys::rdma_disconnect(self.connection.id.0.as_ptr()) };
    }
}

fn outcome(done: &sys::ibv_wc) -> Outcome {
    match done.status {
        statuses::IBV_WC_SUCCESS => {}
        statuses::IBV_WC_RETRY_EXC_ERR | statuses::IBV_WC_RNR_RETRY_EXC_ERR => return Outcome::Unanswered,
        statuses::IBV_WC_WR_FLUSH_ERR => return Outcome::Flushed,
        status => {
            // SAFETY: takes a number, returns a constant string.
            let name = unsafe { CStr::from_ptr(sys::ibv_wc_status_str(status)) };
            return Outcome::Failed(name.to_str().unwrap_or("unknown failure"));
        }
    }
    let bytes = done.byte_len as usize;
    match done.opcode {
        opcodes::IBV_WC_RECV => Outcome::Received { bytes },
        opcodes::IBV_WC_RECV_RDMA_WITH_IMM => {
            // SAFETY: writes with immediate data have the union in this form.
            let immediate = u32::from_be(unsafe { done.imm_data_invalidated_rkey_union.imm_data });
            Outcome::Written { bytes, immediate }
        }
        opcodes::IBV_WC_SEND | opcodes::IBV_WC_RDMA_WRITE => Outcome::Sent,
        _ => Outcome::Failed("an operation that was not asked for"),
    }
}
