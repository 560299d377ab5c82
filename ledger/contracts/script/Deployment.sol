// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IVotes} from "@openzeppelin/contracts/governance/utils/IVotes.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {AuditManager} from "../src/AuditManager.sol";
import {AuditorSet} from "../src/AuditorSet.sol";
import {Beacon} from "../src/Beacon.sol";
import {DisputeGame} from "../src/DisputeGame.sol";
import {Int8Referee} from "../src/Int8Referee.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {PODToken} from "../src/PODToken.sol";
import {PodGovernor} from "../src/PodGovernor.sol";
import {RewardDistributor} from "../src/RewardDistributor.sol";
import {SessionEscrow} from "../src/SessionEscrow.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {TraceJudge} from "../src/TraceJudge.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {Roles} from "../src/lib/Roles.sol";

/// @title How all contracts are put together
/// @notice Deploys everything, gives every role to who the parameters name, and leaves the timelock as the
/// only admin.
abstract contract Deployment {
    /// @notice Parameters. Amounts in the token's smallest unit, times in seconds.
    /// @param token POD where it exists: an ERC-20 with votes (ERC-5805) on timestamps; zero to deploy ours.
    /// @param tokenCap Most that may exist of ours.
    /// @param holder Who gets the initial supply of ours.
    /// @param supply The initial supply of ours.
    /// @param guardian Who may disable a root of rewards.
    /// @param poster Who may post one.
    /// @param curator Who may enter and retire models beside the votes; zero for nobody.
    /// @param timelockDelay From a vote that passed to its execution.
    struct Params {
        address token;
        uint256 tokenCap;
        address holder;
        uint256 supply;
        address guardian;
        address poster;
        address curator;
        uint256 timelockDelay;
        uint40 stakeThawPeriod;
        uint40 slashEpoch;
        uint16 slashCapBps;
        uint16 reporterBps;
        uint64 escrowThawPeriod;
        uint64 settlementWindow;
        uint64 activationDelay;
        uint128 emissionRate;
        uint64 emissionStart;
        uint128 emissionCap;
        PodGovernor.Config governor;
        Beacon.Config beacon;
        Audits audits;
    }

    /// @notice Parameters of audits; `AuditManager.Config` and `AuditorSet` say what each means.
    struct Audits {
        uint40 epochLength;
        uint40 beaconDelay;
        uint40 drawWindow;
        uint40 openWindow;
        uint40 answerWindow;
        uint40 disputeWindow;
        uint40 strikeWindow;
        uint32 promptRate;
        uint32 replyRate;
        uint32 rateFloor;
        uint32 rateHalfLife;
        uint128 minNodeStake;
        uint128 minAuditorStake;
        uint128 disputeBond;
        uint40 disputeClock;
        uint16 silentBps;
        uint16 withheldBps;
        uint16 repeatBps;
        uint16 systematicBps;
        uint16 lapseBps;
        uint16 missBps;
    }

    /// @notice Everything deployed.
    struct System {
        AccessManager manager;
        TimelockController timelock;
        address token;
        StakeManager stake;
        PodGovernor governor;
        SessionEscrow escrow;
        VoucherCollector collector;
        NodeRegistry nodes;
        ModelRegistry models;
        RewardDistributor rewards;
        Beacon beacon;
        AuditorSet auditors;
        DisputeGame game;
        AuditManager audits;
    }

    /// @notice Deploys and wires everything.
    /// @param p The parameters.
    /// @param deployer Whose calls these are; has no power left afterwards.
    /// @return s What was deployed.
    function _deploy(Params memory p, address deployer) internal returns (System memory s) {
        s.manager = new AccessManager(deployer);
        s.token = p.token != address(0)
            ? p.token
            : address(new PODToken(address(s.manager), p.tokenCap, p.holder, p.supply));
        address[] memory nobody = new address[](0);
        // Anybody may execute what has waited long enough.
        s.timelock = new TimelockController(p.timelockDelay, nobody, new address[](1), deployer);
        s.stake = new StakeManager(
            StakeManager.Config({
                token: IERC20(s.token),
                manager: s.manager,
                treasury: address(s.timelock),
                thawPeriod: p.stakeThawPeriod,
                slashEpoch: p.slashEpoch,
                slashCapBps: p.slashCapBps,
                reporterBps: p.reporterBps
            })
        );
        s.governor = new PodGovernor(IVotes(s.token), s.stake, s.timelock, p.governor);
        s.escrow = new SessionEscrow(IERC20(s.token), p.escrowThawPeriod);
        s.collector = new VoucherCollector(s.escrow, p.settlementWindow);
        s.nodes = new NodeRegistry();
        s.models = new ModelRegistry(address(s.manager));
        s.rewards = new RewardDistributor(
            address(s.manager),
            RewardDistributor.Config({
                token: IERC20(s.token),
                activationDelay: p.activationDelay,
                emissionRate: p.emissionRate,
                emissionStart: p.emissionStart,
                emissionCap: p.emissionCap
            })
        );
        s.beacon = new Beacon(p.beacon);
        _deployAudits(s, p.audits);
        _assign(s, p);
        _handOver(s, deployer);
    }

    function _deployAudits(System memory s, Audits memory a) private {
        s.auditors = new AuditorSet(s.stake, a.epochLength, a.minAuditorStake);
        s.game = new DisputeGame(new TraceJudge(new Int8Referee()), a.disputeClock);
        s.audits = new AuditManager(
            AuditManager.Config({
                auditors: s.auditors,
                beacon: s.beacon,
                game: s.game,
                beaconDelay: a.beaconDelay,
                drawWindow: a.drawWindow,
                openWindow: a.openWindow,
                answerWindow: a.answerWindow,
                disputeWindow: a.disputeWindow,
                strikeWindow: a.strikeWindow,
                promptRate: a.promptRate,
                replyRate: a.replyRate,
                rateFloor: a.rateFloor,
                rateHalfLife: a.rateHalfLife,
                minNodeStake: a.minNodeStake,
                disputeBond: a.disputeBond,
                silentBps: a.silentBps,
                withheldBps: a.withheldBps,
                repeatBps: a.repeatBps,
                systematicBps: a.systematicBps,
                lapseBps: a.lapseBps,
                missBps: a.missBps
            })
        );
    }

    function _assign(System memory s, Params memory p) private {
        if (p.token == address(0) && p.emissionRate != 0) {
            _allow(s.manager, s.token, PODToken.mint.selector, Roles.MINTER);
            s.manager.grantRole(Roles.MINTER, address(s.rewards), 0);
        }
        _allow(s.manager, address(s.models), ModelRegistry.register.selector, Roles.CURATOR);
        _allow(s.manager, address(s.models), ModelRegistry.retire.selector, Roles.CURATOR);
        s.manager.grantRole(Roles.CURATOR, address(s.timelock), 0);
        if (p.curator != address(0)) s.manager.grantRole(Roles.CURATOR, p.curator, 0);
        _allow(s.manager, address(s.rewards), RewardDistributor.post.selector, Roles.POSTER);
        s.manager.grantRole(Roles.POSTER, p.poster, 0);
        _allow(s.manager, address(s.rewards), RewardDistributor.disable.selector, Roles.GUARDIAN);
        s.manager.grantRole(Roles.GUARDIAN, p.guardian, 0);
        s.manager.grantRole(s.stake.slasherOf(Roles.NODE), address(s.audits), 0);
        s.manager.grantRole(s.stake.slasherOf(Roles.AUDITOR), address(s.audits), 0);
    }

    function _handOver(System memory s, address deployer) private {
        s.timelock.grantRole(s.timelock.PROPOSER_ROLE(), address(s.governor));
        s.timelock.grantRole(s.timelock.CANCELLER_ROLE(), address(s.governor));
        s.timelock.renounceRole(s.timelock.DEFAULT_ADMIN_ROLE(), deployer);
        uint64 admin = s.manager.ADMIN_ROLE();
        s.manager.grantRole(admin, address(s.timelock), 0);
        s.manager.renounceRole(admin, deployer);
    }

    function _allow(AccessManager manager, address target, bytes4 selector, uint64 role) private {
        bytes4[] memory selectors = new bytes4[](1);
        selectors[0] = selector;
        manager.setTargetFunctionRole(target, selectors, role);
    }
}
