//! Replays on one device. The stages that were replayed last stay loaded: most cases of a network are of few stages, and
//! to read a stage's weights takes longer than to compute a session with them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kernels::backend::Backend;
use ledger::audit::roots;

use crate::{
    audit::{
        evidence::{Evidence, fits, replay_on},
        plan::Digest,
        replay::StageReplay,
        verify::VerifyError,
    },
    device::Device,
    model::{Model, ModelHash},
    on_device,
};

/// Positions that a stage is loaded for at least, so that it serves most sessions.
const ROOM: u32 = 4096;

/// What a device computes for an auditor. It blocks.
pub(super) trait Machine: fmt::Debug + Send + Sync {
    /// [`roots`] of what should have gone out.
    fn roots(&self, evidence: &Evidence) -> Result<[u8; 32], VerifyError>;
}

/// Makes one that keeps at most `most` stages, and computes sessions of at most `positions`.
pub(super) fn machine(
    model: Arc<Model>,
    hash: Arc<ModelHash>,
    device: Device,
    most: usize,
    positions: u32,
) -> Box<dyn Machine> {
    on_device!(device, backend => {
        let idle = Mutex::new(Vec::new());
        Box::new(Loaded { model, hash, backend, most, positions, idle })
    })
}

struct Loaded<B: Backend> {
    model: Arc<Model>,
    hash: Arc<ModelHash>,
    backend: B,
    most: usize,
    positions: u32,
    idle: Mutex<Vec<StageReplay<B>>>,
}

impl<B: Backend> fmt::Debug for Loaded<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("most", &self.most).finish_non_exhaustive()
    }
}

impl<B: Backend + Clone + Send + Sync + 'static> Machine for Loaded<B> {
    fn roots(&self, evidence: &Evidence) -> Result<[u8; 32], VerifyError> {
        let planned = fits(evidence, &self.model, &Digest(self.hash.hash))?;
        let (quantisation, to) = (evidence.plan.terms.quantisation, evidence.to());
        let held = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let place = idle.iter().position(|stage| stage.serves(planned, quantisation, to));
            if place.is_none() {
                // Their memory is needed for another.
                idle.clear();
            }
            place.map(|place| idle.swap_remove(place))
        };
        let mut stage = match held {
            Some(stage) => stage,
            None => {
                let room = to.next_power_of_two().max(ROOM).min(self.positions).max(to);
                StageReplay::new(&self.model, planned, quantisation, room, &self.backend)?
            }
        };
        stage.begin(to)?;
        let rows = replay_on(evidence, &mut stage, &|_| ())?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most {
            idle.push(stage);
        }
        Ok(roots(&evidence.out_roots(&rows)))
    }
}
