//! What `ledger/artifacts` says of the contracts, as Rust: calls, answers, events and errors.

use ethers_contract::abigen;

abigen!(AccessManager, "artifacts/AccessManager.json");
abigen!(AuditManager, "artifacts/AuditManager.json");
abigen!(AuditorSet, "artifacts/AuditorSet.json");
abigen!(Beacon, "artifacts/Beacon.json");
abigen!(DisputeGame, "artifacts/DisputeGame.json");
abigen!(Int8Referee, "artifacts/Int8Referee.json");
abigen!(ModelRegistry, "artifacts/ModelRegistry.json");
abigen!(NodeRegistry, "artifacts/NodeRegistry.json");
abigen!(PODToken, "artifacts/PODToken.json");
abigen!(PodGovernor, "artifacts/PodGovernor.json");
abigen!(RewardDistributor, "artifacts/RewardDistributor.json");
abigen!(SessionEscrow, "artifacts/SessionEscrow.json");
abigen!(StakeManager, "artifacts/StakeManager.json");
abigen!(TimelockController, "artifacts/TimelockController.json");
abigen!(TraceJudge, "artifacts/TraceJudge.json");
abigen!(VoucherCollector, "artifacts/VoucherCollector.json");

// The macro above reads files that cargo does not know of: this makes a change of theirs one of this file.
const _: [&str; 16] = [
    include_str!("../../../artifacts/AccessManager.json"),
    include_str!("../../../artifacts/AuditManager.json"),
    include_str!("../../../artifacts/AuditorSet.json"),
    include_str!("../../../artifacts/Beacon.json"),
    include_str!("../../../artifacts/DisputeGame.json"),
    include_str!("../../../artifacts/Int8Referee.json"),
    include_str!("../../../artifacts/ModelRegistry.json"),
    include_str!("../../../artifacts/NodeRegistry.json"),
    include_str!("../../../artifacts/PODToken.json"),
    include_str!("../../../artifacts/PodGovernor.json"),
    include_str!("../../../artifacts/RewardDistributor.json"),
    include_str!("../../../artifacts/SessionEscrow.json"),
    include_str!("../../../artifacts/StakeManager.json"),
    include_str!("../../../artifacts/TimelockController.json"),
    include_str!("../../../artifacts/TraceJudge.json"),
    include_str!("../../../artifacts/VoucherCollector.json"),
];
