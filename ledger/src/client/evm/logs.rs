//! Events in order: each once, when it is confirmed, whatever is reorganised.

use std::collections::HashMap;

use ethers_core::types::{Filter, Log, U256};
use serde_json::json;

use super::{
    convert::to_u64,
    events::{decode, sources},
    reads::{Range, Reader},
};
use crate::client::{Cursor, Error, EventId, Logged, News, event::ReadBlock};

/// How far below the last block that was read others are remembered.
const REMEMBERED: u64 = 256;

impl Reader {
    /// What is new after a cursor.
    pub(super) async fn news(&self, after: &Cursor, confirmations: u64) -> Result<News, Error> {
        let head: U256 = self.wire.ask("eth_blockNumber", json!([])).await?;
        let confirmed = to_u64(head).saturating_add(1).saturating_sub(confirmations.max(1));
        let Some((mut cursor, undone)) = self.rewind(after).await? else {
            let cursor = after.clone();
            return Ok(News { events: Vec::new(), undone: Vec::new(), cursor, more: false });
        };
        let nothing_new = News { events: Vec::new(), undone, cursor: cursor.clone(), more: false };
        if cursor.next > confirmed {
            return Ok(nothing_new);
        }
        let anchor = cursor.blocks.last().cloned();
        let filter = Filter::new().address(sources(&self.deployment));
        let Range { logs, last, hash } = self.logs_up_to(&filter, cursor.next, confirmed).await?;
        let Some(hash) = hash else { return Ok(nothing_new) };
        let events = self.named(&logs);
        remember(&mut cursor, &logs, &events, last, hash);
        // A block's hash stands for all before it: what had the same first and last block in between was one chain.
        for block in anchor.iter().chain(cursor.blocks.last()) {
            if self.block_hash(block.number).await? != Some(block.hash) {
                return Ok(nothing_new);
            }
        }
        Ok(News { events, more: last < confirmed, cursor, ..nothing_new })
    }

    /// Goes back to the last block that is still on the chain. What was read after it is undone. `None` where the
    /// node does not have the last block that was read: it is behind, or will have another in its place.
    async fn rewind(&self, after: &Cursor) -> Result<Option<(Cursor, Vec<EventId>)>, Error> {
        let (mut cursor, mut undone) = (after.clone(), Vec::new());
        while let Some(block) = cursor.blocks.last() {
            match self.block_hash(block.number).await? {
                Some(hash) if hash == block.hash => break,
                Some(_) => {}
                None => return Ok(None),
            }
            cursor.next = block.number;
            undone.splice(0..0, block.events.iter().copied());
            cursor.blocks.pop();
        }
        if cursor.next != after.next
            && let Some(block) = cursor.blocks.last()
        {
            cursor.next = block.number + 1;
        }
        Ok(Some((cursor, undone)))
    }

    /// The events among logs, each with its name.
    fn named(&self, logs: &[Log]) -> Vec<Logged> {
        let mut numbers: HashMap<[u8; 32], u32> = HashMap::new();
        let mut events = Vec::new();
        for log in logs {
            let (Some(transaction), Some(block)) = (log.transaction_hash, log.block_number) else { continue };
            let next = numbers.entry(transaction.0).or_default();
            let id = EventId { transaction: transaction.0, number: *next };
            *next += 1;
            if let Some(event) = decode(&self.deployment, log) {
                events.push(Logged { id, block: block.as_u64(), event });
            }
        }
        events
    }
}

/// Remembers what was read, and forgets what lies too deep to be undone.
fn remember(cursor: &mut Cursor, logs: &[Log], events: &[Logged], last: u64, hash: [u8; 32]) {
    for event in events {
        match cursor.blocks.last_mut() {
            Some(block) if block.number == event.block => block.events.push(event.id),
            _ => {
                let of_block = |log: &&Log| log.block_number == Some(event.block.into());
                let hash = logs.iter().find(of_block).and_then(|log| log.block_hash).unwrap_or_default();
                let block = ReadBlock { number: event.block, hash: hash.0, events: vec![event.id] };
                cursor.blocks.push(block);
            }
        }
    }
    if cursor.blocks.last().is_none_or(|block| block.number != last) {
        cursor.blocks.push(ReadBlock { number: last, hash, events: Vec::new() });
    }
    cursor.next = last + 1;
    let kept = cursor.blocks.partition_point(|block| block.number.saturating_add(REMEMBERED) < last);
    cursor.blocks.drain(..kept);
}
