//! A deployment: the same contracts, parameters and hand-over as `contracts/script/Deployment.sol`.

use std::sync::atomic::{AtomicU64, Ordering};

use ethers_core::{
    abi::{AbiEncode, Tokenize},
    types::{Bytes, H160, U256},
};

use super::{
    bindings::{self as b, access_manager as manager, timelock_controller as timelock},
    calls::Order,
    convert::to_h160,
    sender::{Sender, Until},
};
use crate::{
    client::{AUDITOR_ROLE, AuditParameters, Deployment, Error, NODE_ROLE, Parameters},
    eip712::{Address, keccak},
};

/// Ids of roles in the access manager, as in `contracts/src/lib/Roles.sol`.
const ADMIN: u64 = 0;
const MINTER: u64 = 1;
const CURATOR: u64 = 2;
const POSTER: u64 = 3;
const GUARDIAN: u64 = 4;
/// A stake role's slasher is this plus the role, as in `contracts/src/StakeManager.sol`.
const SLASHER_BASE: u64 = 1 << 32;

struct Deployer<'a> {
    sender: &'a Sender,
    account: Address,
    first_block: AtomicU64,
}

/// Deploys everything, gives every role to whom the parameters name, and leaves the timelock as the only admin.
pub(super) async fn deploy(
    sender: &Sender,
    account: Address,
    chain_id: u64,
    p: &Parameters,
) -> Result<Deployment, Error> {
    let deployer = Deployer { sender, account, first_block: AtomicU64::new(u64::MAX) };
    let mut d = deployer.contracts(chain_id, p).await?;
    deployer.assign(&d, p).await?;
    deployer.hand_over(&d).await?;
    d.block = deployer.first_block.into_inner();
    Ok(d)
}

impl Deployer<'_> {
    async fn contracts(&self, chain_id: u64, p: &Parameters) -> Result<Deployment, Error> {
        let account = to_h160(&self.account);
        let manager = self.create(&b::ACCESSMANAGER_BYTECODE, account).await?;
        let at = to_h160(&manager);
        let token = match p.token {
            [0, ..] if p.token == [0; 20] => {
                let arguments = (at, u(p.token_cap.0), to_h160(&p.holder), u(p.supply.0));
                self.create(&b::PODTOKEN_BYTECODE, arguments).await?
            }
            token => token,
        };
        // Anybody may execute what has waited long enough: the zero address stands for all.
        let arguments = (u(p.timelock_delay.into()), Vec::<H160>::new(), vec![H160::zero()], account);
        let timelock = self.create(&b::TIMELOCKCONTROLLER_BYTECODE, arguments).await?;
        let pod = to_h160(&token);
        let config = (
            pod,
            at,
            to_h160(&timelock),
            p.stake_thaw_period,
            p.slash_epoch,
            p.slash_cap_bps,
            p.reporter_bps,
        );
        let stake = self.create(&b::STAKEMANAGER_BYTECODE, (config,)).await?;
        let config = (
            p.voting_delay,
            p.voting_period,
            u(p.proposal_threshold.0),
            u(p.quorum_percent.into()),
            p.vote_extension,
        );
        let arguments = (pod, to_h160(&stake), to_h160(&timelock), config);
        let governor = self.create(&b::PODGOVERNOR_BYTECODE, arguments).await?;
        let escrow = self.create(&b::SESSIONESCROW_BYTECODE, (pod, p.escrow_thaw_period)).await?;
        let arguments = (to_h160(&escrow), p.settlement_window);
        let collector = self.create(&b::VOUCHERCOLLECTOR_BYTECODE, arguments).await?;
        let nodes = self.create(&b::NODEREGISTRY_BYTECODE, ()).await?;
        let models = self.create(&b::MODELREGISTRY_BYTECODE, at).await?;
        let config = (pod, p.activation_delay, p.emission_rate.0, p.emission_start, p.emission_cap.0);
        let rewards = self.create(&b::REWARDDISTRIBUTOR_BYTECODE, (at, config)).await?;
        let numbers = p.beacon.key.chunks(32).map(U256::from_big_endian).collect::<Vec<_>>();
        let key = (numbers[0], numbers[1], numbers[2], numbers[3]);
        let config = (key, p.beacon.genesis, p.beacon.period);
        let beacon = self.create(&b::BEACON_BYTECODE, (config,)).await?;
        let a = &p.audits;
        let arguments = (to_h160(&stake), a.epoch_length, a.min_auditor_stake.0);
        let auditors = self.create(&b::AUDITORSET_BYTECODE, arguments).await?;
        let game = self.game(a.dispute_clock).await?;
        let audits = self.audits(a, &auditors, &beacon, &game).await?;
        Ok(Deployment {
            chain_id,
            block: 0,
            manager,
            timelock,
            token,
            stake,
            governor,
            escrow,
            collector,
            nodes,
            models,
            rewards,
            beacon,
            auditors,
            game,
            audits,
        })
    }

    async fn game(&self, clock: u64) -> Result<Address, Error> {
        let referee = self.create(&b::INT8REFEREE_BYTECODE, ()).await?;
        let judge = self.create(&b::TRACEJUDGE_BYTECODE, to_h160(&referee)).await?;
        self.create(&b::DISPUTEGAME_BYTECODE, (to_h160(&judge), clock)).await
    }

    async fn audits(
        &self,
        a: &AuditParameters,
        auditors: &Address,
        beacon: &Address,
        game: &Address,
    ) -> Result<Address, Error> {
        let config = b::audit_manager::Config {
            auditors: to_h160(auditors),
            beacon: to_h160(beacon),
            game: to_h160(game),
            beacon_delay: a.beacon_delay,
            draw_window: a.draw_window,
            open_window: a.open_window,
            answer_window: a.answer_window,
            dispute_window: a.dispute_window,
            strike_window: a.strike_window,
            prompt_rate: a.prompt_rate,
            reply_rate: a.reply_rate,
            rate_floor: a.rate_floor,
            rate_half_life: a.rate_half_life,
            min_node_stake: a.min_node_stake.0,
            dispute_bond: a.dispute_bond.0,
            silent_bps: a.silent_bps,
            withheld_bps: a.withheld_bps,
            repeat_bps: a.repeat_bps,
            systematic_bps: a.systematic_bps,
            lapse_bps: a.lapse_bps,
            miss_bps: a.miss_bps,
        };
        self.create(&b::AUDITMANAGER_BYTECODE, (config,)).await
    }

    /// Creates a contract, and says where it is.
    async fn create(&self, code: &Bytes, arguments: impl Tokenize) -> Result<Address, Error> {
        let arguments = ethers_core::abi::encode(&arguments.into_tokens());
        let order = Order { to: None, value_wei: 0, data: [code, &arguments[..]].concat() };
        let receipt = self.sender.send(order, Until::Included).await?;
        super::succeeded(&receipt)?;
        let block = receipt.block_number.map_or(0, |block| block.as_u64());
        self.first_block.fetch_min(block, Ordering::Relaxed);
        let place = receipt.contract_address;
        place.map(|place| place.0).ok_or_else(|| Error::BadAnswer("a contract without address".to_owned()))
    }

    async fn call(&self, to: &Address, call: impl AbiEncode, until: Until) -> Result<(), Error> {
        super::succeeded(&self.sender.send(Order::call(to, call), until).await?)
    }

    async fn grant(&self, d: &Deployment, role_id: u64, account: &Address) -> Result<(), Error> {
        let call = manager::GrantRoleCall { role_id, account: to_h160(account), execution_delay: 0 };
        self.call(&d.manager, call, Until::Included).await
    }

    /// Lets a role, and nobody else, call a function.
    async fn allow(
        &self,
        d: &Deployment,
        target: &Address,
        function: &str,
        role_id: u64,
    ) -> Result<(), Error> {
        let selector = *keccak(function.as_bytes()).first_chunk().expect("32 bytes begin with 4");
        let call = manager::SetTargetFunctionRoleCall {
            target: to_h160(target),
            selectors: vec![selector],
            role_id,
        };
        self.call(&d.manager, call, Until::Included).await
    }

    async fn assign(&self, d: &Deployment, p: &Parameters) -> Result<(), Error> {
        if p.token == [0; 20] && p.emission_rate.0 != 0 {
            self.allow(d, &d.token, "mint(address,uint256)", MINTER).await?;
            self.grant(d, MINTER, &d.rewards).await?;
        }
        let register = "register((uint32,bytes32,bytes32,bytes32[]),string)";
        self.allow(d, &d.models, register, CURATOR).await?;
        self.allow(d, &d.models, "retire(bytes32)", CURATOR).await?;
        self.grant(d, CURATOR, &d.timelock).await?;
        if p.curator != [0; 20] {
            self.grant(d, CURATOR, &p.curator).await?;
        }
        self.allow(d, &d.rewards, "post(bytes32,uint128)", POSTER).await?;
        self.grant(d, POSTER, &p.poster).await?;
        self.allow(d, &d.rewards, "disable(bytes32)", GUARDIAN).await?;
        self.grant(d, GUARDIAN, &p.guardian).await?;
        for role in [NODE_ROLE, AUDITOR_ROLE] {
            self.grant(d, SLASHER_BASE + u64::from(role), &d.audits).await?;
        }
        Ok(())
    }

    async fn hand_over(&self, d: &Deployment) -> Result<(), Error> {
        let account = to_h160(&d.governor);
        for role in ["PROPOSER_ROLE", "CANCELLER_ROLE"] {
            let role = keccak(role.as_bytes());
            self.call(&d.timelock, timelock::GrantRoleCall { role, account }, Until::Included).await?;
        }
        let caller_confirmation = to_h160(&self.account);
        let renounce = timelock::RenounceRoleCall { role: [0; 32], caller_confirmation };
        self.call(&d.timelock, renounce, Until::Included).await?;
        self.grant(d, ADMIN, &d.timelock).await?;
        let renounce = manager::RenounceRoleCall { role_id: ADMIN, caller_confirmation };
        self.call(&d.manager, renounce, Until::Confirmed).await
    }
}

fn u(number: u128) -> U256 {
    number.into()
}
