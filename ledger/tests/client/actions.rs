//! Everything an account can do, from a deployment to a vote.

use ledger::{
    client::{
        Action, Client, Cursor, Error, Event, Ledger, Motion, NODE_ROLE, NodeEntry, ProposalState,
        SignedVoucher, Support,
    },
    embedded::Sealing,
    merkle,
    model::Model,
    plan::{Plan, Stage},
    rewards,
    voucher::Voucher,
};

use crate::net::{Net, key, pod};

const DAY: u64 = 86_400;

async fn done(net: &Net, client: &Client, action: Action) -> ledger::client::Receipt {
    let text = format!("{action:?}");
    net.mining(client.submit(action)).await.unwrap_or_else(|error| panic!("{text}: {error}"))
}

async fn refused(client: &Client, action: Action, name: &str) {
    let error = client.submit(action).await.expect_err(name);
    assert!(error.is(name), "{error}");
}

fn signed(client: &Client, plan: &Plan, total: &str, signer: u8) -> SignedVoucher {
    let total = pod(total).0;
    let voucher = Voucher { session: plan.session, plan: plan.hash(), total, chunk: 1, commitments: [4; 32] };
    let signature = key(signer).sign_voucher(&voucher, &client.deployment().collector_domain()).to_vec();
    let signed = SignedVoucher { plan: plan.clone(), voucher, signer: key(signer).address(), signature };
    assert_eq!(signed.check(&client.deployment().collector_domain()), Ok(()));
    signed
}

async fn payments(net: &Net, payer: &Client, node: &Client) {
    let (me, other) = (key(2).address(), key(3).address());
    let deposit = Action::Deposit { to: me, amount: pod("100") };
    let estimate = payer.estimate(&deposit).await.expect("an estimate");
    assert_eq!(estimate.transactions, 2, "an approval and the deposit");
    let receipt = done(net, payer, deposit).await;
    assert!(receipt.gas > 21_000 && receipt.gas <= estimate.gas, "{receipt:?} {estimate:?}");
    assert!(receipt.fee_wei > 0 && estimate.fee_wei <= estimate.most_wei);
    assert_eq!(receipt.events, [Event::Deposited { account: me, from: me, amount: pod("100") }]);
    done(net, payer, Action::Withdraw { to: me, amount: pod("10") }).await;
    assert_eq!(payer.balances(me).await.expect("balances").escrow, pod("90"));
    refused(payer, Action::Withdraw { to: me, amount: pod("91") }, "TooMuch").await;

    let expiry = payer.head().await.expect("a head").time + DAY;
    let stages = vec![Stage { payee: other, weight: 3 }, Stage { payee: me, weight: 1 }];
    let plan = Plan { session: [1; 32], payer: me, terms: [2; 32], expiry, stages };
    done(net, payer, Action::Lock { plan: plan.hash(), amount: pod("20") }).await;
    let lock = node.lock(me, plan.hash()).await.expect("a lock");
    assert!(lock.backs(pod("20")) && !lock.backs(pod("20.1")));

    assert!(!node.is_signer(me, key(4).address()).await.expect("an answer"));
    done(net, payer, Action::AuthoriseSigner(key(4).address())).await;
    assert!(node.is_signer(me, key(4).address()).await.expect("an answer"));
    let receipt = done(net, node, Action::Collect(Box::new(signed(node, &plan, "4", 4)))).await;
    assert_eq!(receipt.paid(), pod("4"), "{receipt:?}");
    assert_eq!(node.balances(other).await.expect("balances").escrow, pod("3"));
    refused(node, Action::Collect(Box::new(signed(node, &plan, "4", 4))), "NothingDue").await;

    let unlocked = Plan { session: [9; 32], ..plan.clone() };
    let batch =
        vec![signed(node, &unlocked, "1", 2), signed(node, &plan, "8", 2), signed(node, &plan, "9", 5)];
    let receipt = done(net, node, Action::CollectBatch(batch)).await;
    assert_eq!(receipt.paid(), pod("4"));
    let skipped: Vec<_> = receipt.skipped().collect();
    assert_eq!((skipped.len(), skipped[0], skipped[1].0), (2, (0, "NothingLocked()"), 2), "{skipped:?}");
    assert!(skipped[1].1.starts_with("NotSigner("), "{skipped:?}");
    done(net, payer, Action::RevokeSigner(key(4).address())).await;

    done(net, payer, Action::Thaw { plan: plan.hash() }).await;
    done(net, payer, Action::CancelThaw { plan: plan.hash() }).await;
    done(net, payer, Action::Thaw { plan: plan.hash() }).await;
    refused(payer, Action::Release { plan: plan.hash() }, "NotThawed").await;
    net.advance(4 * DAY).await;
    done(net, payer, Action::Release { plan: plan.hash() }).await;
    assert_eq!(payer.balances(me).await.expect("balances").escrow, pod("84"), "12 back and 2 earned");
}

async fn nodes(net: &Net, node: &Client) {
    let (me, endpoint) = (key(3).address(), "quic://example.org:7".to_owned());
    let entry = NodeEntry { node: [6; 32], roles: 3, metadata: [7; 32], endpoint, proof: [8; 64] };
    assert_eq!(node.node(me, [6; 32]).await.expect("an answer"), None);
    done(net, node, Action::RegisterNode(Box::new(entry.clone()))).await;
    assert_eq!(node.node(me, [6; 32]).await.expect("an answer"), Some(entry));
    done(net, node, Action::RemoveNode { node: [6; 32] }).await;
    refused(node, Action::RemoveNode { node: [6; 32] }, "NotRegistered").await;
}

async fn stakes(net: &Net, operator: &Client, delegator: &Client) {
    let (of, by) = (key(3).address(), key(2).address());
    done(net, operator, Action::Stake { amount: pod("50") }).await;
    done(net, operator, Action::Unstake { to: of, amount: pod("10") }).await;
    done(net, operator, Action::Provision { role: NODE_ROLE, amount: pod("30") }).await;
    let delegation = Action::Delegate { operator: of, role: NODE_ROLE, amount: pod("15"), min_shares: 1 };
    done(net, delegator, delegation).await;
    let stake = delegator.stake(of, NODE_ROLE, by).await.expect("a stake");
    assert_eq!((stake.idle, stake.active), (pod("10"), pod("45")));
    assert_eq!(stake.position.amount, pod("15"));
    assert_eq!(operator.balances(of).await.expect("balances").votes, pod("55"));

    let shares = stake.position.shares_for(pod("5"));
    done(net, delegator, Action::ThawStake { operator: of, role: NODE_ROLE, shares }).await;
    let thaws = delegator.thaws(by).await.expect("thaws");
    assert_eq!((thaws.len(), thaws[0].amount, thaws[0].operator), (1, pod("5"), of));
    refused(delegator, Action::WithdrawStake { thaw: thaws[0].id }, "NotReleased").await;
    net.advance(22 * DAY).await;
    done(net, delegator, Action::WithdrawStake { thaw: thaws[0].id }).await;
    assert_eq!(delegator.thaws(by).await.expect("thaws"), []);
}

async fn earnings(net: &Net, poster: &Client) {
    let domain = poster.deployment().rewards_domain();
    let leaves = [2, 3].map(|number| rewards::leaf(&domain, &key(number).address(), pod("7").0));
    let root = merkle::root(&leaves).expect("there are leaves");
    done(net, poster, Action::Emit).await;
    done(net, poster, Action::PostRewards { root, total: pod("14") }).await;
    net.advance(2 * DAY).await;
    let account = key(3).address();
    let before = poster.balances(account).await.expect("balances").pod;
    let rewards = poster.rewards(account).await.expect("rewards");
    assert_eq!((rewards.root, rewards.claimed), (Some(root), pod("0")));
    let proof = merkle::proof(&leaves, 1).expect("a leaf");
    let claim = Action::ClaimRewards { account, cumulative: pod("7"), proof };
    done(net, poster, claim.clone()).await;
    assert_eq!(poster.balances(account).await.expect("balances").pod.saturating_sub(before), pod("7"));
    refused(poster, claim, "NothingDue").await;
    done(net, poster, Action::DisableRewards { root }).await;
}

/// Models that the curator enters by itself.
async fn models(net: &Net, curator: &Client, other: &Client) {
    let model = Model { numerics: 1, tokenizer: [4; 32], rope: [5; 32], layers: vec![[6; 32]; 2] };
    let hash = model.hash().expect("there are layers");
    let register = Action::RegisterModel { model, name: "curated".to_owned() };
    refused(other, register.clone(), "AccessManagedUnauthorized").await;
    done(net, curator, register.clone()).await;
    assert!(other.is_active_model(hash).await.expect("an answer"));
    refused(curator, register, "AlreadyRegistered").await;
}

async fn votes(net: &Net, holder: &Client) {
    let model = Model { numerics: 1, tokenizer: [1; 32], rope: [2; 32], layers: vec![[3; 32]; 3] };
    let hash = model.hash().expect("there are layers");
    done(net, holder, Action::DelegateVotes { to: key(1).address() }).await;
    net.advance(5).await;
    let motions = vec![
        Motion::RegisterModel { model, name: "small".to_owned() },
        Motion::GrantRole { role: (1 << 32) + u64::from(NODE_ROLE), account: key(5).address() },
    ];
    let receipt = done(net, holder, Action::Propose { motions, description: "a model".to_owned() }).await;
    let [Event::Proposed { proposal, .. }] = receipt.events[..] else { panic!("{receipt:?}") };
    net.advance(DAY + 1).await;
    let vote = Action::Vote { proposal, support: Support::For, reason: "it is good".to_owned() };
    done(net, holder, vote).await;
    net.advance(8 * DAY).await;
    let proposals = holder.proposals().await.expect("proposals");
    assert_eq!(
        (proposals.len(), proposals[0].id, proposals[0].state),
        (1, proposal, ProposalState::Succeeded)
    );
    assert!(proposals[0].in_favour > pod("1_000_000") && proposals[0].calls.len() == 2);
    done(net, holder, Action::Queue { proposal }).await;
    refused(holder, Action::Execute { proposal }, "TimelockUnexpectedOperationState").await;
    net.advance(2 * DAY + 1).await;
    done(net, holder, Action::Execute { proposal }).await;
    assert!(holder.is_active_model(hash).await.expect("an answer"));
    assert_eq!(holder.proposals().await.expect("proposals")[0].state, ProposalState::Executed);
    let none = holder.submit(Action::Queue { proposal: [0; 32] }).await;
    assert!(matches!(none, Err(Error::NoProposal)), "{none:?}");
}

async fn everything(net: Net) {
    let deployment = net.deploy().await;
    let holder = net.client(&deployment, 1).await;
    let (payer, node) = (net.client(&deployment, 2).await, net.client(&deployment, 3).await);
    for number in [2, 3] {
        let to = key(number).address();
        done(&net, &holder, Action::Transfer { to, amount: pod("1000") }).await;
    }
    let wei = 10u128.pow(15);
    let to = [0xee; 20];
    done(&net, &holder, Action::SendNative { to, wei }).await;
    assert_eq!(holder.balances(to).await.expect("balances").native_wei, wei);
    let poor = Client::connect(net.config(), deployment.clone(), Some(key(77))).await.expect("a client");
    let nothing = poor.submit(Action::AuthoriseSigner(to)).await;
    assert!(matches!(nothing, Err(Error::Funds { .. } | Error::Node { .. })), "{nothing:?}");

    payments(&net, &payer, &node).await;
    models(&net, &holder, &node).await;
    nodes(&net, &node).await;
    stakes(&net, &node, &payer).await;
    earnings(&net, &holder).await;
    votes(&net, &holder).await;
    reading(&net, &holder).await;
}

/// All events, in small looks and in one, are the same.
async fn reading(net: &Net, reader: &Client) {
    for _ in 0..3 {
        net.mine().await;
    }
    let mut cursor = Cursor::from_block(reader.deployment().block);
    let mut events = Vec::new();
    loop {
        let news = reader.events(&cursor).await.expect("news");
        assert_eq!(news.undone, []);
        events.extend(news.events);
        cursor = news.cursor;
        if !news.more {
            break;
        }
    }
    assert_eq!(reader.events(&cursor).await.expect("news").events, []);
    let small = ledger::client::Config { log_range: 7, ..net.config() };
    let small = Client::connect(small, reader.deployment().clone(), None).await.expect("a client");
    let mut again = Vec::new();
    let mut cursor = Cursor::from_block(reader.deployment().block);
    loop {
        let news = small.events(&cursor).await.expect("news");
        again.extend(news.events);
        cursor = news.cursor;
        if !news.more {
            break;
        }
    }
    assert_eq!(again, events);
    let is = |wanted: fn(&Event) -> bool| events.iter().filter(|logged| wanted(&logged.event)).count();
    assert_eq!(is(|event| matches!(event, Event::Skipped { .. })), 2);
    assert_eq!(is(|event| matches!(event, Event::Locked { .. })), 1);
    assert_eq!(is(|event| matches!(event, Event::ModelRegistered { .. })), 2);
    assert_eq!(is(|event| matches!(event, Event::StakeWithdrawn { .. })), 1);
    let without_key = small.submit(Action::Emit).await;
    assert!(matches!(without_key, Err(Error::NoKey)), "{without_key:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_on_the_embedded_chain() {
    everything(Net::embedded(Sealing::Instant).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_on_anvil() {
    if let Some(net) = Net::anvil(Sealing::Instant).await {
        everything(net).await;
    }
}

/// The same chain without HTTP in between.
#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_this_process_needs_no_http() {
    use std::sync::Arc;

    use ledger::{
        client::{Config, Parameters},
        embedded::{Chain, Genesis},
    };

    let genesis = Genesis::default().with_account(key(1).address(), 10u128.pow(20));
    let chain = Chain::in_memory(genesis, Sealing::Instant);
    let config = Config::over(Arc::new(chain));
    let text = include_str!("../../contracts/script/local.json");
    let parameters: Parameters = serde_json::from_str(text).expect("parameters");
    let parameters = Parameters { holder: key(1).address(), ..parameters };
    let deployment = Client::deploy(config.clone(), key(1), &parameters).await.expect("a deployment");
    let client = Client::connect(config.clone(), deployment.clone(), Some(key(1))).await.expect("a client");
    let me = key(1).address();
    client.submit(Action::Deposit { to: me, amount: pod("1.5") }).await.expect("a deposit");
    assert_eq!(client.balances(me).await.expect("balances").escrow, pod("1.5"));
    let elsewhere = ledger::client::Deployment { chain_id: 1, ..deployment };
    let wrong = Client::connect(config, elsewhere, None).await;
    assert!(matches!(wrong, Err(Error::WrongChain { expected: 1, .. })), "{wrong:?}");
}
