//! Everything that lives in the driver, behind one lock.

use std::{
    cell::Cell,
    collections::BTreeMap,
    env,
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
};

use crate::{
    boundary::{HostAddress, Pages},
    capture::{Capture, Graph},
    card::{Card, Context},
    code::Code,
    control::Tally,
    ptx::Program,
    settings::{Events, Settings},
    stream::{Event, Stream},
    work::Work,
};

/// What C holds for an object: unique, never used again, and no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct Handle(pub(crate) usize);

impl Handle {
    pub(crate) const NULL: Self = Self(0);
}

/// A loaded module.
pub(crate) struct Module {
    pub(crate) context: Handle,
    pub(crate) program: Arc<Program>,
    /// Functions that were asked for, by their kernels' names.
    pub(crate) functions: BTreeMap<String, Handle>,
}

/// A kernel of a module.
pub(crate) struct Function {
    pub(crate) module: Handle,
    pub(crate) context: Handle,
    pub(crate) program: Arc<Program>,
    pub(crate) kernel: Arc<str>,
    /// Most bytes of dynamic shared memory of a launch, if the host set them.
    pub(crate) most_shared: Option<u32>,
}

/// A graph that can be launched.
pub(crate) struct Executable {
    pub(crate) context: Handle,
    pub(crate) works: Arc<[Work]>,
}

/// Pinned memory.
pub(crate) struct Pinned {
    pub(crate) bytes: usize,
    /// Its pages where the driver allocated them; none where the host did.
    pub(crate) pages: Option<Pages>,
}

/// All state of the driver.
pub(crate) struct State {
    pub(crate) settings: Settings,
    /// What is still to happen.
    pub(crate) coming: Events,
    pub(crate) initialised: bool,
    pub(crate) cards: Vec<Card>,
    pub(crate) streams: BTreeMap<Handle, Stream>,
    pub(crate) events: BTreeMap<Handle, Event>,
    pub(crate) modules: BTreeMap<Handle, Module>,
    pub(crate) functions: BTreeMap<Handle, Function>,
    pub(crate) captures: BTreeMap<Handle, Capture>,
    pub(crate) graphs: BTreeMap<Handle, Graph>,
    pub(crate) executables: BTreeMap<Handle, Executable>,
    pub(crate) pinned: BTreeMap<HostAddress, Pinned>,
    pub(crate) tally: Tally,
    /// Contexts that were ever begun.
    pub(crate) begun: u64,
    next: usize,
}

/// The state, locked; unlocked only while it waits.
pub(crate) struct Session {
    guard: Option<MutexGuard<'static, State>>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| Mutex::new(State::from_environment()));
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static CURRENT: Cell<Handle> = const { Cell::new(Handle::NULL) };
}

/// Waits for the state and locks it.
pub(crate) fn lock() -> Session {
    Session { guard: Some(STATE.lock().unwrap_or_else(PoisonError::into_inner)) }
}

/// The context of the calling thread.
pub(crate) fn current() -> Handle {
    CURRENT.get()
}

/// Makes `context` the calling thread's.
pub(crate) fn set_current(context: Handle) {
    CURRENT.set(context);
}

impl Session {
    /// Lets other threads in until one of them changes something.
    pub(crate) fn wait(&mut self) {
        if let Some(guard) = self.guard.take() {
            self.guard = Some(CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Wakes the threads that wait.
    pub(crate) fn changed(&self) {
        CHANGED.notify_all();
    }
}

impl Deref for Session {
    type Target = State;

    fn deref(&self) -> &State {
        self.guard.as_ref().expect("held except within `wait`")
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut State {
        self.guard.as_mut().expect("held except within `wait`")
    }
}

impl State {
    fn from_environment() -> Self {
        let mut state = Self::new(Settings::default(), FIRST_HANDLE);
        if let Ok(text) = env::var("DOLPHIN_STANDIN")
            && let Err(error) = state.set(&text)
        {
            eprintln!("stand-in driver: DOLPHIN_STANDIN: {error}");
        }
        state
    }

    fn new(settings: Settings, next: usize) -> Self {
        Self {
            settings,
            coming: Events::default(),
            initialised: false,
            cards: Vec::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            pinned: BTreeMap::new(),
            tally: Tally::default(),
            begun: 0,
            next,
        }
    }

    /// As if the process had just started, with `text` for its settings. Handles of before are never given again.
    pub(crate) fn reset(&mut self, text: &str) -> Result<(), String> {
        *self = Self::new(Settings::default(), self.next);
        self.set(text)
    }

    /// Takes over settings.
    pub(crate) fn set(&mut self, text: &str) -> Result<(), String> {
        let mut settings = self.settings.clone();
        let events = settings.apply(text)?;
        if let Some(missing) = events.lose.iter().find(|&&card| card >= settings.cards.len()) {
            return Err(format!("no card {missing} to lose"));
        }
        self.settings = settings;
        if events.resume {
            self.streams.values_mut().for_each(Stream::resume);
        }
        self.coming.oom_at = events.oom_at.or(self.coming.oom_at);
        self.coming.fault_at = events.fault_at.or(self.coming.fault_at);
        self.coming.hang_at = events.hang_at.or(self.coming.hang_at);
        self.coming.lose.extend(events.lose);
        self.lose_cards();
        Ok(())
    }

    /// Marks the cards lost whose time has come; those of a driver that is yet to be initialised wait for it.
    pub(crate) fn lose_cards(&mut self) {
        if !self.initialised {
            return;
        }
        for ordinal in std::mem::take(&mut self.coming.lose) {
            if let Some(card) = self.cards.get_mut(ordinal) {
                card.lost = true;
                if let Some(context) = &mut card.context {
                    context.error = Some(Code::Unknown);
                }
            }
        }
    }

    pub(crate) fn initialise(&mut self) -> Result<(), Code> {
        if self.settings.cards.is_empty() {
            return Err(Code::NoDevice);
        }
        if !self.initialised {
            let memory_bytes = self.settings.memory_bytes;
            let cards = self.settings.cards.iter().cloned();
            self.cards =
                cards.map(|model| Card { model, memory_bytes, lost: false, context: None }).collect();
            self.initialised = true;
            self.lose_cards();
        }
        Ok(())
    }

    /// A new handle.
    pub(crate) fn mint(&mut self) -> Handle {
        self.next += 16;
        Handle(self.next)
    }

    /// The card of this number.
    pub(crate) fn card(&self, ordinal: i32) -> Result<usize, Code> {
        if !self.initialised {
            return Err(Code::NotInitialised);
        }
        usize::try_from(ordinal).ok().filter(|&card| card < self.cards.len()).ok_or(Code::InvalidDevice)
    }

    /// The card whose context this is.
    pub(crate) fn card_of(&self, context: Handle) -> Option<usize> {
        let holds = |card: &Card| card.context.as_ref().is_some_and(|live| live.handle == context);
        self.cards.iter().position(holds)
    }

    /// The card whose context is current, lost or not.
    pub(crate) fn current_card(&self) -> Result<usize, Code> {
        if !self.initialised {
            return Err(Code::NotInitialised);
        }
        match current() {
            Handle::NULL => Err(Code::InvalidContext),
            context => self.card_of(context).ok_or(Code::ContextIsDestroyed),
        }
    }

    /// The card whose context is current and works.
    pub(crate) fn here(&self) -> Result<usize, Code> {
        let card = self.current_card()?;
        match self.context(card)?.error {
            Some(error) => Err(error),
            None => Ok(card),
        }
    }

    /// A card's context.
    pub(crate) fn context(&self, card: usize) -> Result<&Context, Code> {
        let context = self.cards.get(card).and_then(|card| card.context.as_ref());
        context.ok_or(Code::ContextIsDestroyed)
    }

    /// A card's context.
    pub(crate) fn context_mut(&mut self, card: usize) -> Result<&mut Context, Code> {
        let context = self.cards.get_mut(card).and_then(|card| card.context.as_mut());
        context.ok_or(Code::ContextIsDestroyed)
    }

    /// From now on every call in the card's context fails. The first failure stands.
    pub(crate) fn fail(&mut self, card: usize, code: Code) {
        if let Ok(context) = self.context_mut(card) {
            context.error.get_or_insert(code);
        }
    }

    /// Whether all of a range of host memory is pinned.
    pub(crate) fn is_pinned(&self, address: HostAddress, bytes: usize) -> bool {
        self.pinned.range(..=address).next_back().is_some_and(|(start, pinned)| {
            let offset = address.number() - start.number();
            offset <= pinned.bytes && bytes <= pinned.bytes - offset
        })
    }

    /// Ends a context with everything in it.
    pub(crate) fn destroy_context(&mut self, card: usize) {
        let Some(context) = self.cards[card].context.take() else { return };
        let handle = context.handle;
        self.streams.retain(|_, stream| stream.context != handle);
        self.events.retain(|_, event| event.context != handle);
        self.modules.retain(|_, module| module.context != handle);
        self.functions.retain(|_, function| function.context != handle);
        self.executables.retain(|_, executable| executable.context != handle);
        let streams = &self.streams;
        self.captures.retain(|_, capture| streams.contains_key(&capture.origin));
    }
}

/// Before the first handle: nothing that a program maps.
const FIRST_HANDLE: usize = 0x5000_0000_0000;
