// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Deployment} from "../script/Deployment.sol";
import {vm} from "../script/Vm.sol";
import {PODToken} from "../src/PODToken.sol";
import {Beacon} from "../src/Beacon.sol";
import {PodGovernor} from "../src/PodGovernor.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {G2} from "../src/lib/Bn254.sol";
import {Stage} from "../src/lib/Split.sol";
import {Roles} from "../src/lib/Roles.sol";
import {Deployer} from "./Deployer.sol";

/// Everything deployed with the parameters below; the test holds all POD and no role.
abstract contract Base {
    bool public constant IS_TEST = true;

    uint256 internal constant CAP = 1e27;
    uint256 internal constant SUPPLY = 1e26;
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant PAYER_KEY = 0xA11CE;
    address internal constant GUARDIAN = address(0x6A);
    address internal constant POSTER = address(0x90);
    address internal constant CURATOR = address(0xC0);
    address internal constant SLASHER = address(0x51A5);
    address internal constant REPORTER = address(0x4E9);
    uint32 internal constant NODE = Roles.NODE;

    Deployment.System internal s;
    PODToken internal pod;

    function setUp() public virtual {
        vm.warp(START);
        s = Deployer(vm.deployCode("Deployer.sol:Deployer")).deploy(params());
        pod = PODToken(s.token);
    }

    function params() internal view returns (Deployment.Params memory) {
        return Deployment.Params({
            token: address(0),
            tokenCap: CAP,
            holder: address(this),
            supply: SUPPLY,
            guardian: GUARDIAN,
            poster: POSTER,
            curator: CURATOR,
            timelockDelay: 2 days,
            stakeThawPeriod: 21 days,
            slashEpoch: 1 days,
            slashCapBps: 2000,
            reporterBps: 1000,
            escrowThawPeriod: 3 days,
            settlementWindow: 1 days,
            activationDelay: 1 days,
            emissionRate: 1e18,
            emissionStart: uint64(START),
            emissionCap: 5e26,
            governor: PodGovernor.Config({
                votingDelay: 1 days,
                votingPeriod: 7 days,
                proposalThreshold: 1e23,
                quorumPercent: 4,
                voteExtension: 2 days
            }),
            beacon: Beacon.Config({key: evmnet(), genesis: 1_727_521_075, period: 3}),
            audits: auditParams()
        });
    }

    function auditParams() internal pure returns (Deployment.Audits memory) {
        return Deployment.Audits({
            epochLength: 1 hours,
            beaconDelay: 60,
            drawWindow: 6 hours,
            openWindow: 6 hours,
            answerWindow: 4 hours,
            disputeWindow: 1 days,
            strikeWindow: 30 days,
            promptRate: 85899345,
            replyRate: 214748364,
            rateFloor: 10,
            rateHalfLife: 20,
            minNodeStake: 1e22,
            minAuditorStake: 5e22,
            disputeBond: 1e21,
            disputeClock: 2 days,
            silentBps: 1000,
            withheldBps: 100,
            repeatBps: 1000,
            systematicBps: 2000,
            lapseBps: 100,
            missBps: 2000
        });
    }

    /// The public key of drand's network of that name.
    function evmnet() internal pure returns (G2 memory) {
        return G2({
            x1: 0x07e1d1d335df83fa98462005690372c643340060d205306a9aa8106b6bd0b382,
            x0: 0x0557ec32c2ad488e4d4f6008f89a346f18492092ccc0d594610de2732c8b808f,
            y1: 0x0095685ae3a85ba243747b1b2f426049010f6b73a0cf1d389351d5aaaa1047f6,
            y0: 0x297d3a4f9749b33eb2d904c9d9ebf17224150ddd7abd7567a9bec6c74480ee0b
        });
    }

    /// Gives `SLASHER` a role's slasher id, as a vote would.
    function allowSlasher(uint32 role) internal {
        uint64 id = s.stake.slasherOf(role);
        vm.prank(address(s.timelock));
        s.manager.grantRole(id, SLASHER, 0);
    }

    function fund(address account, uint256 amount, address spender) internal {
        pod.transfer(account, amount);
        vm.prank(account);
        pod.approve(spender, type(uint256).max);
    }

    function bound(uint256 x, uint256 low, uint256 high) internal pure returns (uint256) {
        if (x >= low && x <= high) return x;
        return low + x % (high - low + 1);
    }

    function stages(uint256 count) internal pure returns (Stage[] memory list) {
        list = new Stage[](count);
        for (uint256 i = 0; i < count; ++i) {
            list[i] = Stage(address(uint160(0x57A6E000 + i)), uint64(i + 1));
        }
    }

    function plan(bytes32 session, uint256 count) internal view returns (VoucherCollector.Plan memory) {
        return VoucherCollector.Plan({
            session: session,
            payer: vm.addr(PAYER_KEY),
            terms: keccak256("terms"),
            expiry: uint64(block.timestamp + 1 hours),
            stages: stages(count)
        });
    }

    function sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 t) = vm.sign(key, digest);
        return abi.encodePacked(r, t, v);
    }

    function item(VoucherCollector.Plan memory p, uint128 total, uint256 key)
        internal
        view
        returns (VoucherCollector.Item memory)
    {
        bytes32 hash = s.collector.hashPlan(p);
        bytes32 root = keccak256("commitments");
        bytes memory signature = sign(key, s.collector.voucherDigest(p.session, hash, total, 7, root));
        return VoucherCollector.Item(p, total, 7, root, vm.addr(key), signature);
    }

    /// Deposits and locks for the payer.
    function lockFor(VoucherCollector.Plan memory p, uint128 amount) internal {
        fund(p.payer, amount, address(s.escrow));
        bytes32 hash = s.collector.hashPlan(p);
        vm.startPrank(p.payer);
        s.escrow.deposit(p.payer, amount);
        s.escrow.lock(address(s.collector), hash, amount);
        vm.stopPrank();
    }

    function balance(address account) internal view returns (uint128 amount) {
        (amount,) = s.escrow.accounts(account);
    }
}
