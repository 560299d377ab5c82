//! Stages on cards, by way of the stand-in driver: the same bytes as on the CPU, alone and beside it, and an
//! end when the card fails.

use engine::{
    device::{Device, DeviceChoice},
    doctor::examine,
    message::{RouteId, Segment, SessionId, Step},
    model::{Model, Quantisation, Shard},
    node::{
        StageLoad,
        worker::{Command, Opening, Output, Worker},
    },
    request::{Request, Sampling},
    stage::{Stage, StageLimits},
};
use kernels::{
    backend::{Backend, BackendError},
    cpu::{Cpu, Isa},
    cuda::{Cuda, cards},
};
use stand_in_driver::StandIn;

use crate::{
    support::{Golden, LIMITS, Pipeline, open, part},
    swarm::{World, reply, request},
};

const QUANTISATIONS: [Quantisation; 3] = [Quantisation::Q8, Quantisation::Q4, Quantisation::F32];

fn cpu() -> Cpu {
    Cpu::new(1, Isa::detect()).unwrap()
}

/// Bits of two sessions that a prompt brings together, in chunks of `chunk` and then row by row.
fn bits(mut pipeline: Pipeline, input: &[u32], chunk: usize) -> Vec<Vec<u32>> {
    let (one, two) = (SessionId(1), SessionId(2));
    pipeline.open(one, 256);
    pipeline.open(two, 256);
    let (prompt, rest) = input.split_at(input.len() - 2);
    let mut out = Vec::new();
    for tokens in prompt.chunks(chunk) {
        let outcome = pipeline.step(&[(one, tokens), (two, &tokens[..1])]);
        out.push(outcome.bits(0..tokens.len() + 1));
    }
    for token in rest.chunks(1) {
        out.push(pipeline.step(&[(one, token), (two, token)]).bits(0..2));
    }
    out
}

#[test]
fn a_card_computes_what_the_cpu_computes() {
    for name in ["llama", "qwen2", "qwen3"] {
        let (model, input) = (open(name), Golden::read(name).input);
        for quantisation in QUANTISATIONS {
            let expected = bits(Pipeline::new(&model, &cpu(), quantisation, &[]), &input, 7);
            let _stand_in = StandIn::fresh("");
            let cuda = Cuda::open(0).unwrap();
            let actual = bits(Pipeline::new(&model, &cuda, quantisation, &[]), &input, 7);
            assert!(actual == expected, "{name}, {quantisation}");
        }
    }
}

#[test]
fn stages_on_cards_and_on_the_cpu_go_together() {
    let (model, input) = (open("llama_tied"), Golden::read("llama_tied").input);
    let cuts = [1, 3];
    let expected = bits(Pipeline::new(&model, &cpu(), Quantisation::Q8, &cuts), &input, 64);
    for on_cards in [[true, false, true], [false, true, false], [true, true, false]] {
        let _stand_in = StandIn::fresh("cards=7.5,9.0");
        let stages = on_cards.into_iter().enumerate().map(|(index, on_card)| {
            let card = || Cuda::open(index % cards().unwrap().len()).unwrap();
            match on_card {
                true => part(&model, card(), Quantisation::Q8, &cuts, index),
                false => part(&model, cpu(), Quantisation::Q8, &cuts, index),
            }
        });
        let actual = bits(Pipeline::of(stages.collect()), &input, 64);
        assert!(actual == expected, "{on_cards:?}");
    }
}

#[test]
fn devices_are_chosen() {
    let _stand_in = StandIn::fresh("cards=6.1:Old,8.9:New");
    let choose = |text: &str| Device::choose(text.parse::<DeviceChoice>().unwrap(), cpu());
    assert!(!choose("cpu").unwrap().is_card());
    for text in ["auto", "cuda", "cuda:1"] {
        assert!(choose(text).unwrap().describe().contains("New"), "{text}");
    }
    assert!(choose("cuda:0").unwrap_err().to_string().contains("7.5"));
    assert!(choose("cuda:2").unwrap_err().to_string().contains("the machine has 2"));
}

#[test]
fn without_a_usable_card_the_cpu_computes() {
    let _stand_in = StandIn::fresh("driver=12020");
    assert!(!Device::choose(DeviceChoice::Auto, cpu()).unwrap().is_card());
    assert!(Device::choose(DeviceChoice::Cuda(None), cpu()).is_err());
}

#[test]
fn the_doctor_examines_every_card() {
    let _stand_in = StandIn::fresh("cards=7.5:Small,6.1:Old; memory=512m");
    let report = examine(&cpu(), false).unwrap();
    assert_eq!(report.cuda.as_deref(), Some("12.4"));
    let [processor, small, old] = &report.devices[..] else { panic!("{report}") };
    assert_eq!((&processor.problem, &small.problem), (&None, &None));
    assert_eq!(small.ptx.as_deref(), Some("compute_75"));
    assert!(old.problem.as_ref().is_some_and(|problem| problem.contains("7.5")), "{report}");
}

fn whole(model: &Model, cuda: &Cuda, limits: StageLimits) -> Stage<Cuda> {
    let shard = Shard { layers: 0..model.config().layers, embedding: true, head: true };
    let weights = model.load(&shard, Quantisation::Q8, &|_| {}).unwrap();
    Stage::new(cuda.clone(), model.config(), &shard, weights, Quantisation::Q8.profile(), limits).unwrap()
}

#[test]
fn pages_are_what_the_card_has_room_for() {
    let model = open("llama");
    let _stand_in = StandIn::fresh("memory=256m");
    let cuda = Cuda::open(0).unwrap().leaving(1 << 20);
    let limits = StageLimits { pages: 1 << 20, ..LIMITS };
    let pages = whole(&model, &cuda, limits).limits().pages;
    assert!(0 < pages && pages < limits.pages, "{pages}");
    let free = cuda.free_bytes().unwrap().unwrap();
    assert!(free > 0);
}

/// Greedy, sampled and penalised replies, and such as want more than a token.
#[tokio::test]
async fn replies_from_cards_are_those_of_the_cpu() {
    let asked = |index: usize| {
        let prompt: Vec<u32> = (0..9).map(|i| (i * 5 + index as u32) % 60).collect();
        let sampling = Sampling {
            temperature: if index == 0 { 0.0 } else { 1.0 },
            seed: index as u64,
            top_p: 0.9,
            repetition_penalty: if index == 2 { 1.3 } else { 1.0 },
            presence_penalty: if index == 2 { 0.5 } else { 0.0 },
            logprobs: (index == 3).then_some(2),
            ..Sampling::default()
        };
        Request { sampling, ..request(&prompt, 7) }
    };
    let replies = async |device: Option<Device>| {
        let mut world = World::new("llama", 1, |_| ());
        world.device = device.unwrap_or(world.device);
        let nodes = world.pipeline(&[0, 2]);
        world.ready().await;
        let mut replies = Vec::new();
        for index in 0..4 {
            replies.push(reply(&world, asked(index)).await);
        }
        world.stop(nodes).await;
        replies
    };
    let expected = replies(None).await;
    let _stand_in = StandIn::fresh("");
    let device = Device::Cuda(Cuda::open(0).unwrap());
    assert_eq!(replies(Some(device)).await, expected);
}

/// The worker's end tells why, and nobody waits for it.
#[test]
fn a_stage_ends_with_its_card() {
    let model = open("llama");
    let stand_in = StandIn::fresh("");
    let cuda = Cuda::open(0).unwrap();
    let stage = whole(&model, &cuda, LIMITS);
    let shard = stage.shard().clone();
    let (worker, mut outputs) =
        Worker::start(stage, None, tokio::sync::watch::channel(StageLoad::default()).0).unwrap();
    let (session, route) = (SessionId(1), RouteId(1));
    worker.submit(Command::Open(Opening {
        session,
        route,
        positions: 64,
        prompt_length: 3,
        blocks: Vec::new(),
        reply: None,
        place: None,
    }));
    assert!(matches!(outputs.blocking_recv(), Some(Output::Opened { .. })));
    stand_in.set("fault-at=1");
    let segment = Segment { session, from: 0, rows: 3, drawn: Vec::new(), drafted: 0 };
    let body = [1u32, 2, 3].map(u32::to_le_bytes).concat().into();
    worker.submit(Command::Step { step: Step { route, number: 0, segments: vec![segment], body }, shard });
    assert!(outputs.blocking_recv().is_none(), "the worker is through");
    let error = worker.stop().unwrap_err();
    assert!(matches!(&error, BackendError::Device(reason) if reason.contains("ILLEGAL_ADDRESS")), "{error}");
}
