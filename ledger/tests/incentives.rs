//! Whether cheating pays: the inequalities of `docs/incentives.md`, over the ranges that it states, for the
//! parameters of `contracts/script/local.json`. Stakes are in POD, and so is pay.

use ledger::{
    EXAMPLE_PARAMETERS,
    audit::LeafId,
    client::Parameters,
    draw::{Rate, Rates, Work, is_drawn},
};

/// Most that a chunk is paid, as a share of the least stake of a node.
const CHUNK_PAY: f64 = 1e-5;
/// Most that a node is paid in a day, as a share of its stake.
const DAILY_PAY: f64 = 0.05;
/// Most of the auditors' stake that stands by a cheat.
const COLLUDING: f64 = 1.0 / 3.0;
/// Least share of audits that are of planted faults.
const PLANTED: f64 = 0.01;
/// Longest session, in chunks of 64 positions.
const LONGEST: f64 = 128.0;
/// How much faster prompts are computed than replies: 428 and 41.9 tokens/s in `docs/results/2026-11-22-speed.md`.
const PREFILL: f64 = 428.0 / 41.9;

/// What an auditor shows.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    /// The node's result.
    Same,
    /// Another result.
    Other,
    /// That it got no rows.
    NoRows,
    /// Nothing, in all of its time.
    Nothing,
}

impl Answer {
    const ALL: [Self; 4] = [Self::Same, Self::Other, Self::NoRows, Self::Nothing];
}

/// Whether a node that has cheated pays for it, as `AuditManager` takes the answers of both seats. An honest auditor
/// with another result disputes what the other one confirms.
fn convicts(first: Answer, second: Answer) -> bool {
    let answers = [first, second];
    answers.contains(&Answer::Other) || answers == [Answer::NoRows; 2]
}

/// Share of audits of a cheat that convict it, where honest auditors say `truth`, and those that stand by the node
/// what suits it best.
fn seen(truth: Answer) -> f64 {
    let mean = |honest: f64, others: f64| (1.0 - COLLUDING) * honest + COLLUDING * others;
    let least = |shares: [f64; 4]| shares.into_iter().fold(1.0, f64::min);
    let after = |first: Answer| match first {
        // Nobody else is asked.
        Answer::Same => 0.0,
        _ => {
            let share = |second| if convicts(first, second) { 1.0 } else { 0.0 };
            mean(share(truth), least(Answer::ALL.map(share)))
        }
    };
    mean(after(truth), least(Answer::ALL.map(after)))
}

struct Game {
    /// Least stakes.
    node: f64,
    auditor: f64,
    bond: f64,
    /// How often a chunk of a reply is drawn of a node without history, and after the longest.
    fresh: f64,
    floor: f64,
    silent: f64,
    withheld: f64,
    repeat: f64,
    systematic: f64,
    lapse: f64,
    miss: f64,
    /// Most that a day of slashing takes.
    cap: f64,
    reporter: f64,
}

fn part(bps: u16) -> f64 {
    f64::from(bps) / 10_000.0
}

impl Game {
    fn new(p: &Parameters) -> Self {
        let a = &p.audits;
        let rates = Rates {
            prefill: Rate::from_bits(a.prompt_rate),
            decode: Rate::from_bits(a.reply_rate),
            floor: a.rate_floor,
            half_life: a.rate_half_life,
        };
        let rate = |passed| f64::from(rates.of(Work::Decode, passed).bits()) / 2f64.powi(32);
        Self {
            node: a.min_node_stake.0 as f64 / 1e18,
            auditor: a.min_auditor_stake.0 as f64 / 1e18,
            bond: a.dispute_bond.0 as f64 / 1e18,
            fresh: rate(0),
            floor: rate(u32::MAX),
            silent: part(a.silent_bps),
            withheld: part(a.withheld_bps),
            repeat: part(a.repeat_bps),
            systematic: part(a.systematic_bps),
            lapse: part(a.lapse_bps),
            miss: part(a.miss_bps),
            cap: part(p.slash_cap_bps),
            reporter: part(p.reporter_bps),
        }
    }

    fn example() -> Self {
        Self::new(&serde_json::from_str(EXAMPLE_PARAMETERS).expect("parameters"))
    }

    /// Most that a chunk is paid.
    fn pay(&self) -> f64 {
        CHUNK_PAY * self.node
    }

    /// What a cheat gains until it is found once, in the mean. It may have earned its way down to the lowest rate
    /// with honest work, and cheat in any share of its chunks: what counts is how many it cheats in.
    fn gain(&self, seen: f64) -> f64 {
        self.pay() / (self.floor * seen)
    }

    /// What is taken for `strikes` mismatches within a window, which the stake has to bear one after another.
    fn loss(&self, strikes: u32) -> f64 {
        let mut stake = self.node;
        for strike in 1..=strikes {
            stake -= stake
                * match strike {
                    1 => 0.0,
                    2 => self.repeat,
                    _ => self.systematic,
                };
        }
        self.node - stake
    }

    /// What is wrong with the parameters, by name.
    fn faults(&self) -> Vec<&'static str> {
        let found = self.gain(seen(Answer::Other));
        let withheld = self.gain(seen(Answer::NoRows));
        let audit = self.pay() * LONGEST / PREFILL;
        let checks = [
            ("a second mismatch costs more than two have gained", 2.0 * found < self.loss(2)),
            ("more of them cost more", (3..=12).all(|n| f64::from(n) * found < self.loss(n))),
            ("a day of cheating costs more than the day is paid", DAILY_PAY * self.node < self.loss(2)),
            ("the cap allows that", DAILY_PAY < self.cap && self.repeat <= self.cap),
            ("what is forgiven once in a window is little", found <= 0.005 * self.node),
            ("silence costs more than it hides", self.pay() / self.floor < self.silent * self.node),
            ("so does handing nothing over", withheld < self.withheld * self.node),
            ("computing is cheaper than confirming plants", audit < PLANTED * self.miss * self.auditor),
            ("so is defending an answer, or none", self.lapse > 0.0 && self.bond > 0.0),
            ("nobody gains by reporting itself", self.reporter < 1.0),
            ("audits of those that are known cost little", self.overhead(self.floor) < 0.02),
        ];
        checks.into_iter().filter(|(_, holds)| !holds).map(|(name, _)| name).collect()
    }

    /// Cost of audits, as a share of the cost of 512 tokens of a reply after a prompt of 1024: a drawn chunk is
    /// computed again, with all before it, as one prompt.
    fn overhead(&self, rate: f64) -> f64 {
        let (prompt, reply) = (16.0, 8.0);
        let replayed: f64 = (1..=8).map(|chunk| prompt + f64::from(chunk)).sum::<f64>() / PREFILL;
        rate * replayed / (prompt / PREFILL + reply)
    }

    /// Chunks cheated in after which a cheat is found with 99%: 1 - (1 - p)^n.
    fn chunks_until_found(&self, rate: f64) -> f64 {
        0.01f64.ln() / (1.0 - rate * seen(Answer::Other)).ln()
    }
}

#[test]
fn cheating_does_not_pay() {
    let game = Game::example();
    assert_eq!(game.faults(), [""; 0]);
    println!("gain until found {:.2} POD, loss of two {:.0} POD", game.gain(2.0 / 3.0), game.loss(2));
    println!("audits cost {:.4} fresh, {:.4} later", game.overhead(game.fresh), game.overhead(game.floor));
    let found = [game.fresh, game.floor].map(|rate| game.chunks_until_found(rate).ceil());
    println!("found with 99% after {found:?} chunks");
    assert_eq!(found, [136.0, 1380.0], "docs/incentives.md says so");
}

/// An honest auditor convicts from either seat, whatever the other one says or does not say: what a share `s` of
/// them can do for a node is to confirm as the first. Rows withheld take two honest ones.
#[test]
fn a_second_auditor_erases_nothing() {
    for other in Answer::ALL {
        assert!(convicts(Answer::Other, other) && convicts(other, Answer::Other));
        assert_eq!(convicts(Answer::NoRows, other), convicts(other, Answer::NoRows));
    }
    let honest = 1.0 - COLLUDING;
    assert!((seen(Answer::Other) - honest).abs() < 1e-12);
    assert!((seen(Answer::NoRows) - honest * honest).abs() < 1e-12);
}

fn breaks(name: &str, change: impl Fn(&mut Game)) {
    let mut game = Game::example();
    change(&mut game);
    assert!(game.faults().contains(&name), "{name}: {:?}", game.faults());
}

/// The check finds parameters with which it would pay.
#[test]
fn other_parameters_are_found_out() {
    breaks("a second mismatch costs more than two have gained", |game| game.repeat = 0.001);
    breaks("a day of cheating costs more than the day is paid", |game| game.repeat = 0.04);
    breaks("what is forgiven once in a window is little", |game| game.floor = 0.002);
    breaks("silence costs more than it hides", |game| game.silent = 0.001);
    breaks("so does handing nothing over", |game| game.withheld = 0.001);
    breaks("computing is cheaper than confirming plants", |game| game.auditor = 100.0);
    breaks("audits of those that are known cost little", |game| game.floor = 0.05);
}

/// Draws as the beacon makes them, over the leaves of as many epochs: cheating in `n` chunks is found as often as
/// 1 - (1 - p)^n says. The table is that of `docs/attacks.md`.
#[test]
fn cheats_are_drawn_as_often_as_stated() {
    const EPOCHS: u32 = 3000;
    let rate = Rates::default().of(Work::Decode, 0);
    let p = f64::from(rate.bits()) / 2f64.powi(32);
    for n in [1u32, 5, 13, 45, 90] {
        let is_found = |epoch: &u32| {
            let beacon = [epoch.to_be_bytes(), n.to_be_bytes()].concat().repeat(4);
            let root = [*epoch as u8; 32];
            (0..n).any(|index| {
                let leaf = LeafId { account: [7; 20], epoch: *epoch, index };
                let case = leaf.case(1, &[8; 20], &root);
                is_drawn(beacon.first_chunk().expect("32 bytes"), &case, rate, 1)
            })
        };
        let found = (0..EPOCHS).filter(is_found).count() as f64 / f64::from(EPOCHS);
        let stated = 1.0 - (1.0 - p).powi(n as i32);
        println!("{n:>3} chunks: found {found:.3}, stated {stated:.3}");
        let deviation = (stated * (1.0 - stated) / f64::from(EPOCHS)).sqrt();
        assert!((found - stated).abs() < 4.0 * deviation, "{n}: {found} and {stated}");
    }
}
