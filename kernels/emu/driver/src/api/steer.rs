//! What tests ask of the stand-in driver beyond a driver's functions.

use crate::{
    boundary::{Out, Text, export},
    code::Code,
    control::{Alive, Tally},
};

export! {
    /// Starts anew, with the given settings.
    fn standin_reset(driver, settings: Text) {
        driver.reset(&settings.read()?).map_err(|error| complain(&error))
    }

    /// Takes over settings.
    fn standin_set(driver, settings: Text) {
        driver.set(&settings.read()?).map_err(|error| complain(&error))?;
        if driver.settings.eager {
            let streams: Vec<_> = driver.streams.keys().copied().collect();
            streams.into_iter().for_each(|stream| while driver.advance(stream) {});
        }
        Ok(())
    }

    /// What is alive.
    fn standin_alive(driver, alive: Out<Alive>) {
        let contexts = || driver.cards.iter().filter_map(|card| card.context.as_ref());
        let allocations = || contexts().flat_map(|context| context.allocations.values());
        let created = driver.streams.iter().filter(|(handle, _)| contexts().all(|context| context.stream != **handle));
        alive.put(Alive {
            contexts: contexts().count() as u64,
            allocations: allocations().count() as u64,
            allocated_bytes: allocations().map(|allocation| allocation.bytes).sum(),
            pinned: driver.pinned.len() as u64,
            streams: created.filter(|(_, stream)| !stream.gone).count() as u64,
            events: driver.events.len() as u64,
            modules: driver.modules.len() as u64,
            graphs: driver.graphs.len() as u64,
            executables: driver.executables.len() as u64,
            queued: driver.streams.values().map(|stream| stream.pending() as u64).sum(),
        })
    }

    /// What was done.
    fn standin_tally(driver, tally: Out<Tally>) {
        tally.put(driver.tally)
    }
}

fn complain(error: &str) -> Code {
    eprintln!("stand-in driver: {error}");
    Code::InvalidValue
}
