// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {vm} from "../script/Vm.sol";
import {SessionEscrow} from "../src/SessionEscrow.sol";
import {VoucherCollector} from "../src/VoucherCollector.sol";
import {Split, Stage} from "../src/lib/Split.sol";
import {Base} from "./Base.sol";
import {BombWallet, BurningWallet, Wallet} from "./mocks/Wallets.sol";

contract VoucherCollectorTest is Base {
    uint256 internal constant SIGNER_KEY = 0x51674E;
    VoucherCollector internal collector;

    function setUp() public override {
        super.setUp();
        collector = s.collector;
    }

    function test_paysStagesAndSaysSo() public {
        VoucherCollector.Plan memory p = plan("session", 3);
        lockFor(p, 1e18);
        bytes32 hash = collector.hashPlan(p);
        vm.expectEmit(address(collector));
        emit VoucherCollector.VoucherCollected(hash, p.session, p.payer, 10, 10, 7, keccak256("commitments"));
        vm.prank(address(0xA11));
        vm.assertEq(collector.collect(item(p, 10, PAYER_KEY)), 10);
        vm.assertEq(balance(p.stages[0].payee), 1);
        vm.assertEq(balance(p.stages[1].payee), 3);
        vm.assertEq(balance(p.stages[2].payee), 6);
    }

    function testFuzz_onlyMoreIsPaid(uint128[8] calldata totals) public {
        VoucherCollector.Plan memory p = plan("session", 2);
        lockFor(p, 1e24);
        uint256 high;
        for (uint256 i = 0; i < totals.length; ++i) {
            uint128 total = uint128(bound(totals[i], 0, 1e24));
            VoucherCollector.Item memory voucher = item(p, total, PAYER_KEY);
            if (total <= high) {
                vm.expectRevert(
                    abi.encodeWithSelector(SessionEscrow.NothingDue.selector, total, uint128(high))
                );
            }
            uint128 paid = collector.collect(voucher);
            if (total > high) {
                vm.assertEq(paid, total - high);
                high = total;
            }
        }
        vm.assertEq(uint256(balance(p.stages[0].payee)) + balance(p.stages[1].payee), high);
    }

    function test_paysAsFarAsTheLockGoes() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        vm.assertEq(collector.collect(item(p, 150, PAYER_KEY)), 100);
        VoucherCollector.Item memory again = item(p, 150, PAYER_KEY);
        vm.expectRevert(SessionEscrow.NothingLocked.selector);
        collector.collect(again);
        lockFor(p, 100);
        vm.assertEq(collector.collect(again), 50);
    }

    function testFuzz_refusesOtherKeys(uint256 secret) public {
        secret = bound(secret, 1, 1 << 250);
        vm.assume(secret != PAYER_KEY);
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, secret);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.NotSigner.selector, p.payer, vm.addr(secret)));
        collector.collect(voucher);
        voucher.signer = p.payer;
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadSignature.selector, p.payer));
        collector.collect(voucher);
    }

    function testFuzz_refusesAnyChange(uint8 field, uint64 by) public {
        vm.assume(by != 0);
        VoucherCollector.Plan memory p = plan("session", 2);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, PAYER_KEY);
        field %= 7;
        if (field == 0) voucher.total += by;
        if (field == 1) voucher.chunk ^= by;
        if (field == 2) voucher.commitments ^= bytes32(uint256(by));
        if (field == 3) voucher.plan.session ^= bytes32(uint256(by));
        if (field == 4) voucher.plan.terms ^= bytes32(uint256(by));
        if (field == 5) voucher.plan.stages[1].payee = address(uint160(voucher.plan.stages[1].payee) ^ by);
        if (field == 6) voucher.plan.stages[0].weight ^= by;
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadSignature.selector, p.payer));
        collector.collect(voucher);
    }

    function test_expiryAndWindow() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, PAYER_KEY);
        uint256 end = START + 1 hours + 1 days;
        vm.warp(end + 1);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.Expired.selector, end));
        collector.collect(voucher);
        vm.warp(end);
        vm.assertEq(collector.collect(voucher), 10);
    }

    function test_anExpiryWithoutEndIsNoOverflow() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        p.expiry = type(uint64).max;
        lockFor(p, 100);
        vm.assertEq(collector.collect(item(p, 10, PAYER_KEY)), 10);
    }

    function test_stagesAreBounded() public {
        VoucherCollector.Plan memory p = plan("session", 64);
        lockFor(p, 1e18);
        vm.assertEq(collector.collect(item(p, 1e18, PAYER_KEY)), 1e18);
        VoucherCollector.Item memory voucher = item(plan("other", 1), 1, PAYER_KEY);
        voucher.plan = plan("other", 65);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadStages.selector, 65));
        collector.collect(voucher);
        voucher.plan = plan("other", 0);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadStages.selector, 0));
        collector.collect(voucher);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadStages.selector, 0));
        collector.hashPlan(voucher.plan);
    }

    function test_signersAreAuthorisedAndThawWhenRevoked() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 1e18);
        VoucherCollector.Item memory voucher = item(p, 10, SIGNER_KEY);
        address signer = vm.addr(SIGNER_KEY);
        bytes memory refusal = abi.encodeWithSelector(VoucherCollector.NotSigner.selector, p.payer, signer);
        vm.expectRevert(refusal);
        collector.collect(voucher);
        vm.prank(p.payer);
        collector.authoriseSigner(signer);
        vm.assertEq(collector.collect(voucher), 10);
        vm.startPrank(p.payer);
        vm.expectEmit(address(collector));
        emit VoucherCollector.SignerRevoked(p.payer, signer, uint64(START + 1 days));
        collector.revokeSigner(signer);
        vm.warp(START + 1 hours);
        vm.expectRevert(refusal);
        collector.revokeSigner(signer);
        vm.stopPrank();
        vm.warp(START + 1 days - 1);
        vm.assertEq(collector.collect(item(p, 20, SIGNER_KEY)), 10);
        voucher = item(p, 30, SIGNER_KEY);
        vm.warp(START + 1 days);
        vm.expectRevert(refusal);
        collector.collect(voucher);
        vm.prank(p.payer);
        collector.authoriseSigner(signer);
        vm.assertEq(collector.collect(voucher), 10);
    }

    function testFuzz_signersSpeakForTheirPayerAlone(address other) public {
        address signer = vm.addr(SIGNER_KEY);
        vm.assume(other != vm.addr(PAYER_KEY) && other != signer);
        vm.prank(vm.addr(PAYER_KEY));
        collector.authoriseSigner(signer);
        vm.assertTrue(collector.isSigner(vm.addr(PAYER_KEY), signer));
        vm.assertFalse(collector.isSigner(other, signer));
        vm.prank(other);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.NotSigner.selector, other, signer));
        collector.revokeSigner(signer);
    }

    function test_contractsSignByErc1271() public {
        Wallet wallet = new Wallet(vm.addr(SIGNER_KEY));
        VoucherCollector.Plan memory p = plan("session", 1);
        p.payer = address(wallet);
        lockFor(p, 100);
        VoucherCollector.Item memory voucher = item(p, 10, SIGNER_KEY);
        voucher.signer = address(wallet);
        vm.assertEq(collector.collect(voucher), 10);
        voucher = item(p, 20, PAYER_KEY);
        voucher.signer = address(wallet);
        vm.expectRevert(abi.encodeWithSelector(VoucherCollector.BadSignature.selector, address(wallet)));
        collector.collect(voucher);
    }

    /// An account with code (EIP-7702) still has its key.
    function test_aKeyWithCodeStillSigns() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        lockFor(p, 100);
        vm.etch(p.payer, address(new BombWallet()).code);
        vm.assertEq(collector.collect(item(p, 10, PAYER_KEY)), 10);
    }

    /// Whoever estimates gas looks for the least with which the call succeeds: then it must also have paid.
    function testFuzz_withTooLittleGasItFails(uint256 gas, bool batch) public {
        VoucherCollector.Plan memory p = plan("session", 3);
        lockFor(p, 1e18);
        VoucherCollector.Item[] memory items = new VoucherCollector.Item[](1);
        items[0] = item(p, 10, PAYER_KEY);
        bytes memory data = batch
            ? abi.encodeCall(collector.collectBatch, (items))
            : abi.encodeCall(collector.collect, (items[0]));
        // slither-disable-next-line low-level-calls
        (bool done,) = address(collector).call{gas: bound(gas, 1_000, 250_000)}(data);
        vm.assertEq(balance(p.stages[2].payee), done ? 6 : 0);
    }

    function test_aContractsSignatureIsNotJudgedWithTooLittleGas() public {
        VoucherCollector.Plan memory p = plan("session", 1);
        Wallet wallet = new Wallet(vm.addr(SIGNER_KEY));
        VoucherCollector.Item memory voucher = item(p, 10, SIGNER_KEY);
        voucher.signer = address(wallet);
        vm.prank(p.payer);
        collector.authoriseSigner(address(wallet));
        vm.expectRevert(VoucherCollector.TooLittleGas.selector);
        collector.collect{gas: 300_000}(voucher);
    }

    function test_aBatchSkipsBadItems() public {
        VoucherCollector.Item[] memory items = new VoucherCollector.Item[](9);
        for (uint256 i = 0; i < items.length; ++i) {
            VoucherCollector.Plan memory p = plan(bytes32(i + 1), 2);
            if (i == 5) p.stages[0].payee = address(0);
            if (i == 6) (p.stages[0].weight, p.stages[1].weight) = (0, 0);
            if (i != 3) lockFor(p, 1e18);
            items[i] = item(p, 100, i == 1 ? SIGNER_KEY : PAYER_KEY);
        }
        items[2].signature[7] ^= 0x01;
        items[4] = items[0];
        items[7].plan.stages = new Stage[](0);
        bytes[9] memory reasons;
        reasons[1] = abi.encodeWithSelector(
            VoucherCollector.NotSigner.selector, vm.addr(PAYER_KEY), vm.addr(SIGNER_KEY)
        );
        reasons[2] = abi.encodeWithSelector(VoucherCollector.BadSignature.selector, vm.addr(PAYER_KEY));
        reasons[3] = abi.encodeWithSelector(SessionEscrow.NothingLocked.selector);
        reasons[4] = abi.encodeWithSelector(SessionEscrow.NothingDue.selector, 100, 100);
        reasons[5] = abi.encodeWithSelector(SessionEscrow.ZeroAddress.selector);
        reasons[6] = abi.encodeWithSelector(Split.NoWeights.selector);
        reasons[7] = abi.encodeWithSelector(VoucherCollector.BadStages.selector, 0);
        for (uint256 i = 0; i < items.length; ++i) {
            if (reasons[i].length == 0) continue;
            vm.expectEmit(address(collector));
            emit VoucherCollector.Skipped(i, items[i].plan.session, items[i].plan.payer, reasons[i]);
        }
        vm.assertEq(collector.collectBatch(items), 200);
        vm.assertEq(balance(items[0].plan.stages[0].payee), 2 * uint256(33));
    }

    function hostileBatch(address wallet) internal {
        VoucherCollector.Item[] memory items = new VoucherCollector.Item[](3);
        for (uint256 i = 0; i < items.length; ++i) {
            VoucherCollector.Plan memory p = plan(bytes32(i + 1), 1);
            if (i == 1) p.payer = wallet;
            lockFor(p, 1e18);
            items[i] = item(p, 100, PAYER_KEY);
            if (i == 1) items[i].signer = wallet;
        }
        uint256 before = gasleft();
        vm.assertEq(collector.collectBatch{gas: 3_000_000}(items), 200);
        vm.assertLe(before - gasleft(), 1_000_000);
    }

    function test_aWalletThatAnswersWithABombHoldsUpNobody() public {
        hostileBatch(address(new BombWallet()));
    }

    function test_aWalletThatBurnsGasHoldsUpNobody() public {
        hostileBatch(address(new BurningWallet()));
    }

    function test_refusesBadConfigs() public {
        vm.expectRevert(VoucherCollector.BadConfig.selector);
        new VoucherCollector(s.escrow, 0);
        // The escrow's thaw must be longer than the window, not as long.
        vm.expectRevert(VoucherCollector.BadConfig.selector);
        new VoucherCollector(s.escrow, 3 days);
        new VoucherCollector(s.escrow, 3 days - 1);
    }
}
