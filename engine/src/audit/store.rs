//! Receipts that the gateway keeps for a while. A receipt is announced before it is there, since the stages
//! sign the end of a reply after the client has it.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Names a receipt: 128 random bits, in hexadecimal. Whoever has it and the key of the request may read it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceiptId(String);

impl fmt::Display for ReceiptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bounds of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of receipts; the oldest go.
    pub bytes: usize,
    /// How long a receipt is kept.
    pub window: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, window: Duration::from_secs(24 * 3600) }
    }
}

struct Entry {
    tenant: u64,
    announced: Instant,
    /// `None` until it is complete.
    receipt: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    /// In the order in which they were announced.
    order: VecDeque<String>,
    bytes: usize,
}

/// See the module.
pub struct ReceiptStore {
    limits: StoreLimits,
    state: Mutex<State>,
    changed: Notify,
}

impl fmt::Debug for ReceiptStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiptStore").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a store takes of an entry beside its receipt.
const ENTRY_BYTES: usize = 256;

impl ReceiptStore {
    /// An empty store.
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, state: Mutex::default(), changed: Notify::new() }
    }

    /// Promises a receipt to a tenant.
    pub fn announce(&self, tenant: u64) -> ReceiptId {
        let id = format!("{:032x}", rand::random::<u128>());
        let mut state = self.lock();
        state.order.push_back(id.clone());
        let entry = Entry { tenant, announced: Instant::now(), receipt: None };
        state.entries.insert(id.clone(), entry);
        state.bytes += ENTRY_BYTES;
        state.trim(&self.limits);
        ReceiptId(id)
    }

    /// Keeps the receipt that was promised.
    pub fn fill(&self, id: &ReceiptId, receipt: String) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&id.0) {
            let bytes = receipt.len();
            entry.receipt = Some(receipt.into());
            state.bytes += bytes;
            state.trim(&self.limits);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes a promise back: the reply broke off.
    pub fn forget(&self, id: &ReceiptId) {
        self.lock().remove(&id.0);
        self.changed.notify_waiters();
    }

    /// The receipt, once it is complete. `None` if the tenant was promised none of this name, if it is gone, or
    /// not complete within `patience`.
    pub async fn get(&self, id: &str, tenant: u64, patience: Duration) -> Option<Arc<str>> {
        let wait = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                {
                    let mut state = self.lock();
                    state.trim(&self.limits);
                    let entry = state.entries.get(id).filter(|entry| entry.tenant == tenant)?;
                    if let Some(receipt) = &entry.receipt {
                        return Some(receipt.clone());
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, wait).await.ok().flatten()
    }

    /// Names of a tenant's receipts that are complete, oldest first.
    pub fn list(&self, tenant: u64) -> Vec<String> {
        let mut state = self.lock();
        state.trim(&self.limits);
        let mine = |id: &&String| {
            state.entries.get(*id).is_some_and(|entry| entry.tenant == tenant && entry.receipt.is_some())
        };
        state.order.iter().filter(mine).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn trim(&mut self, limits: &StoreLimits) {
        while let Some(oldest) = self.order.front() {
            let late = |entry: &Entry| entry.announced.elapsed() > limits.window;
            let gone = self.entries.get(oldest).is_none_or(late);
            if !gone && self.bytes <= limits.bytes {
                return;
            }
            let oldest = oldest.clone();
            self.order.pop_front();
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes -= ENTRY_BYTES + entry.receipt.map_or(0, |receipt| receipt.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn store(bytes: usize) -> ReceiptStore {
        ReceiptStore::new(StoreLimits { bytes, window: Duration::from_secs(60) })
    }

    #[tokio::test]
    async fn a_receipt_is_its_tenants_and_is_waited_for() {
        let store = Arc::new(store(1 << 20));
        let id = store.announce(7);
        assert_eq!(store.get(&id.to_string(), 7, SOON).await, None, "not complete yet");
        let (waiting, name) = (store.clone(), id.to_string());
        let waiting = tokio::spawn(async move { waiting.get(&name, 7, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        store.fill(&id, "{}".into());
        assert_eq!(waiting.await.expect("no panic").as_deref(), Some("{}"));
        assert_eq!(store.get(&id.to_string(), 8, SOON).await, None, "another's");
        let pending = store.announce(7);
        assert_eq!((store.list(7), store.list(8)), (vec![id.to_string()], Vec::new()));
        store.forget(&pending);
        assert_eq!(store.get("nothing", 7, SOON).await, None);
    }

    #[tokio::test]
    async fn the_oldest_go_first() {
        let store = store(3 * (ENTRY_BYTES + 1000));
        let ids: Vec<ReceiptId> = (0..5).map(|_| store.announce(1)).collect();
        ids.iter().for_each(|id| store.fill(id, "x".repeat(1000)));
        let mut there = Vec::new();
        for id in &ids {
            there.push(store.get(&id.to_string(), 1, SOON).await.is_some());
        }
        assert_eq!(there, [false, false, true, true, true]);
        store.forget(&ids[3]);
        assert_eq!(store.get(&ids[3].to_string(), 1, SOON).await, None);
        assert_eq!(store.lock().bytes, 2 * (ENTRY_BYTES + 1000));
    }

    #[tokio::test]
    async fn what_is_older_than_the_window_goes() {
        let store = ReceiptStore::new(StoreLimits { bytes: 1 << 20, window: Duration::ZERO });
        let id = store.announce(1);
        store.fill(&id, "{}".into());
        assert_eq!(store.get(&id.to_string(), 1, SOON).await, None);
        assert_eq!(store.lock().bytes, 0);
    }
}
